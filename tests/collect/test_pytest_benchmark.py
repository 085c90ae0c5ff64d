"""pytest-benchmark's JSON as a run: ours and anybody's, and whatever else somebody may call so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flagperf.collect.pytest_benchmark import Imported, read_files, write_run
from flagperf.collect.sweeps import compare_points
from flagperf.collect.trials import read_trial
from flagperf.errors import UsageError
from flagperf.schema.layout import Layout
from flagperf.schema.protocol import Protocol
from flagperf.schema.result import Result
from flagperf.schema.sweep import Accuracy, Roofs, Samples
from flagperf.schema.trial import Run, Trial


def benchmark(name: str = "test_sort[numpy-1000]", data: Any = (0.002, 0.001, 0.003), **changes: Any) -> dict[str, Any]:
    """What pytest-benchmark 5.3 writes of one benchmark."""
    usual = {
        "group": None,
        "name": name,
        "fullname": f"tests/test_speed.py::{name}",
        "params": {"how": "numpy", "n": 1000},
        "param": "numpy-1000",
        "extra_info": {},
        "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": 5, "max_time": 1.0, "min_time": 5e-06},
        "stats": {"min": 0.001, "max": 0.003, "rounds": 3, "ops": 500.0, "data": list(data), "iterations": 7},
    }
    return usual | changes


def document(*benchmarks: Any, **changes: Any) -> dict[str, Any]:
    usual = {
        "machine_info": {"node": "box", "cpu": {"brand_raw": "A CPU"}},
        "commit_info": {"id": "abc"},
        "benchmarks": list(benchmarks),
        "datetime": "2026-01-02T03:04:05+00:00",
        "version": "5.3.1",
    }
    return usual | changes


def own(provider: str = "flash", **changes: Any) -> dict[str, Any]:
    """What the plug-in for kernel cases adds."""
    trial = Trial(
        id="000-x", case="attention/forward", kind="kernel", preset="tiny", vendor="cpu", engine="naive+flash", ranks=1,
        layout=Layout(), dtype="fp32", seed=1, trial=0, protocol=Protocol(warmup=2, steps=3, trials=1, seed=1),
        settings={}, metrics=["flops_rate", "kernel_time", "roofline_share"], threads=1,
    )  # fmt: skip
    samples = Samples(
        at={"dtype": "fp32", "seq": 128}, provider=provider, flops=1e9, bytes=1e6, memory=4096, first=0.5,
        accuracy=Accuracy(max_absolute=1e-6, max_relative=1e-6, absolute=1e-5, relative=1e-4, wrong=0, elements=9),
    )  # fmt: skip
    roofs = Roofs(flops={"fp32": 2e12}, bandwidth=1e11)
    told: dict[str, Any] = msgspec.to_builtins({"trial": trial, "samples": samples, "roofs": roofs})
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = told
        for key in keys:
            place = place[key]
        place[last] = value
    return {"flagperf": told}


def written(tmp_path: Path, *documents: Any) -> list[Path]:
    paths = [tmp_path / f"{number}.json" for number in range(len(documents))]
    for path, told in zip(paths, documents, strict=True):
        path.write_bytes(told if isinstance(told, bytes) else json.dumps(told).encode())
    return paths


def results(folder: Path, parts: list[Imported]) -> list[Result]:
    """Write parts as a run and read it back as any run is read."""
    folder.mkdir(parents=True)
    run = Run(
        id="imported", created="", command=[], flagperf="1", commit=None, launcher="pytest-benchmark",
        trials=[part.trial for part in parts], baseline=parts[0].trial.providers[0],
    )  # fmt: skip
    write_run(folder, run, parts)
    return [read_trial(folder, run, trial).result for trial in run.trials]


def test_anybodys_benchmarks(tmp_path: Path) -> None:
    other = benchmark("test_sort[torch-1000]", (0.004, 0.002, 0.006), params={"how": "torch", "n": 1000})
    plain = benchmark("test_start", params=None, param=None)
    (result,) = results(tmp_path / "run", read_files(written(tmp_path, document(benchmark(), other, plain))))
    assert (result.case, result.vendor, result.verdict) == ("pytest/test_speed", "unknown", "valid")
    assert result.engine == "test_sort+test_start"
    assert [(point.provider, point.at) for point in result.points] == [
        ("test_sort", {"how": "numpy", "n": 1000}),
        ("test_sort", {"how": "torch", "n": 1000}),
        ("test_start", {}),
    ]
    assert [point.metrics["kernel_time"].value for point in result.points] == [0.002, 0.004, 0.002]
    assert result.points[0].metrics["kernel_time"].n == 3
    (note,) = [note for note in result.notes if note.code == "imported"]
    assert "pytest-benchmark 5.3.1 on box at 2026-01-02T03:04:05Z" in note.message
    assert "not in turn" in note.message


def test_functions_are_compared_where_their_parameters_agree(tmp_path: Path) -> None:
    data = [0.001 + 1e-6 * k for k in range(20)]
    pair = [
        benchmark(f"test_{name}[5]", [scale * x for x in data], params={"n": 5})
        for name, scale in (("slow", 2), ("fast", 1))
    ]
    found = results(tmp_path / "run", read_files(written(tmp_path, document(*pair))))
    (told,) = compare_points(found)
    assert (told.baseline, told.candidate, told.verdict, told.at) == ("test_slow", "test_fast", "better", {"n": 5})
    assert told.ratio == pytest.approx(2)


def test_flagperfs_own_come_back_whole(tmp_path: Path) -> None:
    told = [benchmark(f"forward[{name}]", extra_info=own(name)) for name in ("flash", "naive")]
    (result,) = results(tmp_path / "run", read_files(written(tmp_path, document(*told))))
    assert (result.case, result.preset, result.vendor, result.dtype) == ("attention/forward", "tiny", "cpu", "fp32")
    assert result.engine == "naive+flash"  # the baseline first, in whatever order they were measured
    flash = next(point for point in result.points if point.provider == "flash")
    assert flash.at == {"dtype": "fp32", "seq": 128}
    assert flash.metrics["flops_rate"].value == pytest.approx(1e9 / 0.002 / 1e12)
    assert flash.metrics["roofline_share"].value == pytest.approx(1e9 / 2e12 / 0.002)
    assert flash.metrics["kernel_memory"].value == 4096 / 2**20
    assert flash.metrics["first_call"].value == 0.5
    assert flash.metrics["error_absolute"].value == 1e-6
    assert flash.bound == "compute"


def test_files_of_the_same_benchmarks_are_repetitions(tmp_path: Path) -> None:
    parts = read_files(written(tmp_path, document(benchmark()), document(benchmark())))
    assert [(part.trial.id, part.trial.trial) for part in parts] == [("000-imported", 0), ("001-imported", 1)]
    assert parts[0].trial.engine == parts[1].trial.engine


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (part,) = read_files(written(tmp_path, document(benchmark(), benchmark())))
    assert [samples.provider for samples in part.samples] == ["test_sort", "test_sort (2)"]
    assert part.trial.providers == ["test_sort", "test_sort (2)"]


def test_names_from_outside_can_do_no_harm(tmp_path: Path) -> None:
    bad = benchmark("a+b\x1b[31m/../../c", params={"x+\x00": "\x1b[2J", "y": None}, fullname="../../etc/x.py::a")
    evil = benchmark(extra_info=own(trial__case="../../../etc", trial__ranks=10**9, trial__plugins=["/tmp"]))
    parts = read_files(written(tmp_path, document(bad, evil)))
    assert [part.trial.ranks for part in parts] == [1, 1]
    assert all(part.trial.plugins == [] and part.trial.id.startswith("00") for part in parts)
    (samples,) = parts[0].samples
    assert (samples.provider, samples.at) == ("a_b_", {"x__": "_[2J".replace("[", "_"), "y": "None"})
    found = results(tmp_path / "run", parts)
    assert {path.name for path in (tmp_path / "run" / "trials").iterdir()} == {"000-imported", "001-imported"}
    assert [result.verdict for result in found] == ["valid", "valid"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"", "isn't pytest-benchmark's JSON"),
        (b"\xff\xfe", "isn't pytest-benchmark's JSON"),
        (b"[" * 100_000, "isn't pytest-benchmark's JSON"),
        (b'{"benchmarks": 1}', "isn't pytest-benchmark's JSON"),
        (b"[]", "isn't pytest-benchmark's JSON"),
        (b'{"benchmarks": [{"name": "a", "stats": {"data": [1e400]}}]}', "round 0 of 'a' took inf s"),
        (b'{"benchmarks": [{"name": "a", "stats": {"data": [NaN]}}]}', "round 0 of 'a' took nan s"),
        (document(), "no benchmark"),
        (document(benchmark(data=())), "no rounds of 'test_sort"),
        (document(benchmark(data=(0.1, -0.1))), "round 1 of 'test_sort"),
        (document(benchmark(data=(0.0,))), "took 0.0 s"),
        (document(benchmark(extra_info=own(samples__flops=-1.0))), "can't have been measured"),
        (document(benchmark(stats={"data": [0.1], "iterations": 0})), "0 iterations"),
        (document(benchmark(extra_info={"flagperf": 1})), "FlagPerf benchmark that can't be read"),
        (document(benchmark(extra_info=own("none"))), "isn't a provider of its trial"),
    ],
    ids=range(15),
)
def test_what_is_no_such_file_is_refused(told: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        read_files(written(tmp_path, told))
    assert why in refused.value.message
    assert str(tmp_path) in refused.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_files([tmp_path / "none.json"])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
STATS = st.fixed_dictionaries(
    {"data": st.lists(st.floats(0, 1e9) | SCALARS, min_size=1, max_size=4)}, optional={"iterations": ANYTHING}
)


@st.composite
def somewhat_ours(draw: st.DrawFn) -> dict[str, Any]:
    """FlagPerf's own words with one value of them replaced by anything."""
    told = own(draw(st.sampled_from(["naive", "flash"])))
    part = told["flagperf"][draw(st.sampled_from(["trial", "samples", "roofs"]))]
    part[draw(st.sampled_from(sorted(part)))] = draw(ANYTHING)
    return told


