"""The shape of an Aquila model, and the rules that a shape must keep."""

from __future__ import annotations

from typing import Literal

import msgspec

from flagperf.errors import UsageError
from flagperf.schema.decoder import Decoder

Rotary = Literal["interleaved", "half"]


class AquilaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of one model: a pre-norm decoder with RMSNorm, rotary positions, SwiGLU and untied embeddings.

    `kv_heads` is as many as `heads` unless given. `ffn_hidden` follows from `dim`, `ffn_multiplier` and `multiple_of`
    unless given; `ffn` is the result.
    `rotary` names the convention of the pairs that turn together: Aquila v1 pairs neighbours ("interleaved"),
    Aquila2 pairs element i with i + head_dim/2 ("half"). Raises UsageError for a shape that can't exist.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int = 0
    vocab_size: int
    seq_len: int
    multiple_of: int = 256
    ffn_multiplier: float | None = None
    ffn_hidden: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rotary: Rotary = "interleaved"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "vocab_size", "seq_len", "multiple_of"):
            _positive(name, getattr(self, name))
        if self.kv_heads == 0:
            msgspec.structs.force_setattr(self, "kv_heads", self.heads)
        _positive("kv_heads", self.kv_heads)
        for name in ("ffn_hidden", "ffn_multiplier"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("norm_eps", "rope_theta", "init_std"):
            _positive(name, getattr(self, name))
        if self.rotary not in ("interleaved", "half"):
            raise UsageError(f"rotary is {self.rotary!r}", "Use 'interleaved' (Aquila v1) or 'half' (Aquila2).")
        if self.dim % self.heads:
            raise UsageError(
                f"dim {self.dim} doesn't divide into {self.heads} heads", "Make dim a multiple of the number of heads."
            )
        if self.head_dim % 2:
            raise UsageError(
                f"dim {self.dim} over {self.heads} heads makes an odd head dimension, {self.head_dim}",
                "Rotary positions turn pairs: dim / heads must be even.",
            )
        if self.heads % self.kv_heads:
            raise UsageError(
                f"{self.heads} heads can't share {self.kv_heads} KV heads equally",
                "Make heads a multiple of kv_heads (kv_heads equal to heads is plain multi-head attention).",
            )

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.dim // self.heads

    @property
    def ffn(self) -> int:
        """Hidden size of the feed-forward: 8·dim/3, times the multiplier, rounded up to `multiple_of`, unless given."""
        if self.ffn_hidden is not None:
            return self.ffn_hidden
        hidden = int(8 * self.dim / 3)
        if self.ffn_multiplier is not None:
            hidden = int(hidden * self.ffn_multiplier)
        return -(-hidden // self.multiple_of) * self.multiple_of

    @property
    def decoder(self) -> Decoder:
        """The same in the terms that engines with model code of their own are told."""
        return Decoder(
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            ffn=self.ffn,
            vocab_size=self.vocab_size,
            seq_len=self.seq_len,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            rotary_interleaved=self.rotary == "interleaved",
        )


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name} is {value}", f"{name} must be greater than zero.")
