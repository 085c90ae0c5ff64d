"""The catalogue of metrics, read from metrics.toml."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources

import msgspec

from flagperf.errors import UnknownName
from flagperf.schema.metric import Metric


@functools.cache
def catalogue() -> dict[str, Metric]:
    """Return every declared metric by name, in the order of the file."""
    text = resources.files("flagperf").joinpath("metrics.toml").read_text("utf-8")
    return {name: msgspec.convert({"name": name, **body}, Metric) for name, body in tomllib.loads(text).items()}


def metric(name: str) -> Metric:
    """Return one metric's declaration."""
    try:
        return catalogue()[name]
    except KeyError:
        raise UnknownName("metric", name, catalogue()) from None
