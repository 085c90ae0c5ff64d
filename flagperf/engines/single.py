"""Engine `single`: one process, one device, plain torch."""

from __future__ import annotations

from flagperf.engines.common import TorchEngine


class Single(TorchEngine):
    """What every other engine is measured against when it has one rank to itself."""
