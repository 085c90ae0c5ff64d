"""A BERT-shaped encoder in plain torch, the norm before each part: the shape of Megatron-BERT, which Erlangshen has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import EncoderConfig


class Layer(nn.Module):
    """Attention over the whole sequence and a GELU feed-forward, biases everywhere."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.ffn_norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.up = nn.Linear(config.dim, config.ffn)
        self.down = nn.Linear(config.ffn, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        out: Tensor = x + self.down(F.gelu(self.up(self.ffn_norm(x))))
        return out


class Encoder(nn.Module):
    """Logits [B, classes] of token ids [B, S], from the first position, by a tanh layer and a linear one."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.dim)
        self.places = nn.Parameter(torch.empty(config.seq_len, config.dim))
        self.layers = nn.Sequential(*(Layer(config) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.pooler = nn.Linear(config.dim, config.dim)
        self.head = nn.Linear(config.dim, config.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        x = self.layers(self.words(tokens) + self.places[: tokens.shape[1]])
        logits: Tensor = self.head(self.pooler(self.norm(x[:, 0])).tanh())
        return logits


@torch.no_grad()
def fill(model: Encoder, config: EncoderConfig, seed: int) -> None:
    """Give a model seeded weights: normal(0, init_std), norms at one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.normal_(0.0, config.init_std, generator=generator)
