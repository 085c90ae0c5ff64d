"""A contest's section as a person's browser shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DRAWN = "document.documentElement.dataset.drawn !== undefined"
HOSTILE = (
    "</table></script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">{{7*7}}"
)
LONG = "a_word_without_any_place_to_break_" * 5

MakePage = Callable[..., Path]


@pytest.fixture(scope="module")
def made(contest_page: MakePage) -> Path:
    return contest_page()


@pytest.fixture(scope="module")
def hostile(contest_page: MakePage, contests: Any) -> Path:
    said = dict.fromkeys(("title", "title_zh", "source", "note", "note_zh"), f"{HOSTILE}{LONG}")
    arms = contests.usual()
    arms[2] = contests.arm(contests.NAMED[0], contests.BIGGER, 0.3, error=("ValueError", HOSTILE))
    return contest_page(*arms, claims=[contests.claim(**said)], title=HOSTILE, hostile=HOSTILE)


@pytest.mark.parametrize(("width", "language"), [(390, "zh"), (1440, "en")])
def test_it_fits_and_is_whole(browser: Any, made: Path, hostile: Path, width: int, language: str) -> None:
    browser.size(width)
    for page in (made, hostile):
        browser.open(f"{page.as_uri()}?#{language}", DRAWN)
        assert browser.run("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [width, width]
        assert browser.console == [] and [url for url in browser.requests if url.startswith("http")] == []
        assert browser.run("document.title") != "pwned"
        assert browser.run("document.querySelectorAll('main img').length") == 0
    assert "{{7*7}}" in browser.run("document.querySelector('.claims').textContent")
    assert "{{7*7}}" in browser.run("document.querySelector('.tried .why').textContent")


def test_what_comes_first(browser: Any, made: Path) -> None:
    browser.size(1440)
    browser.open(f"{made.as_uri()}?#en", DRAWN)
    assert browser.run("document.querySelector('h1').innerText") == "BMTrain against Megatron + DeepSpeed"
    asked = browser.run("[...document.querySelectorAll('.question')].map(e => e.innerText)")
    assert asked == [
        "At the same batch, as they were named",
        "Each in the fastest layout that fits",
        "Communication overlapped, against not",
        "Do they learn the same?",
    ]
    told = browser.run("[...document.querySelectorAll('#verdict h3')].map(e => e.innerText)")
    assert [words.splitlines()[-1] for words in told][-5:] == [
        "Who is who",
        "What each needs in memory at its peak",
        "How much communication is exposed",
        "What was published, and what was measured here",
        "Layouts that were tried",
    ]


def test_an_arm_has_one_colour_everywhere(browser: Any, made: Path) -> None:
    browser.size(1440)
    browser.open(f"{made.as_uri()}?#en", DRAWN)
    seen = browser.run(
        """(() => {
        const colour = (e, pseudo) => getComputedStyle(e, pseudo).backgroundColor;
        const found = {};
        const add = (name, value) => (found[name] ??= new Set()).add(value);
        const named = document.querySelectorAll('#verdict .arm, .metrics .arm');
        for (const e of named) add(e.innerText, colour(e, '::before'));
        for (const bar of document.querySelectorAll('.bars li')) {
          add(bar.querySelector('.arm').innerText, getComputedStyle(bar).getPropertyValue('--c').trim());
          const first = bar.querySelector('.stack i').getBoundingClientRect();
          if (first.height < 10 || first.width < 3) add('invisible', bar.innerText);
        }
        const keys = document.querySelectorAll('.key line');
        for (const e of keys) add(e.closest('.key').innerText, getComputedStyle(e).stroke);
        return Object.fromEntries(Object.entries(found).map(([name, values]) => [name, [...values]]));
        })()"""
    )
    assert set(seen) == {"megatron-deepspeed", "bmtrain", "bmtrain:overlap=0", "bmtrain:micro=8"}
    assert all(len({_rgb(value) for value in values}) == 1 for values in seen.values()), seen
    assert len({_rgb(values[0]) for values in seen.values()}) == 4
    lines = browser.run(
        "[...document.querySelectorAll('[id$=-loss] .mark-line path')].map(p => p.getAttribute('stroke'))"
    )
    assert {_rgb(line) for line in lines} == {_rgb(values[0]) for values in seen.values()}


def _rgb(value: str) -> str:
    """Return a colour written `#rrggbb` or `rgb(r, g, b)` in the second way."""
    if value.startswith("#"):
        return f"rgb({', '.join(str(int(value[at : at + 2], 16)) for at in (1, 3, 5))})"
    return value


def test_no_script_is_needed_and_chinese_is_whole(browser: Any, made: Path, tmp_path: Path) -> None:
    html = made.read_text("utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(html[: html.index("<script type=")].replace('<html lang="en"', '<html lang="zh-CN"'), "utf-8")
    browser.size(390)
    browser.open(bare.as_uri())
    text = browser.run("document.querySelector('#verdict').innerText")
    assert "公开宣称与此处实测" in text and "放得下" in text and "301.0" in text and "高于实测" in text
    assert "Layouts that were tried" not in text and "claim lies" not in text
    left = browser.run(
        "[...document.querySelectorAll('#verdict h3, .question, .claims thead th, .claims .outcome, .tried thead th, "
        ".parts > span, .said p')].map(e => e.innerText).filter(words => /^[A-Za-z]{4,} [a-z]{2,}/.test(words))"
    )
    assert left == []


def test_it_can_be_printed(browser: Any, made: Path) -> None:
    """Nothing is cut off on A4, and bars keep their colours."""
    browser.size(720, 1000)
    browser.open(f"{made.as_uri()}?#en", DRAWN)
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.run("document.documentElement.scrollWidth") == 720
        assert browser.run("getComputedStyle(document.querySelector('.stack i')).printColorAdjust") == "exact"
        assert browser.run(
            "[...document.querySelectorAll('.claims td, .tried td')].every(e => e.getBoundingClientRect().right <= 720)"
        )
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
