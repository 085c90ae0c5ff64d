"""BMTrain's NCCL functions over torch.distributed: any backend that has the collectives will do.

On a host, what is sent on a side stream goes on in the background. It waits first for what is pending on its stream and
on its communicator, as NCCL would, and whoever waits for the stream waits for it. On another device the operations go
to the device's current stream, and its own streams order them.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from .accelerator import Pending, Stream

_SUM, _PRODUCT, _MAX, _MIN, _MEAN = range(5)  # as nccl.h numbers them
_OPERATIONS = {_SUM: ReduceOp.SUM, _PRODUCT: ReduceOp.PRODUCT, _MAX: ReduceOp.MAX, _MIN: ReduceOp.MIN}
_OPERATIONS[_MEAN] = ReduceOp.SUM  # and divided


class Address(int):
    """An address that knows its memory: what is handed to BMTrain's functions in place of a bare number.

    It keeps the memory alive as long as somebody holds it, and no one ever dereferences the number.
    """

    tensor: torch.Tensor
    """The memory from there on, one-dimensional."""

    def __new__(cls, number: int, tensor: torch.Tensor) -> Address:
        self = super().__new__(cls, number)
        self.tensor = tensor
        return self

    def elements(self, count: int) -> torch.Tensor:
        """Return the first `count` elements."""
        return self.tensor[:count]


class Communicator:
    """A group of ranks: what an NCCL communicator's handle stands for."""

    def __init__(self, group: dist.ProcessGroup | None, ranks: list[int], rank: int) -> None:
        self.group, self.ranks, self.rank = group, ranks, rank
        self.pending: list[Pending] = []

    def synchronize(self) -> None:
        """Wait for everything pending on it."""
        for operation in self.pending:
            operation.wait()
        self.pending.clear()


class Collectives:
    """The NCCL part of `bmtrain.C`, for one process."""

    def __init__(self, device: torch.device, backend: str) -> None:
        self.host, self.backend = device.type == "cpu", backend
        self._depth = 0
        self._group: list[tuple[Stream, Pending]] = []
        """What has been begun since the group began."""

    def functions(self) -> dict[str, Any]:
        """Return the functions by the names that BMTrain calls them by."""
        return {
            "ncclGetUniqueId": lambda: uuid.uuid4().bytes,
            "ncclCommInitRank": self.communicator,
            "ncclCommDestroy": lambda communicator: communicator.synchronize(),
            "ncclCommCount": lambda communicator: len(communicator.ranks),
            "ncclCommUserRank": lambda communicator: communicator.rank,
            "ncclAllReduce": self.all_reduce,
            "ncclReduce": self.reduce,
            "ncclBroadcast": self.broadcast,
            "ncclAllGather": self.all_gather,
            "ncclReduceScatter": self.reduce_scatter,
            "ncclSend": self.send,
            "ncclRecv": self.recv,
            "ncclGroupStart": self.group_start,
            "ncclGroupEnd": self.group_end,
        }

    def communicator(self, unique_id: bytes, size: int, rank: int) -> Communicator:
        """Return the communicator of `size` ranks that all call with the same id, this one as `rank` of it."""
        if not dist.is_initialized():
            world = int(os.environ.get("WORLD_SIZE", "1"))
            dist.init_process_group(self.backend, rank=int(os.environ.get("RANK", "0")), world_size=world)
        # Only members know of it, so they find each other through the store rather than by a collective.
        store = PrefixStore(f"bmtrain/{unique_id.hex()}", _get_default_store())
        store.set(str(rank), str(dist.get_rank()))
        ranks = [int(store.get(str(index))) for index in range(size)]
        if ranks == list(range(dist.get_world_size())):
            return Communicator(None, ranks, rank)
        return Communicator(dist.new_group(ranks, use_local_synchronization=True), ranks, rank)

    def group_start(self) -> None:
        """Begin a group of operations that don't wait for each other."""
        self._depth += 1

    def group_end(self) -> None:
        """End the group; what isn't on a side stream is done when this returns."""
        self._depth -= 1
        if self._depth == 0:
            group, self._group = self._group, []
            for stream, operation in group:
                if stream.main:
                    operation.wait()

    def all_reduce(
        self, source: Address, target: Address, count: int, _: int, operation: int, comm: Communicator, stream: Any
    ) -> None:
        """Reduce `count` elements over all ranks into everyone's target."""
        inputs, output = source.elements(count), target.elements(count)

        def begin(background: bool) -> Pending:
            work, finish = _working_copy(inputs, output, operation, len(comm.ranks))
            return _pending(
                dist.all_reduce(work, _OPERATIONS[operation], comm.group, async_op=background), finish, work
            )

        self._run(comm, stream, begin)

    def reduce(
        self, source: Address, target: Address, count: int, _: int, operation: int, root: int, comm: Communicator,
        stream: Any,
    ) -> None:  # fmt: skip
        """Reduce `count` elements over all ranks into the root's target."""
        inputs, output = source.elements(count), target.elements(count)

        def begin(background: bool) -> Pending:
            # Never in place: elsewhere than on the root a backend may leave anything in its buffer.
            kept = output if comm.rank == root else torch.empty_like(output)
            work, finish = _working_copy(inputs.clone(), kept, operation, len(comm.ranks))
            handle = dist.reduce(work, comm.ranks[root], _OPERATIONS[operation], group=comm.group, async_op=background)
            return _pending(handle, finish, work)

        self._run(comm, stream, begin)

    def broadcast(
        self, source: Address, target: Address, count: int, _: int, root: int, comm: Communicator, stream: Any
    ) -> None:
        """Copy the root's `count` elements to everyone's target."""
        output = target.elements(count)

        def begin(background: bool) -> Pending:
            if comm.rank == root and source != target:
                output.copy_(source.elements(count))
            handle = dist.broadcast(_bytes(output), comm.ranks[root], comm.group, async_op=background)
            return _pending(handle, None, output)

        self._run(comm, stream, begin)

    def all_gather(self, source: Address, target: Address, count: int, _: int, comm: Communicator, stream: Any) -> None:
        """Put everyone's `count` elements one behind the other into everyone's target."""
        inputs, output = source.elements(count), target.elements(count * len(comm.ranks))

        def begin(background: bool) -> Pending:
            handle = dist.all_gather_into_tensor(_bytes(output), _bytes(inputs), comm.group, async_op=background)
            return _pending(handle, None, inputs, output)

        self._run(comm, stream, begin)

    def reduce_scatter(
        self, source: Address, target: Address, count: int, _: int, operation: int, comm: Communicator, stream: Any
    ) -> None:
        """Reduce everyone's elements over all ranks; the i-th `count` of them are the i-th rank's.

        On a host each rank is sent its parts and adds them up itself, 16-bit numbers in fp32: gloo's own reduce-scatter
        can't be waited for when it runs in the background.
        """
        size = len(comm.ranks)
        inputs, output = source.elements(count * size), target.elements(count)

        def begin(background: bool) -> Pending:
            if self.host:
                parts = torch.empty_like(inputs)
                handle = dist.all_to_all_single(_bytes(parts), _bytes(inputs), group=comm.group, async_op=background)
                return _pending(handle, lambda: _reduce(parts.view(size, -1), output, operation), inputs, parts)
            handle = dist.reduce_scatter_tensor(output, inputs, _OPERATIONS[operation], comm.group, async_op=background)
            return _pending(handle, (lambda: output.div_(size)) if operation == _MEAN else None, inputs)

        self._run(comm, stream, begin)

    def send(self, source: Address, count: int, _: int, peer: int, comm: Communicator, stream: Any) -> None:
        """Send `count` elements to one rank."""
        inputs = source.elements(count)
        self._run(
            comm,
            stream,
            lambda background: _point_to_point((dist.isend if background else dist.send), inputs, peer, comm),
        )

    def recv(self, target: Address, count: int, _: int, peer: int, comm: Communicator, stream: Any) -> None:
        """Receive `count` elements from one rank."""
        output = target.elements(count)
        self._run(
            comm,
            stream,
            lambda background: _point_to_point((dist.irecv if background else dist.recv), output, peer, comm),
        )

    def _run(self, comm: Communicator, stream: Any, begin: Callable[[bool], Pending]) -> None:
        """Begin an operation when those before it are done; leave it to a side stream, or wait for it."""
        if not self.host:
            begin(False).wait()
            return
        assert isinstance(stream, Stream)
        own = [operation for _, operation in self._group]
        for order in (comm, stream):
            for earlier in order.pending:
                if earlier not in own:
                    earlier.wait()
            order.pending = [operation for operation in order.pending if operation in own]
        background = self._depth > 0 or not stream.main
        operation = begin(background)
        if not background:
            operation.wait()
            return
        if self._depth:
            self._group.append((stream, operation))
        for order in (comm, stream):
            order.pending.append(operation)


