"""Memory of this process, as the kernel counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_SHORT = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|OutOfMemory", re.I)


def short_of_memory(error: Exception) -> bool:
    """Whether an error is for want of memory, the host's or a device's, by its type or by what it says."""
    return isinstance(error, MemoryError) or _SHORT.search(f"{type(error).__name__}: {error}") is not None


def process_memory() -> tuple[int | None, int | None]:
    """Return the peak resident set and the present proportional set of this process, bytes."""
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except FileNotFoundError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024, None
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text("ascii", "replace")
    except OSError:  # kernels before 4.14, and some containers
        rollup = ""
    return _kibibytes(status, "VmHWM:"), _kibibytes(rollup, "Pss:")


def _kibibytes(text: str, label: str) -> int | None:
    for line in text.splitlines():
        if line.startswith(label):
            return int(line.split()[1]) * 1024
    return None


def reset_peak_rss() -> bool:
    """Let the peak resident set start anew; return whether the kernel allowed it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
