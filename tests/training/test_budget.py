"""Budgets of single weights: exactly so many zeros, while the dense weights are kept aside."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adagrad, AdamW, Muon, Optimizer

from shrinkage import Budget, Regularizer

X = torch.randn(256, 10, generator=torch.Generator().manual_seed(0))
Y = torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
HUNDRED = Budget(zeros=0.9, updates=100)  # begins at 10, ends at 40, freezes at 60


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 2)]
    return nn.Sequential(*layers).to(dtype)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def loss(model: nn.Module, n: int) -> Tensor:
    at = torch.arange(32) + 32 * (n % 8)
    dtype = next(model.parameters()).dtype
    return mse_loss(model(X[at].to(dtype)), Y[at].to(dtype))


def step(model: nn.Module, optimizer: Optimizer, n: int) -> None:
    optimizer.zero_grad()
    loss(model, n).backward()
    optimizer.step()


def zeros(model: nn.Module) -> int:
    return sum(int((parameter == 0).sum()) for parameter in matrices(model))


OPTIMIZERS = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda model: AdamW(model.parameters(), lr=1e-2),
    "Adagrad": lambda model: Adagrad(model.parameters(), lr=1e-2),
    "Muon": lambda model: Muon(matrices(model), lr=1e-2),
}


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_follow_the_ramp_and_stay(name):
    model = net()
    optimizer = OPTIMIZERS[name](model)
    Regularizer(model, HUNDRED).attach(optimizer)
    count = sum(map(torch.numel, matrices(model)))
    for n in range(100):
        step(model, optimizer, n)
        done = min(max((n + 1 - 10) / 30, 0), 1)
        assert zeros(model) == math.ceil(0.9 * (1 - (1 - done) ** 3) * count)
