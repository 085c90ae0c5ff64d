"""Folders in Hugging Face's format: transformers computes the same of them, and what can't be used is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flagperf.cases.aquila import checkpoints, huggingface
from flagperf.cases.aquila.config import AquilaConfig
from flagperf.cases.aquila.model import Aquila
from flagperf.cases.aquila.weights import fill, initial_weight
from flagperf.errors import UsageError

SIZES = {"dim": 32, "layers": 2, "heads": 4, "vocab_size": 300, "seq_len": 64, "multiple_of": 32, "init_std": 0.3}


def _written(folder: Path, config: AquilaConfig) -> Aquila:
    model = Aquila(config)
    fill(model, config, 7)
    checkpoints.write(folder, config, model.named_parameters(), torch.float32)
    return model


@pytest.mark.parametrize("rotary", ["interleaved", "half"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_transformers_computes_the_same(tmp_path: Path, rotary: str, kv_heads: int) -> None:
    from transformers import AutoModelForCausalLM

    model = _written(tmp_path, AquilaConfig(**SIZES, kv_heads=kv_heads, rotary=rotary, norm_eps=1e-3, rope_theta=500.0))
    other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rotary", ["interleaved", "half"])
def test_what_is_written_is_read_back_whatever_the_shards(
    tmp_path: Path, rotary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SHARD", 20_000)
    config = AquilaConfig(**SIZES, kv_heads=2, rotary=rotary)
    model = _written(tmp_path, config)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    read = dict(checkpoints.read(tmp_path, config))
    assert read.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(read[name], parameter), name


def test_a_shape_is_told_by_its_folder(tmp_path: Path) -> None:
    config = AquilaConfig(**SIZES, kv_heads=2, rotary="interleaved", rope_theta=777.0)
    _written(tmp_path, config)
    told = huggingface.shape(tmp_path, 48)
    assert (told.decoder.ffn, told.kv_heads, told.rope_theta) == (config.ffn, 2, 777.0)
    assert (told.seq_len, told.rotary) == (48, "half")


def test_a_tied_embedding_is_the_output_too(tmp_path: Path) -> None:
    config = AquilaConfig(**SIZES)
    _written(tmp_path, config)
    tensors = load_file(tmp_path / huggingface.WHOLE)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / huggingface.WHOLE)
    read = dict(checkpoints.read(tmp_path, config))
    assert torch.equal(read["output.weight"], initial_weight(config, "embed.weight", (300, 32), 7))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen2"}, "'qwen2'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 16}, "sliding_window"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_scaling"),
        ({"head_dim": 16}, "heads of 16"),
        ({"hidden_size": None}, "isn't whole"),
        ({"num_attention_heads": 5}, "divide"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    told = huggingface.described(AquilaConfig(**SIZES), "float32") | change
    (tmp_path / huggingface.CONFIG).write_text(json.dumps(told))
    with pytest.raises(UsageError, match=said):
        huggingface.shape(tmp_path, 64)


def test_a_folder_that_isnt_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SHARD", 20_000)
    config = AquilaConfig(**SIZES)
    whole = tmp_path / "whole"
    whole.mkdir()
    _written(whole, config)

    def refused(change: str) -> str:
        with pytest.raises(UsageError) as error:
            huggingface.files(tmp_path / change, config)
        return str(error.value)

    for name in ("shard", "torn", "biased", "index", "fewer"):
        shutil.copytree(whole, tmp_path / name)
    gone = sorted((tmp_path / "shard").glob("model-*"))[1]
    gone.unlink()
    assert gone.name in refused("shard")
    torn = sorted((tmp_path / "torn").glob("model-*"))[0]
    torn.write_bytes(torn.read_bytes()[:-10])
    assert torn.name in refused("torn")
    first = sorted((tmp_path / "biased").glob("model-*"))[0]
    save_file({**load_file(first), "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, first)
    assert "biases" in refused("biased")
    (tmp_path / "index" / huggingface.INDEX).write_text('{"weight_map": []}')
    assert "can't be read" in refused("index")
    last = sorted((tmp_path / "fewer").glob("model-*"))[-1]
    save_file({name: each for name, each in load_file(last).items() if name != "lm_head.weight"}, last)
    assert huggingface.files(tmp_path / "fewer", config)["lm_head.weight"] != last  # tied, then
    other = AquilaConfig(**{**SIZES, "layers": 3})
    with pytest.raises(UsageError, match="lacks 9 of"):
        huggingface.files(whole, other)
    with pytest.raises(UsageError, match=r"has the shape \[300, 32\], not \[301, 32\]"):
        huggingface.files(whole, AquilaConfig(**{**SIZES, "vocab_size": 301}))
