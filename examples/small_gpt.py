"""A small GPT that reads Python's standard library, made smaller by a budget of parameters, and in other ways.

    pip install . rich
    python examples/small_gpt.py

trains a decoder of bytes on the sources of this Python's own standard library in five ways with the same number of
updates, and prints a table of quality, size and latency. What happens on the way from training to the smaller model is
in `comparison.py`, function `budget`.
"""

import math
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from command import run
from comparison import Settings, Task

BYTES = 256  # the tokens
CONTEXT = 64
WIDTH, LAYERS, HEADS, HIDDEN = 64, 2, 4, 256
BATCH = 16
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
FULL = Settings(800, seeds=3, target=86_000, strength=4e-4, penalty_from=0.35, shrink_after=0.7, prune_after=0.3)
QUICK = replace(FULL, updates=40, seeds=1, target=60_000, strength=3e-3, penalty_from=0.0)

LARGEST_FILE = 50_000  # bytes; of longer files only the beginning is read
OTHER_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}


class Attention(nn.Module):
    """Attention to what came before. How many heads there are follows from the weights, so that heads can go."""

    def __init__(self) -> None:
        super().__init__()
        self.head_size = WIDTH // HEADS
        self.queries, self.keys, self.values = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        texts, length, _ = x.shape
        layers = self.queries, self.keys, self.values
        heads = [layer(x).view(texts, length, -1, self.head_size).transpose(1, 2) for layer in layers]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """A network per token whose neurons have gates: SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.values = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.output = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.gates(x)) * self.values(x))


class Block(nn.Module):
    """Attention and a network per token, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention())
        self.per_token = nn.Sequential(nn.LayerNorm(WIDTH), Gated())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.per_token(x)


class GPT(nn.Module):
    """A decoder of bytes: scores of the next byte at every place of a text."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(BYTES, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(layers)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, BYTES)
        for embedding in (self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        return self.head(self.blocks(self.bytes(text) + self.places(places)))


@dataclass(frozen=True)
class Texts:
    """Three sets of files that have no file in common: the bytes of each set, one file after another."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load() -> Texts:
    """Return the sources of the standard library without its tests; of ten files one validates, one tests."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.rglob("*.py") if not OTHER_FOLDERS & set(path.relative_to(folder).parts))
    sets: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for number, path in enumerate(files):
        sets[{0: "validation", 5: "test"}.get(number % 10, "train")].append(path.read_bytes()[:LARGEST_FILE])
    return Texts(**{name: torch.frombuffer(bytearray().join(texts), dtype=torch.uint8) for name, texts in sets.items()})


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the windows of `text` that start there, and the bytes that come next."""
    symbols = text[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    return symbols[:, :-1], symbols[:, 1:]


def batch(text: Tensor, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Return the texts of an update, at random places."""
    chance = torch.Generator().manual_seed(1_000_000 * seed + number)
    return windows(text, torch.randint(len(text) - CONTEXT, (BATCH,), generator=chance))


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Tensor, count: int) -> float:
    """Return the mean information of a byte under `model`, over so many evenly spaced windows of `text`."""
    nats = []
    for starts in torch.linspace(0, len(text) - CONTEXT - 1, count).long().split(32):
        inputs, following = windows(text, starts)
        nats.append(F.cross_entropy(model(inputs).flatten(0, 1), following.flatten()).item())
    return sum(nats) / len(nats) / math.log(2)


def optimizer(model: nn.Module) -> Optimizer:
    """Return the optimizer of a model."""
    return AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def task(texts: Texts, layers: int, count: int) -> Task:
    """Return the task of telling the next byte, by a model of so many layers, measured on so many windows of text."""
    return Task(
        name="sources of Python's standard library, small GPT",
        unit="bits per byte",
        higher_is_better=False,
        build=lambda: GPT(layers),
        optimizer=optimizer,
        learning_rate=LEARNING_RATE,
        inputs=windows(texts.validation, torch.tensor([0]))[0],
        batch=lambda seed, number: batch(texts.train, seed, number),
        validation=lambda model: bits_per_byte(model, texts.validation, count),
        test=lambda model: bits_per_byte(model, texts.test, count),
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example and return its numbers."""

    def make(quick: bool) -> Task:
        return task(load(), 1, 64) if quick else task(load(), LAYERS, 512)

    return run("small_gpt", __doc__ or "", make, FULL, QUICK, arguments)


if __name__ == "__main__":
    main()
