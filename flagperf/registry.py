"""Finds cases, engines, vendors and launchers: built in, in a folder the user names, or by entry point.

Finding reads manifests (TOML) only, so that `list` and `--help` import no plug-in. `load` imports one, and what goes
wrong then is told when that plug-in is asked for, never before, and never breaks another.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from packaging.specifiers import SpecifierSet

from flagperf.chips import TABLE, read_table
from flagperf.detection import Host, Surroundings
from flagperf.errors import PluginError, Unavailable, UnknownName, UsageError
from flagperf.schema.chip import Chip
from flagperf.schema.ledger import Ledger
from flagperf.schema.machine import Availability
from flagperf.schema.manifest import (
    CaseManifest,
    EngineManifest,
    LauncherManifest,
    Manifest,
    Requirement,
    VendorManifest,
)
from flagperf.settings import merged

M = TypeVar("M", bound=Manifest)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest file and the package its entry is relative to."""

    path: Path
    package: str


class Registry(Generic[M]):
    """The plug-ins of one kind, by name."""

    def __init__(self, kind: str, manifest: type[M], home: str, folders: Sequence[Path] = ()) -> None:
        self.kind, self.manifest, self.home, self.folders = kind, manifest, home, list(folders)
        self._found: dict[str, tuple[M, Found]] | None = None
        self.broken: dict[str, str] = {}
        """Manifests that can't be read: path → why."""

    def names(self) -> list[str]:
        """Return every name, sorted."""
        return sorted(self._scan())

    def all(self) -> list[M]:
        """Return every manifest, sorted by name."""
        return [self._scan()[name][0] for name in self.names()]

    def get(self, name: str) -> M:
        """Return a manifest; an unknown name gets the nearest one and the list."""
        try:
            return self._scan()[name][0]
        except KeyError:
            for path, why in self.broken.items():
                member = path.rpartition("[")[2].removesuffix("]")
                if {Path(path).stem, member} & set(name.split("/")) or Path(path).parent.name == name:
                    raise PluginError(f"The {self.kind} {name!r} can't be read: {why}", f"Mend {path}.") from None
            raise UnknownName(self.kind, name, self._scan()) from None

    def require(self, name: str) -> M:
        """Return a manifest whose requirements are installed; raise Unavailable with what is missing otherwise."""
        manifest = self.get(name)
        missing = availability(manifest)
        if not missing.available:
            raise Unavailable(
                f"The {self.kind} {name!r} isn't available: {missing.reason}.", f"Get it: {missing.remedy}"
            )
        return manifest

    def load(self, name: str) -> Any:
        """Import a plug-in's entry and return it.

        Raises Unavailable if a distribution it needs is missing, PluginError if its code can't be imported.
        """
        return self.load_entry(name, self.require(name).entry)

    def load_entry(self, name: str, entry: str) -> Any:
        """Import another `module:name` that a plug-in's manifest speaks of; raise PluginError if it can't be."""
        found = self._scan()[name][1]
        module_name, _, attribute = entry.partition(":")
        try:
            module = importlib.import_module(module_name, found.package)
            return getattr(module, attribute)
        except Exception as error:  # a plug-in may raise anything while it's imported
            raise PluginError(
                f"The {self.kind} {name!r} can't be loaded: {type(error).__name__}: {error}",
                f"Its manifest is {found.path}; mend what its entry {entry} imports.",
            ) from error

    def place(self, name: str) -> Path:
        """Return a plug-in's manifest file; raises as `get` does."""
        self.get(name)
        return self._scan()[name][1].path

    def files(self, name: str) -> dict[str, Path]:
        """Return the files a plug-in is made of, by their path: a folder of its own whole, else what has its name."""
        self.get(name)
        found = self._scan()[name][1]
        folder = found.path.parent
        alone = len(_manifests(folder, "*.toml")) == 1
        whole = found.package != self.home and (alone or found.package.endswith(f".{folder.name}"))
        files = {
            path.relative_to(folder): path
            for path in (folder.rglob("*") if whole else folder.glob(f"{found.path.stem}.*"))
            if path.is_file()
        }
        hidden = (".", "__pycache__")
        return {
            name.as_posix(): path
            for name, path in sorted(files.items())
            if not any(part.startswith(hidden) for part in name.parts)
        }

    def digest(self, name: str) -> str:
        """Return a digest of a plug-in's code and data."""
        return code_digest(self.files(name))

    def _scan(self) -> dict[str, tuple[M, Found]]:
        if self._found is None:
            known: dict[str, tuple[M, Found]] = {}
            for found in self._manifests():
                for manifest in self._read(found.path):
                    if manifest.name in known:
                        first = known[manifest.name][1].path
                        if first.resolve() == found.path.resolve():  # named twice, or installed and named
                            continue
                        raise PluginError(
                            f"Two {self.kind}s are called {manifest.name!r}: {first} and {found.path}",
                            "Rename one, or leave its folder out.",
                        )
                    known[manifest.name] = (manifest, found)
            self._found = known
        return self._found

    def _read(self, path: Path) -> Iterator[M]:
        """Return a file's manifest and those of its members; what can't be read is put with the broken ones."""
        try:
            raw = _told(path)
            whole = msgspec.convert(raw, self.manifest)
            names = _member_names(raw)
        except (OSError, ValueError) as error:  # TOML and validation errors are ValueErrors
            self.broken[str(path)] = str(error)
            return
        yield whole
        for name in names:
            try:
                yield msgspec.convert(_member(raw, name), self.manifest)
            except ValueError as error:
                self.broken[f"{path} [{name}]"] = str(error)

    def _manifests(self) -> Iterator[Found]:
        for base, package in self._places():
            yield from _in_folder(base, package)

    def _places(self) -> Iterator[tuple[Path, str]]:
        """Return the folders to look in, each with the package that it is."""
        home = importlib.import_module(self.home)
        for base in home.__path__:
            yield Path(base), self.home
        for entry in importlib.metadata.entry_points(group=f"flagperf.{self.kind}s"):
            try:
                spec = importlib.util.find_spec(entry.value)
            except (ImportError, ValueError):  # the package it is in is gone, or fails to import
                spec = None
            if spec is None or not spec.submodule_search_locations:
                self.broken[entry.value] = f"the entry point {entry.name!r} names no package that can be found"
                continue
            for base in spec.submodule_search_locations:
                yield Path(base), entry.value
        for folder in self.folders:
            yield folder, _package(folder)


