"""Stochastic rounding: one of the two neighbours, with the right odds."""

import pytest
import torch

from shrinkage.proximal.precision import stochastic_round, stuck

NARROW = [torch.bfloat16, torch.float16]


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", NARROW)
def test_every_number_of_the_type_stays_bit_for_bit(dtype):
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    found = stochastic_round(numbers.float(), dtype, generator())
    bad = numbers.isnan()
    assert torch.equal(found.isnan(), bad)
    assert torch.equal(found[~bad].view(torch.int16), numbers[~bad].view(torch.int16))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("upcast", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_upper_neighbour_is_drawn_as_often_as_the_value_is_near_it(dtype, upcast, share, sign):
    """At 0, among subnormal numbers, at powers of two, and at the largest numbers."""
    info, draws = torch.finfo(dtype), 40000
    lows = torch.tensor(
        [0.0, info.smallest_normal / 4, info.smallest_normal, 1.0, 1.0 + info.eps, 1.5, info.max / 4], dtype=dtype
    )
    highs = (lows.view(torch.int16) + 1).view(dtype)
    values = sign * (lows.to(upcast) + share * (highs.to(upcast) - lows.to(upcast)))
    found = stochastic_round(values.expand(draws, -1).contiguous(), dtype, generator()).to(upcast) * sign
    assert ((found == lows.to(upcast)) | (found == highs.to(upcast))).all()
    drawn = (found == highs.to(upcast)).double().mean(0)
    assert (drawn - share).abs().max() <= 5 * (share * (1 - share) / draws) ** 0.5


def test_what_overflows_does_so_as_in_plain_rounding():
    values = torch.tensor([65504.0, 65519.0, 65520.0, 1e5, -1e5])
    assert torch.equal(stochastic_round(values, torch.float16, generator()), values.half())


def test_stuck_counts_what_is_to_move_and_does_not():
    w = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.bfloat16)
    assert stuck(w, torch.tensor([0.999, 0.99, 1.0, 0.0])) == 0.5
    assert stuck(w, w.float()) == 0
