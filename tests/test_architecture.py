"""The design holds: lower layers don't know higher ones, heavy imports are lazy, neutral code names no vendor."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up. A module may import from its own layer and from those below it.
LAYERS = [
    {"_version", "errors", "paths", "processes"},
    {"schema"},
    {"chips", "deadlines", "detection", "links", "parsing", "tools"},
    {"journal", "metrics", "settings", "registry", "statistics", "data", "measure"},
    {"vendor", "accelerator", "case", "launchers"},
    {"context"},
    {"engine", "sweep", "kernel", "kernels", "specification", "specifications"},
    {"training", "inference"},
    {"engines", "worker"},
    {"plan", "collect"},
    {"run", "submit", "conformance"},
    {"cli", "__main__"},
    {"kernels_benchmark", "kernels_pytest"},
]


def modules() -> Iterator[Path]:
    return (ROOT / "flagperf").rglob("*.py")


def room(path: Path) -> str:
    first = path.relative_to(ROOT / "flagperf").parts[0]
    return first.removesuffix(".py")


def layer(name: str) -> int:
    for height, names in enumerate(LAYERS):
        if name in names:
            return height
    raise AssertionError(f"{name} has no layer: add it to LAYERS where it belongs")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def test_no_lower_layer_imports_a_higher_one() -> None:
    wrong = []
    for path in modules():
        if room(path) == "__init__":
            continue
        for name, line in imported(path):
            parts = name.split(".")
            if parts[0] != "flagperf" or len(parts) == 1 or parts[1] == "__version__":
                continue
            if layer(parts[1]) > layer(room(path)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_harness_names_no_case_vendor_or_page() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        for name, line in imported(path)
        if name.startswith(("flagperf.cases", "flagperf.vendors", "flagperf.reports"))
    ]
    assert not wrong, "\n".join(wrong)


def test_neutral_code_has_no_vendor_of_its_own() -> None:
    """No `torch.cuda` outside vendors/ and the engines that need it."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*modules(), *(ROOT / "cases").rglob("*.py")]
        if "engines" not in path.parts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if "torch.cuda" in line and not line.lstrip().startswith("#") and "`torch.cuda`" not in line
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["list", "engines"], ["list", "metrics"], ["show", "aquila/pretrain"]],
    ids=" ".join,
)
def test_commands_that_measure_nothing_dont_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['flagperf', *sys.argv[1:]]\n"
        "from flagperf.cli import main\n"
        "try: main()\n"
        "finally:\n"
        "    heavy = [m for m in ('torch', 'pandas', 'scipy', 'altair') if m in sys.modules]\n"
        "    print('HEAVY', heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("flagperf", "cases", "vendors", "reports", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text("utf-8").splitlines())) > 500
    }
    assert not long


def test_no_user_text_is_executed() -> None:
    wrong = []
    for folder in ("flagperf", "cases", "vendors", "reports"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    shell = any(word.arg == "shell" for word in node.keywords)
                    if called in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system") or shell:
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {called}")
    assert not wrong, "\n".join(wrong)
