"""A prefix cache: keys and values of prompts' beginnings, kept for prompts that begin alike.

Prompts are cut into blocks; a block is known by itself and all that stands before it. When there is no more room, the
block that has been unused for longest goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from flagperf.inference.worker import tensor_bytes

BLOCK = 16
"""Tokens."""


class PrefixCache:
    """Blocks of the cache's rows, by the tokens up to their end."""

    def __init__(self, room: int) -> None:
        self.room = room
        """Bytes that blocks may take."""
        self.bytes = 0
        self._blocks: OrderedDict[tuple[int, ...], list[torch.Tensor]] = OrderedDict()
        self._asked = self._known = 0

    def restore(self, prompt: Sequence[int], row: Sequence[torch.Tensor]) -> int:
        """Copy what is known of a prompt's beginning into a row; return how many tokens that is.

        At least one token is left to read: without it there would be nothing to go on from. `row` is
        a [2·kv_heads, P, head_dim] a layer.
        """
        self._asked += len(prompt)
        end = 0
        while end + BLOCK < len(prompt):
            key = tuple(prompt[: end + BLOCK])
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            for target, source in zip(row, block, strict=True):
                target[:, end : end + BLOCK] = source
            end += BLOCK
        self._known += end
        return end

    def keep(self, prompt: Sequence[int], row: Sequence[torch.Tensor]) -> None:
        """Keep the blocks of a prompt that has been read."""
        for end in range(BLOCK, len(prompt) + 1, BLOCK):
            key = tuple(prompt[:end])
            if key not in self._blocks:
                block = self._blocks[key] = [each[:, end - BLOCK : end].clone() for each in row]
                self.bytes += tensor_bytes(block)
        while self.bytes > self.room:
            _, gone = self._blocks.popitem(last=False)
            self.bytes -= tensor_bytes(gone)

    def facts(self) -> dict[str, object]:
        """Return how much of what was asked was known."""
        return {"prefix_blocks": len(self._blocks), "prefix_known": self._known / self._asked if self._asked else None}
