"""Loss scaling and autocast: what `test_attachment.py` does not have of them."""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam

from models import batches, equal, loss_of, mlp, soft_, train, train_step, weights, zeros
from shrinkage import L1, L2, AttachmentError, Regularizer, regularize

STRENGTH = 0.05
MAKES = [
    pytest.param(lambda p: SGD(p, lr=0.1), id="SGD"),
    pytest.param(lambda p: SGD(p, lr=0.1, fused=True), id="SGD fused"),
    pytest.param(lambda p: Adam(p, lr=0.01), id="Adam"),
    pytest.param(lambda p: Adam(p, lr=0.01, fused=True), id="Adam fused"),
]


def scaler_of():
    return GradScaler("cpu", init_scale=1024.0, growth_interval=3, backoff_factor=0.5)


@pytest.mark.parametrize("make", MAKES)
def test_gradients_added_after_unscale_are_those_of_a_term_of_the_loss(make):
    """An overflow in the middle skips the update; the scale grows and falls by powers of 2, which round nothing."""

    def run(model, add, term):
        optimizer = make(model.parameters())
        regularizer = Regularizer(model, L1(STRENGTH), how="gradient").attach(optimizer) if add else None
        scaler = scaler_of()
        for i, batch in enumerate(batches(8)):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            if term:
                scaler.scale(STRENGTH * sum(w.abs().sum() for w in weights(model))).backward()
            if i in (0, 3):
                model[0].weight.grad[0, 0] = torch.inf
            scaler.unscale_(optimizer)
            if add:
                regularizer.add_gradients_()
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
            scaler.step(optimizer)
            scaler.update()
        if add:
            assert regularizer.state_dict()["updates"] == [6]
        return model

    ours, hand = run(mlp(), True, False), run(mlp(), False, True)
    assert equal(ours, hand)
    assert all(p.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, fused=True), lambda p: Adam(p, lr=0.1, fused=True)])
@pytest.mark.parametrize("how", ["gradient", "decoupled"])
def test_gradients_added_before_unscale_are_refused_where_it_shows(make, how):
    model = mlp()
    optimizer = make(model.parameters())
    rules = {"0.weight": L1(STRENGTH)}
    regularizer = Regularizer(model, rules, how="gradient").attach(optimizer)
    Regularizer(model, {"2.weight": L2(0.5)}, how=how).attach(optimizer)
    scaler = scaler_of()
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(loss_of(model, batches(1)[0])).backward()
    regularizer.add_gradients_()
    with pytest.raises(
        AttachmentError, match=r"gradient of '0\.weight' of shape \(8, 6\) while.*unscale_\(optimizer\)"
    ):
        scaler.step(optimizer)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, fused=False), lambda p: Adam(p, lr=0.1, fused=False)])
def test_gradients_added_before_unscale_are_divided_by_the_scale_where_it_does_not_show(make):
    """As the documentation says."""
    model = mlp()
    optimizer = make(model.parameters())
    regularizer = Regularizer(model, L1(STRENGTH), how="gradient").attach(optimizer)
    scaler = scaler_of()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    scaler.scale(torch.zeros(()))
    regularizer.add_gradients_()
    scaler.step(optimizer)
    assert torch.equal(model[0].weight.grad, STRENGTH / 1024 * mlp()[0].weight.detach().sign())


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("how", ["gradient", "decoupled", "proximal"])
def test_a_schedule_follows_the_updates_that_happened(make, unscale, how):
    """Halved at every update: one that a skipped step had counted would show in all weights."""
    penalty = L1(lambda update: STRENGTH * 0.5**update)
    ours = mlp()
    optimizer = make(ours.parameters())
    regularizer = Regularizer(ours, penalty, how=how).attach(optimizer)
    scaler, kept = scaler_of(), []
    for i, batch in enumerate(batches(6)):
        optimizer.zero_grad()
        scaler.scale(loss_of(ours, batch)).backward()
        if i in (0, 3):
            ours[0].weight.grad[0, 0] = torch.inf
        else:
            kept.append(batch)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer, None)  # as Accelerate calls it
        scaler.update()
    plain = mlp()
    plain_optimizer = make(plain.parameters())
    Regularizer(plain, penalty, how=how).attach(plain_optimizer)
    train(plain, plain_optimizer, kept)
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [4]


@pytest.mark.parametrize("make", MAKES)
def test_held_zeros_do_not_see_an_overflow(make):
    ours, plain = mlp(), mlp()
    optimizer, plain_optimizer = make(ours.parameters()), make(plain.parameters())
    regularizer = Regularizer(ours, L1(STRENGTH), hold_zeros=0.9).attach(optimizer)
    expected = Regularizer(plain, L1(STRENGTH), hold_zeros=0.9).attach(plain_optimizer)
    scaler = scaler_of()
    for i, batch in enumerate(batches(40)):
        optimizer.zero_grad()
        scaler.scale(loss_of(ours, batch)).backward()
        overflow = i % 7 == 3
        if overflow:
            ours[0].weight.grad[0, 0] = torch.nan
        scaler.step(optimizer)
        scaler.update()
        if not overflow:
            train_step(plain_optimizer, loss_of(plain, batch))
    assert equal(ours, plain)
    assert zeros(plain) > 5
    (found,), (wanted,) = (each.state_dict()["averages"] for each in (regularizer, expected))
    assert all(torch.equal(found[name]["total"], wanted[name]["total"]) for name in wanted)


@pytest.mark.parametrize("declare", [True, False])
def test_half_precision_by_autocast_with_loss_scaling(declare):
    """Parameters and gradients stay in float32 under autocast, and the threshold is computed there."""

    def run(model, after):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
        if after is None and not declare:
            Regularizer(model, L1(STRENGTH)).attach(optimizer)
        scaler = scaler_of()
        for batch in batches(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = loss_of(model, batch)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if after is not None:
                after(model)
        return model

    def threshold(model):
        for w in weights(model):
            soft_(w, 0.1 / 0.5 * STRENGTH)

    ours = mlp()
    for layer in (ours[0], ours[2]) if declare else ():
        regularize(layer, L1(STRENGTH))
    found, hand = run(ours, None), run(mlp(), threshold)
    assert equal(found, hand)
    assert zeros(found) > 5


@pytest.mark.parametrize("make", MAKES[1::2])
def test_a_fused_step_leaves_its_gradients_unscaled_as_it_does_without_a_penalty(make):
    """It divides them by the scale in place, so the sum with the penalty stays there."""
    model, plain = mlp(), mlp()
    optimizer = make(model.parameters())
    Regularizer(model, L1(STRENGTH), how="gradient").attach(optimizer)
    loss_of(plain, batches(1)[0]).backward()
    scaler = scaler_of()
    scaler.scale(loss_of(model, batches(1)[0])).backward()
    scaler.step(optimizer)
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        penalized = STRENGTH * other.detach().sign() if other.dim() == 2 else 0.0
        assert torch.equal(mine.grad, other.grad + penalized)
