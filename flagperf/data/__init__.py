"""Training data: real text in two languages, your own, or made up; prepared once, the same bytes for every engine.

`flagperf.data.batches` has what a training loop reads it by.
"""

from flagperf.data.cache import DamagedData
from flagperf.data.prepare import Listed, NotPrepared, Prepared, listing, made_ready, open_tokens, prepare, verify
from flagperf.data.settings import Counts, DataSettings, Meta, Progress

__all__ = [
    "Counts",
    "DamagedData",
    "DataSettings",
    "Listed",
    "Meta",
    "NotPrepared",
    "Prepared",
    "Progress",
    "listing",
    "made_ready",
    "open_tokens",
    "prepare",
    "verify",
]
