"""The file itself: whole or not there, self-contained, with its data in it, small for long runs."""

from __future__ import annotations

import base64
import hashlib
import html as html_module
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.errors import FlagPerfError, UsageError
from flagperf.reports import bundle, page, sampling

MakePage = Callable[..., Path]


def _scripts(html: str) -> list[tuple[str, str]]:
    return re.findall(r"<script([^>]*)>(.*?)</script>", html, re.S)


def test_the_policy_names_exactly_the_scripts_that_are_there(page_of: MakePage) -> None:
    html = page_of().read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    code = [body for attributes, body in _scripts(html) if "json" not in attributes]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in code}
    assert len(code) == 2
    assert set(re.findall(r"'sha256-[^']*'", html_module.unescape(policy[1]))) == hashes
    assert "default-src 'none'" in policy[1] and "unsafe-eval" not in policy[1]


def test_nothing_outside_is_referred_to(page_of: MakePage) -> None:
    html = page_of().read_text("utf-8")
    for _, body in _scripts(html):
        html = html.replace(body, "")
    assert not re.search(r"""(src|href|action|url)\s*[=(]\s*["']?(?!#|data:)[^#"'\s>]""", html)


def test_the_tables_are_there_as_json(page_of: MakePage) -> None:
    html = page_of(fail=["003-ddp"]).read_text("utf-8")
    data = json.loads(next(body for attributes, body in _scripts(html) if "flagperf-data" in attributes))
    assert len(data["results"]) == 6
    assert sum(result["verdict"] == "invalid" for result in data["results"]) == 1
    assert {c["metric"] for c in data["comparisons"]} >= {"tokens_per_second", "loss_validation"}
    shown = f"{next(r for r in data['results'] if r['id'] == '000-ddp')['metrics']['step_time']['value'] * 1000:.1f}"
    assert f'<td class="num">{shown}</td>' in html


def test_a_long_run_makes_a_small_page(runs: Any, tmp_path: Path) -> None:
    sizes = []
    for steps in (2_000, 20_000):
        folder = runs.make_run(tmp_path / str(steps), [runs.Arm(name="ddp")], trials=1, ranks=1, steps=steps)
        page.write([folder], tmp_path / "long.html")
        html = (tmp_path / "long.html").read_text("utf-8")
        drawing = json.loads(next(body for attributes, body in _scripts(html) if "flagperf-charts" in attributes))
        for chart in drawing["charts"]:
            for columns in chart["data"].values():
                assert all(len(column) <= sampling.MOST_POINTS for column in columns.values())
        sizes.append(len(html))
    assert sizes[1] < sizes[0] * 1.05


def test_a_file_is_written_whole_or_not_at_all(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.make_run(tmp_path / "run", trials=1)
    output = tmp_path / "made" / "report.html"
    page.write([folder], output)
    before = output.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FlagPerfError, match="No space left"):
        page.write([folder], output)
    assert output.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_wrong_use_is_refused(tmp_path: Path, runs: Any) -> None:
    with pytest.raises(UsageError, match="at least one run"):
        page.write([], tmp_path / "x.html")
    with pytest.raises(FlagPerfError, match="no run"):
        page.write([tmp_path], tmp_path / "x.html")
    folder = runs.make_run(tmp_path / "run", trials=1)
    with pytest.raises(UsageError, match="en, zh or auto"):
        page.write([folder], tmp_path / "x.html", language="fr")
    with pytest.raises(FlagPerfError, match="Can't write"):
        page.write([folder], tmp_path)


def test_progress_is_told(runs: Any, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    folder = runs.make_run(tmp_path / "run", trials=1)
    page.write([folder], tmp_path / "x.html", progress=lambda stage, share: told.append((stage, share)))
    assert len(told) == 3 and told[-1][1] is None


def test_a_baseline_that_is_not_in_a_group_and_layouts_of_one_engine(runs: Any, tmp_path: Path) -> None:
    from flagperf.reports.data import load
    from flagperf.schema.layout import Layout

    arms = [runs.Arm(name="fsdp", layout=Layout(zero=stage, micro=4), step=0.4 + stage / 50) for stage in (2, 3)]
    (group,) = load(runs.make_run(tmp_path / "run", arms, baseline="fsdp:zero=3")).groups
    assert group.arms == ["fsdp:zero=3,micro=4", "fsdp:zero=2,micro=4"]
    (group,) = load(runs.make_run(tmp_path / "other", arms, baseline="megatron")).groups
    assert group.baseline == "fsdp:zero=2,micro=4"
    assert {c.candidate for c in group.comparisons} == {"fsdp:zero=3,micro=4"}


def test_two_runs_of_one_id_keep_apart(runs: Any, tmp_path: Path) -> None:
    folders = []
    for name, steps in (("one", 20), ("two", 21)):
        folders.append(runs.make_run(tmp_path / name, [runs.Arm(name=name)], trials=1, steps=steps, run_id="same"))
    page.write(folders, tmp_path / "both.html")
    html = (tmp_path / "both.html").read_text("utf-8")
    assert "--engine one<" in html and "--engine two<" in html


def test_the_bundle_is_kept_and_a_damaged_one_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGPERF_CACHE", str(tmp_path))
    first = bundle.bundle()
    (kept,) = (tmp_path / "reports").iterdir()
    assert kept.read_text("utf-8") == first and "vegaEmbed" in first and "</script" not in first
    kept.write_text(first[: len(first) // 2], "utf-8")
    assert bundle.bundle() == first == kept.read_text("utf-8")


def test_reports_never_load_torch(runs: Any, tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run", trials=1)
    code = (
        "import sys; from pathlib import Path; from flagperf.reports import page;"
        f"page.write([Path({str(folder)!r})], Path({str(tmp_path / 'x.html')!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.lists(st.one_of(st.text(), st.floats(), st.none()), max_size=20))
def test_json_in_a_script_is_inert_and_the_same(values: list[Any]) -> None:
    made = page.script_json([value for value in values if not isinstance(value, str) or value.isprintable()])
    assert not re.search(r"[<>&\u2028\u2029]", made)
    finite = [
        None if isinstance(value, float) and not np.isfinite(value) else value
        for value in values
        if not isinstance(value, str) or value.isprintable()
    ]
    assert json.loads(made) == finite


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(1, 50))
def test_binning_keeps_extremes_and_order(values: list[float], limit: int) -> None:
    y = np.array(values)
    columns = sampling.binned(np.arange(len(y), dtype=np.float64), y, limit)
    lows, middles, highs = ([x for x in columns[name] if x is not None] for name in ("low", "middle", "high"))
    assert len(columns["x"]) <= max(limit, 1) and columns["x"] == sorted(columns["x"], key=lambda x: x or 0.0)
    assert min(lows) == pytest.approx(y.min(), rel=1e-5)
    assert max(highs) == pytest.approx(y.max(), rel=1e-5)
    assert all(low <= middle <= high for low, middle, high in zip(lows, middles, highs, strict=True))


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300), st.integers(2, 60))
def test_a_distribution_ends_at_one_and_rises(values: list[float], limit: int) -> None:
    xs, shares = sampling.quantiles(np.array(values), limit)
    assert shares[-1] == 1.0 and len(xs) <= max(limit, 2)
    assert xs == sorted(xs, key=lambda x: x or 0.0) and shares == sorted(shares, key=lambda x: x or 0.0)
