"""Models written with `einsum`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, Normal

WIDTH, SIZE, HIDDEN = 16, 4, 24


class Heads(nn.Module):
    """Queries, keys and values of heads, and the output of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x).view(*x.shape[:-1], -1, SIZE) for layer in (self.q, self.k, self.v))


class Attention(Heads):
    """Attention, with dots for what is in front of the letters."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in self.heads(x))
        weights = (torch.einsum("... i d, ... j d -> ... i j", q, k) * SIZE**-0.5).softmax(-1)
        return x + self.out(torch.einsum("...ij,...jd->...id", weights, v).transpose(1, 2).flatten(2))


class LinearAttention(Heads):
    """Attention without a softmax, which sums over positions first."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        mixed = torch.einsum("bnhd,bhde->bnhe", q, torch.einsum("bnhd,bnhe->bhde", k, v))
        scale = torch.einsum("bnhd,bhd->bnh", q, k.sum(1))
        return x + self.out((mixed / scale[..., None]).flatten(2))


class Columns(nn.Module):
    """Weights whose columns make channels, a scale for each, and weights that read them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.empty(WIDTH, HIDDEN)), nn.Parameter(torch.empty(HIDDEN, WIDTH))
        self.shift, self.scale = nn.Parameter(torch.empty(HIDDEN)), nn.Parameter(torch.empty(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("bnd,de->bne", x, self.first) + self.shift)
        return torch.einsum("...e,ef->...f", torch.einsum("bne,e->bne", hidden, self.scale), self.second)


class WeightsFirst(nn.Module):
    """Weights on the left, of which one belongs to a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN)
        self.second = nn.Parameter(torch.empty(5, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.einsum("fd,bnd->bfn", self.first.weight, x))
        return torch.einsum("of,bfn->bon", self.second, torch.tanh(hidden))


class Experts(nn.Module):
    """Experts in one tensor: a neuron is one in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(3, WIDTH, HIDDEN))
        self.second = nn.Parameter(torch.empty(3, HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("ebd,edf->ebf", x.transpose(0, 1), self.first))
        return torch.einsum("ebf,efd->ebd", hidden, self.second)


class Similarity(nn.Module):
    """What two layers have in common, summed over their channels, and the sum of each with another."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.other = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = self.left(x)
        return torch.einsum("bni,bni->bn", left, self.right(x)), torch.einsum("bni,bnj->bn", left, self.other(x))


SEQUENCE = (Normal(2, 5, WIDTH),)
CASES = [
    Case("einsum-attention", Attention, SEQUENCE),
    Case("einsum-linear-attention", LinearAttention, SEQUENCE),
    Case("einsum-columns", Columns, SEQUENCE),
    Case("einsum-weights-first", WeightsFirst, SEQUENCE),
    Case("einsum-experts", Experts, (Normal(2, 3, WIDTH),)),
    Case("einsum-similarity", Similarity, SEQUENCE),
]
