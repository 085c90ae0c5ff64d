"""Ways to do a collective operation: `provide(message, rank)` returns what does it once, given input and result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .operations import Message

Perform = Callable[[Tensor, Tensor], Any]


def torch_distributed(message: Message, rank: int) -> Perform:
    """torch.distributed on the vendor's backend; what it can't take in place raises an error of its own."""
    return {
        "all_reduce": lambda sent, result: dist.all_reduce(result),
        "all_gather": lambda sent, result: _gather(result, sent),
        "reduce_scatter": lambda sent, result: _scatter(result, sent),
        "all_to_all": lambda sent, result: dist.all_to_all_single(result, sent),
        "broadcast": lambda sent, result: dist.broadcast(result, 0),
    }.get(message.operation) or _exchange(*message.peers(rank))


# torch 2.13 gave these two other names.
_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def _exchange(to: int | None, source: int | None) -> Perform:
    """Return what sends and receives, at once where a rank does both."""

    def both(sent: Tensor, result: Tensor) -> None:
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, result, source)]):
            work.wait()

    if to is not None and source is not None:
        return both
    if to is not None:
        return lambda sent, result: dist.send(sent, to)
    if source is not None:
        return lambda sent, result: dist.recv(result, source)
    return lambda sent, result: None
