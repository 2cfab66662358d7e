"""The prox in a metric by accelerated steps, where the answer is known in closed form."""

import pytest
import torch

from shrinkage.proximal import thresholds
from shrinkage.proximal.fista import prox_in_metric


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_a_separable_function_gives_its_elementwise_prox(spread):
    w = torch.randn(30, 20, dtype=torch.float64)
    steps = torch.exp(spread * torch.randn_like(w))
    found = prox_in_metric(w, steps, lambda y, step: thresholds.soft_threshold(y, 0.3 * step))
    torch.testing.assert_close(found, thresholds.soft_threshold(w, 0.3 * steps), rtol=1e-8, atol=1e-8)
    assert torch.equal(found == 0, thresholds.soft_threshold(w, 0.3 * steps) == 0)


def test_elements_whose_step_is_0_come_back():
    w = torch.randn(30, dtype=torch.float64)
    steps = torch.rand_like(w)
    steps[::3] = 0
    found = prox_in_metric(w, steps, lambda y, step: thresholds.soft_threshold(y, 0.3 * step))
    assert torch.equal(found[::3], w[::3])
    torch.testing.assert_close(found, thresholds.soft_threshold(w, 0.3 * steps), rtol=1e-5, atol=1e-6)