BENCHMARKS = st.fixed_dictionaries(
    {"name": st.text(max_size=8) | ANYTHING, "stats": STATS},
    optional={
        "fullname": st.text(max_size=8),
        "group": st.none() | st.text(max_size=5),
        "params": ANYTHING,
        "param": st.none() | st.text(max_size=5),
        "extra_info": somewhat_ours() | ANYTHING,
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(told=st.lists(BENCHMARKS, max_size=3).map(lambda each: document(*each)) | ANYTHING)
def test_any_json_is_refused_or_becomes_a_run_that_can_be_read(told: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        parts = read_files(written(folder, told))
    except UsageError:
        return
    for result in results(folder / "run", parts):
        assert len(result.points) == len(next(p for p in parts if p.trial.id == result.id).samples)
        msgspec.json.encode(result)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from flagperf.cli.app import run_app

    (path,) = written(
        tmp_path, document(benchmark("test_a[5]", params={"n": 5}), benchmark("test_b[5]", params={"n": 5}))
    )
    folder = tmp_path / "run"
    for command in (["import", str(path), "--out", str(folder), "--json"], ["results", str(folder), "--json"]):
        monkeypatch.setattr(sys, "argv", ["flagperf", *command])
        assert run_app() == 0
        told = json.loads(capsys.readouterr().out)
        assert [point["provider"] for point in told["results"][0]["points"]] == ["test_a", "test_b"]
    monkeypatch.setattr(sys, "argv", ["flagperf", "compare", str(folder)])
    assert run_app() == 0
    assert "test_b" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["flagperf", "import", str(path), "--out", str(folder)])
    assert run_app() == 2  # the folder isn't empty
