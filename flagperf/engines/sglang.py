"""Engine `sglang`: SGLang's server, as `vllm` is vLLM's. Written from its documentation; nobody has run it here yet."""

from __future__ import annotations

from pathlib import Path

from flagperf.engines.launched import Launched
from flagperf.inference.engine import GenerationTask


class SGLang(Launched):
    """SGLang: the case's weights, its own batching up to `load.batch`, its prefix cache where the case has one.

    It must be one that tells token ids in a stream of completions (from July 2026 on).
    """

    title = "SGLang"
    module = "sglang"
    variable = "FLAGPERF_SGLANG_PYTHON"

    def command(self, task: GenerationTask, folder: Path, port: int) -> list[str]:
        """Return SGLang's command line."""
        return [
            *(self.python(), "-m", "sglang.launch_server", "--model-path", str(folder)),
            *("--served-model-name", "model", "--dtype", str(task.dtype).removeprefix("torch.")),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--context-length", str(task.decoder.seq_len), "--max-running-requests", str(task.load.batch)),
            *(() if task.prefix_cache else ("--disable-radix-cache",)),
            *(("--device", "cpu") if self.context.runtime.device.type == "cpu" else ()),
        ]
