"""The layer's rules: what is rewritten, in how many places, and what is refused."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import needs

from flagperf.engines.bmtrain import check_version, rewrite
from flagperf.errors import Unavailable
from flagperf.registry import Registries


class Recorder:
    """A layer that tells what it was asked for."""

    device_type, pins = "npu", False
    accelerator = SimpleNamespace(current_stream=lambda: "stream")

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: (name, args, kwargs)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("torch.cuda.current_stream()", "stream"),
        ("dict(device='cuda')", {"device": "npu"}),
        ("x.y.is_cuda", ("on_device", ("y",), {})),
        ("x.y.cuda()", ("to_device", ("y",), {})),
        ("x.y.cpu()", ("to_host", ("y",), {})),
        ("x.y.storage_type()", ("storage_type", ("y",), {})),
        ("x.y.record_stream(1)", ("record_stream", ("y", 1), {})),
        ("x.y.pin_memory()", ("pin", ("y",), {})),
        ("x.y.cuda().data_ptr()", ("address", (("to_device", ("y",), {}),), {})),
        ("torch.cuda.current_stream().cuda_stream", ("stream_handle", ("stream",), {})),
        ("dict(pin_memory=True)", {"pin_memory": False}),
        ("torch.random.fork_rng(devices=[1])", ("fork_rng", (), {"devices": [1]})),
        ("'not cuda'", "not cuda"),
    ],
)
def test_each_name_of_cuda_becomes_the_layers(source: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "module_to_rewrite.py"
    path.write_text(f"import torch\nfrom types import SimpleNamespace\nx = SimpleNamespace(y='y')\nvalue = {source}\n")
    finder = rewrite.Finder(Recorder(), {})
    finder.folders.append(tmp_path.resolve())
    spec = finder.find_spec("module_to_rewrite", [str(tmp_path)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.value == value
    assert not list(tmp_path.rglob("*.pyc"))  # or another process would meet the rewritten code


def test_other_modules_are_left_alone() -> None:
    finder = rewrite.Finder(Recorder(), {})
    assert finder.find_spec("json") is None
    assert finder.find_spec("torch.nn", torch.__path__) is None


def test_the_release_has_the_number_of_places_that_is_asserted() -> None:
    needs("bmtrain")
    spec = importlib.util.find_spec("bmtrain")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    counts = {
        path: rewrite.rewrite(path.read_bytes(), str(path))[1]
        for path in folder.rglob("*.py")
        if path.parent.name != "benchmark"  # which `import bmtrain` doesn't load
    }
    assert sum(counts.values()) == rewrite.PLACES
    assert counts[folder / "nccl" / "__init__.py"] > 20


def test_another_version_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0.0")
    with pytest.raises(Unavailable, match=r"1\.0\.0 is installed") as refused:
        check_version()
    assert "bmtrain==1.0.1" in refused.value.hint
    (requirement,) = (need for need in Registries().engines.get("bmtrain").requires if need.distribution == "bmtrain")
    assert requirement.versions == f"=={rewrite.VERSION}"


SCRIPT = """
import sys
import torch
import bmtrain as bmt
import flagperf.engines.bmtrain as engine

bmt.init_distributed(seed=1)
assert bmt.world_size() == 1 and sys.argv[1:] == ["word"]
parameter = bmt.DistributedParameter(torch.arange(6.0).view(2, 3))
model = bmt.BMTrainModelWrapper(torch.nn.Linear(3, 2)).cuda()
loss = model(torch.ones(4, 3, device="cuda")).sum()
loss.backward()
torch.cuda.synchronize()
assert loss.is_cuda and parameter.gather().tolist() == [[0, 1, 2], [3, 4, 5]]
# Files that are not the release's are noticed: here the number is made another.
engine._layer, engine.PLACES = None, 1
for name in [name for name in sys.modules if name.split(".")[0] == "bmtrain"]:
    del sys.modules[name]
try:
    engine.enable(torch.device("cpu"), "gloo")
except engine.FlagPerfError as error:
    print(error)
"""


def test_a_script_for_cuda_runs_on_the_cpu_and_other_code_of_bmtrain_is_refused(tmp_path: Path) -> None:
    needs("bmtrain")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "flagperf.engines.bmtrain", str(script), "word"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{rewrite.PLACES} places of bmtrain were rewritten; in 1.0.1 there are 1." in done.stdout
