"""Finding runs and reading what they planned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from flagperf.errors import FlagPerfError, UsageError
from flagperf.schema import SCHEMA_VERSION
from flagperf.schema.trial import Run

HOME = Path("runs")
"""Where `flagperf run` puts runs unless told otherwise."""


def find_runs(paths: Sequence[Path] = ()) -> list[Path]:
    """Return run directories: those named, those inside folders named, or those in ./runs; each once, in order.

    Raises UsageError for a path that is neither a run nor a folder of runs.
    """
    found: dict[Path, None] = {}
    for path in paths or [HOME]:
        if (path / "run.json").is_file():
            found[path] = None
            continue
        try:
            inside = sorted(entry for entry in path.iterdir() if (entry / "run.json").is_file())
        except FileNotFoundError:
            if not paths:
                raise UsageError(
                    f"There is no folder {HOME} here.", "Name a run, or measure one: flagperf run --help"
                ) from None
            raise UsageError(f"There is no run {path}.", "`flagperf results` lists those in ./runs.") from None
        except NotADirectoryError:
            raise UsageError(f"{path} is a file; a run is a folder.", "Name the folder that holds run.json.") from None
        except PermissionError as error:
            raise FlagPerfError(f"{path} can't be read: {error.strerror}.") from error
        if not inside:
            raise UsageError(
                f"{path} is neither a run nor a folder of runs.",
                "A run is a folder with a run.json, as `flagperf run` makes it.",
            )
        found.update(dict.fromkeys(inside))
    return list(found)


class _Version(msgspec.Struct):
    schema: int


def read_run(folder: Path) -> Run:
    """Read a run's plan; raise FlagPerfError if it is missing, damaged or of a newer schema than this one's."""
    path = folder / "run.json"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is no run: it has no run.json.", "A run is a folder that `flagperf run` made."
        ) from None
    except OSError as error:
        raise FlagPerfError(f"{path} can't be read: {error.strerror}.") from error
    try:
        schema = msgspec.json.decode(text, type=_Version).schema
        if schema > SCHEMA_VERSION:
            raise FlagPerfError(
                f"{path} has schema {schema}; this FlagPerf reads schema {SCHEMA_VERSION} at most.",
                "Read it with the FlagPerf that wrote it or a newer one: pip install --upgrade flagperf",
            )
        return msgspec.json.decode(text, type=Run)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FlagPerfError(f"{path} is damaged: {error}", "Restore it from a copy, or leave this run out.") from error
