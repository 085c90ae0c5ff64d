"""A prefix cache: keys and values of prompts' beginnings, kept for prompts that begin alike.

Prompts are cut into blocks; a block is known by itself and all that stands before it. When there is no more room, the
block that has been unused for longest goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

BLOCK = 16
"""Tokens."""


class PrefixCache:
    """Blocks of the cache's rows, by the tokens up to their end."""

    def __init__(self, room: int) -> None:
        self.room = room
        """Bytes that blocks may take."""
        self.bytes = 0
        self._blocks: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._asked = self._known = 0

    def restore(self, prompt: Sequence[int], row: torch.Tensor) -> int:
        """Copy what is known of a prompt's beginning into a row; return how many tokens that is.

        At least one token is left to read: without it there would be nothing to go on from. `row` is
        [layers, 2·kv_heads, P, head_dim].
        """
        self._asked += len(prompt)
        end = 0
        while end + BLOCK < len(prompt):
            key = tuple(prompt[: end + BLOCK])
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            row[:, :, end : end + BLOCK] = block
            end += BLOCK
        self._known += end
        return end

    def keep(self, prompt: Sequence[int], row: torch.Tensor) -> None:
        """Keep the blocks of a prompt that has been read."""
        for end in range(BLOCK, len(prompt) + 1, BLOCK):
            key = tuple(prompt[:end])
            if key not in self._blocks:
                block = self._blocks[key] = row[:, :, end - BLOCK : end].clone()
                self.bytes += block.nbytes
        while self.bytes > self.room:
            _, gone = self._blocks.popitem(last=False)
            self.bytes -= gone.nbytes

    def facts(self) -> dict[str, object]:
        """Return how much of what was asked was known."""
        return {"prefix_blocks": len(self._blocks), "prefix_known": self._known / self._asked if self._asked else None}
