"""Text from a wheel: the docstrings of its Python files, read from the zip and never imported."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from flagperf.errors import FlagPerfError

# Consecutive docstrings of one file make one document, closed once it is this long: long enough to have context,
# short enough that two languages interleave finely.
DOCUMENT_BYTES = 2048

_DEFINITION = re.compile(r"[ \t]*(?:class|(?:async[ \t]+)?def)[ \t]")
_PARAMETER = re.compile(r":param _?(\w+):[ \t]*(.*)")
_BOILERPLATE = (":type ", ":rtype", ":return")
_BLANK = " \t"


def wheel_documents(wheel: Path) -> Iterator[str]:
    """Yield the documents of a wheel, in the order of its file names; a line of text is kept where it is first met.

    The bytes are the same on every Python: nothing here depends on how its compiler or `inspect` cleans a docstring.
    """
    seen_docstrings: set[str] = set()
    seen_lines: set[str] = set()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".py")):
                document: list[str] = []
                size = 0
                for docstring in docstrings(archive.read(name).decode("utf-8")):
                    # Most docstrings of a generated library repeat: skip whole ones before looking at lines.
                    if docstring in seen_docstrings:
                        continue
                    seen_docstrings.add(docstring)
                    for line, key in clean_lines(docstring):
                        if key not in seen_lines:
                            seen_lines.add(key)
                            document.append(line)
                            size += len(line.encode("utf-8")) + 1
                    if size >= DOCUMENT_BYTES:
                        yield "\n".join(document) + "\n"
                        document, size = [], 0
                if document:
                    yield "\n".join(document) + "\n"
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise FlagPerfError(
            f"{wheel} can't be read as a wheel: {error}", "Remove the file and prepare again."
        ) from error


def docstrings(code: str) -> Iterator[str]:
    """Yield the triple-quoted docstrings of the classes and functions in Python source, as written, not dedented.

    They are found by their quotes: parsing the 270 MB of code around 16 MB of text takes ten times as long. So a file
    that has triple quotes inside a comment or another literal is not for this function; a test compares with `ast`.
    """
    parts = code.replace("\r\n", "\n").split('"""')
    for before, literal in zip(parts[0::2], parts[1::2], strict=False):
        head = before.rstrip(_BLANK)
        raw = head[-1:] in ("r", "R")
        header = (head[:-1] if raw else head).rstrip(_BLANK + "\n")
        if not header.endswith(":") or not _DEFINITION.match(header, header.rfind("\n") + 1):
            continue
        if raw or "\\" not in literal:
            yield literal
        else:
            yield str(ast.literal_eval(f'"""{literal}"""'))


def clean_lines(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield (line, key) of the lines that say something; equal keys mean equal text.

    The common indent of the lines after the first is cut. `:param _Name: text` becomes `Name: text` and has the key
    `text`, for such libraries say it again in the docstring of the property; types are left out.
    """
    lines = [line.rstrip(_BLANK) for line in docstring.split("\n")]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines[1:] if line]
    indent = min(indents, default=0)
    for number, line in enumerate(lines):
        key = line.strip(_BLANK)
        if not key or key.startswith(_BOILERPLATE):
            continue
        text = key if number == 0 else line[indent:]
        if parameter := _PARAMETER.fullmatch(key):
            name, key = parameter[1], parameter[2]
            text = f"{name}: {key}"
            if not key:
                continue
        yield text, key
