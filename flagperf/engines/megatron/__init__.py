"""Megatron-Core as an engine: its GPTModel, tensor and pipeline parallelism, DDP, schedules and optimizers.

| module | what is in it |
| --- | --- |
| `weights` | canonical weights to and from Megatron's names and shards; pure functions |
| `shims` | what Megatron is given so that it runs where there is no CUDA, each with the reason |
| `model` | a decoder as Megatron's GPTModel |
| `parallel` | `MegatronParallel`: process groups, whose rank speaks for whom, weights in and out; the base of engines |
| `engine` | `Megatron`: trained by Megatron's own schedules, DDP and optimizers |
"""

from contextlib import suppress

from flagperf.engines.megatron.shims import uncompiled

# Without Megatron `weights` is of use still, and whoever wants the others gets the error from them.
with uncompiled(), suppress(ModuleNotFoundError):
    import megatron.core.models.gpt  # noqa: F401 - before any module of this package does
