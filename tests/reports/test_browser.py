"""The page as a person's browser shows it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagperf.reports import page

pytestmark = pytest.mark.slow

DRAWN = "document.documentElement.dataset.drawn !== undefined"
HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">{{7*7}}"

MakePage = Callable[..., Path]


def test_charts_are_drawn_and_nothing_is_logged_or_fetched(browser: Any, page_of: MakePage) -> None:
    browser.size(1440)
    browser.open(page_of().as_uri(), DRAWN)
    charts = browser.run("document.querySelectorAll('.canvas').length")
    drawn = browser.run("[...document.querySelectorAll('.canvas')].filter(c => c.querySelector('svg path')).length")
    assert (charts, drawn) == (8, 8)
    assert browser.run("[...document.querySelectorAll('.failed')].every(e => e.hidden)")
    assert browser.console == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page_of().as_uri()]
    lines = browser.run(
        "[...document.querySelectorAll('[id$=-loss] .mark-line path')].map(p => p.getAttribute('d').length)"
    )
    assert len(lines) == 6 and min(lines) > 100, "a line a trial"


def test_what_is_fetched_or_run_by_others_is_refused(browser: Any, page_of: MakePage, tmp_path: Path) -> None:
    html = page_of().read_text("utf-8")
    attack = "<script>document.title='pwned'</script><img src='http://127.0.0.1:9/x'>"
    attacked = tmp_path / "attacked.html"
    attacked.write_text(html.replace("<main>", f"<main>{attack}"), "utf-8")
    browser.size(1440)
    browser.open(attacked.as_uri(), DRAWN)
    assert browser.run("document.title") != "pwned"
    assert len([line for line in browser.console if "Content Security Policy" in line]) >= 2


def test_language_switches_without_a_reload(browser: Any, page_of: MakePage) -> None:
    address = page_of().as_uri()
    browser.size(1440, language="en-US")
    browser.open(address, DRAWN)
    headline = "document.querySelector('.headline').innerText"
    axes = "[...document.querySelectorAll('.canvas text')].map(e => e.textContent).join('|')"
    assert "slower than ddp" in browser.run(headline)
    assert "share of steps" in browser.run(axes)
    browser.run("delete document.documentElement.dataset.drawn; document.getElementById('language').click()")
    while not browser.run(DRAWN):
        pass
    assert "的训练比" in browser.run(headline)
    assert "slower" not in browser.run("document.querySelector('main').innerText")
    assert "步的比例" in browser.run(axes)
    assert browser.run("document.documentElement.lang") == "zh-CN"

    browser.open(f"{address}?#zh", DRAWN)
    assert "的训练比" in browser.run(headline)
    browser.size(1440, language="zh-CN")
    browser.open(f"{address}?again", DRAWN)
    assert "的训练比" in browser.run(headline)
    browser.open(page_of(language="en").as_uri(), DRAWN)
    assert "slower than ddp" in browser.run(headline), "what was asked for wins over the browser's"


def test_no_text_is_left_untranslated_in_chinese(browser: Any, page_of: MakePage) -> None:
    browser.size(1440)
    browser.open(f"{page_of().as_uri()}?#zh", DRAWN)
    left = browser.run(
        "[...document.querySelectorAll('h2, h3, .metrics th, summary, nav a, .badge, .rules dt, .role-axis-title *')]"
        ".map(e => e.innerText ?? e.textContent).filter(words => /^[A-Za-z]{4,} [a-z]{2,}/.test(words))"
    )
    assert left == []


@pytest.mark.parametrize(("language", "dark"), [("en", False), ("zh", True)])
def test_a_phone_needs_no_sideways_scrolling(
    browser: Any, page_of: MakePage, runs: Any, language: str, dark: bool
) -> None:
    browser.size(390, 844, dark=dark)
    for address in (page_of().as_uri(), page_of(fail=["003-ddp"]).as_uri(), _hostile(page_of, runs).as_uri()):
        browser.open(f"{address}?#{language}", DRAWN)
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        widths = browser.run("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert widths == [390, 390, 390]


def test_colours_follow_the_system(browser: Any, page_of: MakePage) -> None:
    seen = []
    for dark in (False, True):
        browser.size(1440, dark=dark)
        browser.open(f"{page_of().as_uri()}?{dark}", DRAWN)
        seen.append(
            browser.run(
                "[getComputedStyle(document.body).backgroundColor,"
                " document.querySelector('[id$=-loss] .mark-line path').getAttribute('stroke')]"
            )
        )
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_text_has_enough_contrast(browser: Any, page_of: MakePage) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for what is drawn in an engine's colour."""
    for dark in (False, True):
        browser.size(1440, dark=dark)
        browser.open(f"{page_of().as_uri()}?contrast{dark}", DRAWN)
        ratios = browser.run(
            """(() => {
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
              const hex = style.getPropertyValue('--' + name).trim().slice(1);
              const [r, g, b] = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
                .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
              return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
            const text = ['ink', 'quiet', 'link', 'better', 'worse', 'equivalent', 'cannot_tell', 'invalid'];
            const drawn = [0, 1, 2, 3, 4, 5, 6, 7].map(i => 'c' + i);
            const least = (names) => Math.min(...names.flatMap(n => ['paper', 'card'].map(p => ratio(n, p))));
            return [least(text), least(drawn)];
            })()"""
        )
        assert ratios[0] >= 4.5 and ratios[1] >= 3


