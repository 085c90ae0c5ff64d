"""Engine `openvino`: the module's graph converted and compiled by OpenVINO, which runs it on the host's cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import openvino
import torch

from flagperf.engines.exported import exported, leave_cores, quiet
from flagperf.errors import FlagPerfError
from flagperf.inference.engine import Function, ModuleEngine

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVino(ModuleEngine):
    """One compiled model; arguments are read where they lie, if they are contiguous."""

    def compile(
        self, module: torch.nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Mapping[int, Sequence[int]]
    ) -> Function:
        """Convert the exported module and compile it."""
        if (device := self.context.runtime.device.type) != "cpu":
            raise FlagPerfError(f"The engine 'openvino' runs on the host; this trial's device is {device}.")
        with quiet():
            converted = openvino.convert_model(exported(module, examples, dynamic))
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.context.trial.dtype],
            "INFERENCE_NUM_THREADS": self.context.trial.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = openvino.compile_model(converted, "CPU", options).create_infer_request()
        leave_cores()
        return self._run

    def facts(self) -> dict[str, object]:
        """Return what runs the graph, too."""
        return {**super().facts(), "openvino": openvino.__version__}

    def _run(self, *arguments: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        results = self._request.infer([each.contiguous().numpy() for each in arguments], share_inputs=True)
        made = tuple(torch.from_numpy(each) for each in results.values())
        return made[0] if len(made) == 1 else made
