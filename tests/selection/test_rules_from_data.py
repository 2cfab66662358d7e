"""Rules from plain data: everything public has a form, errors name the place, and nothing else is made."""

import inspect
import json

import pytest
import torch
from torch import nn

import shrinkage
from shrinkage import (
    L1,
    L2,
    MCP,
    Bound,
    Box,
    Budget,
    Counted,
    ElasticNet,
    Grouped,
    Heads,
    Penalty,
    Ramp,
    Regularizer,
    Rows,
    Rule,
    Steps,
    TopK,
    Weighted,
    rules_from,
)
from shrinkage.penalties.schedules import Described
from shrinkage.selection.rules_from_data import GROUPS, PENALTIES, SCHEDULES

RAMP = {"schedule": "Ramp", "high": "1e-3", "updates": 10}


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        ({"penalty": "L1", "strength": 1e-3}, Rule(L1(1e-3))),
        ({"penalty": "L1", "strength": "1e-3"}, Rule(L1(1e-3))),
        ({"penalty": {"penalty": "L1", "strength": 1}}, Rule(L1(1))),
        ({"penalty": None, "select": "*.bias"}, Rule(None, "*.bias")),
        ({"penalty": "L2", "strength": 1, "how": "decoupled", "select": "a.*"}, Rule(L2(1), "a.*", "decoupled")),
        ({"penalty": "L1", "strength": RAMP}, Rule(L1(Ramp(1e-3, 10)))),
        ({"penalty": "L1", "strength": {"schedule": "Bound", "limit": "2"}}, Rule(L1(Bound(2.0)))),
        (
            {"penalty": "Grouped", "of": {"penalty": "MCP", "strength": RAMP, "gamma": 4}, "groups": "Rows"},
            Rule(Grouped(MCP(Ramp(1e-3, 10), 4), Rows())),
        ),
        (
            {"penalty": "GroupLasso", "strength": 0.1, "groups": {"groups": "Heads", "count": "4", "dim": 1}},
            Rule(Grouped(L1(0.1), Heads(4, 1))),
        ),
        ({"penalty": "ElasticNet", "l1": 1, "l2": {"schedule": "Steps", "values": {"0": 1, "5": "1e-1"}}},
         Rule(ElasticNet(1, Steps({0: 1.0, 5: 0.1})))),
        ({"penalty": "Counted", "of": {"penalty": "L2", "strength": 1}, "l0": 2}, Rule(Counted(L2(1), 2))),
        ({"penalty": "Box", "low": "-inf", "high": 1, "of": None}, Rule(Box(-torch.inf, 1))),
        ({"penalty": "L1", "strength": 1, "until": "1e2", "every": 2, "after": {"penalty": "L1", "strength": 0.5}},
         Rule(L1(1), every=2, until=100, after=L1(0.5))),
        ({"penalty": "TopK", "density": "0.5"}, Rule(TopK(0.5))),
    ],
)  # fmt: skip
def test_data_gives_the_rule_that_python_gives(data, rule):
    for given in (data, json.loads(json.dumps(data))):
        assert rules_from([given]) == (rule,)
        assert repr(rules_from([given])[0]) == repr(rule)


def test_tensors_are_lists():
    (rule,) = rules_from([{"penalty": "Weighted", "of": {"penalty": "L1", "strength": 1}, "weights": [[1, 2.5]]}])
    assert isinstance(rule.penalty, Weighted)
    assert rule.penalty.weights.tolist() == [[1.0, 2.5]]


def test_how_is_said_once_for_all_but_budgets():
    data = [{"penalty": "L2", "strength": 1}, {"penalty": "L1", "strength": 1, "how": "proximal"}]
    data += [{"penalty": "Budget", "zeros": 0.5, "updates": 90}, {"penalty": None, "select": "*"}]
    assert [rule.how for rule in rules_from(data, how="gradient")] == ["gradient", "proximal", "proximal", "gradient"]
    assert rules_from(data)[2].penalty == Budget(zeros=0.5, updates=90)


