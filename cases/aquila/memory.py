"""Memory of training an Aquila model, a rank, in bytes: the engine's ledger × the model's shape. No torch.

Activations follow Korthikanti et al. (2205.05198), section 4, for this decoder: flash attention, no dropout. What the
allocator wastes, a context's own memory and communicators' buffers aren't in any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from flagperf.schema.estimate import Estimate
from flagperf.schema.layout import Layout
from flagperf.schema.ledger import ACCUMULATED, WHOLE, Activations, Ledger

from .config import AquilaConfig
from .formulas import layer_matrix_parameters, loss_chunk, parameters, training_flops_per_token

if TYPE_CHECKING:
    from flagperf.schema.trial import Trial

Since = Literal["start", "backward", "end"]
_MOMENTS: list[Since] = ["start", "backward", "end"]
_COMPUTE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Shard(msgspec.Struct, frozen=True):
    """Parameters of the model-parallel rank that has most: the last pipeline stage's, which has the output and a norm
    where the first has the embedding."""

    parameters: float
    matrices: float
    """Of products: without norms and input embedding."""
    blocks: float
    block: float
    unit: float
    """The larger of a block and what is outside of blocks."""
    largest: float
    """Of any one parameter."""


def shard(config: AquilaConfig, layout: Layout) -> Shard:
    """Return the most loaded rank's parameters; tensor-parallel ranks divide matrices and embeddings, not norms."""
    layers = config.layers / layout.pp
    block_matrices = layer_matrix_parameters(config) / layout.tp
    block = block_matrices + 2 * config.dim
    vocabulary = config.vocab_size * config.dim / layout.tp
    outside = vocabulary * (2 if layout.pp == 1 else 1) + config.dim
    return Shard(
        parameters=layers * block + outside,
        matrices=layers * block_matrices + vocabulary,
        blocks=layers * block,
        block=block,
        unit=max(block, outside),
        largest=max(vocabulary, config.ffn * config.dim / layout.tp),
    )


class StateBytes(msgspec.Struct, frozen=True):
    """What a rank holds beside activations, by what it is for; `offloaded` is on the host."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    offloaded: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer


def state_bytes(
    config: AquilaConfig,
    ledger: Ledger = WHOLE,
    *,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    dtype: str = "fp32",
    ranks: int = 1,
    micro_batches: int = 1,
    until: Since = "end",
) -> StateBytes:
    """Return the sum of an engine's holdings up to a moment of the step; `ranks` are of one data-parallel group."""
    model = shard(config, layout)
    state = {key: int(getattr(layout, key) or 0) for key in layout.__struct_fields__}
    state[ACCUMULATED] = int(micro_batches > 1)
    sums = dict.fromkeys(StateBytes.__struct_fields__, 0.0)
    for holding in ledger.holds:
        if _MOMENTS.index(holding.since) <= _MOMENTS.index(until) and all(
            state[key] in values for key, values in holding.when.items()
        ):
            elements = min(model.parameters, holding.times * float(getattr(model, holding.of)))
            share = elements / ranks if holding.sharded else elements
            sums[holding.what] += share * holding.bytes.get(dtype, 0.0)
    return StateBytes(**sums)


def layer_activation_bytes(
    config: AquilaConfig,
    *,
    micro_batch: int,
    dtype: str = "fp32",
    kept: Activations = WHOLE.activations,
    layout: Layout = Layout(),  # noqa: B008
) -> float:
    """Bytes that one block's forward keeps for its backward, for `micro_batch` sequences.

    The task's own model keeps of a token: the residual stream twice (as each norm's input) and each norm's scale; in
    the compute type both norms' outputs, q, k, v, attention's output, gate, up, and their product; and attention's
    log-sum-exp, 4 bytes a head. Tensor-parallel ranks divide what is between a block's products, and with sequence
    parallelism the rest as well.
    """
    copy = _COMPUTE_BYTES[dtype]
    qkv = config.dim + 2 * config.kv_heads * config.head_dim
    whole = config.dim * (kept.stream * kept.stream_bytes.get(dtype, copy) + kept.normed * copy) + 4 * 2
    divided = (kept.rotated * qkv + kept.mixed * config.dim + kept.hidden * config.ffn) * copy + 4 * config.heads
    token = whole / (layout.tp if layout.sp else 1) + divided / layout.tp
    return float(micro_batch * config.seq_len * token)


