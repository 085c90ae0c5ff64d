"""A decoder-only transformer described for engines that build it from parts of their own."""

from __future__ import annotations

import msgspec


class Decoder(msgspec.Struct, frozen=True, kw_only=True):
    """Shape and names of a pre-norm decoder with RMSNorm, rotary positions, SwiGLU, no biases and untied embeddings.

    Canonical parameters, d = dim, F = ffn, D = head_dim, H = heads, K = kv_heads, i = 0 … layers - 1:

    | name | shape | rows |
    | --- | --- | --- |
    | embed.weight, output.weight | [vocab_size, d] | |
    | norm.weight, blocks.i.attention_norm.weight, blocks.i.ffn_norm.weight | [d] | |
    | blocks.i.attention.qkv.weight | [(H + 2·K)·D, d] | all query heads, all key heads, all value heads |
    | blocks.i.attention.out.weight | [d, H·D] | |
    | blocks.i.ffn.gate_up.weight | [2·F, d] | the gate's, then the up projection's |
    | blocks.i.ffn.down.weight | [d, F] | |
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab_size: int
    seq_len: int
    norm_eps: float
    rope_theta: float
    rotary_interleaved: bool
    """Whether neighbours turn together (x0, x1), or elements half a head apart (x0, x[D/2])."""

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.dim // self.heads
