"""A path that is interrupted goes on from its files, bit for bit."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from models import equal, mlp, train
from shrinkage import L1, L2, path


def trainer(model, updates=3):
    """Return what trains with a new optimizer."""

    def fit(regularizer):
        regularizer.attach(optimizer := SGD(model.parameters(), lr=0.1))
        train(model, optimizer, updates)

    return fit


class Interruption(Exception):
    """What ends a path in the middle."""


class Program:
    """A network with running statistics and dropout, an optimizer and a generator of its own that fits use again."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.optimizer = Adam(self.model.parameters(), lr=0.05)
        self.order = torch.Generator().manual_seed(1)
        self.fits = 0

    def path(self, folder=None, strengths=(0.0, 0.01, 0.02, 0.04), interrupt_at=None, **options):
        def fit(regularizer):
            self.fits += 1
            regularizer.attach(self.optimizer)
            for update in range(4):
                x = torch.randn(16, 6, generator=self.order) + random.random() + float(np.random.rand())
                self.optimizer.zero_grad()
                self.model(x + torch.randn(16, 6)).square().mean().backward()
                self.optimizer.step()
                if self.fits == interrupt_at and update == 2:
                    raise Interruption

        def score(model):
            return model(torch.ones(4, 6)).square().mean(1)

        options = {"score": score, "refit": trainer(self.model, 2)} | options
        carried = [self.optimizer, self.order]
        return path(self.model, L1, fit, strengths=strengths, folder=folder, carried=carried, **options)


def seed():
    random.seed(0)
    np.random.seed(0)


def same(one, other):
    assert one.to_dict() == other.to_dict()
    for a, b in zip((*one, *one.refits), (*other, *other.refits), strict=True):
        assert a.state.keys() == b.state.keys()
        assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)


@pytest.mark.parametrize("interrupt_at", [1, 2, 4])
def test_an_interrupted_path_goes_on_bit_for_bit(tmp_path, interrupt_at):
    seed()
    whole = Program()
    expected = whole.path()
    drawn = random.random(), np.random.rand(), torch.rand(1)
    seed()
    program = Program()
    with pytest.raises(Interruption):
        program.path(tmp_path / "new", interrupt_at=interrupt_at)
    assert len(list((tmp_path / "new").glob("*.pt"))) == interrupt_at - 1
    resumed = Program()  # as in a new process, with other random states
    if interrupt_at == 1:
        seed()  # nothing is saved: it begins from the start
    found = resumed.path(tmp_path / "new")
    assert resumed.fits == 4 - (interrupt_at - 1)
    same(found, expected)
    assert equal(resumed.model, whole.model)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1))


def test_a_path_that_is_complete_is_read_and_can_be_continued(tmp_path):
    seed()
    whole = Program()
    expected = whole.path(strengths=(0.0, 0.01, 0.02))
    seed()
    Program().path(tmp_path, strengths=(0.0, 0.01))
    again = Program()
    same(again.path(tmp_path, strengths=(0.0, 0.01)), expected[:2])
    assert again.fits == 0
    longer = Program()
    same(longer.path(tmp_path, strengths=(0.0, 0.01, 0.02)), expected)
    assert longer.fits == 1
    assert len(Program().path(tmp_path, strengths=(0.0,))) == 1


def test_files_hold_nothing_but_plain_data(tmp_path):
    Program().path(tmp_path, strengths=(0.01,))
    (file,) = tmp_path.iterdir()
    content = torch.load(file, weights_only=True)
    assert content["asked"]["strengths"] == [0.01]
    assert set(content["point"]["state"]) == set(Program().model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": (0.0, 0.02)}, "other strengths"),
        ({"hold_zeros": 0.99}, "other options"),
        ({"refit": None}, "other refit"),
    ],
)
def test_files_of_another_path_are_refused_and_nothing_is_trained(tmp_path, change, message):
    Program().path(tmp_path, strengths=(0.0, 0.01))
    other = Program()
    with pytest.raises(ValueError, match=f"{message}.*expected(.|\n)*found(.|\n)*another folder"):
        other.path(tmp_path, **({"strengths": (0.0, 0.01)} | change))
    assert other.fits == 0
    assert equal(other.model, Program().model)


def test_other_rules_and_another_model_are_refused(tmp_path):
    model = mlp()
    path(model, L1, trainer(model), strengths=[0.1], folder=tmp_path)
    with pytest.raises(ValueError, match="other rules"):
        path(model, L2, trainer(model), strengths=[0.1], folder=tmp_path)
    wider = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
    with pytest.raises(ValueError, match="other rules"):
        path(wider, L1, trainer(wider), strengths=[0.1], folder=tmp_path)
    with pytest.raises(ValueError, match="0 carried states, but 1 are given"):
        path(model, L1, trainer(model), strengths=[0.1], folder=tmp_path, carried=[torch.Generator()])
    with pytest.raises(TypeError, match=r"generators of torch, or objects with state_dict\(\).*got 3"):
        path(model, L1, trainer(model), strengths=[0.1], carried=[3])


def test_strengths_that_were_found_are_kept(tmp_path):
    model, other = mlp(), mlp()
    with torch.no_grad():
        other[0].weight.mul_(2)  # as after another seed

    def closure():
        return model(torch.ones(2, 6)).square().mean()

    found = path(model, L1, trainer(model), strengths=3, closure=closure, folder=tmp_path, stop=False)
    assert path(other, L1, trainer(other), strengths=3, folder=tmp_path, stop=False).strengths == found.strengths


def test_a_schedule_counts_on_where_an_optimizer_is_saved(tmp_path):
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

    def fit(regularizer):
        assert regularizer.updates is None
        regularizer.attach(optimizer)
        assert regularizer.updates == 0
        train(model, optimizer, 3)
        assert regularizer.updates == 3

    path(model, L1, fit, strengths=[0.1, 0.2], folder=tmp_path, carried=[optimizer])
    path(model, L1, fit, strengths=[0.1, 0.2, 0.3], folder=tmp_path, carried=[optimizer])
