"""The encoder against Hugging Face's Megatron-BERT, which has its shape, and against what it counts to."""

from __future__ import annotations

import pytest
import torch

from flagperf.cases.encoder.config import EncoderConfig
from flagperf.cases.encoder.model import Encoder, fill
from flagperf.errors import UsageError

SMALL = EncoderConfig(dim=32, layers=2, heads=4, ffn=64, vocab_size=100, seq_len=16, init_std=0.2)


def test_it_computes_what_megatron_bert_does() -> None:
    transformers = pytest.importorskip("transformers")
    ours = Encoder(SMALL).eval()
    fill(ours, SMALL, 3)
    config = transformers.MegatronBertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, type_vocab_size=1, num_labels=2, layer_norm_eps=SMALL.norm_eps, hidden_act="gelu",
    )  # fmt: skip
    theirs = transformers.MegatronBertForSequenceClassification(config).eval()
    state = theirs.state_dict()
    own = dict(ours.named_parameters())
    state["bert.embeddings.word_embeddings.weight"] = own["words.weight"]
    state["bert.embeddings.position_embeddings.weight"] = own["places"]
    state["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(1, 32)
    names = {
        "attention.ln": "attention_norm",
        "attention.output.dense": "out",
        "ln": "ffn_norm",
        "intermediate.dense": "up",
        "output.dense": "down",
    }
    for kind in ("weight", "bias"):
        for layer in range(SMALL.layers):
            room = f"bert.encoder.layer.{layer}."
            for their, our in names.items():
                state[f"{room}{their}.{kind}"] = own[f"layers.{layer}.{our}.{kind}"]
            parts = own[f"layers.{layer}.qkv.{kind}"].chunk(3)
            for part, value in zip(("query", "key", "value"), parts, strict=True):
                state[f"{room}attention.self.{part}.{kind}"] = value
        state[f"bert.encoder.ln.{kind}"] = own[f"norm.{kind}"]
        state[f"bert.pooler.dense.{kind}"] = own[f"pooler.{kind}"]
        state[f"classifier.{kind}"] = own[f"head.{kind}"]
    theirs.load_state_dict(state)
    tokens = torch.randint(100, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"dim": 30}, {"layers": 0}, {"classes": 1}])
def test_a_shape_that_cant_exist_is_refused(wrong: dict[str, int]) -> None:
    shape = {"dim": 32, "layers": 2, "heads": 4, "ffn": 64, "vocab_size": 100, "seq_len": 16} | wrong
    with pytest.raises(UsageError, match=next(iter(wrong))):
        EncoderConfig(**shape)