def test_what_can_be_named_is_what_is_public():
    public = [getattr(shrinkage, name) for name in shrinkage.__all__]
    concrete = [each for each in public if inspect.isclass(each) and not inspect.isabstract(each)]
    groups = {each for each in concrete if issubclass(each, shrinkage.Groups)} - {shrinkage.Coupled}
    assert set(PENALTIES.things) == {each for each in concrete if issubclass(each, Penalty | Budget)} | {
        shrinkage.GroupLasso
    }
    assert set(GROUPS.things) == groups
    assert set(SCHEDULES.things) == {each for each in concrete if issubclass(each, Described)}
    for kind in (PENALTIES, GROUPS, SCHEDULES):
        assert [kind.called(name) for name in kind.names] == list(kind.things)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ("L1", TypeError, ("rules: expected a list of mappings", "got 'L1'")),
        ({"rules": [{"penalty": "L1"}]}, TypeError, ("rules: expected a list of mappings", "give its entry 'rules'")),
        ({"penalty": "L1"}, TypeError, ("rules: expected a list",)),
        ([], ValueError, ("rules: the list is empty",)),
        (["L1"], TypeError, ("rules[0]: expected a mapping",)),
        ([{"penalty": "L1", "strength": 1}, 3], TypeError, ("rules[1]: expected a mapping",)),
        ([{1: 2}], TypeError, ("rules[0]: expected a mapping",)),
        ([{}], ValueError, ("rules[0]: the key 'penalty' is missing", "it is empty")),
        ([{"select": "*"}], ValueError, ("rules[0]: the key 'penalty' is missing", "found 'select'")),
        ([{"penalty": "L11"}], ValueError, ("rules[0].penalty: 'L11' cannot be named here; nearest names: 'L1'",)),
        ([{"penalty": "torch.nn.Linear"}], ValueError, ("rules[0].penalty: 'torch.nn.Linear' cannot be named",)),
        ([{"penalty": "Rows"}], ValueError, ("rules[0].penalty: 'Rows' cannot be named here",)),
        ([{"penalty": "Penalty"}], ValueError, ("rules[0].penalty: 'Penalty' cannot be named here",)),
        ([{"penalty": ["L1"]}], TypeError, ("rules[0].penalty: expected the name of a class",)),
        ([{"penalty": ["L1"], "strength": 1}], TypeError, ("rules[0].penalty: expected the name of a class",)),
        ([{"penalty": None, "strength": 1}], TypeError, ("rules[0].penalty", "None")),
        ([{"penalty": "L1"}], ValueError, ("rules[0]: L1 needs 'strength'; given are no arguments",)),
        ([{"penalty": "L1", "strenght": 1}], ValueError, ("rules[0]: L1 has no argument 'strenght'", "'strength'")),
        ([{"penalty": "L1", "strength": 1, "selct": "*"}], ValueError, ("no argument 'selct'", "'select'")),
        ([{"penalty": "L1", "strength": -1}], ValueError, ("rules[0]: L1: strength must be a finite number",)),
        ([{"penalty": "L1", "strength": "high"}], TypeError, ("rules[0]: L1: strength must be", "'high'")),
        ([{"penalty": "L1", "strength": True}], TypeError, ("rules[0]: L1: strength must be",)),
        ([{"penalty": "L1", "strength": {"high": 1}}], ValueError, ("rules[0].strength: the key 'schedule' is miss",)),
        ([{"penalty": "L1", "strength": {"schedule": "Rmp"}}], ValueError, ("rules[0].strength.schedule: 'Rmp'",)),
        ([{"penalty": "GroupLasso", "strength": 1, "groups": "Row"}], ValueError, ("rules[0].groups: 'Row'", "'Rows'")),
        (
            [{"penalty": "GroupLasso", "strength": 1, "groups": {"groups": "Rows", "count": 1}}],
            ValueError,
            ("rules[0].groups: Rows has no argument 'count'; it takes no arguments",),
        ),
        ([{"penalty": "Grouped", "of": "L1", "groups": "Rows"}], ValueError, ("rules[0].of: L1 needs 'strength'",)),
        ([{"penalty": "Grouped", "penalties": 1, "groups": "Rows"}], ValueError, ("no argument 'penalties'", "'of'")),
        ([{"penalty": "L1", "strength": 1, "how": "proxmal"}], ValueError, ("rules[0]:", "proxmal")),
        ([{"penalty": "L1", "strength": 1, "select": ["a", "b"]}], TypeError, ("rules[0].select: expected a glob",)),
        ([{"penalty": "L1", "strength": 1, "until": -1}], ValueError, ("rules[0]: until must be",)),
    ],
)
def test_errors_name_the_place_and_what_is_expected(data, error, words):
    with pytest.raises(error) as raised:
        rules_from(data)
    for word in words:
        assert word in str(raised.value)


def test_a_regularizer_takes_them():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plan = Regularizer(model, rules_from([{"select": "0.weight", "penalty": "L1", "strength": 1}])).plan
    assert plan.names == ["0.weight"]
