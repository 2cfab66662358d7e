"""Channels that are constant though all that makes them is zero: groups are what reads them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import train_step
from shrinkage import (
    Coupled,
    CoupledChannels,
    GroupError,
    GroupLasso,
    Regularizer,
    ShrinkPlan,
    apply_plan,
    shrink,
)
from zoo.families import BSplines, Splines

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)


class Chebyshev(nn.Module):
    """A layer of a Kolmogorov-Arnold network whose functions are polynomials."""

    def __init__(self, inputs: int, outputs: int, degree: int = 3):
        super().__init__()
        self.coefficients = nn.Parameter(torch.randn(inputs, outputs, degree + 1))
        self.register_buffer("degrees", torch.arange(degree + 1))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.acos(torch.tanh(x).clamp(-0.999, 0.999))[..., None] * self.degrees
        return torch.einsum("bid,iod->bo", angles.cos(), self.coefficients)


class Scaled(Splines):
    """Coefficients with a scale for each function, as one weight of a linear layer."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.rand(outputs, inputs) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-((x[..., None] - self.grid) ** 2))
        weight = self.coefficients * self.scale[..., None]
        return F.linear(F.silu(x), self.base) + F.linear(basis.flatten(1), weight.flatten(1))


class Letters(nn.Module):
    """Weights of a linear layer without a bias that code reads by letters."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", x, self.weight)


class Heads(nn.Module):
    """Attention whose queries and keys one weight makes, of what a sigmoid gives."""

    def __init__(self):
        super().__init__()
        self.first, self.both = nn.Linear(6, 8), Letters(8, 12)
        self.values, self.out = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.both(self.first(x).sigmoid()), self.values(x)
        q, v = (part.unflatten(-1, (-1, 4)).transpose(0, 1) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, q, v).transpose(0, 1).flatten(1))


def stacked(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).double()


class Twice(nn.Module):
    """A layer that reads channels at one call, and functions of them at another that are not 0 where they are."""

    def __init__(self):
        super().__init__()
        self.first, self.both = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.both(x) * self.both(x.neg().exp())


MODELS = {  # with how many groups
    "radial": (lambda: stacked(Splines(6, 8), Splines(8, 4)), 8),
    "bsplines": (lambda: stacked(BSplines(6, 8), BSplines(8, 4)), 8),
    "polynomials": (lambda: stacked(Chebyshev(6, 8), Chebyshev(8, 4)), 8),
    "with-scales": (lambda: stacked(Scaled(6, 8), Scaled(8, 7), Scaled(7, 4)), 15),
    "deep": (lambda: stacked(Splines(6, 8), Splines(8, 7), Splines(7, 9), Splines(9, 4)), 24),
    "before-a-layer": (lambda: stacked(Splines(6, 8), Splines(8, 7), nn.Linear(7, 4)), 15),
    "behind-a-layer": (lambda: stacked(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), Splines(8, 4)), 17),
    "sigmoid": (lambda: stacked(nn.Linear(6, 8), nn.Sigmoid(), Letters(8, 4)), 8),
    "heads": (lambda: Heads().double(), 11),
    "twice": (lambda: Twice().double(), 8),
    "border": (
        lambda: stacked(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        14,
    ),
}


@torch.no_grad()
def zero_groups_(model: nn.Module, channels: Coupled, goes: list[int]) -> None:
    for member in channels.members:
        places = [place for place, group in enumerate(member.groups) if group in goes]
        model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(places, dtype=torch.long), 0.0)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_every_group_that_is_zero_goes_and_outputs_stay(name, verify):
    torch.manual_seed(0)
    make, count = MODELS[name]
    model = make()
    x = IMAGES if name == "border" else X
    channels = CoupledChannels(model, x)
    assert channels.count == count
    goes = list(range(0, count, 3))
    zero_groups_(model, channels, goes)
    result = shrink(model, x, verify=verify)
    assert not result.report.kept
    assert CoupledChannels(result.model, x).count == count - len(goes)
    again = apply_plan(make(), ShrinkPlan.from_json(result.plan.to_json()))
    again.load_state_dict(result.model.state_dict())
    for training in (False, True):
        for each in (model, result.model, again):
            each.train(training)
        for other in (3 * x.flip(0), torch.cat([x, -x]), x[:1]):
            expected = model(other)
            torch.testing.assert_close(result.model(other), expected, atol=1e-11, rtol=1e-11)
            assert torch.equal(again(other), result.model(other))


def test_groups_are_the_columns_of_all_that_reads():
    model = MODELS["before-a-layer"][0]()
    channels = CoupledChannels(model, X)
    assert {(member.parameter, member.dim) for member in channels.members} == {
        ("1.coefficients", 1), ("1.base", 1), ("2.weight", 1)
    }  # fmt: skip


def test_groups_before_stay_rows():
    """A neuron behind a ReLU is zero where its row is, so that its group is what it was."""
    channels = CoupledChannels(MODELS["behind-a-layer"][0](), X)
    assert {(member.parameter, member.dim) for member in channels.members} == {
        ("0.weight", 0), ("0.bias", 0), ("3.coefficients", 1), ("3.base", 1)
    }  # fmt: skip


def test_training_takes_neurons_out_of_a_kolmogorov_arnold_network():
    torch.manual_seed(0)
    model = stacked(Splines(6, 8), Splines(8, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    Regularizer(model, GroupLasso(0.1, CoupledChannels(model, X))).attach(optimizer)
    target = X[:, :4].square()
    for _ in range(150):
        train_step(optimizer, F.mse_loss(model(X), target))
    small = shrink(model, X)
    assert small.model[1].base.shape[1] < 8
    assert not small.report.kept
    torch.testing.assert_close(small.model(3 * X), model(3 * X))


def test_a_constant_for_a_frozen_weight_is_offered_nowhere():
    model = MODELS["sigmoid"][0]()
    model[2].weight.requires_grad_(False)
    with pytest.raises(GroupError, match="a constant other than zero where a weight reads them"):
        CoupledChannels(model, X)
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0, 0
    result = shrink(model, X)
    (kept,) = result.report.kept
    assert (kept.name, kept.channels) == ("0.weight", 3)
    assert "no bias that could take it up" in kept.reason
    torch.testing.assert_close(result.model(3 * X), model(3 * X))


class Matching(nn.Module):
    """The same weight makes what is compared with others, channel by channel, of what a sigmoid gives."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.other = nn.Linear(6, 8), Letters(8, 12), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.cosine_similarity(self.one(self.first(x).sigmoid()), self.other(x))


def test_what_reads_and_also_makes_what_has_to_be_zero_is_left_to_that():
    """The columns of the weight could take the neurons out, but then its rows were in no group with what it makes."""
    torch.manual_seed(0)
    model = Matching().double()
    channels = CoupledChannels(model, X)
    assert {(member.parameter, member.dim) for member in channels.members} == {
        ("one.weight", 0), ("other.weight", 0), ("other.bias", 0)
    }  # fmt: skip
    zero_groups_(model, channels, [1, 4, 5])
    small = shrink(model, X).model
    assert small.other.out_features == 9
    torch.testing.assert_close(small(3 * X), model(3 * X))


def test_rows_that_are_zero_alone_stay_with_the_reason_and_what_to_do():
    for name, reason in (("bsplines", "has no bias that could take it up"), ("radial", "on the data or the position")):
        model = MODELS[name][0]()
        with torch.no_grad():
            model[0].coefficients[:3] = model[0].base[:3] = 0
        result = shrink(model, X)
        (kept,) = result.report.kept
        assert (kept.name, kept.channels) == ("0.coefficients", 3)
        assert reason in kept.reason
        assert "penalize the weights that read it: what nobody reads goes" in kept.advice
        assert torch.equal(result.model(X), model(X))
