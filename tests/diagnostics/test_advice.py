"""What residuals advise: what is done already is never advised, nor what cannot help."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from models import train_step
from shrinkage import L0, L1, L2, Box, GroupLasso, Regularizer, Rows
from shrinkage.diagnostics.advice import Training, advice

DOES_NOT_STEP = "No attached optimizer steps"


def trained(penalty, *, steps=5, lr=0.05, hold_zeros=None, how="proximal", optimizer=SGD, stepped=None, attached=True):
    """The last line that the residuals of a small regression print."""
    torch.manual_seed(0)
    model, x = nn.Linear(10, 2), torch.randn(40, 10)
    used = optimizer(model.parameters() if stepped is None else [getattr(model, stepped)], lr=lr)
    regularizer = Regularizer(model, {"weight": penalty}, how=how, hold_zeros=hold_zeros)
    if attached:
        regularizer.attach(used)
    loss = lambda rows=x: nn.functional.mse_loss(model(rows), rows[:, :2])  # noqa: E731
    for index in range(steps):
        train_step(used, loss(x[index % 4 :: 4]))
    found = regularizer.residuals(loss)
    assert not found.solved
    return found.verdict()


def test_entry_is_advised_where_it_is_off_only():
    assert "with hold_zeros=0.99" in trained(L1(1e-2))
    for hold_zeros in (0.99, 0.999):
        said = trained(L1(1e-2), hold_zeros=hold_zeros)
        assert "hold_zeros" not in said
        assert "keep zeros at zero already" in said
        assert "good enough" in said
    assert "longer, with hold_zeros=0.99," in trained(L1(1e-2), hold_zeros=0.5)


@pytest.mark.parametrize("penalty", [L2(0.1), L0(1e-4), Box(-0.1, 0.1)])
def test_entry_is_not_advised_where_it_keeps_nothing(penalty):
    assert "hold_zeros" not in trained(penalty)


def test_the_rate_is_named_and_a_rate_of_zero_is_not_to_be_lowered():
    assert "lower the learning rate, which is 0.05" in trained(L1(1e-2))
    assert "which is 0.05" in trained(L1(1e-2), lr=torch.tensor(0.05), optimizer=Adam)
    said = trained(L1(1e-2), lr=0.0)
    assert "The learning rate of 'weight' is 0" in said
    assert "lower" not in said


def test_what_has_to_come_first_is_advised_alone():
    assert "attached to no optimizer yet: attach(optimizer), then train" in trained(L1(1e-2), attached=False)
    assert "No step has been made yet: train." in trained(L1(1e-2), steps=0)
    assert f"{DOES_NOT_STEP} 'bias'" in trained(L1(10.0), stepped="weight", steps=300)
    for said in (trained(L1(1e-2), attached=False), trained(L1(1e-2), steps=0)):
        assert "longer" not in said


def test_a_regularizer_that_was_detached_is_to_be_attached_again():
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(1.0)).attach(optimizer)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    regularizer.detach()
    assert "any more: attach it again" in regularizer.residuals(lambda: model(torch.ones(4, 3)).sum()).verdict()


def test_a_method_that_can_not_get_there_is_named():
    said = trained(L1(1e-2), how="gradient")
    assert 'choose how="proximal"' in said
    assert "longer" not in said
    assert 'how="proximal"' not in trained(L2(1e-2), how="gradient")
    said = trained(L1(1e-2), how="decoupled", optimizer=Adam)
    assert 'choose how="proximal"' in said
    assert said.count("decoupled") == 1


def test_what_is_not_finite_is_said():
    assert "NaN or infinite" in advice(["weight"], float("nan"), Training(5, {"weight": 0.1}))


def test_groups_that_span_parameters_are_known_by_their_members():
    training = Training(5, {"a": 0.1, "b": 0.1}, {"a": 0.99, "b": 0.99})
    assert "already" in advice(("a", "b"), 3.0, training)
    assert "already" in trained(GroupLasso(1e-3, Rows()), hold_zeros=0.99)


def test_longer_averages_are_for_long_runs():
    rates = {"weight": 0.1}
    assert "hold_zeros=0.999" in advice(["weight"], 3.0, Training(10_000, rates, {"weight": 0.99}))
    assert "hold_zeros" not in advice(["weight"], 3.0, Training(10_000, rates, {"weight": 0.999}))
