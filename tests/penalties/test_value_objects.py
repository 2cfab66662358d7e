"""Penalties, groups and rules are values: equal, hashed, printed and replaced by their fields, users' own too."""

from dataclasses import FrozenInstanceError, dataclass, field, fields, replace

import pytest
import torch

import shrinkage
from catalog import PENALTIES
from shrinkage import L1, L2, ElasticNet, GroupLasso, Groups, Heads, Member, Rows, Rule
from shrinkage.penalties.groups import Layout
from shrinkage.penalties.value_objects import Value


def descendants(cls):
    return {cls, *(each for child in cls.__subclasses__() for each in descendants(child))}


@dataclass(frozen=True)
class Own(L1):
    """Somebody's penalty, as users write it."""

    tag: str = ""
    note: str = field(default="", compare=False, repr=False)


class Bare(L1):
    """Somebody's penalty that adds no field."""


class Halves(Groups):
    """Somebody's groups that are no dataclass."""

    def layout(self, shape):
        return Layout(tuple(shape), (0,))


VALUES = [case.make(0.3) for case in PENALTIES] + [Rule(L1(0.1), "*.weight"), Member("a", 0, [0]), Heads(2), Own(0.1)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_equal_to_one_with_the_same_fields_and_stays_as_it_is(value):
    other = replace(value)
    assert other is not value
    assert other == value
    assert hash(other) == hash(value)
    assert value != "something else"
    name = fields(value)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, 1.0)
    with pytest.raises(FrozenInstanceError):
        delattr(value, name)


@pytest.mark.parametrize("value", [L1(0.1), Rows(), Own(0.1)], ids=lambda value: type(value).__name__)
def test_a_value_takes_no_attribute_that_is_no_field(value):
    with pytest.raises(FrozenInstanceError, match="'other'"):
        value.other = 1
    with pytest.raises(FrozenInstanceError, match="'other'"):
        del value.other


def test_a_derived_class_that_is_no_dataclass_has_attributes_of_its_own_and_frozen_fields():
    value = Bare(0.1)
    value.note = "first"
    value.note = "second"
    assert value.note == "second"
    del value.note
    assert not hasattr(value, "note")
    with pytest.raises(FrozenInstanceError, match="'strength'"):
        value.strength = 1.0
    with pytest.raises(FrozenInstanceError, match="'strength'"):
        del value.strength


def test_values_differ_by_their_class_and_by_each_field():
    assert L1(0.1) != L2(0.1)
    assert ElasticNet(0.1, 0.2) != ElasticNet(0.1, 0.3)
    assert GroupLasso(0.1, Rows()) != GroupLasso(0.1, Heads(2))
    assert len({L1(0.1), L1(0.1), L1(0.2), L2(0.1), Rows(), Rows(), Heads(1)}) == 5
    expected = "Grouped(penalty=L1(strength=0.1), groups=Heads(count=2, dim=1), weigh_by_size=True)"
    assert repr(GroupLasso(0.1, Heads(2, dim=1))) == expected


def test_values_of_somebody_else_are_compared_as_dataclasses_are():
    assert Own(0.1, "a", "first") == Own(0.1, "a", "second")
    assert Own(0.1, "a") != Own(0.1, "b")
    assert repr(Own(0.1, "a", "first")) == "Own(strength=0.1, tag='a')"
    assert Bare(0.1) == Bare(0.1)
    assert Bare(0.1) != L1(0.1)
    assert repr(Bare(0.1)) == "Bare(strength=0.1)"


def test_groups_that_are_no_dataclass_are_equal_to_themselves_alone():
    one, other = Halves(), Halves()
    assert one != other
    assert len({one, other, one}) == 2
    assert "Halves object" in repr(one)
    assert torch.equal(GroupLasso(100.0, one).prox(torch.ones(2, 2), 1.0), torch.zeros(2, 2))


def test_methods_of_values_are_written_once():
    own = {cls for cls in descendants(Value) if cls.__module__.startswith(f"{shrinkage.__name__}.")}
    generated = {
        cls.__name__
        for cls in own
        for name, made in (("__eq__", "eq"), ("__repr__", "repr"))
        if name in vars(cls) and getattr(vars(cls).get("__dataclass_params__"), made, False)
    }
    assert not generated, "@dataclass compiles these methods at every import: declare with @value_class"