def test_hostile_text_is_text(browser: Any, page_of: MakePage, runs: Any) -> None:
    browser.size(1440)
    browser.open(_hostile(page_of, runs).as_uri(), DRAWN)
    assert browser.run("document.title") != "pwned"
    assert browser.run("document.querySelectorAll('main img, main svg[onload], main b > case').length") == 0
    assert "{{7*7}}" in browser.run("document.querySelector('.command code').textContent")
    assert HOSTILE in browser.run("[...document.querySelectorAll('.remarks li')].map(e => e.textContent).join()")
    assert browser.run("JSON.parse(document.getElementById('flagperf-data').textContent).runs[0].command").count(
        HOSTILE
    )
    assert browser.run("[...document.querySelectorAll('.failed')].every(e => e.hidden)")
    assert browser.console == []


def _hostile(page_of: MakePage, runs: Any) -> Path:
    return page_of(
        runs.Arm(name="<script>document.title='pwned'</script>"),
        runs.Arm(name="\"'><img src=x onerror=alert(2)>", step=0.41),
        hostile=HOSTILE,
        case="<b>case</b>",
        run_id="</title><svg onload=\"document.title='pwned'\">",
    )


def test_invalid_trials_are_struck_out_and_not_drawn(browser: Any, page_of: MakePage) -> None:
    browser.size(1440)
    browser.open(page_of(fail=["003-ddp"]).as_uri(), DRAWN)
    row = "[...document.querySelectorAll('.trials tbody tr')].find(r => r.innerText.includes('003-ddp'))"
    assert browser.run(f"{row}.classList.contains('invalid')")
    assert "line-through" in browser.run(f"getComputedStyle({row}.querySelector('td.num s')).textDecoration")
    assert "SIGKILL" in browser.run("document.querySelector('.why').innerText")
    assert browser.run("document.querySelectorAll('[id$=-loss] .mark-line path').length") == 5


def test_a_chart_that_fails_leaves_the_rest(browser: Any, page_of: MakePage, tmp_path: Path) -> None:
    html = page_of().read_text("utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(html.replace('"type":"line"', '"type":"no such mark"', 1), "utf-8")
    browser.size(1440)
    browser.open(broken.as_uri(), DRAWN)
    assert browser.run("[...document.querySelectorAll('.failed')].filter(e => !e.hidden).length") == 1
    assert browser.run("document.querySelectorAll('.canvas svg').length") == 7
    assert "slower than ddp" in browser.run("document.querySelector('.headline').innerText")


def test_without_vega_the_words_and_tables_stay(browser: Any, page_of: MakePage, tmp_path: Path) -> None:
    html = page_of().read_text("utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(html[: html.rindex("<script>")], "utf-8")
    browser.size(1440)
    browser.open(bare.as_uri(), DRAWN)
    assert browser.run("[...document.querySelectorAll('.failed')].every(e => !e.hidden)")
    assert browser.run("document.querySelectorAll('.metrics tbody tr').length") > 15


def test_every_heading_table_and_chart_is_told_to_a_screen_reader(browser: Any, page_of: MakePage) -> None:
    browser.size(1440)
    browser.open(page_of().as_uri(), DRAWN)
    assert browser.run("document.querySelectorAll('h1').length") == 1
    levels = browser.run("[...document.querySelectorAll('main h1, main h2, main h3')].map(h => +h.tagName[1])")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.run("[...document.querySelectorAll('th')].every(th => th.scope)")
    assert browser.run(
        "[...document.querySelectorAll('.chart')].every(f =>"
        " /img|graphics-document/.test(f.querySelector('.canvas').getAttribute('role')) &&"
        " document.getElementById(f.getAttribute('aria-labelledby')).innerText.length > 3 &&"
        " document.getElementById(f.getAttribute('aria-describedby')).innerText.length > 20)"
    )
    ids = browser.run("[...document.querySelectorAll('main [id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "options",
    [
        {"trials": 1, "fail": ["000-ddp", "001-fsdp"]},
        {"stop_before": "003-ddp"},
        {"stop_before": "000-ddp"},
        {"telemetry": False},
        {"case": "spec/gemm", "metrics": ["memory_peak_rss", "p_train"]},
    ],
)
def test_runs_that_went_wrong_or_are_of_another_kind(browser: Any, page_of: MakePage, options: dict[str, Any]) -> None:
    browser.size(390, 844)
    browser.open(page_of(**options).as_uri(), DRAWN)
    assert browser.console == []
    assert len(browser.run("document.querySelector('.headline').innerText")) > 10
    assert browser.run("[...document.querySelectorAll('.failed')].every(e => e.hidden)")


def test_several_runs_on_one_page(browser: Any, runs: Any, tmp_path: Path) -> None:
    folders = [runs.make_run(tmp_path / name, trials=2, run_id=name) for name in ("one", "two")]
    page.write(folders, tmp_path / "both.html")
    browser.size(1440)
    browser.open((tmp_path / "both.html").as_uri(), DRAWN)
    assert browser.run("document.querySelectorAll('.verdict').length") == 2
    assert browser.run("document.querySelectorAll('.canvas svg').length") == 16
    assert browser.console == []
