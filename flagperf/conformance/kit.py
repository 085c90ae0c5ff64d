"""The adapter under test: its folder, manifest, samples, and the processes in which its device is tried."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from flagperf.accelerator import Accelerator
from flagperf.conformance.bench import Processes
from flagperf.conformance.check import Where, described
from flagperf.conformance.marks import marks
from flagperf.detection import Host
from flagperf.errors import FlagPerfError, PluginError
from flagperf.registry import Registries
from flagperf.schema.conformance import Mark
from flagperf.schema.manifest import VendorManifest
from flagperf.schema.reading import Readings
from flagperf.vendor import Vendor


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool printed, `samples/NAME.txt`, and what it means, `samples/NAME.json`."""

    path: Path
    text: str
    command: str = ""
    """The command line that printed it, if the file beside it says."""
    expected: dict[str, Any] | None = None
    """`devices`, a list of the fields of a `Reading`; `error`, whether the tool complained."""
    problem: str = ""
    """Why the file beside it can't be used."""


class Kit:
    """Gives checks what they look at, and skips those whose object isn't there."""

    def __init__(self, name: str, folders: list[Path]) -> None:
        self.name, self.folders = name, folders
        self.registries = Registries(folders)
        self.folder, self.unreadable = self._place()
        self.marks: list[Mark] = marks(self.folder)
        self._environ = dict(os.environ)  # as it is before the adapter is loaded here
        self._processes: dict[Where, Processes] = {}

    def _place(self) -> tuple[Path, str]:
        """Return the adapter's folder, and why its manifest can't be read, if so; raises UnknownName."""
        vendors = self.registries.vendors
        try:
            return vendors.place(self.name).parent, ""
        except PluginError as error:
            for path, why in vendors.broken.items():
                if self.name in (Path(path).stem, Path(path).parent.name):
                    return Path(path).parent, why
            raise error

    @property
    def manifest(self) -> VendorManifest:
        """The adapter's manifest."""
        if self.unreadable:
            pytest.skip("needs a manifest that can be read")
        return self.registries.vendors.get(self.name)

    @functools.cached_property
    def _loaded(self) -> Vendor | str:
        try:
            adapter: Vendor = self.registries.vendors.adapter(self.name)
            return adapter
        except FlagPerfError as error:
            return f"{error.message} {error.hint}"
        except Exception as error:  # its constructor may raise anything
            return f"its adapter can't be made: {described(error)}"

    @property
    def load_problem(self) -> str:
        """Why its entry can't be loaded, or nothing."""
        if not self.manifest:
            return ""
        return self._loaded if isinstance(self._loaded, str) else ""

    @property
    def adapter(self) -> Vendor:
        """The adapter on this host."""
        if self.load_problem or isinstance(self._loaded, str):
            pytest.skip("needs an entry that can be loaded")
        return self._loaded

    @property
    def accelerator(self) -> Accelerator:
        """The adapter on this host, of a vendor that has accelerators."""
        adapter = self.adapter
        if not isinstance(adapter, Accelerator):
            pytest.skip("needs an adapter of accelerators, whose devices are found by markers")
        return adapter

    def on(self, host: Host, **changes: Any) -> Accelerator:
        """Return the adapter on another host, with its manifest changed."""
        adapter = self.accelerator
        around = msgspec.structs.replace(adapter.around, host=host)
        return type(adapter)(msgspec.structs.replace(adapter.manifest, **changes), around)

    @functools.cached_property
    def samples(self) -> list[Sample]:
        """The samples that there are."""
        return [_sample(path) for path in sorted((self.folder / "samples").glob("*.txt"))]

    def needed_samples(self) -> list[Sample]:
        """Return the samples of an adapter that parses; skip where there is none."""
        tools = self.accelerator.manifest.tools
        if not tools:
            pytest.skip("needs a tool whose output is parsed; this adapter reads a library alone")
        if not self.samples:
            command = shlex.join(tools[0].command)
            pytest.skip(f"needs samples/*.txt, what `{command}` prints, each with the expected .json beside")
        return self.samples

    def parse(self, sample: Sample) -> Readings:
        """Return what the adapter makes of a sample."""
        return self.accelerator.parse(sample.text, sample.command)

    def ask(self, where: Where, module: str, name: str, parameters: dict[str, str]) -> list[str]:
        """Make a check in the processes that are for it; return what it finds wrong."""
        adapter, ranks = self.adapter, 1
        if where != "fresh":
            usable = adapter.availability()
            if not usable.available:
                pytest.skip(f"needs a device that can be used: {usable.reason}")
        if where == "group":
            ranks = 2
            if adapter.slots() < ranks:
                pytest.skip(f"needs two devices; there is {adapter.slots()}")
        if where not in self._processes:
            variables = {} if where == "fresh" else adapter.manifest.variables("")
            environ = {**variables, **self._environ}
            self._processes[where] = Processes(where, self.name, self.folders, ranks, environ)
        answer = self._processes[where].ask(module, name, parameters)
        if answer.absent:
            pytest.skip(f"needs {answer.absent}")
        return answer.problems

    def close(self) -> None:
        """End the processes."""
        for processes in self._processes.values():
            processes.close()

    @contextmanager
    def replayed(self, scripts: dict[str, str]) -> Iterator[Host]:
        """Make a host that shows all of the vendor's markers and has these tools, by name, as shell scripts."""
        manifest = self.manifest
        with TemporaryDirectory(prefix="flagperf-replay-") as name:
            root = Path(name)
            for path in [*manifest.markers.nodes, *manifest.markers.files]:
                place = root / _instance(path).lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            if manifest.markers.pci:
                device = root / "sys/bus/pci/devices/0000:01:00.0"
                device.mkdir(parents=True)
                maker, _, model = _instance(manifest.markers.pci[0]).partition(":")
                for file, text in (("class", "0x120000"), ("vendor", f"0x{maker}"), ("device", f"0x{model}")):
                    (device / file).write_text(text + "\n")
            tools = root / "tools"
            tools.mkdir()
            for tool, script in scripts.items():
                (tools / tool).write_text(f"#!/bin/sh\n{script}\n")
                (tools / tool).chmod(0o755)
            versions = {key: _instance(pattern) for key, pattern in manifest.markers.distributions.items()}
            environ = {"PATH": str(tools), **dict.fromkeys(manifest.markers.environment, "1")}
            yield Host(root=root, environ=environ, version=versions.get)


