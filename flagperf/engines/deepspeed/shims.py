"""What DeepSpeed is given so that it runs where it was not made for, and why. Nothing is changed on disk."""

from __future__ import annotations

import logging
import os

import torch

from flagperf.errors import FlagPerfError
from flagperf.paths import cache


def prepare(device: torch.device) -> list[str]:
    """Prepare this process for DeepSpeed, before torch.distributed is up; return what was changed, for the facts.

    Raises FlagPerfError where DeepSpeed has no accelerator for the device's type.
    """
    # DeepSpeed would guess by what is importable: a CPU run on a machine with a GPU would be a GPU run.
    os.environ["DS_ACCELERATOR"] = device.type
    # What DeepSpeed compiles, if anything, is kept with the rest of ours; its default is one folder in /tmp for all.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache() / "torch_extensions"))
    try:
        import deepspeed
    except ValueError as error:
        raise FlagPerfError(
            f"DeepSpeed has no accelerator for the device type {device.type!r}: {error}",
            "Use an engine of torch's own (ddp, fsdp), or get a DeepSpeed that knows this device.",
        ) from error
    # Hundreds of lines about its configuration would bury what a rank has to say.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type != "cpu":
        return []
    # DeepSpeed would build this operator with g++ when it starts (half a minute), and die where there is none.
    # Without it collectives go to the backend, as every other engine's do; the results are the same to the bit.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return ["shared-memory operator bypassed: no compiler needed, collectives go through torch.distributed"]
