"""Tables of a run on the terminal."""

from __future__ import annotations

import msgspec
import pytest

from flagperf.cli.tables import print_comparisons
from flagperf.schema.result import Comparison


def row(case: str) -> Comparison:
    arms = {"candidate": "inductor", "baseline": "eager"}
    told = {"ratio": 1.0, "low": 0.9, "high": 1.1, "verdict": "equivalent", "pairs": 3}
    return msgspec.convert(
        {"metric": "memory_peak_rss", "case": case, "scenario": "offline", **arms, **told}, Comparison
    )


def test_comparisons_name_their_case_where_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparisons([row("aquila/generate"), row("encoder/classify")])
    both = capsys.readouterr().out
    assert "Offline: aquila/generate: inductor ÷ eager" in both and "encoder/classify: inductor ÷ eager" in both
    print_comparisons([row("aquila/generate")])
    assert "Offline: inductor ÷ eager" in capsys.readouterr().out
