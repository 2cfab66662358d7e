"""Channels as groups: training makes them zero as a whole, and then they are taken out exactly."""

import pytest
import torch
from torch import nn

from shrinkage import CoupledChannels, GroupError, GroupLasso, Regularizer, shrink
from zoo.harness import difference
from zoo.own import CASES

STRENGTHS = {
    "mlp": 0.003,
    "resnet": 0.003,
    "mobilenet": 0.003,
    "swiglu": 0.003,
    "attention-chunked": 0.02,
    "grouped-queries-native": 0.02,
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in STRENGTHS], ids=str)
def test_training_gives_zero_channels_all_of_which_are_taken_out(case):
    model = case.make()
    arguments, keywords = case.example()
    channels = CoupledChannels(model, arguments, example_kwargs=keywords)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    Regularizer(model, GroupLasso(STRENGTHS[case.name], channels)).attach(optimizer)
    target = model(*arguments, **keywords).detach()
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(*arguments, **keywords), target).backward()
        optimizer.step()
    parameters = dict(model.named_parameters())
    zero = {
        number
        for number in range(channels.count)
        if all(
            not parameters[m.parameter].movedim(m.dim, 0)[[i for i, g in enumerate(m.groups) if g == number]].any()
            for m in channels.members
        )
    }
    assert zero
    small = shrink(model, arguments, example_kwargs=keywords)
    assert all("the last one" in kept.reason for kept in small.report.kept)
    with torch.no_grad():
        assert difference(model(*arguments, **keywords), small.model(*arguments, **keywords)) < 1e-5
    assert small.report.after.parameters < small.report.before.parameters


def test_a_group_holds_the_row_the_bias_and_the_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    channels = CoupledChannels(model, torch.randn(5, 4))
    assert {(m.parameter, m.dim, tuple(m.groups)) for m in channels.members} == {
        (name, 0, (0, 1, 2)) for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    }


def test_a_model_without_channels_that_can_go_is_refused():
    with pytest.raises(GroupError, match="some channel can go"):
        CoupledChannels(nn.Linear(4, 3), torch.randn(2, 4))
