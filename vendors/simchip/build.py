"""Builds the device once from `device/` with the host's C++ compiler, and keeps it in FlagPerf's cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from flagperf import paths
from flagperf.errors import FlagPerfError, Unavailable

SOURCES = Path(__file__).parent / "device"
_NAME = "_simchip"
_TIMEOUT = 900.0


def compiler() -> str | None:
    """Return the host's C++ compiler, the one that CXX names if it's set."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def library() -> Path:
    """Return where the built library is, or is to be: by its sources, torch, Python and processor."""
    key = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        key.update(path.name.encode() + b"\0" + path.read_bytes())
    told = [importlib.metadata.version("torch"), sys.implementation.cache_tag, platform.machine()]
    key.update("\0".join(map(str, told)).encode())
    return paths.cache() / "simchip" / key.hexdigest()[:16] / f"{_NAME}.so"


def build() -> Path:
    """Return the library, built if it isn't there; another process that builds it is waited for."""
    target = library()
    if target.exists():
        return target
    if (program := compiler()) is None:
        raise Unavailable(
            "The simulated device has to be built, and there is no C++ compiler.",
            "Install one, for example: apt-get install g++. Or say where it is by CXX=…",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            print("Building the simulated device: once, half a minute of one core …", file=sys.stderr, flush=True)
            _compile(program, target)
    return target


def load() -> ModuleType:
    """Import the library."""
    spec = importlib.util.spec_from_file_location(_NAME, build())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(program: str, target: Path) -> None:
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    command = [
        *(program, "-O1", "-std=c++20", "-shared", "-fPIC", "-w", f"-DTORCH_EXTENSION_NAME={_NAME}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-I{folder}" for folder in [*include_paths(), sysconfig.get_path("include")]),
        str(SOURCES / "simchip.cpp"),
        *(f"-L{folder}" for folder in library_paths()),
        *("-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10", "-o", str(temporary)),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            complaints = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [done.stderr[-500:]]
            raise FlagPerfError(
                f"The simulated device can't be built: {program} ended with status {done.returncode}.",
                "\n".join(complaints[:5]),
            )
        temporary.replace(target)
    except subprocess.TimeoutExpired:
        raise FlagPerfError(f"Building the simulated device took more than {_TIMEOUT:.0f} s.") from None
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    print(build())
