"""Every formula about an Aquila model: parameters, FLOPs, bytes. No torch; the tests hold them to torch.

Conventions, one for the whole project:

- A multiply-add is 2 FLOPs. Matrix products and attention's two products count; norms, activations, rotation,
  softmax, embedding lookup and the optimizer don't (under 1 % in models worth training).
- A backward costs twice its forward. Work repeated by recomputation isn't a model FLOP: MFU (PaLM, 2204.02311,
  appendix B) leaves it out, HFU counts it (Korthikanti et al., 2205.05198, section 6).
- Attention counts in full unless `causal_half`, which leaves out the half that a causal kernel may skip.
- Bytes are bytes, never MB; Ψ is the number of parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import msgspec

from flagperf.schema.estimate import Estimate

from .config import AquilaConfig

if TYPE_CHECKING:
    from flagperf.schema.trial import Trial

Precision = Literal["fp32", "bf16"]
ZeroStage = Literal[0, 1, 2, 3]
_COMPUTE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}


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


class StateBytes(msgspec.Struct, frozen=True):
    """What a rank holds between two micro-batches (weights, gradients, optimizer), in bytes."""

    weights: float
    gradients: float
    optimizer: float


def state_bytes(
    config: AquilaConfig,
    *,
    precision: Precision = "fp32",
    zero_stage: ZeroStage = 0,
    ranks: int = 1,
    micro_batches: int = 1,
) -> StateBytes:
    """State of a rank in this project's torch-native engines; n = `ranks` of the data-parallel group.

    Masters, gradients and Adam's two moments are fp32 in both precisions: 4Ψ + 4Ψ + 8Ψ. bf16 adds compute copies.

    | stage | engine | weights | gradients | optimizer |
    | --- | --- | --- | --- | --- |
    | 0 | DDP, gradients as views of its buckets | 4Ψ (bf16: + 2 × matrices) | 4Ψ | 8Ψ |
    | 1 | DDP, optimizer sharded | the same | 4Ψ | 8Ψ/n |
    | 2 | FSDP, kept gathered after the forward | 4Ψ/n + cΨ | 4Ψ/n + c·unit | 8Ψ/n |
    | 3 | FSDP, gathered a unit at a time | 4Ψ/n + 2·c·unit | 4Ψ/n + c·unit | 8Ψ/n |

    c is 2 bytes in bf16 and 4 in fp32. In stages 0 and 1 the bf16 copy is autocast's, of the matrices alone, alive from
    a product's forward to its backward. A unit is the larger of a block and the root's own parameters (embeddings,
    last norm): one is computed with while the next is gathered. With `micro_batches` accumulated before they are
    scattered, stages 2 and 3 hold whole fp32 gradients too, 4Ψ. Other engines have ledgers of their own.
    """
    psi, copy = parameters(config), _COMPUTE_BYTES[precision]
    if zero_stage < 2:
        casts = 2 * matrix_parameters(config) if precision == "bf16" else 0
        return StateBytes(4.0 * psi + casts, 4.0 * psi, 8.0 * psi / (ranks if zero_stage == 1 else 1))
    block = layer_matrix_parameters(config) + 2 * config.dim
    unit = max(block, psi - config.layers * block)
    gathered = psi if zero_stage == 2 else min(psi, 2 * unit)
    whole = 4.0 * psi if micro_batches > 1 else float(copy * unit)
    return StateBytes(4.0 * psi / ranks + copy * gathered, 4.0 * psi / ranks + whole, 8.0 * psi / ranks)


def layer_activation_bytes(
    config: AquilaConfig,
    *,
    micro_batch: int,
    seq_len: int | None = None,
    precision: Precision = "fp32",
    residual_bytes: int = 4,
) -> float:
    """Bytes that one block's forward keeps for its backward, for `micro_batch` sequences.

    A token: the residual stream twice (as each norm's input) and each norm's scale, in `residual_bytes` (4 under
    autocast, 2 under FSDP's bf16) and 4; in the compute type both norms' outputs, q, k, v, attention's output, gate,
    up, and their product; and attention's log-sum-exp, 4 bytes a head.
    In the terms of Korthikanti et al., with flash attention and without dropout: 5·d + (1 + 2·K/H)·d + 3·F elements
    plus the fp32 extras (they count 4·F, since they also keep silu(gate)).
    """
    tokens = micro_batch * (seq_len or config.seq_len)
    kv_width = config.kv_heads * config.head_dim
    elements = 2 * config.dim + (config.dim + 2 * kv_width) + config.dim + 3 * config.ffn
    statistics = 4 * (2 + config.heads)
    return float(tokens * (2 * config.dim * residual_bytes + elements * _COMPUTE_BYTES[precision] + statistics))


def logits_bytes(config: AquilaConfig, *, tokens: int, chunk: int | None = None, element_bytes: int = 4) -> float:
    """Bytes of one copy of the logits of `tokens` tokens, or of `chunk` of them where the loss goes chunk by chunk."""
    return float(min(tokens, chunk or tokens) * config.vocab_size * element_bytes)


def loss_chunk(rows: int, dim: int, vocab_size: int) -> int:
    """Rows of logits that the chunked loss holds at once.

    About as many numbers as the hidden states have, and at least 256 for the sake of a fast matrix product.
    """
    return min(rows, max(256, rows * dim // vocab_size))


def loss_bytes(config: AquilaConfig, *, tokens: int, precision: Precision = "fp32") -> float:
    """Bytes of the chunked loss at its fullest: a chunk's logits and probabilities, and the two gradients it makes."""
    copy, chunk = _COMPUTE_BYTES[precision], loss_chunk(tokens, config.dim, config.vocab_size)
    # bf16: the scores, their fp32 copy, the fp32 probabilities and those cast back. fp32: scores and probabilities.
    chunk_element = 8 if precision == "fp32" else 2 + 4 + 4 + 2
    chunk_bytes = logits_bytes(config, tokens=tokens, chunk=chunk, element_bytes=chunk_element)
    return chunk_bytes + tokens * config.dim * copy + config.vocab_size * config.dim * 4.0


def activation_bytes(
    config: AquilaConfig,
    *,
    micro_batch: int,
    seq_len: int | None = None,
    precision: Precision = "fp32",
    residual_bytes: int = 4,
    recompute: bool = False,
) -> float:
    """Bytes of activations at their peak: where the loss is computed, or where the backward of the last block begins.

    With `recompute` a block keeps its input alone, and one block's activations exist at a time. The backward works with
    the gradients of SwiGLU's three hidden tensors and of the residual stream. What the allocator wastes isn't in it.
    """
    tokens, copy = micro_batch * (seq_len or config.seq_len), _COMPUTE_BYTES[precision]
    layer = layer_activation_bytes(
        config, micro_batch=micro_batch, seq_len=seq_len, precision=precision, residual_bytes=residual_bytes
    )
    stream = float(tokens * config.dim * residual_bytes)
    backward = float(tokens * 3 * config.ffn * copy) + 2 * stream
    # The last norm's input and output, and the ids of tokens and targets.
    loss = stream + tokens * (config.dim * copy + 16.0) + loss_bytes(config, tokens=tokens, precision=precision)
    if recompute:
        return config.layers * stream + max(loss, layer + backward)
    return config.layers * layer + max(loss, backward)


class MemoryEstimate(msgspec.Struct, frozen=True):
    """Bytes a rank needs at the peak of a training step, by what they're for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """The sum; context, communicator buffers and fragmentation come on top and differ by chip."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_estimate(
    config: AquilaConfig,
    *,
    micro_batch: int,
    seq_len: int | None = None,
    precision: Precision = "fp32",
    zero_stage: ZeroStage = 0,
    ranks: int = 1,
    micro_batches: int = 1,
    recompute: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of a training step on one rank of the torch-native engines: see the parts' functions.

    The residual stream is fp32 under DDP's autocast (stages 0 and 1) and of the compute type under FSDP.
    """
    state = state_bytes(config, precision=precision, zero_stage=zero_stage, ranks=ranks, micro_batches=micro_batches)
    activations = activation_bytes(
        config,
        micro_batch=micro_batch,
        seq_len=seq_len,
        precision=precision,
        residual_bytes=4 if zero_stage < 2 else _COMPUTE_BYTES[precision],
        recompute=recompute,
    )
    return MemoryEstimate(state.weights, state.gradients, state.optimizer, activations)


def estimate(config: AquilaConfig, trial: Trial) -> Estimate:
    """Predict a planned trial's size, work and memory a rank.

    Model-parallel ranks are taken to split states and activations evenly; a ZeRO stage left open counts as none.
    Half precision other than bf16 counts as bf16.
    """
    layout, split = trial.layout, trial.layout.model_parallel
    data_ranks = max(1, trial.ranks // split)
    micro = layout.micro or max(1, trial.protocol.global_batch // data_ranks)
    memory = memory_estimate(
        config,
        micro_batch=micro,
        precision="fp32" if trial.dtype == "fp32" else "bf16",
        zero_stage=cast(ZeroStage, layout.zero or 0),
        ranks=data_ranks,
        micro_batches=max(1, trial.protocol.global_batch // (data_ranks * micro)),
        recompute=layout.recompute,
    )
    return Estimate(
        parameters=parameters(config),
        flops_per_token=training_flops_per_token(config),
        convention="6·(N - V·d - norms) + 12·L·S·d: full attention, nothing for recomputation",
        tokens_per_step=trial.protocol.global_batch * config.seq_len,
        weights=round(memory.weights / split),
        gradients=round(memory.gradients / split),
        optimizer=0 if layout.offload else round(memory.optimizer / split),
        activations=round(memory.activations / split),
    )
