"""FlagPerf: how fast, how big and how accurate AI hardware and training stacks really are."""

from flagperf._version import __version__

__all__ = ["__version__"]
