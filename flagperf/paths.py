"""Where things are kept outside a run."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """Return the user's cache directory for FlagPerf; FLAGPERF_CACHE overrides it."""
    if override := os.environ.get("FLAGPERF_CACHE"):
        return Path(override).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("flagperf"))
