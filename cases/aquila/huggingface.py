"""Folders in Hugging Face's format, Llama-shaped: what config.json says, and which tensors there must be.

Neither torch nor transformers is needed to tell whether a folder can be used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from flagperf.errors import Unavailable, UsageError

from .config import AquilaConfig

CONFIG, TOKENIZER, WHOLE, INDEX = "config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "aquila": "AquilaForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""That have the parameters below and no others, and compute the same of them, by `model_type`."""
TOP = {
    "embed.weight": ["model.embed_tokens.weight"],
    "norm.weight": ["model.norm.weight"],
    "output.weight": ["lm_head.weight"],
}
BLOCK = {
    "attention_norm.weight": ["input_layernorm.weight"],
    "attention.qkv.weight": ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    "attention.out.weight": ["self_attn.o_proj.weight"],
    "ffn_norm.weight": ["post_attention_layernorm.weight"],
    "ffn.gate_up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "ffn.down.weight": ["mlp.down_proj.weight"],
}
"""Canonical parameters (see `Decoder`), each with those that it is made of, top to bottom."""


def parts(config: AquilaConfig) -> Iterator[tuple[str, list[str]]]:
    """Yield each canonical parameter's name with the names that its parts have in a folder."""
    yield "embed.weight", TOP["embed.weight"]
    for layer in range(config.layers):
        for name, pieces in BLOCK.items():
            yield f"blocks.{layer}.{name}", [f"model.layers.{layer}.{piece}" for piece in pieces]
    yield "norm.weight", TOP["norm.weight"]
    yield "output.weight", TOP["output.weight"]


def shape_of(config: AquilaConfig, part: str) -> tuple[int, ...]:
    """Return the shape of a folder's tensor by its name."""
    dim, kv = config.dim, config.kv_heads * config.head_dim
    shapes = {
        "embed_tokens": (config.vocab_size, dim),
        "lm_head": (config.vocab_size, dim),
        "q_proj": (dim, dim),
        "k_proj": (kv, dim),
        "v_proj": (kv, dim),
        "o_proj": (dim, dim),
        "gate_proj": (config.ffn, dim),
        "up_proj": (config.ffn, dim),
        "down_proj": (dim, config.ffn),
    }
    return shapes.get(part.split(".")[-2], (dim,))


def described(config: AquilaConfig, dtype: str) -> dict[str, Any]:
    """Return config.json of a model; `dtype` as torch calls it. No token ends a text, so that lengths are as asked."""
    return {
        "architectures": [ARCHITECTURES["llama"]],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": config.init_std,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": dtype,
    }


def shape(folder: Path, context: int) -> AquilaConfig:
    """Return the shape of a folder's model, for contexts of at most `context` tokens.

    Raises UsageError for what this model can't compute, saying what it is.
    """
    path = folder / CONFIG
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} can't be read: {error}.",
            "weights is 'random', 'trained', or a folder with a model in Hugging Face's format.",
        ) from None
    kind = told.get("model_type")
    if kind not in ARCHITECTURES:
        raise UsageError(f"{folder} has a model of type {kind!r}.", f"Those known are {', '.join(ARCHITECTURES)}.")
    rope = told.get("rope_parameters") or told.get("rope_scaling") or {}
    unlike = {
        "hidden_act": told.get("hidden_act", "silu") not in ("silu", "swish"),
        "attention_bias": bool(told.get("attention_bias")),
        "mlp_bias": bool(told.get("mlp_bias")),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "quantization_config": bool(told.get("quantization_config")),
        "sliding_window": (told.get("sliding_window") or math.inf) < context,
    }
    if different := [name for name, is_so in unlike.items() if is_so]:
        raise UsageError(
            f"{path}: this model differs from Aquila in {', '.join(different)}.",
            "What can be run has SwiGLU, plain rotary positions, full attention, no biases and plain weights.",
        )
    try:
        config = AquilaConfig(
            dim=told["hidden_size"],
            layers=told["num_hidden_layers"],
            heads=told["num_attention_heads"],
            kv_heads=told.get("num_key_value_heads") or 0,
            vocab_size=told["vocab_size"],
            seq_len=min(told["max_position_embeddings"], context),
            ffn_hidden=told["intermediate_size"],
            norm_eps=told["rms_norm_eps"],
            rope_theta=rope.get("rope_theta", told.get("rope_theta", 10000.0)),
            rotary="half",
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} isn't whole: {error}.") from None
    if (told.get("head_dim") or config.head_dim) != config.head_dim:
        raise UsageError(f"{path}: heads of {told['head_dim']}, not {config.head_dim} = hidden_size / heads.")
    return config


def files(folder: Path, config: AquilaConfig) -> dict[str, Path]:
    """Return where each tensor of a folder is, by name; a missing `lm_head.weight` is tied to the embedding.

    Reads the files' headers only. Raises UsageError for a missing file or tensor, one of another shape, and biases.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise Unavailable("safetensors isn't installed.", "pip install 'flagperf[inference]'") from None
    found: dict[str, Path] = {}
    for path in _shards(folder):
        try:
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118 - it's no dict
                    found[name] = path
                    _check(config, name, tuple(file.get_slice(name).get_shape()), path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path} can't be read: {error}.", "Get the file again.") from None
    tied = TOP["output.weight"][0], TOP["embed.weight"][0]
    if tied[0] not in found and tied[1] in found:
        found[tied[0]] = found[tied[1]]
    wanted = {piece for _, pieces in parts(config) for piece in pieces}
    if missing := sorted(wanted - found.keys()):
        raise UsageError(f"{folder} lacks {len(missing)} of {len(wanted)} tensors, the first is {missing[0]}.")
    return found


def _shards(folder: Path) -> list[Path]:
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    index = folder / INDEX
    if not index.is_file():
        raise UsageError(
            f"There is neither {WHOLE} nor {INDEX} in {folder}.",
            "Weights in other formats are converted by transformers: model.save_pretrained(folder).",
        )
    try:
        names = set(msgspec.json.decode(index.read_bytes(), type=dict[str, Any])["weight_map"].values())
    except (OSError, msgspec.DecodeError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{index} can't be read: {error}.", "Get the file again.") from None
    shards = [folder / str(name) for name in sorted(map(str, names))]
    if absent := [path.name for path in shards if not path.is_file() or path.parent != folder]:
        raise UsageError(
            f"{len(absent)} of {len(shards)} shards are missing in {folder}: {', '.join(absent[:4])}.",
            "Get them again.",
        )
    return shards


def _check(config: AquilaConfig, name: str, found: tuple[int, ...], path: Path) -> None:
    if name.endswith(".bias"):
        raise UsageError(f"{path} has biases ({name}); the models that can be run have none.")
    if name.endswith(".weight") and found != (wanted := shape_of(config, name)):
        raise UsageError(f"{name} in {path} has the shape {list(found)}, not {list(wanted)} as {CONFIG} says.")
