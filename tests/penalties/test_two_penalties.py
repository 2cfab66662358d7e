"""Two penalties on one parameter: one class where the prox of the sum is exact, an error that says why elsewhere."""

import pytest
import torch
from torch import nn

from models import mlp
from oracle import best_improvement
from shrinkage import (
    L1,
    L2,
    MCP,
    Columns,
    ElasticNet,
    Grouped,
    GroupError,
    GroupLasso,
    NonNegative,
    Nuclear,
    Regularizer,
    Rows,
    SelectionError,
    SparseGroupLasso,
    regularize,
)

SUMS = [
    (L1(0.1), L1(0.2), L1(0.1 + 0.2)),
    (L2(0.1), L2(0.2), L2(0.1 + 0.2)),
    (L1(0.1), L2(0.2), ElasticNet(0.1, 0.2)),
    (ElasticNet(0.1, 0.2), L1(0.5), ElasticNet(0.6, 0.2)),
    (ElasticNet(0.1, 0.25), L2(0.5), ElasticNet(0.1, 0.75)),
    (ElasticNet(0.5, 0.25), ElasticNet(0.25, 0.5), ElasticNet(0.75, 0.75)),
    (L1(0.1), GroupLasso(0.2, Rows()), SparseGroupLasso(0.1, 0.2, Rows())),
    (GroupLasso(0.25, Rows()), GroupLasso(0.5, Rows()), GroupLasso(0.75, Rows())),
    (GroupLasso(0.1, Rows()), Grouped(L2(0.2), Rows()), Grouped(ElasticNet(0.1, 0.2), Rows())),
    (SparseGroupLasso(0.25, 0.2, Rows()), L1(0.5), SparseGroupLasso(0.75, 0.2, Rows())),
    (SparseGroupLasso(0.1, 0.25, Rows()), GroupLasso(0.5, Rows()), SparseGroupLasso(0.1, 0.75, Rows())),
    (NonNegative(), L1(0.1), NonNegative(L1(0.1))),
    (NonNegative(L1(0.1)), L2(0.2), NonNegative(ElasticNet(0.1, 0.2))),
]


@pytest.mark.parametrize(("one", "other", "both"), SUMS, ids=str)
def test_known_sums_are_one_class_and_penalize_both(one, other, both):
    assert one + other == both
    assert other + one == both
    w = torch.randn(4, 6, dtype=torch.float64).abs()
    torch.testing.assert_close(both.value(w), one.value(w) + other.value(w))
    steps = torch.exp(torch.randn_like(w))
    assert best_improvement(both, both.prox(w, steps), w, steps) <= 1e-12


def test_sums_of_schedules_are_schedules():
    both = L1(lambda update: 0.5 * update) + L1(0.25)
    assert both.at(1) == L1(0.75)
    assert (L1(lambda update: 0.5 * update) + L2(0.25)).at(1) == ElasticNet(0.5, 0.25)


@pytest.mark.parametrize("pair", [(L1(0.1), MCP(0.1)), (L1(0.1), Nuclear(0.1)), (Nuclear(0.1), MCP(0.1))], ids=str)
def test_other_sums_are_refused_with_those_that_there_are(pair):
    with pytest.raises(TypeError, match=r"no exact prox of their sum is known here.*L2 can be added to everything"):
        _ = pair[0] + pair[1]


def test_overlapping_groups_are_refused_with_the_reason():
    for other in (Columns(), Rows()):
        pair = (GroupLasso(0.1, Rows(), weigh_by_size=False), GroupLasso(0.1, other))
        with pytest.raises(GroupError, match="overlap: an element would stand in two groups"):
            _ = pair[0] + pair[1]


def test_a_number_can_not_be_added():
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = L1(0.1) + 1.0


def test_a_list_in_place_of_a_penalty_names_the_class():
    with pytest.raises(TypeError, match=r"rule '\*.weight': several penalties .*: write ElasticNet\(l1=0.1, l2=0.2\)"):
        Regularizer(mlp(), {"*.weight": [L1(0.1), L2(0.2)]})
    with pytest.raises(TypeError, match="cannot be penalized together"):
        Regularizer(mlp(), {"*.weight": (L1(0.1), MCP(0.2))})


def test_a_layer_that_is_penalized_already_names_the_sum():
    layer = regularize(nn.Linear(4, 4), L1(0.1))
    with pytest.raises(SelectionError, match=r"or penalize both at once with ElasticNet\(l1=0.1, l2=0.2\)"):
        regularize(layer, L2(0.2))
    with pytest.raises(SelectionError, match="cannot be penalized together"):
        regularize(layer, MCP(0.2))
