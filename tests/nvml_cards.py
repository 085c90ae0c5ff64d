"""NVML's ABI over cards that a test describes, in a library that the real pynvml loads."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

SOURCE = Path(__file__).parent / "vendors" / "nvml" / "nvml.c"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One card, in the order of the library's file; see `nvml/nvml.c`."""

    state: int = 0
    power_mw: int = 100_000
    energy_mj: int = 0
    temperature: int = 50
    utilisation: int = 0
    memory_total_mib: int = 81920
    memory_used_mib: int = 1024
    clock: int = 1410
    memory_clock: int = 1593
    throttle: int = 0
    ecc: int = 0
    mig: int = 0
    pid: int = 0
    pid_mib: int = 0
    pid2: int = 0
    pid2_mib: int = 0
    xid: int = 0
    xid_count: int = 0


LOST, HANGS = 1, 2


class Cards:
    """The cards of a pretended host, and the environment in which programs find them."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.state = folder / "cards.txt"
        tools = folder / "tools"
        tools.mkdir()
        (tools / "nvidia-smi").write_text(
            "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n"
        )
        (tools / "nvidia-smi").chmod(0o755)
        self.environment = {
            **os.environ,
            "NVML_STATE": str(self.state),
            "LD_LIBRARY_PATH": str(library.parent),
            "PATH": f"{tools}:{os.environ['PATH']}",
        }

    def put(self, cards: Sequence[Card]) -> None:
        """Have the cards be like these from now on."""
        text = "".join(" ".join(map(str, msgspec.structs.astuple(card))) + "\n" for card in cards)
        fresh = self.state.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.state)


def build(folder: Path) -> Path:
    """Compile the library; where there is no compiler the test is skipped, but for CI."""
    compiler = shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "CI needs a C compiler"
        pytest.skip("there is no C compiler")
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return library