def _pending(handle: Any, finish: Callable[[], object] | None, *buffers: torch.Tensor) -> Pending:
    return Pending([] if handle is None else [handle], finish, *buffers)


def _point_to_point(function: Callable[..., Any], buffer: torch.Tensor, peer: int, comm: Communicator) -> Pending:
    """Start it in the background and return its handle, or do it and return none."""
    handle = function(_bytes(buffer), comm.ranks[peer], group=comm.group)
    return _pending(handle if hasattr(handle, "wait") else None, None, buffer)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as bytes: what is only moved needs no type that the backend knows."""
    return tensor.view(torch.uint8)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that reductions are exact enough in: fp32 for 16-bit numbers, bytes for booleans."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return _bytes(tensor) if tensor.dtype == torch.bool else tensor


def _working_copy(
    inputs: torch.Tensor, output: torch.Tensor, operation: int, size: int
) -> tuple[torch.Tensor, Callable[[], object] | None]:
    """Return what to reduce in place, and how the result gets from there into the output."""
    work = _wide(inputs)
    if work.data_ptr() == inputs.data_ptr() != output.data_ptr():
        work = _wide(output).copy_(work)
    if work.data_ptr() == output.data_ptr():
        return work, (lambda: work.div_(size)) if operation == _MEAN else None
    return work, lambda: output.copy_(work / size if operation == _MEAN else work)


def _reduce(parts: torch.Tensor, output: torch.Tensor, operation: int) -> None:
    """Reduce over the first dimension, rank by rank, so that everyone rounds alike."""
    wide = [_wide(part) for part in parts]
    if operation in (_SUM, _MEAN):
        total = functools.reduce(torch.add, wide)
        output.copy_(total / len(wide) if operation == _MEAN else total)
    else:
        combine = {_PRODUCT: torch.mul, _MAX: torch.maximum, _MIN: torch.minimum}[operation]
        output.copy_(functools.reduce(combine, wide))
