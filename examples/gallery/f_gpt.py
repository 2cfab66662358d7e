"""
A smaller GPT
=============

Heads of attention and hidden neurons are channels too. A budget of parameters decides which of them stay, while a small
GPT learns to write the source of a module of Python, byte by byte.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from shrinkage import Budget, CoupledChannels, Regularizer, shrink
from shrinkage.pictures.models import layer_sizes

WIDTH, HEAD, CONTEXT, SYMBOLS = 64, 16, 64, 128
text = torch.tensor(list(Path(argparse.__file__).read_bytes())).clamp(max=SYMBOLS - 1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries, self.keys, self.values = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], -1, HEAD).transpose(1, 2)  # -1: as many heads as there are

    def forward(self, x):
        seen = self.before(x)
        heads = (self.heads(layer(seen)) for layer in (self.queries, self.keys, self.values))
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x):
        return self.head(self.blocks(self.symbols(x) + self.places(torch.arange(x.shape[1], device=x.device))))


def batch(size=16):
    windows = text[torch.randint(len(text) - CONTEXT, (size, 1)) + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


torch.manual_seed(0)
model = GPT()
example = batch(2)[0]
updates = 500
channels = CoupledChannels(model, example)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
regularizer = Regularizer(model, Budget(parameters=80_000, updates=updates, groups=channels)).attach(optimizer)
losses = []
for _ in range(updates):
    inputs, following = batch()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), following.flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())

# %%
# Channels go from a tenth to half of the training. What is left is trained on.

figure = Figure(figsize=(8, 4), layout="constrained")
axes = figure.add_subplot()
axes.plot(losses, linewidth=0.8)
axes.axvspan(0.1 * updates, 0.5 * updates, alpha=0.15, label="channels go")
axes.set(xlabel="update", ylabel="loss (nats per byte)", title="A small GPT learns while channels go")
axes.legend()

# %%
# The width of the residual stream stays. Hidden neurons and heads go.

small = shrink(model, example)
print(small.model.blocks)
figure = layer_sizes(model, small.model)
