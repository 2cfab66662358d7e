"""A network on a path lives at strengths at which training from scratch dies."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from digits.data import load
from digits.train import accuracy
from shrinkage import L1, path

STRENGTHS = [3e-4, 1e-3, 3e-3]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def test_the_digits_network_lives_upwards_where_it_dies_from_scratch():
    digits = load()

    def train(model, epochs, attach=lambda optimizer: None):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        attach(optimizer)
        schedule = CosineAnnealingLR(optimizer, epochs * 17, eta_min=1e-3)
        order = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for x, y in digits.train.batches(64, order):
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()

    def losses(model):
        return cross_entropy(model(digits.validation.pixels), digits.validation.labels, reduction="none")

    model = network()
    train(model, 20)
    found = path(
        model,
        L1,
        lambda regularizer: train(model, 12, regularizer.attach),
        strengths=STRENGTHS,
        score=losses,
        hold_zeros=0.99,
    )
    last = found[-1]
    assert last.sparsity >= 0.9
    assert accuracy(model, digits.test) >= 0.95
    assert [point.sparsity for point in found] == sorted(point.sparsity for point in found)
    assert found.best.strength < found.one_standard_error.strength < 3e-3
    found.load(model, found.one_standard_error)
    assert accuracy(model, digits.test) >= 0.95

    scratch = network()
    (dead,) = path(
        scratch,
        L1,
        lambda regularizer: train(scratch, 8, regularizer.attach),
        strengths=STRENGTHS[-1:],
        score=losses,
        hold_zeros=0.99,
    )
    assert dead.sparsity > 0.999
    assert accuracy(scratch, digits.test) < 0.15
