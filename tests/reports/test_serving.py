"""What a page says, lists and draws of inference trials, from made-up journals."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from collect import served

from flagperf.reports import page, serving, serving_charts, tables, words
from flagperf.reports.data import Group, load
from flagperf.reports.numbers import THIN
from flagperf.schema.inference import SCENARIOS, Agreement, Query, Scenario
from flagperf.schema.trial import Trial

ENGINES = {"eager": 1.0, "inductor": 0.8}
DRAWN = "document.documentElement.dataset.drawn !== undefined"
HOSTILE = "</script><script>document.title='pwned'</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two engines under every scenario, three trials each."""
    planned = served.trials(ENGINES, SCENARIOS, count=3)
    return served.write(tmp_path_factory.mktemp("served") / "run", planned, ENGINES)


@pytest.fixture(scope="module")
def groups(folder: Path) -> dict[Scenario, Group]:
    return {group.first.scenario: group for group in load(folder).groups}


def test_each_scenario_is_judged_by_its_own_metric(groups: dict[Scenario, Group]) -> None:
    said = {scenario: words.verdicts(group)[0].headline.en for scenario, group in groups.items()}
    assert list(said) == list(SCENARIOS)
    assert said["singlestream"].startswith("Latency, 90th percentile of inductor is ")
    assert said["multistream"].startswith("Latency, 99th percentile of inductor is ")
    assert said["offline"].startswith("Generation throughput of inductor is ")
    assert said["concurrency"].startswith("Generation throughput of inductor is ")


def test_cards_say_how_long_users_wait_and_what_load_gen_misses(groups: dict[Scenario, Group]) -> None:
    details = [each.en.replace(THIN, " ") for each in words.verdicts(groups["singlestream"])[0].details]
    assert any(
        re.match(r"inductor, median and 99th percentile of 36 answers: first token 1\d\.\d ms", d) for d in details
    )
    assert sum("Only 12 queries were asked" in each for each in details) == 1
    offline = " ".join(each.en for each in words.verdicts(groups["offline"])[0].details)
    assert "first token" not in offline and "a token after it" in offline


def test_the_frontier_has_a_point_a_number_of_clients(groups: dict[Scenario, Group]) -> None:
    frontier, over = serving_charts.figures(groups["concurrency"], list(ENGINES))
    assert [panel.title.en for panel in frontier.panels] == ["Time to first token", "Time a token", "Latency"]
    drawn = frontier.panels[1].data["points"]
    assert drawn["clients"] == [1, 1, 2, 2, 4, 4, 8, 8] and drawn["arm"][:2] == ["eager", "inductor"]
    assert frontier.panels[1].data["within"]["x2"] == [50.0]  # ms, the bound on a token
    assert "within" not in frontier.panels[2].data
    assert over.panels[0].title.en == "Goodput"
    assert re.search(r"eager: \d+.*at most \d+.*\(clients: 8\)", frontier.alt.en)


def test_curves_are_a_line_a_trial_with_its_percentiles(groups: dict[Scenario, Group]) -> None:
    (figure,) = serving_charts.figures(groups["server"], list(ENGINES))
    assert len(figure.panels) == 3
    lines, marks = (figure.panels[0].data[name] for name in ("lines", "marks"))
    assert len(set(lines["trial"])) == 6 and len(marks["x"]) == 18
    group = groups["server"]
    view = group.of("eager")[0]
    own = [x for x, trial in zip(marks["x"], marks["trial"], strict=True) if trial == view.result.id]
    told = [view.result.metrics[f"ttft_{level}"].value * 1000 for level in ("p50", "p90", "p99")]
    assert own == pytest.approx(told, rel=1e-5)
    assert len(serving_charts.figures(groups["offline"], list(ENGINES))[0].panels) == 1  # a token's time alone


