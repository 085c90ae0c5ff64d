"""Engine `vllm`: vLLM's real server in processes of its own, on a free port of the loopback.

vLLM pins a torch of its own, so it may live in another environment: FLAGPERF_VLLM_PYTHON is that one's Python.
"""

from __future__ import annotations

import math
from pathlib import Path

from flagperf.engines.endpoint import position_bytes
from flagperf.engines.launched import Launched
from flagperf.inference.engine import GenerationTask


class Vllm(Launched):
    """vLLM: the case's weights, its own batching up to `load.batch`, and its prefix cache where the case has one."""

    title = "vLLM"
    module = "vllm"
    variable = "FLAGPERF_VLLM_PYTHON"

    def command(self, task: GenerationTask, folder: Path, port: int) -> list[str]:
        """Return vLLM's command line: its module, since the script `vllm` doesn't start a build of another name."""
        return [
            *(self.python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
            *("--served-model-name", "model", "--dtype", str(task.dtype).removeprefix("torch.")),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--max-model-len", str(task.decoder.seq_len), "--max-num-seqs", str(task.load.batch)),
            "--enable-prefix-caching" if task.prefix_cache else "--no-enable-prefix-caching",
            *(() if (folder / "tokenizer.json").exists() else ("--skip-tokenizer-init",)),
            *(("--enforce-eager",) if self.context.runtime.device.type == "cpu" else ()),
        ]

    def environment(self, task: GenerationTask) -> dict[str, str]:
        """Return what vLLM is told by variables."""
        return environment(task, self.context.runtime.device.type)


def environment(task: GenerationTask, device: str) -> dict[str, str]:
    """Return what keeps vLLM from the network and, on a CPU, the room of its cache and how its engine is run.

    On few cores vLLM's usual way of running it has been seen to starve its server, which then sent all tokens of an
    answer at its end. What the caller's environment says goes before all of this.
    """
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if device != "cpu":
        return offline
    room = task.load.batch * task.decoder.seq_len * position_bytes(task)
    gibibytes = str(max(1, math.ceil(room / 2**30)))
    return {**offline, "VLLM_CPU_KVCACHE_SPACE": gibibytes, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
