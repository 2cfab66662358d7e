"""Tensors that native kernels were prepared for, and others in their place."""

import pytest
import torch
from torch import Tensor, nn

from shrinkage.execution import same_tensors
from shrinkage.execution.same_tensors import SameTensors, guards_are_right


class Other(Tensor):
    """A tensor of another class, which may keep its numbers elsewhere."""


def weight() -> Tensor:
    return torch.randn(4, 6)


CHANGED = {
    "type": lambda: weight().double(),
    "half": lambda: weight().half(),
    "shape": lambda: torch.randn(6, 4),
    "as many elements in one dimension": lambda: torch.randn(24),
    "transposed": lambda: torch.randn(6, 4).t(),
    "with gaps": lambda: torch.randn(4, 12)[:, ::2],
    "smaller": lambda: torch.randn(4, 5),
    "empty": lambda: torch.randn(0, 6),
    "class": lambda: weight().as_subclass(Other),
    "device": lambda: weight().to("meta"),
    "sparse": lambda: weight().to_sparse(),
}


@pytest.fixture(params=[True, False], ids=["torch's guards", "a plain loop"])
def guards(request, monkeypatch) -> None:
    if not request.param:
        monkeypatch.setattr(same_tensors, "guards_are_right", lambda: False)


def test_this_torch_has_guards_that_see_each_change():
    assert guards_are_right()


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("place", [0, 1])
def test_what_changed_is_seen(guards, changed, place):
    same = SameTensors([weight(), weight()])
    now = [weight(), weight()]
    assert same(now)
    now[place] = changed()
    assert not same(now)


def test_a_parameter_whose_data_is_another(guards):
    parameter = nn.Parameter(weight())
    same = SameTensors([parameter])
    parameter.data = weight()
    assert same([parameter])
    parameter.data = weight().t()
    assert not same([parameter])


def test_as_many_tensors(guards):
    same = SameTensors([weight(), weight()])
    assert not same([weight()])
    assert not same([weight()] * 3)
    assert SameTensors([])([])


def test_what_lies_in_memory_in_its_own_order_may_tell_other_strides(guards):
    """The stride of a dimension of one element says nothing."""
    same = SameTensors([torch.randn(5, 1)])
    assert same([torch.randn(5).as_strided((5, 1), (1, 7))])


def test_a_parameter_stands_for_its_tensor_inside_no_grad_as_outside(guards):
    parameter = nn.Parameter(weight())
    same = SameTensors([parameter])
    with torch.no_grad():
        assert same([parameter])


def test_a_torch_without_guards_or_with_others_is_known(monkeypatch):
    monkeypatch.setattr(same_tensors, "guards_of", lambda tensors: lambda *others: True)
    assert not guards_are_right.__wrapped__()
    monkeypatch.setattr(same_tensors, "guards_of", lambda tensors: lambda *others: False)
    assert not guards_are_right.__wrapped__()

    def gone(tensors):
        raise AttributeError("TensorGuards")

    monkeypatch.setattr(same_tensors, "guards_of", gone)
    assert not guards_are_right.__wrapped__()
