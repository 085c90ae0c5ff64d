"""Text of a tool: its decoding, and its complaints."""

from __future__ import annotations

import codecs
import functools
import re

_MOST_LINES = 10_000

_MOST_OF_A_LINE = 300
"""Characters of a complaint that are kept."""

_COMPLAINT = re.compile(
    r"\b(?:fail(?:ed|ure)|error|fatal|exception|unable to|could ?n[o']t|can ?n[o']t|not (?:found|initiali[sz]ed|"
    r"supported|loaded|installed|available|running|recogni[sz]ed|accessible|connected|ready)|n't (?:open|load|find|"
    r"communicate|found)|no (?:such|(?:\w+ )?devices?)|denied|invalid|unknown (?:device|option|error)|mismatch|"
    r"timed? ?out|lost|insufficient|missing)\b"
    r"|失败|错误|异常|未找到|找不到|无法|不存在|不支持|拒绝|超时|未安装|未加载|未检测到",
    re.IGNORECASE,
)


def decode(data: bytes) -> str:
    """Return text from bytes of whatever encoding tools and their terminals use; without NUL bytes and CRs.

    Bytes that are no text in any of them become the replacement character.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            # A file that was cut may end within a character; that alone doesn't make it another encoding.
            cut = error.start >= len(data) - 3
            try:
                text = data.decode("utf-8-sig", "replace") if cut else data.decode("gb18030")
            except UnicodeDecodeError:
                text = data.decode("utf-8-sig", "replace")
    return re.sub(r"\r+\n?", "\n", text).replace("\0", "")


@functools.lru_cache(maxsize=2)
def plain_lines(text: str) -> tuple[str, ...]:
    """Return the lines without escape sequences and trailing blanks; other blanks become ordinary ones.

    Lines beyond those that any tool prints of a thousand devices aren't read: a log of megabytes takes no longer.
    """
    stripped = _ESCAPE.sub("", text) if "\x1b" in text else text
    lines = stripped.split("\n", _MOST_LINES)[:_MOST_LINES]
    return tuple(line.replace("\xa0", " ").replace("\u3000", " ").rstrip() for line in lines)


_ESCAPE = re.compile(r"\x1b\[[0-9;?]{0,16}[A-Za-z]")


def complaint(text: str, any_line: bool = False) -> str:
    """Return the first lines in which a tool says that something went wrong; else its last line, if asked; or nothing.

    Only for output in which no device was found: a table may well say `ECC errors`.
    """
    found: list[str] = []
    last = ""
    for line in plain_lines(text):
        bare = line.strip(" |+-=*#\t")
        if not bare:
            continue
        last = bare[:_MOST_OF_A_LINE]
        if _COMPLAINT.search(bare[:2000]) and last not in found:
            found.append(last)
            if len(found) == 3:
                break
    return "; ".join(found) or (last if any_line else "")


_DRIVER = re.compile(r"driver[ _]?(?:version|ver)?\"?\s{0,60}[:=>]?\s{0,40}\"?\s?v?(\d[\w.-]{1,40})", re.IGNORECASE)


def driver_version(text: str) -> str | None:
    """Return the version of the driver, which tools tell near the beginning or, in JSON, at the end."""
    for part in (text[:8192], text[-4096:]):
        if match := _DRIVER.search(part):
            return match[1]
    return None
