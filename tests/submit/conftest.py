"""One made run, packed, for all tests of submissions; and the check as a function of a bundle's bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from submit import made

from flagperf.registry import Registries
from flagperf.schema.submission import SubmitCheckOutput
from flagperf.submit.check import check
from flagperf.submit.pack import pack

Check = Callable[..., SubmitCheckOutput]


@pytest.fixture(scope="session")
def registries() -> Registries:
    """What is installed."""
    return Registries()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, registries: Registries) -> Path:
    """The made run's folder; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "run"
    made.write(folder, registries)
    (folder.parent / "system.yaml").write_bytes(made.form())
    return folder


@pytest.fixture(scope="session")
def packed(run: Path, registries: Registries) -> bytes:
    """The run as `flagperf submit pack` packs it."""
    output = run.parent / "bundle.tar"
    pack([run], "cpu", run.parent / "system.yaml", output, registries)
    return output.read_bytes()


@pytest.fixture
def files(packed: bytes) -> made.Contents:
    """The bundle's files, to be changed."""
    return made.contents(packed)


@pytest.fixture
def checked(tmp_path: Path, registries: Registries) -> Check:
    """Check a bundle given as bytes."""

    def run_check(bundle: bytes, key: str | None = None) -> SubmitCheckOutput:
        path = tmp_path / "bundle.tar"
        path.write_bytes(bundle)
        return check(path, registries, key)

    return run_check
