"""What optimizers of newer releases of torch can do, where it is there; and steps without an optimizer."""

import copy
import sys

import pytest
import torch
from torch.optim import LBFGS, Adam, Muon
from torch.optim.adam import adam

from models import batches, closure_of, equal, loss_of, mlp, train, train_step, weights
from shrinkage import L1, L2, GroupLasso, Regularizer, Rows

FROM_2_14 = pytest.mark.skipif(torch.__version__ < "2.14", reason="torch has it from 2.14 on")
FROM_2_15 = pytest.mark.skipif(torch.__version__ < "2.15", reason="torch has it from 2.15 on")


@FROM_2_14
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_that_climbs_still_minimises_the_penalty(line_search):
    ours, theirs = mlp(torch.float64), mlp(torch.float64)
    batch = batches(1, torch.float64)[0]
    losses = []
    for model, sign in ((ours, -1), (theirs, 1)):
        options = {"maximize": True} if sign < 0 else {}
        optimizer = LBFGS(model.parameters(), lr=0.5, line_search_fn=line_search, **options)
        Regularizer(model, {"*": L2(0.1)}, how="gradient").attach(optimizer)
        closure = closure_of(optimizer, lambda model=model, sign=sign: sign * loss_of(model, batch))
        losses.append([sign * float(optimizer.step(closure).detach()) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


RATES = [None, "original", "match_rms_adamw", pytest.param("spectral_unclamped", marks=FROM_2_14)]


@pytest.mark.parametrize("adjust", RATES)
def test_decoupled_l2_is_the_decay_of_muon_however_it_adjusts_its_rate(adjust):
    ours, theirs = mlp(), mlp()
    optimizer = Muon(weights(ours), lr=0.1, weight_decay=0.0, adjust_lr_fn=adjust)
    Regularizer(ours, L2(0.2), how="decoupled").attach(optimizer)
    train(ours, optimizer)
    train(theirs, Muon(weights(theirs), lr=0.1, weight_decay=0.2, adjust_lr_fn=adjust))
    assert equal(ours, theirs)


def rounded(parameters, gradients, averages, squares, *others, **options):
    """The step of Adam with moments that are rounded to bfloat16 and kept in whatever type they had."""
    kept = [*averages, *squares]
    moments = [moment.float() for moment in kept]
    adam(parameters, gradients, moments[: len(averages)], moments[len(averages) :], *others, **options)
    for old, new in zip(kept, moments, strict=True):
        old.copy_(new.bfloat16())


@pytest.mark.parametrize("penalty", [L1(0.05), GroupLasso(0.05, Rows()), L2(0.1)], ids=str)
@pytest.mark.parametrize("names", ["0.weight", "*.weight"])  # one by itself, and several joined
@pytest.mark.parametrize("foreach", [False, True])
def test_moments_in_bfloat16_make_the_step_that_their_numbers_say(penalty, foreach, names, monkeypatch):
    models = []
    for dtype in (torch.bfloat16, torch.float32):
        model = mlp()
        optimizer = Adam(model.parameters(), lr=0.05, foreach=foreach)
        train(model, optimizer, 1)
        for state in optimizer.state.values():
            state.update({name: state[name].bfloat16().to(dtype) for name in ("exp_avg", "exp_avg_sq")})
        Regularizer(model, {names: penalty}).attach(optimizer)
        with monkeypatch.context() as patched:
            patched.setattr(sys.modules[Adam.__module__], "adam", rounded)
            train(model, optimizer)
        models.append(model)
        assert optimizer.state[model[0].weight]["exp_avg_sq"].dtype == dtype
    assert equal(*models)


@FROM_2_15
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only the fused step on a GPU takes moments in bfloat16")
def test_fused_moments_in_bfloat16_are_penalized():
    model = mlp().cuda()
    optimizer = Adam(model.parameters(), lr=0.05, fused=True)
    regularizer = Regularizer(model, L1(10.0)).attach(optimizer)
    for step, (x, y) in enumerate(batches(20)):
        train_step(optimizer, loss_of(model, (x.cuda(), y.cuda())))
        if step == 0:
            for state in optimizer.state.values():
                state.update({name: state[name].bfloat16() for name in ("exp_avg", "exp_avg_sq")})
    assert regularizer.plan
    assert all((weight == 0).all() for weight in weights(model))


@FROM_2_15
def test_a_functional_step_runs_no_hooks_and_takes_what_is_added_by_hand():
    ours, plain = mlp(), mlp()
    batch = batches(1)[0]
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    regularizer = Regularizer(ours, {"*": L2(0.5)}, how="gradient").attach(optimizer)

    @torch.no_grad()
    def step(model):
        parameters = list(model.parameters())
        torch.optim.functional.sgd(
            parameters, [p.grad for p in parameters], [None] * len(parameters),
            weight_decay=0.0, momentum=0.0, lr=0.1, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip

    for model in (ours, plain):
        loss_of(model, batch).backward()
        step(model)
    assert equal(ours, plain)
    hand = copy.deepcopy(ours)
    for batch in batches(3):
        for model in (ours, hand):
            model.zero_grad()
        loss_of(ours, batch).backward()
        regularizer.add_gradients_()
        step(ours)
        (loss_of(hand, batch) + 0.25 * sum(p.square().sum() for p in hand.parameters())).backward()
        step(hand)
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)
