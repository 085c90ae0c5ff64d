"""Marks in a new adapter's files: `FILL IN (part): what to put there`, in whatever comment the file has."""

from __future__ import annotations

import re
from pathlib import Path

from flagperf.schema.conformance import Mark

_MARK = re.compile(r'FILL IN \((?P<part>[\w-]+)\):\s*(?P<text>.*?)\s*(?:-->|": ".*)?\s*$')
_SUFFIXES = {".py", ".toml", ".md", ".txt", ".json", ".yaml"}


def marks(folder: Path) -> list[Mark]:
    """Return the marks that are left in an adapter's folder, in the order of its files and lines."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in _SUFFIXES and path.is_file():
            for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
                if match := _MARK.search(line):
                    name = path.relative_to(folder).as_posix()
                    found.append(Mark(file=name, line=number, part=match["part"], text=match["text"]))
    return found
