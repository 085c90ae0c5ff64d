from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagperf.data.docstrings import clean_lines, docstrings, wheel_documents
from flagperf.errors import FlagPerfError

WheelMaker = Callable[[Path, dict[str, str]], Path]

CODE = '''"""Of the module: not taken."""
import json

class Disk(Base):
    r"""磁盘 \\d 的参数

    """

    def __init__(self, size):
        r"""
        :param _Size: 容量,单位 GiB
        :type Size: int
        :param request: Request instance.
        """
        self._Size = None
        query = """not a docstring"""

    @property
    def Size(self):
        r"""容量,单位 GiB
        :rtype: int
        """
        return self._Size

    async def later(self):
        """Escaped \\t tab.

            indented example
        last
        """
'''


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_finds_what_ast_finds(newline: str, by_ast: Callable[[str], list[str]]) -> None:
    code = CODE.replace("\n", newline)
    assert sorted(docstrings(code)) == by_ast(code)
    assert len(by_ast(code)) == 4


WORDS = st.text(st.sampled_from("ab 中\n\t:,."), max_size=40)


@given(
    st.lists(st.tuples(st.sampled_from(['"""', 'r"""']), WORDS, st.sampled_from(["class C", "def f()"])), max_size=6)
)
def test_agrees_with_ast_on_generated_code(
    by_ast: Callable[[str], list[str]], parts: list[tuple[str, str, str]]
) -> None:
    code = "\n".join(f'{head}:\n    {quote}{text}"""\n    x = """{text}"""\n' for quote, text, head in parts)
    assert sorted(docstrings(code)) == by_ast(code)


def test_a_line_is_kept_once_and_types_are_left_out(tmp_path: Path, make_wheel: WheelMaker) -> None:
    wheel = make_wheel(tmp_path / "a.whl", {"b.py": CODE, "a.py": 'def f():\n    """last"""\n', "c.txt": CODE})
    text = "".join(wheel_documents(wheel))
    assert text.splitlines() == [
        "last",
        "磁盘 \\d 的参数",
        "Size: 容量,单位 GiB",
        "request: Request instance.",
        "Escaped \t tab.",
        "    indented example",
    ]


def test_dedent_by_the_least_indented_line() -> None:
    assert [line for line, _ in clean_lines("first\n      six\n    four\n\n")] == ["first", "  six", "four"]


def test_documents_are_cut_at_docstrings(tmp_path: Path, make_wheel: WheelMaker) -> None:
    code = "".join(f'def f{n}():\n    """{str(n) * 500}"""\n' for n in range(10, 20))
    documents = list(wheel_documents(make_wheel(tmp_path / "a.whl", {"a.py": code})))
    assert [document.count("\n") for document in documents] == [3, 3, 3, 1]


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"not a zip")
    with pytest.raises(FlagPerfError, match=r"a\.whl can't be read as a wheel"):
        list(wheel_documents(tmp_path / "a.whl"))
