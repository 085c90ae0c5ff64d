"""Run a script that was written for BMTrain on CUDA: `python -m flagperf.engines.bmtrain SCRIPT [ARGUMENTS]`.

Under torchrun, `-m flagperf.engines.bmtrain SCRIPT` in place of the script; without, as one process. The script and
the modules beside it are rewritten as BMTrain itself is.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType

import torch

from flagperf.errors import FlagPerfError

from . import enable, shut_down
from .rewrite import RewritingLoader


def main() -> int:
    """Run the script in this process; return the exit status if it can't be run."""
    parser = argparse.ArgumentParser(prog="python -m flagperf.engines.bmtrain", description="Run a BMTrain script.")
    parser.add_argument("--device", default="cpu", help="torch's device type: cpu, npu, cuda … (default: cpu)")
    parser.add_argument("--backend", default="gloo", help="torch.distributed backend (default: gloo)")
    parser.add_argument("--plugin", default="", help="module to import so that torch knows the device or the backend")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.script.is_file():
        parser.error(f"{options.script} is no file")
    for name in ("RANK", "LOCAL_RANK"):
        os.environ.setdefault(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.setdefault(name, "1")
    folder = options.script.resolve().parent
    sys.argv = [str(options.script), *options.arguments]
    sys.path.insert(0, str(folder))
    try:
        if options.plugin:
            importlib.import_module(options.plugin)
        layer = enable(torch.device(options.device), options.backend)
    except FlagPerfError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    try:
        if layer is None:
            runpy.run_path(str(options.script), run_name="__main__")
        else:
            layer.finder.folders.append(folder)
            script = ModuleType("__main__")
            script.__file__ = str(options.script)
            sys.modules["__main__"] = script  # the script's own classes are looked up there when they are pickled
            RewritingLoader("__main__", str(options.script), layer.finder).exec_module(script)
            vars(script).clear()  # with what it holds of groups and communicators
    finally:
        shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
