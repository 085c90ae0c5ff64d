"""The script that draws the charts: Vega, Vega-Lite and Vega-Embed in one file, made once and kept."""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from flagperf.paths import cache

_SNIPPET = "window.vegaEmbed = vegaEmbed;"
_LEAST = 100_000
"""A whole bundle has far more bytes; a smaller file is a damaged one."""


def bundle() -> str:
    """Return the script; it sets `vegaEmbed`. Kept in the user's cache where that can be written."""
    import vl_convert

    vega_lite = vl_convert.get_vegalite_versions()[-1]
    path = cache() / "reports" / f"vega-{version('vl-convert-python')}-{vega_lite}.js"
    try:
        kept = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        kept = ""
    if len(kept) >= _LEAST and kept.endswith(_END):
        return kept
    made = _inert(vl_convert.javascript_bundle(_SNIPPET, vega_lite)) + _END
    _keep(path, made)
    return made


_END = "\n/* whole */"


def _inert(script: str) -> str:
    """Return the script with nothing that would end the element it stands in, or hide its end."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _keep(path: Path, script: str) -> None:
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(script)
        Path(temporary).replace(path)
    except OSError:  # a cache that can't be written costs seconds, not the report
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
