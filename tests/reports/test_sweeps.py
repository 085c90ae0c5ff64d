"""What a page says, lists and draws of sweeps, from made-up journals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from collect import swept

from flagperf.reports import page, panels, points, sweep_charts, sweeps
from flagperf.reports.data import Group, load
from flagperf.reports.numbers import THIN
from flagperf.schema.sweep import Roofs

HOSTILE = "</script><script>document.title='pwned'</script>"
DRAWN = "document.documentElement.dataset.drawn !== undefined"


def group(folder: Path) -> Group:
    (only,) = load(folder).groups
    return only


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Group:
    return group(swept.write(tmp_path_factory.mktemp("troubled") / "run", behaviour=swept.troubled))


def said(some: Group) -> list[tuple[str, str]]:
    assert some.sweep is not None
    return [(card.kind, card.headline.en) for card in sweeps.cards(some, some.sweep)]


def test_cards_say_who_leads_and_what_is_wrong(troubled: Group) -> None:
    assert said(troubled) == [
        ("measured", "flash leads at all 10 points"),
        ("equivalent", "math is as fast as naive at all 4 points"),
        ("better", "flash is faster than naive at all 10 points"),
        ("invalid", "flash is wrong at 2 of 12 points and isn't ranked there"),
    ]
    assert troubled.sweep is not None
    cards = sweeps.cards(troubled, troubled.sweep)
    details = " ".join(detail.en for card in cards for detail in card.details).replace(THIN, " ")
    assert "Too big at 4 points: its scores need 9.1 GiB, there are 2." in details
    assert "dtype=bf16 causal=true seq=2048" in details and "3 of 64 elements" in details
    assert "At 10 of 10 the lead is sure" in details
    for card in cards:
        assert card.headline.zh and card.headline.zh != card.headline.en
        assert not re.search(r"\{\w", card.headline.zh + "".join(detail.zh for detail in card.details))


def faster_when_long(provider: str, at: Any, trial: int) -> dict[str, Any]:
    slower = {128: 3.0, 512: 1.0, 2048: 0.5}[at["seq"]] if provider == "flash" else 1.0
    return {"seconds": [slower * x for x in swept.attention("naive", at, trial)["seconds"]]}


def test_what_depends_on_the_point_is_no_plain_verdict(tmp_path: Path) -> None:
    trials = [swept.trial(0, ("naive", "flash"))]
    folder = swept.write(tmp_path / "run", trials, {"seq": [128, 512, 2048]}, faster_when_long)
    assert said(group(folder))[1] == ("measured", "flash is faster than naive at 1 of 3 points and slower at 1")
    several = [swept.trial(n, ("naive", "flash"), trial=n, seed=100 + n) for n in range(2)]
    folder = swept.write(tmp_path / "two", several, {"seq": [128]}, faster_when_long)
    assert said(group(folder))[1][0] in ("worse", "cannot_tell")  # two trials say little


def all_wrong(provider: str, at: Any, trial: int) -> dict[str, Any]:
    return {"accuracy": swept.WRONG, "verdict": "wrong", "why": "off"}


def nothing(provider: str, at: Any, trial: int) -> dict[str, Any]:
    return {"seconds": [], "accuracy": None, "verdict": "unsupported", "why": "not here"}


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [(all_wrong, "naive is wrong at every point and isn't ranked"), (nothing, "No point was measured that counts")],
)
def test_nothing_that_counts(tmp_path: Path, behaviour: swept.Behaviour, words: str) -> None:
    folder = swept.write(tmp_path / "run", behaviour=behaviour)
    assert words in [headline for _, headline in said(group(folder))]
    page.write([folder], tmp_path / "page.html")


def test_one_provider_at_one_point(tmp_path: Path) -> None:
    folder = swept.write(tmp_path / "run", [swept.trial(0, ("torch",))], {"dtype": ["fp32"]}, roofs=None)
    only = group(folder)
    assert only.sweep is not None
    assert said(only)[0][1].startswith("torch: Compute rate ")
    assert [figure.title.en for figure in sweep_charts.figures(only, only.sweep, ["torch"])] == [
        "Compute rate",
        "Memory a call",
        "Error against tolerance",
    ]
    assert points.table(only.sweep).rows[0].labels == ["–"]


def test_a_run_that_reached_no_point(tmp_path: Path) -> None:
    folder = swept.write(tmp_path / "run")
    journal = folder / "trials" / "000-attention-forward" / "rank0.journal"
    journal.write_bytes(journal.read_bytes().split(b"\n", 1)[0] + b"\n")
    assert said(group(folder)) == [("invalid", "No point was measured that counts")]
    page.write([folder], tmp_path / "page.html")


def test_the_table_strikes_out_what_is_wrong(troubled: Group) -> None:
    assert troubled.sweep is not None
    table = points.table(troubled.sweep)
    assert (table.axes, table.unit, table.fixed, len(table.rows)) == (["dtype", "causal", "seq"], "GFLOP/s", "", 12)
    first = table.rows[0].cells
    assert first[2].versus == f"2.48{THIN}×" and first[2].verdict == "better" and first[0].n == 12
    row = next(row for row in table.rows if row.labels == ["bf16", "true", "2048"])
    assert [cell.state for cell in row.cells] == ["valid", "too_big", "wrong"]
    assert float(row.cells[2].value) > 100 and not row.cells[2].versus
    every = points.everything(troubled.sweep)
    assert len(every.rows) == 36 and len(every.heads) == len(troubled.sweep.metrics())


def test_figures_and_their_panels(troubled: Group) -> None:
    assert troubled.sweep is not None
    made = sweep_charts.figures(troubled, troubled.sweep, troubled.arms)
    titles = [figure.title.en for figure in made]
    assert titles == [
        *("Roofline", "Compute rate", "Speed against the baseline", "Memory a call"),
        "Error against tolerance",
    ]
    assert [len(figure.panels) for figure in made] == [2, 4, 4, 4, 4]
    identifiers = [panel.id for figure in made for panel in figure.panels]
    assert len(identifiers) == len(set(identifiers))
    roof = made[0].panels[0].data["roof"]  # 10 GB/s and 70 GFLOP/s meet at 7 FLOPs a byte
    assert roof["x"][1] == 7.0 and roof["y"][1] == roof["y"][2] == 70.0
    assert roof["y"][0] == pytest.approx(10 * roof["x"][0])
    wrong = [state for panel in made[4].panels for state in panel.data["points"]["state"]].count("wrong")
    assert wrong == 2
    drawn = [arm for panel in made[1].panels for arm in panel.data["points"]["arm"]]
    assert drawn.count("flash") == 10  # what is wrong is nowhere but among the errors


def test_more_panels_than_can_be_read_are_several_figures(tmp_path: Path) -> None:
    axes: dict[str, Any] = {"shape": ["a", "b", "c"], "dtype": ["fp32", "bf16"], "causal": [True, False]}
    axes |= {"cache": ["warm", "cold"], "seq": [128, 512]}
    some = group(swept.write(tmp_path / "run", [swept.trial(0, ("torch",))], axes, roofs=None))
    assert some.sweep is not None
    split = panels.split_up(some.sweep.cells, ["shape", "dtype", "causal", "cache"])
    assert {figure: len(inside) for figure, inside in split.items()} == {f"shape={shape}": 8 for shape in "abc"}
    assert len(split["shape=b"]["dtype=bf16 causal=false cache=cold"]) == 2


def test_names_along_the_axis_and_sizes_in_bytes(tmp_path: Path) -> None:
    named = {"operation": ["copy", "triad"], "kib": ["memory"]}
    some = group(swept.write(tmp_path / "named", [swept.trial(0, ("torch",))], named))
    assert some.sweep is not None
    figure = next(f for f in sweep_charts.figures(some, some.sweep, ["torch"]) if f.title.en == "Compute rate")
    assert figure.panels[0].data["points"]["x"] == ["copy", "triad"]
    sized = {"size": [8, 2**20, 3 * 2**29]}
    some = group(swept.write(tmp_path / "sized", [swept.trial(0, ("torch",), kind="collective")], sized))
    assert some.sweep is not None
    assert [row.labels for row in points.table(some.sweep).rows] == [["8 B"], ["1 MiB"], ["1.5 GiB"]]
    assert "The smallest messages, 8 B" in sweeps.cards(some, some.sweep)[0].details[1].en
    mixed = {"kib": [16, 1024, "memory"]}
    some = group(swept.write(tmp_path / "mixed", [swept.trial(0, ("torch",))], mixed))
    assert some.sweep is not None
    axis = panels.axis_of(some.sweep)
    assert axis is not None and not axis.numeric
    assert [axis.words(value) for value in axis.values] == ["16 KiB", "1 MiB", "memory"]


def test_a_specification_shows_how_speed_is_kept_up(tmp_path: Path) -> None:
    trial = swept.trial(0, ("torch",), case="spec/gemm", kind="specification")
    some = group(swept.write(tmp_path / "run", [trial], {"dtype": ["fp32", "bf16"]}, roofs=None))
    assert some.sweep is not None
    curve = sweep_charts.figures(some, some.sweep, ["torch"])[-1]
    assert curve.title.en == "Over the time it was watched" and len(curve.panels) == 2
    told = curve.panels[0].data["curve"]
    assert len(told["x"]) == 12 and told["x"] == sorted(told["x"])


@pytest.mark.parametrize(("low", "high"), [(1.0, 9.0), (0.003, 40.0), (1e-14, 0.2), (5.0, 5.0)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    found = panels.ticks(low / 1.1, high * 1.1)
    assert 1 <= len(found) <= 8 and all(low / 1.1 <= tick <= high * 1.1 for tick in found)


def test_sweeps_and_training_share_a_page(runs: Any, tmp_path: Path) -> None:
    trained = runs.make_run(tmp_path / "trained", trials=2, steps=8)
    folder = swept.write(tmp_path / "swept", behaviour=swept.troubled)
    page.write([trained, folder], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "slower than ddp" in html and "flash leads at all 10 points" in html
    assert '<table class="points">' in html and '<table class="metrics">' in html
    data = json.loads(re.findall(r'id="flagperf-data">(.*?)</script>', html, re.S)[0])
    assert {c["baseline"] for c in data["comparisons"]} == {"ddp", "naive"}
    assert sum(len(result["points"]) for result in data["results"]) == 36


def hostile(provider: str, at: Any, trial: int) -> dict[str, Any]:
    if provider == HOSTILE and at["seq"] == 512:
        return {"seconds": [], "accuracy": None, "verdict": "failed", "why": f"<img src=x onerror=alert(1)>{HOSTILE}"}
    return {"accuracy": swept.WRONG, "verdict": "wrong", "why": HOSTILE} if at["seq"] == 2048 else {}


@pytest.mark.slow
def test_as_a_browser_shows_it(browser: Any, runs: Any, tmp_path: Path) -> None:
    axes: dict[str, Any] = {"§axis.step": [HOSTILE, "`x`"], "causal": [True, False], "seq": [128, 512, 2048]}
    providers = ("naive", HOSTILE)
    evil = swept.write(tmp_path / "evil", [swept.trial(0, providers, case="<b>x</b>/y")], axes, hostile, name="evil")
    folder = swept.write(tmp_path / "run", behaviour=swept.troubled)
    output = tmp_path / "page.html"
    page.write([folder, evil], output)
    for width, language in ((1440, "en"), (390, "zh")):
        browser.size(width, dark=width < 600)
        browser.open(f"{output.as_uri()}?{width}#{language}", DRAWN)
        assert browser.console == []
        assert browser.run("document.title") != "pwned"
        assert browser.run("document.querySelectorAll('main img').length") == 0
        assert browser.run("[...document.querySelectorAll('.failed')].every(e => e.hidden)")
        assert browser.run("[...document.querySelectorAll('.canvas')].every(c => c.querySelector('svg path'))")
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.run("document.documentElement.scrollWidth") == width
        rows = "[...document.querySelector('.points tbody').rows].filter(r => !r.hidden).length"
        typed = "(f => { f.value = 'bf16 wrong'; f.value = f.value.replace('wrong', '2048');"
        assert browser.run(rows) == 12
        browser.run(f"{typed} f.dispatchEvent(new Event('input')) }})(document.querySelector('input.filter'))")
        assert browser.run(rows) == 2
        assert "line-through" in browser.run("getComputedStyle(document.querySelector('.points s')).textDecoration")
    left = "[...document.querySelectorAll('h3, .panel-title, .role-axis-title *, .points th, .badge, .rules dt')]"
    words = f"{left}.map(e => e.innerText ?? e.textContent)"
    assert browser.run(f"{words}.filter(w => /^[A-Za-z]{{4,}} [a-z]{{2,}}/.test(w))") == []
    ids = browser.run("[...document.querySelectorAll('main [id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_roofs_of_several_trials_are_the_best_seen(tmp_path: Path) -> None:
    trials = [swept.trial(n, ("naive",), trial=n, seed=100 + n) for n in range(2)]
    folder = swept.write(tmp_path / "run", trials, {"seq": [128]}, roofs=Roofs(flops={"fp32": 1e9}, bandwidth=1e9))
    journal = folder / "trials" / trials[1].id / "rank0.journal"
    journal.write_bytes(journal.read_bytes().replace(b'"bandwidth":1000000000', b'"bandwidth":2000000000'))
    view = group(folder).sweep
    assert view is not None and view.roofs is not None
    assert (view.roofs.flops["fp32"], view.roofs.bandwidth) == (1e9, 2e9)
