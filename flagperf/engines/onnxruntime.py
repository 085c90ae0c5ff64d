"""Engine `onnxruntime`: the module exported to ONNX and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnxruntime
import torch
import torch.utils.dlpack

from flagperf.engines.exported import exported, leave_cores, onnx_of
from flagperf.errors import FlagPerfError
from flagperf.inference.engine import Function, ModuleEngine

HOST = "CPUExecutionProvider"


class OnnxRuntime(ModuleEngine):
    """One session; tensors go in and come out by DLPack, without copies, where they are contiguous."""

    def compile(
        self, module: torch.nn.Module, examples: tuple[torch.Tensor, ...], dynamic: Mapping[int, Sequence[int]]
    ) -> Function:
        """Export the module and make a session of it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.context.trial.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with onnx_of(exported(module, examples, dynamic)) as path:
            self.session = onnxruntime.InferenceSession(path, options, providers=self._providers())
        device = self.context.runtime.device.type
        if device != "cpu" and self.session.get_providers()[0] == HOST:
            raise FlagPerfError(f"onnxruntime can't run this model on {device}; it would run it on the host.")
        leave_cores()
        return self._run

    def facts(self) -> dict[str, object]:
        """Return what runs the graph, too."""
        return {**super().facts(), "onnxruntime": onnxruntime.__version__, "providers": self.session.get_providers()}

    def _providers(self) -> list[str]:
        """Return what to run on: the host's own, or whatever else this build of onnxruntime is for."""
        device = self.context.runtime.device.type
        if device == "cpu":
            return [HOST]
        others = [
            name for name in onnxruntime.get_available_providers() if name not in (HOST, "AzureExecutionProvider")
        ]
        if not others:
            raise FlagPerfError(
                f"This onnxruntime has no execution provider for {device}; it has {HOST} alone.",
                "Install the build of onnxruntime that the device's maker gives out.",
            )
        return [*others, HOST]

    def _run(self, *arguments: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        binding = self.session.io_binding()
        values = [onnxruntime.OrtValue.from_dlpack(each.contiguous()) for each in arguments]
        for node, value in zip(self.session.get_inputs(), values, strict=True):
            binding.bind_ortvalue_input(node.name, value)
        for node in self.session.get_outputs():
            binding.bind_output(node.name, values[0].device_name(), self.context.runtime.device.index or 0)
        self.session.run_with_iobinding(binding)
        made = tuple(torch.utils.dlpack.from_dlpack(each) for each in binding.get_outputs())
        return made[0] if len(made) == 1 else made
