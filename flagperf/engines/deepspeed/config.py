"""DeepSpeed's configuration, made of the layout and the recipe that all engines share."""

from __future__ import annotations

from typing import Any

from flagperf.engines.common import LOSS_SCALE, LOSS_SCALE_WINDOW
from flagperf.schema.layout import Layout

BUCKET = 25 * 2**20 // 4
"""Elements of a communication bucket: as many fp32 gradients as torch's DDP sends at once.

DeepSpeed's own default, 5e8, is larger than the whole of a small model: its buffers would be all that one sees of the
memory, and nothing would be sent before the backward pass is over.
"""


def config(layout: Layout, *, dtype: str, clip: float, micro: int, accumulation: int, unit: int) -> dict[str, Any]:
    """Return the configuration of one rank's engine.

    `micro` is the sequences of a micro-batch, `accumulation` the micro-batches a step, `unit` the elements of the
    largest block: ZeRO 3 holds about two of them gathered, one computed with while the next is fetched.
    """
    stage = layout.zero or 0
    whole: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        # torch's AdamW on the host needs no compiler; DeepSpeed's own would have one build it.
        "zero_force_ds_cpu_optimizer": False,
        # Without ZeRO, DeepSpeed clips by a norm summed in float32; the engine does it by the accurate one.
        "gradient_clipping": clip if stage else 0.0,
        **_precision(dtype, stage),
    }
    if stage:
        whole["zero_optimization"] = {
            "stage": stage,
            "overlap_comm": layout.overlap,
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            **({"offload_optimizer": {"device": "cpu"}} if layout.offload else {}),
            **(_gathering(unit) if stage == 3 else {}),
        }
    return whole


def _precision(dtype: str, stage: int) -> dict[str, Any]:
    """Gradients are reduced and accumulated in fp32, whatever the model computes in."""
    if dtype == "fp32":
        return {}
    if not stage:
        # DeepSpeed without ZeRO accumulates 16-bit weights' gradients in 16 bits only: here autocast, as with DDP.
        return {"torch_autocast": {"enabled": True, "dtype": {"bf16": "bfloat16", "fp16": "float16"}[dtype]}}
    precision: dict[str, Any] = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    if dtype == "bf16":
        return {**precision, "bf16": {"enabled": True}}
    power = LOSS_SCALE.bit_length() - 1
    scaling = {"initial_scale_power": power, "loss_scale_window": LOSS_SCALE_WINDOW, "hysteresis": 1}
    return {**precision, "fp16": {"enabled": True, "loss_scale": 0, **scaling}}


def _gathering(unit: int) -> dict[str, Any]:
    """Return how much ZeRO 3 holds gathered; DeepSpeed's defaults, 1e9 elements, would keep a small model whole."""
    return {
        "stage3_prefetch_bucket_size": unit,
        "stage3_max_live_parameters": 2 * unit,
        "stage3_max_reuse_distance": unit,
        "stage3_param_persistence_threshold": min(100_000, unit // 100),
        # Its own linear function would replace torch's in the whole process.
        "memory_efficient_linear": False,
    }
