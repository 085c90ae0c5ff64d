"""Megatron-Core's tensor-parallel GPTModel under DeepSpeed ZeRO: what Megatron-DeepSpeed is."""

import flagperf.engines.megatron  # noqa: F401 - which sees to how Megatron is imported
