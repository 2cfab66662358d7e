"""Layers in plain lists and dictionaries, which torch does not find, are told by attribute."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from shrinkage import L1, Regularizer, SelectionError, report, shrink
from shrinkage.selection.unregistered import unregistered

HIDING: dict[str, Any] = {
    "list": lambda: [nn.Linear(8, 8), nn.ReLU()],
    "tuple": lambda: (nn.Linear(8, 8),),
    "set": lambda: {nn.Linear(8, 8)},
    "dictionary": lambda: {"a": nn.Linear(8, 8)},
    "nested": lambda: {"a": [(nn.Sequential(nn.Linear(8, 8)), None)]},
    "parameters": lambda: [nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))],
}


class Net(nn.Module):
    def __init__(self, hidden: Any, *, head: bool) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.inner.kept = hidden
        if head:
            self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if "head" in self._modules else x


@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING)
@pytest.mark.parametrize("head", [False, True])
def test_hidden_layers_are_told_by_attribute(make: Any, head: bool) -> None:
    net = Net(make(), head=head)
    told = "here in 'inner.kept' (2 parameters): use nn.ModuleList or nn.ModuleDict"
    begins = "layers in a plain list" if head else "no parameters: layers in a plain list"
    for text in (str(report(net)), str(shrink(net, torch.ones(4, 8)))):
        last = text.splitlines()[-1]
        assert last.startswith(begins)
        assert last.endswith(told)
    expected: Any = pytest.warns(UserWarning, match=r"'inner\.kept'") if head else pytest.raises(SelectionError)
    with expected as caught:
        Regularizer(net, L1(0.1))
    if head:
        assert [each.filename for each in caught] == [__file__]
    else:
        assert told in str(caught.value)


def test_the_numbers_of_a_report_have_what_is_hidden() -> None:
    assert report(Net([nn.Linear(8, 8)], head=True)).to_dict()["unregistered"] == {"inner.kept": 2}


def test_nothing_is_told_of_what_is_found_frozen_or_no_layer() -> None:
    teacher = nn.Linear(8, 8).requires_grad_(False)
    net = Net([teacher, nn.ReLU(), "layer", torch.ones(3, requires_grad=True)], head=True)
    net.again = [net.head, net.head.weight]
    lstm = nn.LSTM(8, 8)  # which holds its parameters in lists, too
    circle: list[Any] = []
    circle.append(circle)
    net.circle = circle
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (net, lstm):
            assert unregistered(model) == {} == report(model).unregistered
            Regularizer(model, {"*weight*": L1(0.1)})
    assert "plain" not in str(report(net))
