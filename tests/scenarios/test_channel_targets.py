"""Networks that learn digits with a budget of channels: what is left, and how well it does."""

import math
from collections.abc import Callable
from statistics import mean

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from late import datasets, model_selection
from shrinkage import Budget, Coupled, CoupledChannels, Regularizer, shrink
from shrinkage.compression.calls.cost import multiply_adds, parameter_count
from shrinkage.penalties.group_choice import Stock, chosen

pytestmark = [
    *(pytest.mark.filterwarnings(f"ignore:.*{text}:UserWarning") for text in ("of its kind", "than it may")),
    pytest.mark.slow,
]
Loaded = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(seed: int) -> Loaded:
    """Images and classes to train with, and to test with."""
    x, y = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    a, b, c, d = model_selection.train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
    return a, c, b, d


def convolutional() -> nn.Sequential:
    """Three convolutions with batch norm, 15,498 parameters."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and beside a skip."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)

        def heads_of(t: Tensor) -> Tensor:
            return t.unflatten(-1, (-1, y.shape[-1] // self.heads)).transpose(1, 2)

        found = F.scaled_dot_product_attention(*(heads_of(each(y)) for each in (self.q, self.k, self.v)))
        x = x + self.o(found.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Transformer(nn.Module):
    """An image is eight rows of eight pixels, 26,346 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) * 0.02)
        self.blocks = nn.Sequential(*(Block(32, 4, 128) for _ in range(2)))
        self.norm, self.out = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.first(x.unflatten(-1, (8, 8))) + self.place)).mean(1))


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Loaded, updates: int, draw: Callable[[int], Tensor],
    clip: float = math.inf,
) -> tuple[float, float]:  # fmt: skip
    """Train along half a cosine with a warm-up, and return error in percent and loss on the test data."""
    x, y, test_x, test_y = data
    (group,) = optimizer.param_groups
    lr = group["lr"]
    for number in range(updates):
        done = number / updates
        group["lr"] = lr * min(done / 0.05, 1.0) * (1 + math.cos(math.pi * done)) / 2
        at = draw(number)
        optimizer.zero_grad()
        F.cross_entropy(model(x[at]), y[at]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        out = model(test_x)
        return 100 * (out.argmax(1) != test_y).float().mean().item(), F.cross_entropy(out, test_y).item()


def of_its_own(seed: int, count: int) -> Callable[[int], Tensor]:
    """Batches each of which has a generator of its own."""
    return lambda n: torch.randint(count, (64,), generator=torch.Generator().manual_seed(1_000_000 * seed + n))


def convolutional_with(seed: int, **target: int) -> tuple[nn.Module, float, float]:
    """A trained network of convolutions, its error and its loss."""
    data = digits(seed)
    torch.manual_seed(seed)
    model = convolutional()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    Regularizer(model, Budget(updates=500, groups=CoupledChannels(model, data[0][:8]), **target)).attach(optimizer)
    return model, *trained(model, optimizer, data, 500, of_its_own(seed, len(data[0])))


def test_convolutions_with_a_tenth_of_their_parameters():
    losses = []
    for seed in range(3):
        model, error, loss = convolutional_with(seed, parameters=1_627)
        left = parameter_count(shrink(model, digits(seed)[0][:8]).model)
        losses.append(loss)
        assert 1_500 <= left <= 1_627
        assert error <= 3.5
    assert mean(losses) <= 0.15


def test_convolutions_with_a_tenth_of_their_multiply_adds():
    model, error, _ = convolutional_with(0, multiply_adds=8 * 12_108)
    x = digits(0)[0][:8]
    left = multiply_adds(shrink(model, x).model, ((x,), {}))[""]
    assert 8 * 12_108 - 8 * 300 < left <= 8 * 12_108
    assert error <= 5


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def transformer(seed: int, make: Callable[[nn.Module], torch.optim.Optimizer], *, scratch: bool) -> tuple[int, float]:
    """How many parameters are left, and the loss; from `scratch`, of a transformer that is small from the start."""
    data = digits(seed)
    torch.manual_seed(seed)
    model: nn.Module = Transformer()
    channels = CoupledChannels(model, data[0][:2])
    if scratch:
        model = evenly_smaller(model, channels, data[0][:2])
    optimizer = make(model)
    if not scratch:
        Regularizer(model, Budget(updates=400, parameters=9_000, groups=channels)).attach(optimizer)
    generator = torch.Generator().manual_seed(seed)

    def draw(_: int) -> Tensor:
        return torch.randint(len(data[0]), (32,), generator=generator)

    _, loss = trained(model, optimizer, data, 400, draw, clip=1.0)
    return parameter_count(model if scratch else shrink(model, data[0][:2]).model), loss


def evenly_smaller(model: nn.Module, channels: Coupled, x: Tensor) -> nn.Module:
    """The model without the same share of each kind of channels, as near to 9,000 parameters as it can be.

    Its weights were drawn for the larger one. Drawn anew for its own size it does better: `make budgets`.
    """
    kinds = torch.tensor(channels.kinds.of)
    scores = torch.zeros(len(kinds))
    for kind in range(int(kinds.max()) + 1):
        own = kinds == kind
        scores[own] = torch.linspace(0, 1, int(own.sum()))
    stock = Stock.of(channels.kinds.of, channels.kinds.parameters)
    gone = chosen(stock, scores, torch.zeros(len(kinds), dtype=torch.bool), 9_000, last=True).nonzero().flatten()
    with torch.no_grad():
        for name in channels.names:
            member = channels.slices(name)
            at = torch.isin(torch.tensor(member.groups), gone).nonzero().flatten()
            model.get_parameter(name).index_fill_(member.dim, at, 0.0)
    return shrink(model, x).model


@pytest.mark.parametrize("make", [adamw, sgd])
def test_heads_and_hidden_units_of_a_transformer(make):
    found = [transformer(seed, make, scratch=False) for seed in range(3)]
    assert all(8_900 <= left <= 9_000 for left, _ in found)
    scratch = [transformer(seed, make, scratch=True) for seed in range(3)]
    assert all(left <= 9_000 for left, _ in scratch)
    assert mean(loss for _, loss in found) <= 0.85 * mean(loss for _, loss in scratch)
