"""Half precision: a penalty too small to move weights is told of, and stochastic rounding moves them."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim import SGD

from models import LR, Alone, fill_gradients, sgd
from shrinkage import (
    L1,
    L2,
    Regularizer,
)

NARROW = [torch.bfloat16, torch.float16]
HALF_STRENGTH = 1e-2


def narrow(dtype, value=1.0, count=4000):
    return Alone(torch.full((count,), value, dtype=dtype))


def decayed(model, steps, rule=None, how="decoupled", **options):
    """Step on zero gradients, so that only the penalty moves anything."""
    optimizer = SGD(model.parameters(), lr=LR)
    regularizer = Regularizer(model, {"w": rule or L2(HALF_STRENGTH)}, how=how, **options).attach(optimizer)
    for _ in range(steps):
        fill_gradients(model, 0.0)
        optimizer.step()
    return regularizer, optimizer


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rule", [L2(HALF_STRENGTH / 10), L1(HALF_STRENGTH / 10)])
@pytest.mark.parametrize("how", ["proximal", "decoupled"])
def test_a_penalty_too_small_to_move_half_precision_weights_is_said_once(dtype, rule, how):
    model = narrow(dtype)
    message = rf"too small to move 100% of the weights of 'w', of shape \(4000,\).*{dtype}"
    with pytest.warns(UserWarning, match=message) as told:
        decayed(model, 9, rule, how)
    assert [each.filename for each in told] == [__file__]
    assert torch.equal(model.w, narrow(dtype).w)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_penalty_that_moves_most_weights_is_not_warned_of(dtype):
    model = Alone(torch.cat([torch.full((60,), 0.001), torch.full((40,), 1.0)]).to(dtype))
    decayed(model, 9, L1(1e-3), "proximal")
    assert (model.w[:60] < 0.001).all()
    assert (model.w[60:] == 1).all()


def test_a_learning_rate_that_warms_up_from_zero_is_warned_of_later_and_float32_never():
    for dtype, says in (
        (torch.bfloat16, pytest.warns(UserWarning, match="too small to move")),
        (torch.float32, nullcontext()),
    ):
        model = narrow(dtype)
        optimizer = SGD(model.parameters(), lr=0.0)
        Regularizer(model, {"w": L1(1e-5)}).attach(optimizer)
        fill_gradients(model, 0.0)
        for _ in range(3):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = LR
        with says:
            optimizer.step()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("how", ["proximal", "decoupled"])
def test_stochastic_rounding_follows_the_decay_of_float32_in_the_mean(dtype, how):
    """A hundred decays of 1e-3 take 1 to 0.9048, of which plain rounding to bfloat16 does nothing."""
    model, exact = narrow(dtype), narrow(torch.float32)
    decayed(model, 100, how=how, stochastic_rounding=True)
    decayed(exact, 100, how=how)
    assert exact.w[0].item() == pytest.approx(0.999**100 if how == "decoupled" else 1.001**-100, rel=1e-5)
    # The spread of one weight is at most a unit in the last place per step, sqrt(100) / 2 of them in all.
    tolerance = 5 * 5 * torch.finfo(dtype).eps / 4000**0.5
    assert model.w.float().mean().item() == pytest.approx(exact.w[0].item(), abs=tolerance)


def test_stochastic_rounding_leaves_zeros_and_bad_numbers_and_float32_alone():
    values = [0.0, 1e-4, -1e-4, torch.inf, -torch.inf, torch.nan, 1.0]
    model = Alone(torch.tensor(values, dtype=torch.bfloat16))
    decayed(model, 10, L1(HALF_STRENGTH), "proximal", stochastic_rounding=True)
    assert model.w[:3].tolist() == [0, 0, 0]
    assert model.w[3:5].tolist() == [torch.inf, -torch.inf]
    assert model.w[5].isnan()
    assert 0.9 < model.w[6] <= 1
    exact, other = Alone(torch.tensor(values)), Alone(torch.tensor(values))
    decayed(exact, 10, L1(HALF_STRENGTH), "proximal", stochastic_rounding=True)
    decayed(other, 10, L1(HALF_STRENGTH), "proximal")
    assert torch.equal(exact.w.nan_to_num(), other.w.nan_to_num())


def test_stochastic_rounding_is_the_same_in_all_replicas_and_after_a_restart():
    """Whatever their seeds are, and without drawing from torch's generator."""
    models = [narrow(torch.bfloat16) for _ in range(3)]
    for seed, model in enumerate(models[:2]):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        decayed(model, 6, stochastic_rounding=True)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(models[0].w, models[1].w)
    regularizer, optimizer = decayed(models[2], 3, stochastic_rounding=True)
    resumed = Regularizer(models[2], {"w": L2(HALF_STRENGTH)}, how="decoupled", stochastic_rounding=True)
    resumed.load_state_dict(regularizer.state_dict())
    regularizer.detach()
    resumed.attach(optimizer)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(models[2].w, models[0].w)


def test_stochastic_rounding_differs_from_parameter_to_parameter_and_from_step_to_step():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = narrow(torch.bfloat16), narrow(torch.bfloat16)

    two = Two()
    optimizer = sgd(two)
    Regularizer(two, {"*.w": L2(HALF_STRENGTH)}, how="decoupled", stochastic_rounding=True).attach(optimizer)
    moved = []
    for _ in range(2):
        before = two.a.w.detach().clone()
        fill_gradients(two, 0.0)
        optimizer.step()
        moved.append(two.a.w != before)
    assert not torch.equal(two.a.w, two.b.w)
    assert (moved[1] & ~moved[0]).any()


def test_stochastic_rounding_of_training_steps_is_unbiased_in_large_tensors_too(monkeypatch):
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 64)
    model = narrow(torch.bfloat16, count=1000)
    decayed(model, 1, L1(1e-2), "proximal", stochastic_rounding=True)
    moved = (model.w < 1).reshape(10, 100).float().mean(1)
    assert model.w.float().mean().item() == pytest.approx(1 - 1e-3, abs=2e-4)
    assert not torch.equal(moved, moved[0].expand(10))
