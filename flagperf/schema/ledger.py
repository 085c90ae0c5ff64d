"""An engine's ledger of memory: what one of its ranks holds, as data, so that a case can predict a trial's memory."""

from __future__ import annotations

from typing import Literal

import msgspec

ACCUMULATED = "accumulated"
"""In `Holding.when`, beside the layout's keys: whether gradients of more than one micro-batch are added up."""


class Holding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of buffer: so many bytes for each element of what it is made for."""

    what: Literal["weights", "gradients", "optimizer", "offloaded"]
    """`offloaded` is on the host."""
    bytes: dict[str, float]
    """By the trial's dtype; where a dtype isn't named there is no such buffer."""
    of: Literal["parameters", "matrices", "blocks", "block", "unit", "largest"] = "parameters"
    """All parameters of the rank's model shard; those of its matrix products; those in blocks; of one block; of the
    larger of a block and of what is outside of blocks, where these are gathered whole; or the largest parameter."""
    times: float = 1.0
    """How many there are at once, never more than there are parameters."""
    sharded: bool = False
    """Whether the data-parallel ranks divide it among themselves."""
    when: dict[str, list[int]] = {}
    """Layout keys, or `accumulated`, each with the values for which it is there."""
    since: Literal["start", "backward", "end"] = "start"
    """From when in a step: its start, the start of the backward pass, when activations are most, or only its end, when
    they are gone."""
    why: str = ""


class Activations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a block of the engine's model keeps of each token for the backward pass, in multiples of a width.

    The defaults are those of the task's own model; an engine that brings a model of its own says what that one keeps.
    """

    stream: float = 2.0
    """Of the residual stream, in `stream_bytes`."""
    normed: float = 2.0
    """Of the model's width in the compute type: what norms give out."""
    mixed: float = 1.0
    """Of the query heads' width in the compute type: what attention gives out."""
    rotated: float = 1.0
    """Of the width of queries, keys and values together."""
    hidden: float = 3.0
    """Of the feed-forward's hidden width."""
    stream_bytes: dict[str, int] = {}
    """Of an element of the residual stream, by dtype; where a dtype isn't named, as wide as the compute type."""
    logits: dict[str, float] = {}
    """Bytes of each logit at the loss's fullest, by dtype, for a loss that makes all logits at once; empty for the
    task's own, which makes them chunk by chunk."""


class Ledger(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine's rank holds at the peak of a step."""

    holds: list[Holding] = []
    activations: Activations = Activations()
    holds_of: str = ""
    """Engine whose holdings these are too; `Registries.ledger` puts them in."""
    activations_of: str = ""
    """Engine whose model keeps the same of each token."""


_FP32 = {"fp32": 4.0, "bf16": 4.0, "fp16": 4.0}

WHOLE = Ledger(
    holds=[
        Holding(what="weights", bytes=_FP32),
        Holding(
            what="weights",
            bytes={"bf16": 2.0, "fp16": 2.0},
            of="matrices",
            why="autocast's copies, alive from a product's forward pass to its backward pass",
        ),
        Holding(what="gradients", bytes=_FP32),
        Holding(what="optimizer", bytes={dtype: 2 * size for dtype, size in _FP32.items()}, why="Adam's two moments"),
    ],
    activations=Activations(stream_bytes={dtype: int(size) for dtype, size in _FP32.items()}),
)
"""Of an engine that keeps everything in fp32, shards nothing and computes under autocast; and of one that says nothing
of its memory."""
