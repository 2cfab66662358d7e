"""Layers of one kind keep one width: `uniform` of `shrink` and of `CoupledChannels`."""

import pytest
import torch
from torch import Tensor, nn

from shrinkage import Budget, CoupledChannels, GroupError, Regularizer, shrink
from shrinkage.compression.plans.tensors import kind_of_layer

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.hidden, self.head = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(torch.relu(self.hidden(self.norm(x))))


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return Stack().eval()


def silence_(layer: nn.Linear, units) -> None:
    with torch.no_grad():
        layer.weight[units] = 0
        layer.bias[units] = 0


def widths(model: nn.Module) -> list[int]:
    return [block.up.out_features for block in model.blocks] + [model.hidden.out_features]


def test_layers_of_a_kind_keep_as_many_as_the_widest(stack):
    for block, units in zip(stack.blocks, ([0, 1, 5], [2, 3], [1, 3, 4, 7]), strict=True):
        silence_(block.up, units)
    silence_(stack.hidden, [0, 1, 2, 3])
    assert widths(shrink(stack, X).model) == [5, 6, 4, 4]
    found = shrink(stack, X, uniform=True)
    assert widths(found.model) == [6, 6, 6, 4]
    torch.testing.assert_close(found.model(X), stack(X))
    assert "as uniform asks" in str(found.report)
    silence_(stack.blocks[1].up, [4])
    assert widths(shrink(stack, X, uniform=True).model) == [5, 5, 5, 4]


def test_a_layer_that_stays_keeps_the_others(stack):
    for block in stack.blocks:
        silence_(block.up, [0, 1])
    assert widths(shrink(stack, X, uniform=True, pin=["blocks.2.up"]).model) == [8, 8, 8, 8]


def test_a_group_goes_through_all_layers_of_a_kind(stack):
    channels = CoupledChannels(stack, X, uniform=True)
    assert channels.count == 16, "eight for the blocks, and eight for the hidden layer"
    group = next(m.groups[3] for m in channels.members if m.parameter == "blocks.1.up.weight")
    named = {m.parameter for m in channels.members if m.groups[3] == group}
    assert named == {f"blocks.{number}.up.{name}" for number in range(3) for name in ("weight", "bias")}
    assert CoupledChannels(stack, X).count == 32


def test_a_budget_leaves_one_width(stack):
    budget = Budget(parameters=200, updates=4, begin=0.0, end=0.5, groups=CoupledChannels(stack, X, uniform=True))
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.01)
    Regularizer(stack, budget).attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        stack(X).square().mean().backward()
        optimizer.step()
    small = shrink(stack, X).model
    *blocks, _ = widths(small)
    assert len(set(blocks)) == 1
    assert sum(parameter.numel() for parameter in small.parameters()) <= 200 < 294


def test_where_one_layer_is_held_its_kind_is_in_no_group(stack):
    channels = CoupledChannels(stack, X, uniform=True, pin=["blocks.2.up"])
    assert {m.parameter for m in channels.members} == {"hidden.weight", "hidden.bias"}
    with pytest.raises(GroupError, match="of which all of a kind can lose channels with the same numbers, found none"):
        CoupledChannels(stack, X, uniform=True, pin=["blocks.2.up", "hidden"])


def test_kinds_are_told_by_numbers_in_the_path_alone():
    names = ["3.weight", "blocks.10.fc1.weight", "conv2", "a.4"]
    assert [kind_of_layer(name) for name in names] == ["*.weight", "blocks.*.fc1.weight", "conv2", "a.*"]
