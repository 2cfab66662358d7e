"""Weights that are moved into another tensor and back."""

import math

import pytest
import torch

from shrinkage.execution.kept_aside import cut_, restore_
from shrinkage.proximal.ranking import patterns_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_finite_stays(dtype):
    w = torch.randn(70_000, dtype=dtype)
    odd = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
    w[:3] = odd
    before, aside = w.clone(), torch.zeros_like(w)
    for _ in range(3):
        cut_(w, aside, int(patterns_of(torch.tensor([0.5])).item()), None)
        torch.testing.assert_close(w[:3], odd, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(aside[:3], torch.zeros(3, dtype=dtype))
        assert torch.equal(w[3:] == 0, before[3:].abs() < 0.5)
        restore_(w, aside)
        torch.testing.assert_close(w, before, rtol=0, atol=0, equal_nan=True)
