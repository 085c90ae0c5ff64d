"""The Aquila decoder in plain torch: what every engine that doesn't bring a model of its own trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .config import AquilaConfig
from .kernels import RotaryTable, linear_cross_entropy, rms_norm, split_rotate, swiglu


class RMSNorm(nn.Module):
    """RMSNorm, computed in fp32; the output has the type that the next matrix product computes in."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, _product_dtype(x))


def _product_dtype(x: Tensor) -> torch.dtype:
    """Type that matrix products on x compute in: autocast's where it's on, although the residual stream stays fp32."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype


class Attention(nn.Module):
    """Causal self-attention; `qkv` holds the rows of all query heads, then all key heads, then all value heads."""

    def __init__(self, config: AquilaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.qkv = nn.Linear(config.dim, (self.heads + 2 * self.kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        q, k, v = split_rotate(self.qkv(x), table, self.heads, self.kv_heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads != self.heads)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU; `gate_up` holds the gate's rows, then the up projection's."""

    def __init__(self, config: AquilaConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(swiglu(x, self.gate_up.weight))
        return out


class Block(nn.Module):
    """One decoder layer: what FSDP shards and what recomputation forgets and computes again."""

    def __init__(self, config: AquilaConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # Nothing here draws random numbers, so there is no generator's state to restore.
            out: Tensor = checkpoint(self._layer, x, table, use_reentrant=False, preserve_rng_state=False)
            return out
        return self._layer(x, table)

    def _layer(self, x: Tensor, table: RotaryTable) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class Aquila(nn.Module):
    """Decoder-only language model of the given shape; `recompute` drops each block's activations until backward.

    Parameters are left as torch makes them: see `weights.fill` for the canonical ones. The model may be built on the
    meta device and materialised later, since it has no buffers.
    """

    def __init__(self, config: AquilaConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        embedding = torch.empty(config.vocab_size, config.dim)
        if not embedding.is_meta:  # where random numbers, of no use, would cost two seconds of imports
            nn.init.normal_(embedding)
        self.embed = nn.Embedding.from_pretrained(embedding, freeze=False)  # type: ignore[no-untyped-call]
        self.blocks = nn.ModuleList(Block(config, recompute=recompute) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._tables: dict[tuple[torch.device, int], RotaryTable] = {}

    def rotary_table(self, seq_len: int, device: torch.device) -> RotaryTable:
        """Angles of the first `seq_len` positions on `device`, made once and kept outside the state dict."""
        if (device, seq_len) not in self._tables:
            config = self.config
            # Made for training even when first asked for under inference_mode, whose tensors autograd refuses.
            with torch.inference_mode(False):
                self._tables[device, seq_len] = RotaryTable(
                    seq_len, config.head_dim, config.rope_theta, config.rotary == "interleaved", device
                )
        return self._tables[device, seq_len]

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [B, S, V] of tokens [B, S]; given targets [B, S], their mean cross-entropy, a scalar in fp32."""
        table = self.rotary_table(tokens.shape[1], tokens.device)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, table)
        x = self.norm(x)
        if targets is None:
            logits: Tensor = self.output(x)
            return logits
        return linear_cross_entropy(x.flatten(0, 1), self.output.weight, targets.flatten())
