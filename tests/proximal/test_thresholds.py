"""Proximal operators of single elements; test_penalties.py checks the penalties built on them by brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shrinkage import L0, L1, MCP, SCAD, Huber, LogSum, Lp
from shrinkage.proximal import secular, thresholds

OPERATORS = {
    "soft": lambda w, step: thresholds.soft_threshold(w, 0.7 * step),
    "hard": lambda w, step: thresholds.hard_threshold(w, (1.4 * step) ** 0.5),
    "firm": lambda w, step: thresholds.firm_threshold(w, step, 0.7, 3.0),
    "clipped": lambda w, step: thresholds.clipped_threshold(w, step, 0.7, 3.7),
    "half": lambda w, step: thresholds.half_threshold(w, 0.7 * step),
    "two thirds": lambda w, step: thresholds.two_thirds_threshold(w, 0.7 * step),
    "log": lambda w, step: thresholds.log_threshold(w, 0.7 * step, 0.4),
    "huber": lambda w, step: thresholds.huber_scale(w, step, 0.7, 0.6),
    "scale": lambda w, step: thresholds.scale_down(w, 0.7 * step),
}
SCALARS = [L1(0.7), MCP(0.7), SCAD(0.7), L0(0.7), Lp(0.7, 0.5), Lp(0.7, 2 / 3), LogSum(0.7, 0.4), Huber(0.7, 0.6)]
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 2e-38), min_size=1, max_size=6),
    st.integers(0, 63),
)
def test_zero_thresholds_keep_their_elements(values, mask):
    w = torch.tensor(values)
    levels = torch.tensor([0.7 if mask >> i & 1 else 0.0 for i in range(len(values))])
    free = levels == 0
    assert torch.equal(thresholds.soft_threshold(w, levels)[free], w[free])
    scaled = w * secular.block_scale_in_metric(w, levels, (0,))
    assert not scaled.isnan().any()
    assert torch.equal(scaled[free], w[free])
    assert (scaled.abs() <= w.abs()).all()


def test_soft_threshold_gives_positive_zeros():
    zeros = thresholds.soft_threshold(torch.tensor([-0.5, 0.5, -0.0]), 1.0)
    assert not zeros.signbit().any()


@every_operator
@given(w=st.floats(-1e4, 1e4, width=32), step=st.floats(0, 1e4, width=32))
def test_operators_shrink_keep_signs_and_order(operator, w, step):
    y = operator(torch.tensor([w, 1.01 * w + 1e-3 * math.copysign(1, w)], dtype=torch.float64), step)
    assert y[0].abs() <= abs(w)
    assert y[0] * w >= 0
    assert y[1].abs() >= y[0].abs() * (1 - 1e-12)  # a proximal operator is monotone


@every_operator
def test_the_odd_corners(operator):
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    for step in (0.0, 0.5, 1e4, torch.tensor(0.5), torch.full((5,), 0.5)):
        y = operator(special, step)
        assert (y[:2] == 0).all()
        assert y[2] == math.inf
        assert y[3] == -math.inf
        assert y[4].isnan()


@pytest.mark.parametrize("penalty", SCALARS, ids=str)
@pytest.mark.parametrize("step", [0.02, 0.5, 1.5, 2.9, 3.1, 4.0, 5.5, 9.0])
def test_no_point_of_a_line_is_better(penalty, step):
    """Weights so close to each other that some stand within 1e-3 of every threshold."""
    w = torch.linspace(-8, 8, 6001, dtype=torch.float64)[:, None]
    points = torch.cat([torch.linspace(-8, 8, 801, dtype=torch.float64), torch.zeros(1)])
    least = (0.5 * (points - w).square() / step + penalty.cost(points)).amin(1, keepdim=True)
    y = penalty.prox(w, step)
    found = 0.5 * (y - w).square() / step + penalty.cost(y)
    unmoved = penalty.cost(w)
    assert (found <= torch.minimum(least, unmoved) + 1e-12).all()


@pytest.mark.parametrize(("name", "jump"), [("firm", 0.7 * 3), ("clipped", 0.7 * math.sqrt(4.7 * 6))])
def test_beyond_the_textbook_a_hard_threshold_is_left(name, jump):
    """MCP at step 3 = gamma, SCAD at step 6 > a + 1: at the jump both points are equally good, and zero is taken."""
    step = 3.0 if name == "firm" else 6.0
    w = torch.tensor([jump * (1 - 1e-6), jump * (1 + 1e-6)], dtype=torch.float64)
    y = OPERATORS[name](w, step)
    assert y[0] == 0
    assert y[1] == w[1]


@pytest.mark.parametrize("step", [2.7 - 1e-9, 2.7, 2.7 + 1e-9, 4.7 - 1e-9, 4.7, 4.7 + 1e-9])
def test_scads_three_regimes_meet(step):
    w = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    beside = OPERATORS["clipped"](w, step + 1e-7)
    found = OPERATORS["clipped"](w, step)
    jumps = (found - beside).abs() > 1e-5
    assert jumps.sum() <= 4  # only where the two of them jump between grid points
