"""A decoder as Megatron's GPTModel: the local layer spec, but with torch's attention and a norm that may be sliced."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor
from torch.nn import functional as F

from flagperf.schema.decoder import Decoder
from flagperf.schema.layout import Layout

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SDPA(DotProductAttention):  # type: ignore[misc]
    """torch's scaled_dot_product_attention, as in every other engine; the local spec's own makes all scores whole."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **_: Any) -> Tensor:
        """Causal attention of query, key, value [S, B, heads, D]; returns [S, B, heads · D]."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return mixed.permute(2, 0, 1, 3).flatten(2)


class Norm(torch.nn.RMSNorm):
    """torch's RMSNorm, which is the local spec's, but not refused under sequence parallelism.

    A rank's norm then sees its part of the sequence only; the mark on the weight has Megatron add up its gradients.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def build(decoder: Decoder, layout: Layout, dtype: str) -> GPTModel:
    """Return this rank's part of the model, uninitialised, its weights in `dtype`; process groups must be there."""
    config = transformer_config(decoder, layout, dtype)
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
    layer.submodules.self_attention.submodules.core_attention = SDPA
    return GPTModel(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules([layer] * get_num_layers_to_build(config), Norm),
        vocab_size=decoder.vocab_size,
        max_sequence_length=decoder.seq_len,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        rotary_base=decoder.rope_theta,
    )


def transformer_config(decoder: Decoder, layout: Layout, dtype: str) -> TransformerConfig:
    """Return Megatron's configuration of a decoder: no biases, no dropout, and none of the fusions that need CUDA."""
    return TransformerConfig(
        num_layers=decoder.layers,
        hidden_size=decoder.dim,
        ffn_hidden_size=decoder.ffn,
        num_attention_heads=decoder.heads,
        num_query_groups=decoder.kv_heads,
        kv_channels=decoder.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=decoder.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        rotary_interleaved=decoder.rotary_interleaved,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        sequence_parallel=layout.sp,
        recompute_granularity="full" if layout.recompute else None,
        recompute_method="uniform" if layout.recompute else None,
        recompute_num_layers=1 if layout.recompute else None,
        params_dtype=DTYPES[dtype],
        pipeline_dtype=DTYPES[dtype],
        bf16=dtype == "bf16",
        fp16=dtype == "fp16",
        perform_initialization=False,  # the canonical weights are copied in
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )
