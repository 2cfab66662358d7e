"""Generative transformers with their sizes as numbers: after nanoGPT and minGPT, as they are copied most."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.case import Case, Tokens


class NanoAttention(nn.Module):
    """nanoGPT: one layer for queries, keys and values, split by the width; sizes are read off the input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.resid_dropout = nn.Dropout(0.1)
        self.n_head, self.n_embd = heads, width

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MinAttention(nn.Module):
    """minGPT: three layers, a mask in a buffer, and the scores written out."""

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.attn_drop, self.resid_drop = nn.Dropout(0.1), nn.Dropout(0.1)
        self.register_buffer("mask", torch.tril(torch.ones(length, length)).view(1, 1, length, length))
        self.n_head = heads

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        k = self.key(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = self.query(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        y = self.attn_drop(F.softmax(att, dim=-1)) @ v
        return self.resid_drop(self.proj(y.transpose(1, 2).contiguous().view(B, T, C)))


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, attention: nn.Module):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.c_fc, self.c_proj, self.dropout = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.dropout(self.c_proj(F.gelu(self.c_fc(self.ln_2(x)))))


class GPT(nn.Module):
    """Tokens and positions, blocks, a norm and scores of the next token."""

    def __init__(self, kind: str, tokens: int = 40, width: int = 32, heads: int = 4, length: int = 24, depth: int = 2):
        super().__init__()
        attention = {"nano": lambda: NanoAttention(width, heads), "min": lambda: MinAttention(width, heads, length)}
        self.wte, self.wpe = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.h = nn.ModuleList(Block(width, attention[kind]()) for _ in range(depth))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        _, t = idx.size()
        x = self.wte(idx) + self.wpe(torch.arange(0, t, dtype=torch.long, device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


CASES = [
    Case("nanoGPT", lambda: GPT("nano"), (Tokens(40, 2, 12),)),
    Case("minGPT", lambda: GPT("min"), (Tokens(40, 2, 12),)),
]
