"""Engine `inductor`: the project's own model, compiled by torch.compile."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

import torch
import torch._inductor.config

from flagperf import paths
from flagperf.inference.engine import Function, ModuleEngine

LEAST_COMPILER = 11
"""Major version of g++, or of clang, that knows every instruction set torch generates code for on x86."""


class Inductor(ModuleEngine):
    """Sizes that change are marked, so that a graph serves every number of rows and of positions but one.

    torch makes a graph of its own for one row; both are made before the first query. Prompts are read by the plain
    module, as is usual: large products take their time, and little of what is between them could be saved.
    """

    functional = False
    reads_prompts = False

    def compile(
        self, module: torch.nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Mapping[int, Sequence[int]]
    ) -> Function:
        """Return the module, compiled when it's first called; generated code is kept in FlagPerf's cache."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.cache() / "inductor"))
        if torch._inductor.config.cpp.vec_isa_ok is None and _compiler_version() >= LEAST_COMPILER:
            torch._inductor.config.cpp.vec_isa_ok = True  # else torch tries the compiler out, on ten small programs
        compiled = torch.compile(module, fullgraph=True, dynamic=False)

        def run(*arguments: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            for place, dimensions in dynamic.items():
                for dimension in dimensions:
                    if arguments[place].shape[dimension] > 1:
                        torch._dynamo.mark_dynamic(arguments[place], dimension)
            made: torch.Tensor | tuple[torch.Tensor, ...] = compiled(*arguments)
            return made

        return run


def _compiler_version() -> int:
    """Return the major version of the compiler that torch calls, 0 if it doesn't say."""
    try:
        told = subprocess.run(
            [os.environ.get("CXX", "g++"), "-dumpversion"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return int(told.stdout.partition(".")[0])
    except (OSError, ValueError):
        return 0
