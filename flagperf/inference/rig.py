"""What all loads have in common: whom they ask, what, and who keeps the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flagperf.inference.answers import Answer, Recorder
from flagperf.inference.engine import InferenceEngine, Request
from flagperf.schema.inference import LoadSettings


@dataclass(kw_only=True)
class Rig:
    """An engine with its queries, ready to be put under load."""

    engine: InferenceEngine
    requests: Sequence[Request]
    load: LoadSettings
    scale: float
    """Of durations and counts."""
    seed: int
    recorder: Recorder
    folder: Path
    """For a load generator's own logs."""
    issued: int = 0
    """Queries so far, through the whole trial: also the next one's number."""
    failed: int = 0

    def number(self) -> int:
        """Return the number of a query that is about to be issued; for one thread at a time."""
        self.issued += 1
        return self.issued - 1

    def submit(self, answer: Answer) -> None:
        """Ask the engine; if it raises, the answer has failed."""
        try:
            self.engine.submit(answer.request, answer)
        except Exception as error:  # of the engine, told to whom it concerns
            answer.failed("engine", f"{type(error).__name__}: {error}"[:500])

    def keep(self, answer: Answer) -> None:
        """Journal an answer that has ended."""
        self.failed += answer.fault is not None
        self.recorder(answer)
