"""Ranges of channels that code takes by number: which channels can go, and that the right ones are taken then."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkage import CoupledChannels, ShrinkPlan, apply_plan, shrink
from shrinkage.compression.plans.sizes import TO_THE_END, Asked, asked_by

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Sliced(nn.Module):
    """Three parts of what a layer puts out, 4, 5 and 3 of 12 channels, of which each goes another way."""

    def __init__(self, second=slice(4, 9)):
        super().__init__()
        torch.manual_seed(0)
        self.second = second
        self.first, self.inner, self.outer = nn.Linear(6, 12), nn.Linear(4, 3), nn.Linear(8, 2)

    def forward(self, x):
        shift, _ = x[:1, 5:], x.exp()[:, :4]  # of two axes at once, and of which there is nothing in a graph
        y = self.first(x + shift)
        gate = self.inner(y[:, :4].relu()).sigmoid()
        return self.outer(torch.cat([y[..., self.second].tanh(), y[:, 9:] * gate], -1))


@torch.no_grad()
def without_rows(model, *rows):
    model.first.weight[list(rows)] = model.first.bias[list(rows)] = 0
    return model.eval()


def assert_equal(model, small, *others):
    for x in (X, torch.randn(7, 6), torch.randn(1, 6), *others):
        torch.testing.assert_close(small(x), model(x))


def test_parts_of_a_layer_lose_other_numbers_of_channels():
    model = without_rows(Sliced(), 1, 2, 4, 8)
    channels = CoupledChannels(model, X)
    (member,) = (each for each in channels.members if each.parameter == "first.weight")
    assert (len(set(member.groups)), min(member.groups)) == (12, 0)
    result = shrink(model, X)
    assert (len(result.model.first.weight), result.model.inner.in_features, result.model.outer.in_features) == (8, 2, 6)
    assert_equal(model, result.model)
    again = apply_plan(Sliced(), ShrinkPlan.from_json(result.plan.to_json())).eval()
    again.load_state_dict(result.model.state_dict())
    for other in (again, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        assert torch.equal(other(X), result.model(X))
    program = torch.export.export(result.model, (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
    assert_equal(model, program)
    more = without_rows(copy.deepcopy(result.model), 0)
    assert len(shrink(more, X).model.first.weight) == 7
    assert_equal(more, shrink(more, X).model)


def test_ranges_with_channels_in_common_hold_them():
    model = without_rows(Sliced(slice(3, 8)), 1, 2, 4, 8)
    result = shrink(model, X)
    assert len(result.model.first.weight) == 12
    assert {kept.reason for kept in result.report.kept} == {"a slice of the channels is taken, in `the model`"}


class Pairs(nn.Module):
    """Scores of all pairs of nodes, by a vector whose halves read one node each, as graph attention is written."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.width, self.first = 8, nn.Linear(6, 8)
        self.vector, self.head = nn.Parameter(torch.randn(16, 1)), nn.Linear(8, 2)

    def forward(self, x):
        nodes = self.first(x)
        scores = nodes @ self.vector[: self.width] + (nodes @ self.vector[self.width :]).T
        return self.head(F.leaky_relu(scores).softmax(-1) @ nodes)


def test_halves_of_a_vector_lose_the_channels_that_they_read():
    model = without_rows(Pairs(), 0, 3, 5)
    assert CoupledChannels(model, X).count == 8
    result = shrink(model, X)
    assert result.model.vector.shape == (10, 1)
    assert_equal(model, result.model)


class Places(nn.Module):
    """Rows of a table, as many as there are places, which `start` later, and a layer that scores so many places."""

    def __init__(self, start=0):
        super().__init__()
        torch.manual_seed(0)
        self.start, self.first = start, nn.Linear(6, 12)
        self.table, self.scores = nn.Parameter(torch.randn(16, 12)), nn.Linear(12, 16)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        y = self.first(x) + self.table[self.start : self.start + x.shape[1]]
        return self.head(self.scores(y.relu())[:, :, : x.shape[1]].softmax(-1) @ y)


@pytest.mark.parametrize("start", [0, 2])
def test_places_that_a_longer_input_has_stay(start):
    model, x = Places(start).eval(), torch.randn(2, 5, 6)
    with torch.no_grad():
        for each in (model.first.weight.T, model.first.bias, model.table):
            each[..., [1, 4]] = 0
        model.table[:start] = 0
    channels = CoupledChannels(model, x)
    assert {member.dim for member in channels.members if member.parameter == "table"} == {1}
    result = shrink(model, x)
    assert (result.model.table.shape, result.model.scores.out_features) == ((16, 10), 16)
    model.start = result.model.start = 3
    for length in (5, 3, 9, 12):
        longer = torch.randn(3, length, 6)
        torch.testing.assert_close(result.model(longer), model(longer))


class Unread(nn.Module):
    """Steps that each put out two parts, of which the last step leaves one aside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.step, self.head = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(4, 2)

    def forward(self, x):
        y, state = 0, self.first(x)[:, 4:]
        for _ in range(2):
            both = self.step(state)
            y, state = y + both[:, :4].relu(), both[:, 4:]
        return self.head(y)


def test_a_part_that_is_left_aside_holds_nothing():
    model = without_rows(Unread(), 4, 7)
    with torch.no_grad():
        for row in (1, 4, 7):
            model.step.weight[row] = model.step.bias[row] = 0
    result = shrink(model, X)
    assert tuple(result.model.step.weight.shape) == (7, 4)
    assert result.model.head.in_features == 3
    assert_equal(model, result.model)


@pytest.mark.parametrize(
    ("index", "asked"),
    [
        (slice(2), (0, 0, 2)),
        ((slice(None), slice(1, 3)), (1, 1, 3)),
        ((..., slice(2, None)), (2, 2, TO_THE_END)),
        ((slice(3), ...), (0, 0, 3)),
        ((slice(None), slice(1, 3, 1), slice(None)), (1, 1, 3)),
        ((slice(2), slice(2)), None),
        ((slice(None), 0, slice(2)), None),
        ((None, slice(2)), None),
        ((slice(None), slice(0, 4, 2)), None),
        (slice(None), None),
        (..., None),
        (torch.tensor([0]), None),
        (slice(torch.tensor(1), 2), None),
    ],
)
def test_what_an_index_asks_for(index, asked):
    x = torch.randn(4, 5, 6)
    expected = asked and Asked("slice", asked[0], asked[1:])
    assert asked_by(torch.Tensor.__getitem__, (x, index), {}) == expected


class Truncated(nn.Module):
    """A text that is cut to so many places as a part of a layer has channels, by a range or as the first of parts."""

    def __init__(self, split):
        super().__init__()
        torch.manual_seed(0)
        self.split = split
        self.first, self.left, self.right = nn.Linear(1, 12), nn.Linear(8, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = x.split(8, 1)[0] if self.split else x[:, :8]
        y = self.first(x.mean(1, keepdim=True))
        left, right = y.split(8, 1) if self.split else (y[:, :8], y[:, 8:])
        return self.left(left.relu()) + self.right(right.tanh())


@pytest.mark.parametrize("split", [False, True])
def test_parts_of_places_are_never_taken_for_those_of_channels(split):
    model, x = without_rows(Truncated(split), 0, 5), torch.randn(3, 7)
    result = shrink(model, x)
    for length in (5, 7, 10, 12):  # as many places as channels that would be left
        longer = torch.randn(3, length)
        torch.testing.assert_close(result.model(longer), model(longer))
    assert {kept.reason for kept in result.report.kept} == {
        f"the code of `the model` asks for the size {'8' if split else '0, 8'} and means two lengths"
    }
