"""Importing Megatron: without torch's compiler where none of what it compiles is used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import needs

ASK = """
import sys, torch
compile_ = torch.compile
import flagperf.engines.{engine}.engine
assert torch.compile is compile_
sys.exit("torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Megatron compiles what it fuses")
@pytest.mark.parametrize("engine", ["megatron", "megatron_deepspeed"])
def test_the_compiler_is_not_imported(engine: str) -> None:
    needs(*(name.replace("megatron", "megatron-core") for name in engine.split("_")))
    done = subprocess.run([sys.executable, "-c", ASK.format(engine=engine)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
