"""The case on two ranks: right and wrong backends, ranks and links that are lost, simulated devices."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import ROOT, called

from flagperf import links, plan
from flagperf import run as running
from flagperf.cases.parallel.operations import OPERATIONS
from flagperf.collect.trials import read_trial
from flagperf.errors import FlagPerfError, UnknownName, UsageError
from flagperf.journal import Reader
from flagperf.registry import Registries
from flagperf.schema.inference import LoadStart
from flagperf.schema.link import Link
from flagperf.schema.result import Result
from flagperf.schema.sweep import Point
from flagperf.schema.trial import Nodes, Trial

SETTINGS: dict[str, Any] = {"protocol": {"steps": 2, "seconds": 0.0, "telemetry": 60.0}}


class Watcher:
    """Does something as soon as a few points are there, once."""

    def __init__(self, then: Callable[[], None] = lambda: None, points: int = 2) -> None:
        self.then, self.after = then, points

    def stage(self, text: str, share: float | None) -> None: ...

    def trial_started(self, number: int, count: int, trial: Trial) -> None: ...

    def step(self, done: int, planned: int, loss: float | None, tokens_per_second: float) -> None: ...

    def points(self, done: int, planned: int, where: str) -> None:
        if done >= self.after:
            self.then()
            self.then = lambda: None

    def queries(self, done: int, failed: int, share: float, load: LoadStart) -> None: ...

    def trial_ended(self, trial: Trial, result: Result) -> None: ...


def measured(folder: Path, sweep: dict[str, Any], watcher: Watcher | None = None, **options: Any) -> Result:
    """Measure these axes with two ranks on the CPU, or as the options say; return what can be read afterwards."""
    plugins = [Path(each) for each in options.get("plugins", [])]
    registries = Registries(plugins)
    own = options.pop("settings", {})
    asked = plan.Options(
        cases=["parallel/collectives"],
        **{
            "vendor": "cpu",
            "ranks": 2,
            "oversubscribe": True,
            "settings": {**SETTINGS, "sweep": sweep, **own},
            **options,
        },
    )
    planned = plan.plan(asked, registries)
    folder.mkdir()
    running.execute(planned, folder, registries, watcher or Watcher(), nodes=Nodes())
    return read_trial(folder, planned, planned.trials[0]).result


def verdicts(result: Result, provider: str = "torch") -> dict[tuple[str, ...], str]:
    """Return each point's verdict, by its axes but the provider."""
    return {
        tuple(str(x) for x in each.at.values()): each.verdict for each in result.points if each.provider == provider
    }


def points(result: Result, verdict: str = "valid") -> list[Point]:
    return [each for each in result.points if each.verdict == verdict]


PLUGIN = """
name = "wrongchip"
title = "A backend with mistakes"
summary = "The CPU, with a library of its own that adds up wrongly"
entry = "flagperf.vendors.cpu.adapter:Cpu"
device_type = "cpu"
backend = "gloo"

[lacking]
all_to_all = "for the test"

[[kernels]]
distribution = "torch"
module = "torch"
operations = ["collective"]
provider = "wrong"
entry = ".library:provide"
"""
LIBRARY = '''
import torch.distributed as dist


def provide(message, rank):
    """All-reduce that forgets the last element, all-gather that takes another order, nothing else."""
    def all_reduce(sent, result):
        last = result[-1].clone()
        dist.all_reduce(result)
        result[-1] = last

    def all_gather(sent, result):
        dist.all_gather(list(result.chunk(message.ranks))[::-1], sent)

    if message.operation not in ("all_reduce", "all_gather"):
        raise NotImplementedError("this library has no " + message.operation)
    return {"all_reduce": all_reduce, "all_gather": all_gather}[message.operation]
'''


def options(sweep: dict[str, Any] | None = None, **changes: Any) -> plan.Options:
    own = {"settings": {"sweep": sweep} if sweep else {}, "ranks": 2, "oversubscribe": True, "vendor": "cpu", **changes}
    return plan.Options(cases=["parallel/collectives"], **own)


def test_one_rank_has_nobody_to_talk_to() -> None:
    with pytest.raises(UsageError, match="here is one") as refused:
        plan.plan(options(ranks=1), Registries())
    assert "--ranks 2" in refused.value.hint


@pytest.mark.parametrize(
    ("sweep", "kind"),
    [
        ({"operation": ["allreduce"]}, UnknownName),
        ({"shape": ["x"]}, UnknownName),
        ({"color": ["x"]}, UnknownName),
        ({"place": ["here"]}, UnknownName),
        ({"size": [0]}, UsageError),
        ({"size": ["8"]}, UsageError),
        ({"size": [True]}, UsageError),
        ({"size": [2**41]}, UsageError),
        ({"operation": ["all_reduce"], "place": ["out"]}, UsageError),
    ],
)
def test_axes_that_cant_be_are_refused(sweep: dict[str, Any], kind: type[UsageError]) -> None:
    with pytest.raises(kind):
        plan.plan(options(sweep), Registries())


def test_points_are_only_where_an_operation_can_be_done_so() -> None:
    whole = {"operation": list(OPERATIONS), "place": ["out", "in"], "size": [8]}
    (trial,) = plan.plan(options(whole), Registries()).trials
    case = Registries().cases.load("parallel/collectives")(trial)
    there = {(at["operation"], at["place"]) for at in case.points()}
    assert there == {(name, place) for name, each in OPERATIONS.items() for place in each.places}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run in which torch is right, a vendor's library is wrong, and something is lacking or too big."""
    folder = tmp_path_factory.mktemp("mixed")
    vendor = folder / "plugins" / "vendors" / "wrongchip"
    vendor.mkdir(parents=True)
    (vendor / "wrongchip.toml").write_text(PLUGIN)
    (vendor / "library.py").write_text(LIBRARY)
    (vendor / "__init__.py").touch()
    sweep = {
        "operation": list(OPERATIONS),
        "dtype": ["bf16"],
        "place": ["out", "in"],
        "size": [8, 100_000, 2**39],
    }
    return measured(folder / "run", sweep, vendor="wrongchip", plugins=[str(folder / "plugins")])