def logits_bytes(config: AquilaConfig, *, tokens: int, chunk: int | None = None, element_bytes: float = 4) -> float:
    """Bytes of one copy of the logits of `tokens` tokens, or of `chunk` of them where the loss goes chunk by chunk."""
    return float(min(tokens, chunk or tokens) * config.vocab_size * element_bytes)


def loss_bytes(config: AquilaConfig, *, tokens: int, dtype: str = "fp32") -> float:
    """Bytes of the chunked loss at its fullest: a chunk's logits and probabilities, and the two gradients it makes."""
    copy, chunk = _COMPUTE_BYTES[dtype], loss_chunk(tokens, config.dim, config.vocab_size)
    # Half types: the scores, their fp32 copy, the fp32 probabilities and those cast back. fp32: scores, probabilities.
    chunk_element = 8 if dtype == "fp32" else 2 + 4 + 4 + 2
    chunk_bytes = logits_bytes(config, tokens=tokens, chunk=chunk, element_bytes=chunk_element)
    return chunk_bytes + tokens * config.dim * copy + config.vocab_size * config.dim * 4.0


class ActivationBytes(msgspec.Struct, frozen=True):
    """Activations where there can be most of them."""

    loss: float
    """Where the last stage computes the loss; the gradients of this micro-batch aren't there yet."""
    backward: float
    """Where the backward pass of the last block begins."""

    @property
    def peak(self) -> float:
        """The larger."""
        return max(self.loss, self.backward)


def activation_bytes(
    config: AquilaConfig,
    *,
    micro_batch: int,
    dtype: str = "fp32",
    kept: Activations = WHOLE.activations,
    layout: Layout = Layout(),  # noqa: B008
    micro_batches: int = 1,
) -> ActivationBytes:
    """Return the activations at their peak.

    With recomputation a block keeps its input alone, and one block's activations exist at a time. The backward works
    with the gradients of SwiGLU's three hidden tensors and of the residual stream. Of a pipeline, the loss is the last
    stage's, and the backward pass the first one's, which has as many micro-batches in flight as there are stages.
    """
    tokens, copy = micro_batch * config.seq_len, _COMPUTE_BYTES[dtype]
    layer = layer_activation_bytes(config, micro_batch=micro_batch, dtype=dtype, kept=kept, layout=layout)
    stream = tokens * config.dim * kept.stream_bytes.get(dtype, copy) / (layout.tp if layout.sp else 1)
    backward = tokens * 3 * config.ffn * copy / layout.tp + 2 * stream
    # The last norm's input and output, and the ids of tokens and targets.
    loss = stream + tokens * (config.dim * copy + 16.0)
    if kept.logits:
        loss += logits_bytes(config, tokens=tokens, element_bytes=kept.logits[dtype]) / layout.tp
    else:
        loss += loss_bytes(config, tokens=tokens, dtype=dtype)
    layers, in_flight = config.layers / layout.pp, min(layout.pp, micro_batches)
    if layout.recompute:
        layer, backward = stream, layer + backward
    return ActivationBytes(loss=layers * layer + loss, backward=in_flight * layers * layer + backward)


def estimate(config: AquilaConfig, trial: Trial, ledger: Ledger) -> Estimate:
    """Predict a planned trial's size, work and memory a rank at the peak of a step, by its engine's ledger."""
    layout = trial.layout
    data_ranks = max(1, trial.ranks // layout.model_parallel)
    micro = layout.micro or max(1, trial.protocol.global_batch // data_ranks)
    micro_batches = max(1, trial.protocol.global_batch // (data_ranks * micro))
    activations = activation_bytes(
        config,
        micro_batch=micro,
        dtype=trial.dtype,
        kept=ledger.activations,
        layout=layout,
        micro_batches=micro_batches,
    )
    start, middle, end = (
        state_bytes(
            config,
            ledger,
            layout=layout,
            dtype=trial.dtype,
            ranks=data_ranks,
            micro_batches=micro_batches,
            until=moment,
        )
        for moment in _MOMENTS
    )
    # The moment with most is the peak: states that come only when activations go aren't added to these.
    state, active = max(
        [(start, activations.loss), (middle, activations.backward), (end, 0.0)], key=lambda at: at[0].total + at[1]
    )
    return Estimate(
        parameters=parameters(config),
        flops_per_token=training_flops_per_token(config),
        convention="6·(N - V·d - norms) + 12·L·S·d: full attention, nothing for recomputation",
        tokens_per_step=trial.protocol.global_batch * config.seq_len,
        weights=round(state.weights),
        gradients=round(state.gradients),
        optimizer=round(state.optimizer),
        activations=round(active),
        offloaded=round(state.offloaded),
    )
