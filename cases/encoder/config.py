"""The shape of an encoder, and the rules that a shape must keep."""

from __future__ import annotations

import msgspec

from flagperf.errors import UsageError


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of one model. Raises UsageError for one that can't exist."""

    dim: int
    layers: int
    heads: int
    ffn: int
    vocab_size: int
    seq_len: int
    classes: int = 2
    norm_eps: float = 1e-12
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "ffn", "vocab_size", "seq_len"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.classes < 2:
            raise UsageError(f"classes is {self.classes}; there must be at least 2 to choose from.")
        if self.dim % self.heads:
            raise UsageError(f"dim {self.dim} doesn't divide into {self.heads} heads.")
