"""Every formula about an Aquila model's size and work. No torch; the tests hold them to torch.

Conventions, one for the whole project:

- A multiply-add is 2 FLOPs. Matrix products and attention's two products count; norms, activations, rotation,
  softmax, embedding lookup and the optimizer don't (under 1 % in models worth training).
- A backward costs twice its forward. Work repeated by recomputation isn't a model FLOP: MFU (PaLM, 2204.02311,
  appendix B) leaves it out, HFU counts it (Korthikanti et al., 2205.05198, section 6).
- Attention counts in full unless `causal_half`, which leaves out the half that a causal kernel may skip.
"""

from __future__ import annotations

from .config import AquilaConfig


def layer_matrix_parameters(config: AquilaConfig) -> int:
    """Weights of one block's matrices: q and out, k and v, and SwiGLU's three."""
    kv_width = config.kv_heads * config.head_dim
    return 2 * config.dim**2 + 2 * config.dim * kv_width + 3 * config.dim * config.ffn


def norm_parameters(config: AquilaConfig) -> int:
    """Weights of all norms: two a block and the last one."""
    return (2 * config.layers + 1) * config.dim


def parameters(config: AquilaConfig) -> int:
    """All parameters, N = 2·V·d + L·(2·d² + 2·d·K·head_dim + 3·d·F + 2·d) + d; embeddings aren't tied."""
    embeddings = 2 * config.vocab_size * config.dim
    return embeddings + config.layers * layer_matrix_parameters(config) + norm_parameters(config)


def matrix_parameters(config: AquilaConfig) -> int:
    """Parameters that a token is multiplied with: all but the input embedding and the norms."""
    return parameters(config) - config.vocab_size * config.dim - norm_parameters(config)


def _attention_forward_flops_per_token(config: AquilaConfig, seq_len: int, causal_half: bool) -> float:
    full = 4.0 * config.layers * seq_len * config.dim
    return full / 2 if causal_half else full


def forward_flops_per_token(config: AquilaConfig, seq_len: int | None = None, causal_half: bool = False) -> float:
    """Model FLOPs of one token's forward in a sequence of `seq_len`: 2·(N − V·d − norms) + 4·L·S·d."""
    attention = _attention_forward_flops_per_token(config, seq_len or config.seq_len, causal_half)
    return 2.0 * matrix_parameters(config) + attention


def training_flops_per_token(config: AquilaConfig, seq_len: int | None = None, causal_half: bool = False) -> float:
    """Model FLOPs of one token's forward and backward: 6·(N − V·d − norms) + 12·L·S·d. The numerator of MFU."""
    return 3.0 * forward_flops_per_token(config, seq_len, causal_half)


def hardware_flops_per_token(
    config: AquilaConfig, seq_len: int | None = None, *, recompute: bool = False, causal_half: bool = False
) -> float:
    """FLOPs of one token's training step as executed; with `recompute` every block's forward runs twice.

    The output projection lies outside the blocks and isn't repeated. The numerator of HFU. By convention the whole
    block counts twice, though torch's checkpoint stops short of the last product: 2·d·F a token and layer less.
    """
    training = training_flops_per_token(config, seq_len, causal_half)
    if not recompute:
        return training
    attention = _attention_forward_flops_per_token(config, seq_len or config.seq_len, causal_half)
    return training + 2.0 * config.layers * layer_matrix_parameters(config) + attention


def recompute_factor(config: AquilaConfig, seq_len: int | None = None, causal_half: bool = False) -> float:
    """HFU ÷ MFU under full recomputation: nearly 8/6, less the output projection's share."""
    executed = hardware_flops_per_token(config, seq_len, recompute=True, causal_half=causal_half)
    return executed / training_flops_per_token(config, seq_len, causal_half)


def kv_cache_bytes_per_token(config: AquilaConfig, element_bytes: int = 2) -> int:
    """Keys and values that inference keeps for one token: 2·L·K·head_dim elements."""
    return 2 * config.layers * config.kv_heads * config.head_dim * element_bytes


def loss_chunk(rows: int, dim: int, vocab_size: int) -> int:
    """Rows of logits that the chunked loss holds at once.

    About as many numbers as the hidden states have, and at least 256 for the sake of a fast matrix product.
    """
    return min(rows, max(256, rows * dim // vocab_size))
