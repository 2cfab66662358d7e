"""What a `Budget` refuses, what it says of itself, and what its ramp asks for."""

import pickle

import pytest
import torch
from torch import nn

from shrinkage import L1, Budget, Grouped, NonNegative, Regularizer, Rows, Rule, SelectionError, Toward, Weighted
from shrinkage.penalties.coupled_groups import Coupled, Member

CHANNELS = Coupled([Member("0.weight", 0, range(8)), Member("0.bias", 0, range(8))])
NO_STRENGTH = "a Budget has no strength: it decides which weights are zero"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"zeros": 0.9}, TypeError, "needs updates=, the number of optimizer steps of the whole training: the ramp"),
        ({"zeros": 0.9, "updates": 12.5}, TypeError, "needs updates=.*got 12.5"),
        ({"zeros": 0.9, "updates": True}, TypeError, "needs updates="),
        ({"updates": 1000}, ValueError, "exactly one of zeros=, parameters=, multiply_adds=, got none"),
        ({"updates": 9, "zeros": 0.9, "parameters": 5000}, ValueError, "got zeros=0.9 and parameters=5000"),
        ({"updates": 1000, "zeros": 95}, ValueError, r"share between 0 and 1, got 95; did you mean 0.95\?"),
        ({"updates": 1000, "zeros": 1.0}, ValueError, r"share between 0 and 1, got 1.0"),
        ({"updates": 1000, "zeros": 0}, ValueError, "share between 0 and 1, got 0$"),
        ({"updates": 1000, "zeros": "half"}, ValueError, "share between 0 and 1, got 'half'$"),
        ({"updates": 1000, "parameters": 5000}, ValueError, "counts what shrink leaves, so it needs groups=CoupledCh"),
        ({"updates": 1000, "multiply_adds": 5000}, ValueError, "multiply_adds= counts what shrink leaves"),
        (
            {"updates": 1000, "parameters": 1.0, "groups": CHANNELS},
            ValueError,
            "whole number of at least 1, or a share",
        ),
        (
            {"updates": 1000, "multiply_adds": 50.5, "groups": CHANNELS},
            ValueError,
            "multiply_adds must be a whole.*50.5",
        ),
        (
            {"updates": 1000, "parameters": 0, "groups": CHANNELS},
            ValueError,
            "a share of the model's between 0 and 1, got",
        ),
        ({"updates": 1000, "parameters": "half", "groups": CHANNELS}, ValueError, "between 0 and 1, got 'half'"),
        ({"updates": 1000, "parameters": True, "groups": CHANNELS}, ValueError, "between 0 and 1, got True"),
        (
            {"updates": 100, "zeros": 0.9, "begin": 0.5, "end": 0.4},
            ValueError,
            "begin=0.5 < end=0.4 <= freeze=0.6 <= 1 has to hold; they are fractions of updates=100",
        ),
        ({"updates": 100, "zeros": 0.9, "freeze": 0.3}, ValueError, "end=0.4 <= freeze=0.3 <= 1 has to hold"),
        ({"updates": 100, "zeros": 0.9, "freeze": 60}, ValueError, "freeze=60 <= 1 has to hold"),
        ({"updates": 100, "zeros": 0.9, "begin": -0.1}, ValueError, "begin=-0.1 < "),
        ({"updates": 12, "zeros": 0.9}, ValueError, "the ramp from update 1 to 5 is shorter than 10 updates; updates="),
        (
            {"updates": 100, "zeros": 0.9, "freeze": 0.6, "groups": CHANNELS},
            ValueError,
            "freeze= is for single",
        ),
        ({"updates": 100, "zeros": 0.9, "groups": Rows}, TypeError, r"an instance such as Rows\(\)"),
        ({"updates": 100, "zeros": 0.9, "least": 2}, ValueError, "least must be a number from 0 to 1, got 2"),
        ({"updates": 100, "zeros": 0.9, "score": "l1"}, ValueError, "score must be"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Budget(**arguments)


BUDGET = Budget(zeros=0.9, updates=12_000)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: L1(1e-3) + BUDGET, TypeError),
        (lambda: BUDGET + L1(1e-3), TypeError),
        (lambda: 2 * BUDGET, TypeError),
        (lambda: Weighted(BUDGET, torch.ones(2)), TypeError),
        (lambda: Toward(BUDGET), TypeError),
        (lambda: NonNegative(BUDGET), TypeError),
        (lambda: Grouped(BUDGET, Rows()), TypeError),
        (lambda: Rule(BUDGET, how="gradient"), ValueError),
        (lambda: Rule(BUDGET, every=2), ValueError),
        (lambda: Rule(BUDGET, until=5), ValueError),
    ],
)
def test_a_budget_is_no_part_of_a_penalty(make, error):
    with pytest.raises(error, match=NO_STRENGTH):
        make()


def test_only_what_was_given_is_printed():
    assert repr(BUDGET) == "Budget(zeros=0.9, updates=12000)"
    assert repr(Budget(zeros=0.5, updates=100, groups=Rows(), end=0.5)) == (
        "Budget(zeros=0.5, updates=100, groups=Rows(), end=0.5)"
    )


def test_budgets_are_values():
    assert Budget(zeros=0.9, updates=12_000) == BUDGET != Budget(zeros=0.95, updates=12_000)
    assert pickle.loads(pickle.dumps(BUDGET)) == BUDGET
    assert hash(pickle.loads(pickle.dumps(BUDGET))) == hash(BUDGET)


def test_the_ramp_begins_at_nothing_and_ends_with_the_target():
    assert [BUDGET.ramp(update) for update in (0, 1200, 3000, 4800, 9000)] == [0.0, 0.0, 0.875, 1.0, 1.0]
    assert BUDGET.zeros_at(4800, 1001) == 901
    assert Budget(zeros=0.7, updates=100).zeros_at(100, 10) == 7
    coupled = Budget(zeros=0.5, updates=100, groups=CHANNELS)
    assert (coupled.first_update, coupled.last_update, coupled.freeze_update) == (10, 50, 50)


def test_more_zeros_than_layers_allow_are_an_error():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    with pytest.raises(SelectionError, match="leaves 2 of 20 weights, and each of its 5 parameters keeps one at least"):
        Regularizer(model, Budget(zeros=0.9, updates=1000))
    with pytest.raises(SelectionError, match="one group at least, 10 in all"):
        Regularizer(model, Budget(zeros=0.6, updates=1000, groups=Rows()))