def replay_scripts(samples: list[Sample], manifest: VendorManifest) -> dict[str, str]:
    """Return, by tool, a script that prints the sample of each command line, and complains of any other."""
    cat, cases = shutil.which("cat") or "/bin/cat", dict[str, list[str]]()
    commands = {shlex.join(tool.command): tool.command for tool in manifest.tools}
    for sample in samples:
        if (command := commands.get(sample.command)) is not None:
            arguments, path = " ".join(command[1:]), str(sample.path)
            cases.setdefault(command[0], []).append(f"{shlex.quote(arguments)}) exec {cat} {shlex.quote(path)};;")
    return {
        tool: 'case "$*" in\n' + "\n".join(lines) + '\n*) echo "unknown options" >&2; exit 2;;\nesac'
        for tool, lines in cases.items()
    }


def _sample(path: Path) -> Sample:
    text, beside = path.read_text("utf-8", errors="replace"), path.with_suffix(".json")
    try:
        expected = json.loads(beside.read_text("utf-8"))
        if not isinstance(expected, dict) or not isinstance(expected.get("devices"), list):
            return Sample(path=path, text=text, problem=f"{beside.name} has no list of devices")
    except FileNotFoundError:
        return Sample(path=path, text=text, problem=f"{beside.name} isn't there")
    except ValueError as error:
        return Sample(path=path, text=text, problem=f"{beside.name} can't be read: {error}")
    return Sample(path=path, text=text, command=str(expected.get("command", "")), expected=expected)


def _instance(pattern: str) -> str:
    """Return a text that a shell glob matches: `/dev/nvidia[0-9]*` → `/dev/nvidia0`."""
    text, place = "", 0
    while place < len(pattern):
        letter = pattern[place]
        end = pattern.find("]", place + 2) if letter == "[" else -1
        if end > 0:
            text, place = text + pattern[place + 1], end + 1
        else:
            text, place = text + {"*": "", "?": "0"}.get(letter, letter), place + 1
    return text
