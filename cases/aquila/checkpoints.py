"""Weights in Hugging Face's format: written, read, and turned from one convention of rotary pairs to the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import huggingface
from .config import AquilaConfig

SHARD = 4 * 2**30
"""Bytes of weights in one file, at most, unless a single tensor has more."""


def write(
    folder: Path,
    config: AquilaConfig,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    tokenizer: Path | None = None,
) -> None:
    """Write canonical weights into a folder, as a Llama of `dtype`, with the tokenizer if there is one."""
    names = dict(huggingface.parts(config))
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        if held:
            save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
            shards.append(list(held))
            held.clear()

    for name, weight in weights:
        pieces = torch.split(weight, [huggingface.shape_of(config, piece)[0] for piece in names[name]])
        for piece, tensor in zip(names[name], pieces, strict=True):
            if sum(each.nbytes for each in held.values()) + tensor.numel() * dtype.itemsize > SHARD:
                flush()
            held[piece] = _paired(config, piece, tensor, halves=True).to(dtype, copy=True).contiguous()
            total += held[piece].nbytes
    flush()
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else huggingface.WHOLE
        (folder / f"{number}.part").rename(folder / name)
        places |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / huggingface.INDEX).write_bytes(msgspec.json.encode(index))
    described = huggingface.described(config, str(dtype).removeprefix("torch."))
    (folder / huggingface.CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(described), indent=2))
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / huggingface.TOKENIZER)
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.seq_len}
        (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(told))


def read(folder: Path, config: AquilaConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield a folder's weights by canonical name, float32 on the host, in the rotary convention of `config`."""
    files = huggingface.files(folder, config)
    for name, pieces in huggingface.parts(config):
        yield name, torch.cat([_paired(config, piece, _tensor(files[piece], piece), halves=False) for piece in pieces])


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        known = name if name in file.keys() else huggingface.TOP["embed.weight"][0]  # noqa: SIM118 - it's no dict
        tensor: Tensor = file.get_tensor(known)
    return tensor.float()


def _paired(config: AquilaConfig, name: str, weight: Tensor, *, halves: bool) -> Tensor:
    """Return the rows of a projection to queries or keys with pairs half a head apart, or as `config` has them."""
    if config.rotary == "half" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    pairs = (config.head_dim // 2, 2) if halves else (2, config.head_dim // 2)
    return weight.view(-1, *pairs, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
