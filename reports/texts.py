"""Texts in both languages: those of text.toml, and what is put together from them."""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources
from typing import Any

import msgspec
from markupsafe import Markup, escape

from flagperf.metrics import catalogue
from flagperf.schema.metric import Metric

LANGUAGES = ("en", "zh")


_CODE = re.compile("`([^`]+)`")


def coded(words: str) -> Markup:
    """Return text as HTML, harmless, with what stands between backticks set as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(words))))


class Both(msgspec.Struct, frozen=True):
    """A text in English and Chinese. In HTML both are there, and the page's style shows one."""

    en: str
    zh: str

    def __html__(self) -> str:
        if self.en == self.zh:
            return str(coded(self.en))
        pattern = Markup('<span class="l-en" lang="en">{}</span><span class="l-zh" lang="zh-CN">{}</span>')
        return str(pattern.format(coded(self.en), coded(self.zh)))

    def __add__(self, other: Both | str) -> Both:
        more = other if isinstance(other, Both) else Both(other, other)
        return Both(self.en + more.en, self.zh + more.zh)

    def __bool__(self) -> bool:
        return bool(self.en or self.zh)


@functools.cache
def texts() -> dict[str, Both]:
    """Return every text of text.toml by its dotted key."""
    tables = tomllib.loads(resources.files(__package__).joinpath("text.toml").read_text("utf-8"))
    return {
        f"{group}.{name}": msgspec.convert(value, Both)
        for group, table in tables.items()
        for name, value in table.items()
    }


def text(key: str, **values: Any) -> Both:
    """Return a text with its fields filled in; a value that is Both gives each language its own."""
    template = texts()[key]
    if not values:
        return template
    filled = [
        getattr(template, language).format(
            **{name: getattr(v, language) if isinstance(v, Both) else v for name, v in values.items()}
        )
        for language in LANGUAGES
    ]
    return Both(*filled)


def same(words: str) -> Both:
    """Return a text that is the same in both languages: a name, a number."""
    return Both(words, words)


def sentences(parts: list[Both]) -> Both:
    """Join sentences: English puts a space between them, Chinese doesn't."""
    kept = [part for part in parts if part]
    return Both(" ".join(part.en for part in kept), "".join(part.zh for part in kept))


def listed(parts: list[Both] | list[str]) -> Both:
    """Join items with commas."""
    both = [part if isinstance(part, Both) else same(part) for part in parts]
    return Both(", ".join(part.en for part in both), "、".join(part.zh for part in both))


def title(name: str) -> Both:
    """Return a metric's title; of one that isn't declared its name."""
    declared: Metric | None = catalogue().get(name)
    return Both(declared.title, declared.title_zh) if declared else same(name)
