"""Small networks: layers that prune easily, batch norm, attention, and a decoder of text."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def perceptron(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    """Return three convolutions with batch norm for images of 8 by 8; 15,498 parameters."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )


class Attention(nn.Module):
    """Attention in heads of a fixed size. How many there are follows from the weights, so that heads can go."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.head_size, self.causal = width // heads, causal
        self.queries, self.keys, self.values, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        layers = self.queries, self.keys, self.values
        heads = [layer(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for layer in layers]
        return self.output(F.scaled_dot_product_attention(*heads, is_causal=self.causal).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """A network per token whose neurons have gates: SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gates, self.values, self.output = (
            nn.Linear(*sizes) for sizes in 2 * [(width, hidden)] + [(hidden, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.gates(x)) * self.values(x))


class Block(nn.Module):
    """Attention and a network per token, each behind a norm and beside a skip."""

    def __init__(self, width: int, attention: Attention, per_token: nn.Module) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), attention)
        self.per_token = nn.Sequential(nn.LayerNorm(width), per_token)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.per_token(x)


class Transformer(nn.Module):
    """A classifier of images of 8 by 8, each of them eight tokens, its rows; 26,346 parameters."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.first, self.places = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.02)
        blocks = [
            Block(
                width,
                Attention(width, heads, causal=False),
                nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)),
            )
            for _ in range(layers)
        ]
        self.blocks, self.head = nn.Sequential(*blocks, nn.LayerNorm(width)), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(x.unflatten(-1, (8, 8))) + self.places).mean(1))


class GPT(nn.Module):
    """A decoder of bytes: scores of the next byte at every place of a text; 170,496 parameters."""

    def __init__(self, context: int, width: int = 64, heads: int = 4, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        for embedding in (self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        blocks = [Block(width, Attention(width, heads, causal=True), Gated(width, hidden)) for _ in range(layers)]
        self.blocks, self.head = nn.Sequential(*blocks, nn.LayerNorm(width)), nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        return self.head(self.blocks(self.bytes(text) + self.places(places)))