@pytest.mark.slow
class TestMixed:
    def test_every_operation_is_right_in_place_and_not(self, mixed: Result) -> None:
        seen = {at: verdict for at, verdict in verdicts(mixed).items() if at[-1] != str(2**39)}
        assert len(seen) == 2 * sum(len(each.places) for each in OPERATIONS.values())
        assert {at[0] for at, verdict in seen.items() if verdict == "valid"} == set(OPERATIONS) - {"all_to_all"}
        assert all(verdict == "valid" for at, verdict in seen.items() if at[0] != "all_to_all")

    def test_busbw_is_algbw_times_the_factor_of_the_slowest_rank(self, mixed: Result) -> None:
        for point in points(mixed):
            algbw, busbw, time = (point.metrics[name].value for name in ("bandwidth", "bus_bandwidth", "kernel_time"))
            assert busbw == pytest.approx(algbw * OPERATIONS[str(point.at["operation"])].factor(2))
            assert algbw == pytest.approx(point.facts["message_bytes"] / time / 1e9)
            assert list(point.facts["hosts"].values()) == [2]

    def test_a_backend_that_computes_wrongly_is_caught_and_makes_the_trial_invalid(self, mixed: Result) -> None:
        seen = verdicts(mixed, "wrong")
        assert {at[0] for at, verdict in seen.items() if verdict == "wrong"} == {"all_reduce", "all_gather"}
        assert not [at for at, verdict in seen.items() if verdict == "valid"]
        assert mixed.verdict == "invalid" and "wrong_result" in {reason.code for reason in mixed.reasons}

    def test_what_is_lacking_or_doesnt_fit_is_told_with_the_reason(self, mixed: Result) -> None:
        for at, verdict in verdicts(mixed).items():
            assert (verdict == "unsupported") == (at[0] == "all_to_all")
            assert (verdict == "too big") == (at[0] != "all_to_all" and at[-1] == str(2**39))
        told = {point.why for point in mixed.points if point.verdict == "unsupported"}
        assert "gloo lacks all_to_all: for the test" in told
        assert any("this library has no broadcast" in why for why in told)
        assert all("GiB are needed" in point.why for point in points(mixed, "too big"))


def rank_process(folder: Path, rank: int) -> psutil.Process:
    (journal,) = folder.glob(f"trials/*/rank{rank}.journal")
    return psutil.Process(next(iter(Reader(journal))).value["pid"])


LONG = {"operation": ["all_reduce"], "size": [*range(8, 8 * 5000, 8)]}


@pytest.mark.slow
def test_a_rank_that_dies_is_told_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = measured(run, LONG, Watcher(lambda: rank_process(run, 1).kill()))
    assert result.verdict == "invalid"
    assert "Rank 1 was killed by signal 9" in result.reasons[0].message
    assert len(points(result)) >= 2


@pytest.mark.slow
def test_a_link_that_is_cut_is_told_and_until_then_was_no_faster_than_made(tmp_path: Path) -> None:
    try:
        links.check()
    except FlagPerfError as error:
        pytest.skip(str(error))
    run = tmp_path / "run"

    def cut() -> None:
        (namespace,) = Path("/run/netns").glob("flagperf-*-1")
        subprocess.run(["ip", "-n", namespace.name, "link", "set", links.INTERFACE, "down"], check=True)

    sweep = {"operation": ["all_reduce", "send_recv"], "size": [2**21, *range(8, 8 * 5000, 8)]}
    result = measured(run, sweep, Watcher(cut), link=Link(rate=1e8), settings={"patience": 5.0})
    assert result.verdict == "invalid"
    assert "peer_lost" in {reason.code for reason in result.reasons}
    assert "link_shaped" in {note.code for note in result.notes}
    assert result.facts["environment"]["link"] == "100mbit"
    first = points(result)[0]
    assert first.facts["link"] == "100mbit"
    assert first.metrics["bus_bandwidth"].value < 100e6 / 8 / 1e9 * 1.4  # half a MiB of 2 passes at once
    assert not list(Path("/run/netns").glob("flagperf-*"))


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two simulated devices here."""
    from flagperf.vendors.simchip import build

    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    build.build()
    for name, value in {"DEVICES": "2", "MEMORY_MIB": "1024", "STATE": str(tmp_path)}.items():
        monkeypatch.setenv(f"SIMCHIP_{name}", value)


@pytest.mark.slow
def test_simulated_devices_are_measured_by_their_own_clock(simulated: None, tmp_path: Path) -> None:
    sweep = {"operation": list(OPERATIONS), "dtype": ["fp16"], "place": ["out", "in"], "size": [100_000]}
    result = measured(tmp_path / "run", sweep, vendor="simchip")
    assert result.verdict == "valid", result.reasons
    assert {point.verdict for point in result.points} == {"valid"}
    assert all("host_time" in point.metrics for point in result.points)
    assert "simulated" in {note.code for note in result.notes}


def test_the_documented_commands_are_ones_that_run() -> None:
    page = (ROOT / "docs" / "collectives.md").read_text("utf-8")
    shown = []
    for line in re.findall(r"^    flagperf (.*)$", page, re.M):
        done = called(*line.split(), "--dry-run", "--vendor", "cpu", "--oversubscribe")
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    collectives, workers = shown
    assert "35 points" in collectives and "001-parallel-data" in workers