def test_memory_is_split_and_adds_up(groups: dict[Scenario, Group]) -> None:
    shown = serving.shown(groups["offline"])
    assert shown is not None
    bar = shown.bars[0]
    assert bar.total.en.replace(THIN, " ") == "Peak memory, resident: 500.0 MiB"
    assert [part.value.replace(THIN, " ") for part in bar.parts] == ["29.0 MiB", "16.0 MiB", "455 MiB"]
    assert sum(part.width for part in bar.parts) == pytest.approx(100)


def test_every_query_can_be_had(groups: dict[Scenario, Group]) -> None:
    shown = serving.shown(groups["concurrency"])
    assert shown is not None and shown.table is not None
    assert (shown.table.count, len(shown.table.rows)) == (540, serving.MOST_ROWS)
    text = base64.b64decode(shown.table.link.partition("base64,")[2]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 540 and {row["clients"] for row in rows} == {"1", "2", "4", "8"}
    assert float(rows[0]["ttft"]) > 0 and not rows[0]["fault"]


def test_metrics_begin_with_what_the_scenario_is_judged_by(groups: dict[Scenario, Group]) -> None:
    speed = tables.blocks(groups["multistream"])[0]
    assert speed.rows[0].name == "latency_p99"
    headings, _ = tables.trial_table(groups["singlestream"])
    assert headings[0][0].en == "Latency, 90th percentile" and len(headings) <= 6


def test_wrong_answers_make_no_point(tmp_path: Path) -> None:
    wrong = Agreement(queries=8, tokens=200, wrong=3, worst=1.0, tolerance=1e-4, first="token 3")
    folder = served.write(tmp_path / "run", served.trials(scenarios=["concurrency"]), agreed=wrong)
    (group,) = load(folder).groups
    assert group.clients is not None and {cell.verdict for cell in group.clients.cells} == {"wrong"}
    assert serving_charts.figures(group, ["eager"]) == []
    assert words.verdicts(group)[0].kind == "invalid"


def failing(trial: Trial, query: Query) -> Query | None:
    if trial.engine == HOSTILE and query.clients == 8 and query.number % 5 == 0:
        return msgspec.structs.replace(query, done=None, fault="status", why=f"503 {HOSTILE}")
    return query


def test_one_page_says_all_of_it(tmp_path: Path) -> None:
    scenarios: list[Scenario] = ["offline", "concurrency"]
    page.write([served.write(tmp_path / "run", served.trials(ENGINES, scenarios))], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert html.count("durations and counts were multiplied by 0.01. Leave") == 1
    assert html.count('class="try"') >= len(scenarios)
    data = json.loads(re.findall(r'id="flagperf-data">(.*?)</script>', html, re.S)[0])
    assert {each["scenario"] for each in data["comparisons"]} == set(scenarios)
    assert not re.search(r">\{\w+\}", html)


@pytest.mark.slow
def test_as_a_browser_shows_it(browser: Any, tmp_path: Path) -> None:
    planned = served.trials({"eager": 1.0, HOSTILE: 1.0}, ["server", "concurrency"])
    planned = [msgspec.structs.replace(each, id=f"{place:03d}") for place, each in enumerate(planned)]
    output = tmp_path / "page.html"
    page.write([served.write(tmp_path / "run", planned, change=failing)], output)
    for width, language in ((1440, "en"), (390, "zh")):
        browser.size(width, dark=width < 600)
        browser.open(f"{output.as_uri()}?{width}#{language}", DRAWN)
        assert browser.console == []
        assert browser.run("document.title") != "pwned"
        assert browser.run("[...document.querySelectorAll('.failed')].every(e => e.hidden)")
        assert browser.run("[...document.querySelectorAll('.canvas')].every(c => c.querySelector('svg path'))")
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.run("document.documentElement.scrollWidth") == width
    left = "[...document.querySelectorAll('h3, .panel-title, .role-axis-title *, .badge, .rules dt, summary')]"
    told = f"{left}.map(e => e.innerText ?? e.textContent)"
    assert browser.run(f"{told}.filter(w => /^[A-Za-z]{{4,}} [a-z]{{2,}}/.test(w))") == []
    ids = browser.run("[...document.querySelectorAll('main [id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
