"""Writes a new adapter's folder from `template/`: complete, but for the parts that are marked."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from flagperf.errors import UsageError
from flagperf.registry import Registries

_HOME = Path(__file__).parent / "template"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write_adapter(name: str, out: Path, registries: Registries) -> Path:
    """Write `out`/NAME and return it; raise UsageError for a name that can't be used or a folder that is there."""
    if not _NAME.fullmatch(name) or len(name) > 32:
        raise UsageError(
            f"{name!r} can't be a vendor's name.",
            "Use lower-case letters and digits, a letter first, with hyphens between words, at most 32 characters.",
        )
    if name in registries.vendors.names():
        where = registries.vendors.place(name)
        raise UsageError(f"There is a vendor {name!r} already: {where}", "Choose another name, or change that one.")
    word = name.replace("-", "_")
    folder = out / word
    if folder.exists():
        raise UsageError(f"{folder} is there already.", "Choose another place: --out")
    values = {
        "name": name,
        "word": name.replace("-", ""),
        "title": " ".join(part.capitalize() for part in name.split("-")),
        "entry": "".join(part.capitalize() for part in name.split("-")),
    }
    (folder / "samples").mkdir(parents=True)
    (folder / "__init__.py").touch()
    for path in sorted(_HOME.rglob("*.txt")):
        to = path.relative_to(_HOME).with_suffix("")
        if to.name == "manifest.toml":
            to = to.with_name(f"{word}.toml")
        elif to.parent.name == "samples":
            to = to.with_name(f"{values['word']}-smi{to.suffix}")
        (folder / to).write_text(Template(path.read_text("utf-8")).substitute(values), "utf-8")
    return folder
