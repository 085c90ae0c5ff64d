"""Megatron-Core's tensor-parallel GPTModel under DeepSpeed ZeRO: what Megatron-DeepSpeed is."""