def _told(path: Path) -> dict[str, Any]:
    """Return what a manifest's file says, over what the one says that it is like."""
    own = tomllib.loads(path.read_text("utf-8"))
    if not isinstance(name := own.get("like", ""), str) or not name:
        return own
    base = tomllib.loads(path.with_name(name).read_text("utf-8"))
    return {**merged(base, own), "presets": {**base.get("presets", {}), **own.get("presets", {})}}


def _member_names(raw: dict[str, Any]) -> list[str]:
    """Return the names of a manifest's members; raise ValueError where it says that it has some and has none."""
    group = raw.get("members", "")
    members = raw.get("settings", {}).get(group) if group else {}
    if group and not (isinstance(members, dict) and members):
        raise ValueError(f"its members are settings.{group}, which is no table of them")
    return list(members)


def _member(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the manifest of one member: its family's, with that member only."""
    group, (room, _, own) = raw["members"], raw["name"].rpartition("/")
    entry = raw["settings"][group][name]
    if not isinstance(entry, dict):
        raise ValueError(f"settings.{group}.{name} is no table")
    if name == own or "/" in name:
        raise ValueError(f"a member of {raw['name']} can't be called {name!r}")
    return {
        **{key: value for key, value in raw.items() if key not in ("members", "contests", "claims")},
        "name": f"{room}/{name}" if room else name,
        "family": raw["name"],
        "title": f"{raw['title']}: {name}",
        "title_zh": f"{raw.get('title_zh') or raw['title']}：{name}",
        "settings": {**raw["settings"], group: {name: entry}},
    }


class VendorRegistry(Registry[VendorManifest]):
    """The vendors, each told of the others: some pose as another one."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        super().__init__("vendor", VendorManifest, "flagperf.vendors", folders)
        self._tables: dict[Path, list[Chip]] = {}

    def adapter(self, name: str, host: Host | None = None) -> Any:
        """Return a vendor's adapter (`flagperf.vendor.Vendor`) for this host, or for another one."""
        chips = self.chips(name)
        return self.load(name)(self.get(name), Surroundings(host=host or Host(), vendors=self.all(), chips=chips))

    def chips(self, name: str) -> list[Chip]:
        """Return the tables of chips in an adapter's folder and beside it; no other adapter's can break it."""
        folder = self.place(name).parent
        return [chip for place in (folder.parent, folder) for chip in self._table(place)]

    def _table(self, folder: Path) -> list[Chip]:
        """Return the chips of a folder's table, which is read once: most adapters have it in common."""
        if folder not in self._tables:
            self._tables[folder] = read_table(folder)
        return self._tables[folder]


def code_digest(files: Mapping[str, Path]) -> str:
    """Return a SHA-256 of a plug-in's files, by their path in it, wherever they lie; prose doesn't count."""
    whole = hashlib.sha256()
    for name, path in sorted(files.items()):
        if path.suffix != ".md":
            whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _package(folder: Path) -> str:
    """Return a package made of a folder, under a name of its own: two folders may have the same name."""
    name = f"flagperf_plugins_{hashlib.sha256(bytes(folder.resolve())).hexdigest()[:12]}"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _in_folder(base: Path, package: str) -> Iterator[Found]:
    """Manifests beside the package's modules, and one level down in its sub-packages."""
    for path in _manifests(base, "*.toml"):
        yield Found(path=path, package=package)
    for path in _manifests(base, "*/*.toml"):
        yield Found(path=path, package=f"{package}.{path.parent.name}")


def _manifests(base: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(base.glob(pattern)) if path.name not in (TABLE, "pyproject.toml")]


def availability(manifest: Manifest) -> Availability:
    """Say whether the distributions a plug-in needs are installed, without importing them."""
    return installed(manifest.name, manifest.requires)


def installed(name: str, requires: Sequence[Requirement]) -> Availability:
    """Say whether distributions are installed that something called `name` needs."""
    version = ""
    for need in requires:
        if os.environ.get(need.elsewhere):
            continue
        versions = [each for name in (need.distribution, *need.names) if (each := _version(name))]
        if not versions:
            reason = f"{need.distribution} isn't installed"
            return Availability(name=name, available=False, reason=reason, remedy=need.install)
        version = versions[0]
        if not SpecifierSet(need.versions, prereleases=True).contains(version):
            reason = f"{need.distribution} is {version}; {need.versions} is needed"
            return Availability(name=name, available=False, reason=reason, remedy=need.install, version=version)
    return Availability(name=name, available=True, version=version)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class Registries:
    """All registries, with the folders a user added."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"There is no folder {folder} to look for plug-ins in.")
        self.cases = Registry("case", CaseManifest, "flagperf.cases", _sub(folders, "cases"))
        self.engines = Registry("engine", EngineManifest, "flagperf.engines", _sub(folders, "engines"))
        adapters = [*_sub(folders, "vendors"), *(folder for folder in folders if not _has_kinds(folder))]
        self.vendors = VendorRegistry(adapters)
        self.launchers = Registry("launcher", LauncherManifest, "flagperf.launchers", _sub(folders, "launchers"))

    def ledger(self, engine: str) -> Ledger:
        """Return an engine's ledger of memory, with what it shares with other engines."""
        own = self.engines.get(engine).memory
        if own.holds_of:
            own = msgspec.structs.replace(own, holds=[*own.holds, *self.ledger(own.holds_of).holds], holds_of="")
        if own.activations_of:
            shared = self.ledger(own.activations_of).activations
            own = msgspec.structs.replace(own, activations=shared, activations_of="")
        return own


_KINDS = ("cases", "engines", "vendors", "launchers")


def _has_kinds(folder: Path) -> bool:
    """Whether a folder is sorted by kinds of plug-ins; one that isn't is of adapters, or is an adapter itself."""
    return any((folder / kind).is_dir() for kind in _KINDS)


def _sub(folders: Sequence[Path], name: str) -> list[Path]:
    return [folder / name for folder in folders if (folder / name).is_dir()]
