"""What an adapter's folder has in it."""

from __future__ import annotations

import ast
import importlib.util

from flagperf.conformance.check import Problems, check
from flagperf.conformance.kit import Kit
from flagperf.vendor import Vendor

_MOST_LINES = 150


@check(
    "A part left as the template has it says something that isn't true of this vendor.",
    "Replace what each mark stands beside, and delete the mark.",
    part="all",
)
def test_nothing_is_left_to_fill_in(kit: Kit) -> Problems:
    for mark in kit.marks:
        yield f"{mark.file}:{mark.line} ({mark.part}): {mark.text}"


@check(
    "Who reads a result looks for the adapter's folder by the name that the result has.",
    "Name the folder and the manifest as the vendor is named: NAME/NAME.toml, with a hyphen as an underscore.",
)
def test_is_named_as_the_vendor(kit: Kit) -> Problems:
    wanted = kit.name.replace("-", "_")
    if kit.folder.name.replace("-", "_") != wanted:
        yield f"the folder is called {kit.folder.name!r}, the vendor {kit.name!r}"
    if not any((kit.folder / f"{name}.toml").is_file() for name in (kit.name, wanted)):
        yield f"there is no {wanted}.toml in {kit.folder.name}/"


@check(
    "Options, results and file names spell the vendor, and a shell or a file system must not change it.",
    "Use lower-case letters, digits and hyphens, a letter first, at most 32.",
)
def test_name_is_plain(kit: Kit) -> Problems:
    name = kit.name
    if not (name.replace("-", "").isalnum() and name.isascii() and name == name.lower() and name[:1].isalpha()):
        yield f"{name!r} has something else in it"
    if len(name) > 32:
        yield f"{name!r} has {len(name)} characters"


@check(
    "Installed from a wheel, a folder that is no package isn't there.",
    "Put an empty __init__.py into the folder.",
)
def test_is_a_package(kit: Kit) -> Problems:
    if not (kit.folder / "__init__.py").is_file():
        yield "there is no __init__.py"


@check(
    "Without its entry the harness can't ask for a device.",
    'Mend the import, or name the class in the manifest: entry = ".adapter:Class".',
    part="parser",
)
def test_entry_can_be_loaded(kit: Kit) -> Problems:
    if kit.load_problem:
        yield kit.load_problem


@check(
    "The harness calls what the contract has; a class that doesn't derive from it lacks the rest.",
    "Derive the entry from flagperf.accelerator.Accelerator, or for a host's own cores from flagperf.vendor.Vendor.",
)
def test_entry_is_a_vendor(kit: Kit) -> Problems:
    adapter: object = kit.adapter
    if not isinstance(adapter, Vendor):
        yield f"{type(adapter).__name__} isn't derived from Vendor"
    elif adapter.name != kit.name:
        yield f"it calls itself {adapter.name!r}"


@check(
    "`flagperf list` and `flagperf devices` must work, and fast, where torch or the plug-in is broken or missing.",
    "Import torch and the plug-in inside the methods of the runtime.",
)
def test_imports_torch_nowhere_at_its_top(kit: Kit) -> Problems:
    plugin = kit.manifest.plugin.partition(".")[0]
    heavy = {"torch", plugin} - {"", "flagperf"}
    own = kit.manifest.plugin.rpartition(".")[2]  # a plug-in that is part of the adapter is torch's by intent
    for path in sorted(kit.folder.rglob("*.py")):
        if path.stem == own:
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                if name.partition(".")[0] in heavy:
                    yield f"{path.relative_to(kit.folder)}:{node.lineno} imports {name}"


@check(
    "What an adapter does by itself each vendor does differently, and nobody can review it all.",
    f"Say it in the manifest, or leave it to the harness; {_MOST_LINES} lines are enough. Bindings are a file apart.",
)
def test_adapter_is_short(kit: Kit) -> Problems:
    module = kit.manifest.entry.partition(":")[0].rpartition(".")[2]
    path = kit.folder / f"{module}.py"
    if path.is_file() and (lines := len(path.read_text("utf-8").splitlines())) > _MOST_LINES:
        yield f"{path.name} has {lines} lines"


@check(
    "Text that is run as code or by a shell can be made to do anything, and a driver's output is such text.",
    "Give commands as lists in the manifest's [[tools]]; parse with the functions of flagperf.parsing.",
)
def test_runs_no_text(kit: Kit) -> Problems:
    banned = {
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "pickle.loads",
        "pickle.load",
        "yaml.load",
        "subprocess.getoutput",
    }
    for path in sorted(kit.folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                shell = any(word.arg == "shell" for word in node.keywords)
                if ast.unparse(node.func) in banned or shell:
                    yield f"{path.relative_to(kit.folder)}:{node.lineno} calls {ast.unparse(node.func)}"


@check(
    "A plug-in that is missing must be told by `flagperf devices`, with what to do, before a trial starts.",
    "Say in the manifest's `install` where a torch for these devices is to be had.",
    part="torch",
)
def test_says_how_to_get_a_torch(kit: Kit) -> Problems:
    if kit.accelerator.manifest.install.strip() == "":
        yield "`install` is empty"


@check(
    "The plug-in is looked for by its name without being imported.",
    "Name the module that makes torch know the device, as `import` spells it; leave it out where torch has the device.",
    part="torch",
)
def test_plugin_is_a_module_name(kit: Kit) -> Problems:
    plugin = kit.manifest.plugin
    if plugin and not all(part.isidentifier() for part in plugin.split(".")):
        yield f"{plugin!r} is no module's name"
    elif plugin.partition(".")[0] == "torch":
        yield f"{plugin!r} is torch itself"
    elif plugin and "." in plugin and plugin.startswith("flagperf.") and importlib.util.find_spec(plugin) is None:
        yield f"{plugin!r} isn't there"
