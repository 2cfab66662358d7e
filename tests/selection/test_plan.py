import pytest
import torch
from torch import nn

from shrinkage import L1, L2, Columns, ElasticNet, Grouped, GroupError, GroupLasso, Heads, Kernels, Ramp, Rule
from shrinkage.selection.plan import resolve


def test_a_plan_prints_as_a_table():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.LazyLinear(2))
    plan = resolve(
        model,
        [
            Rule(GroupLasso(1e-3, Kernels()), nn.Conv2d),
            Rule(ElasticNet(1e-4, lambda iteration: 0.1), "1.weight", "gradient"),
            Rule(L2(0.01), "*.bias", "decoupled"),
            Rule(Grouped(L2(Ramp(0.5, 1000)), Columns()), "2.weight"),
        ],
    )
    assert str(plan).splitlines() == [
        "parameter  shape    groups          penalty     strength          how",
        "---------  -------  --------------  ----------  ----------------  ---------",
        "0.weight   8x3x3x3  24 x Kernels()  GroupLasso  0.001             proximal",
        "0.bias     8        -               L2          0.01              decoupled",
        "1.weight   4x8      -               ElasticNet  0.0001, schedule  gradient",
        "1.bias     4        -               L2          0.01              decoupled",
        "2.weight   lazy     Columns()       Grouped L2  0 to 0.5 by 1000  proximal",
        "2.bias     lazy     -               L2          0.01              decoupled",
    ]


def test_a_plan_never_changes():
    plan = resolve(nn.Linear(3, 2), L1(0.1))
    assert len(plan) == 1
    for thing, name in ((plan, "entries"), (plan.entries[0], "penalty"), (Rule(L1(0.1)), "how")):
        before = getattr(thing, name)
        with pytest.raises(AttributeError):
            setattr(thing, name, None)
        assert getattr(thing, name) is before


def test_groups_that_do_not_fit_name_the_parameter_and_its_shape():
    model = nn.Sequential(nn.Linear(4, 12))
    with pytest.raises(GroupError, match=r"'0\.weight' of shape \(12, 4\) cannot be penalized .*multiple of 5, got 12"):
        resolve(model, GroupLasso(0.1, Heads(5)))
    with pytest.raises(GroupError, match=r"'0\.bias' of shape \(12,\) .*at least 2 dimensions"):
        resolve(model, {"*": GroupLasso(0.1, Columns())})


def test_a_0_dim_parameter_takes_elementwise_penalties():
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(()))
    assert [entry.name for entry in resolve(model, {"scale": L1(0.1)})] == ["scale"]
    with pytest.raises(GroupError, match=r"'scale' of shape \(\)"):
        resolve(model, {"scale": GroupLasso(0.1, Columns())})
