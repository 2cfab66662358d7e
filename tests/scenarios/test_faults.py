"""What is left behind by a step that fails: nothing that the next step, or the loop, would notice."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from models import attached, batches, equal, loss_of, mlp, soft_, train, train_step, weights
from shrinkage import L1, L2, GroupLasso, Regularizer, Rows, register_metric, regularize

STRENGTH = 0.05
HOWS = ["gradient", "decoupled", "proximal"]
KINDS = [RuntimeError, KeyboardInterrupt]


class Fails(SGD):
    """Raises in its step, before or after it has moved the weights."""

    error = None
    late = False

    def step(self, closure=None):
        if self.error is not None and not self.late:
            raise self.error
        loss = super().step(closure)
        if self.error is not None:
            raise self.error
        return loss


@pytest.fixture(autouse=True)
def known_metric():
    register_metric(Fails, lambda group, state, w: group["lr"])


def failing(p):
    return Fails(p, lr=0.1)


def sgd(p):
    return SGD(p, lr=0.1)


def gradients_of(model):
    return [p.grad.clone() for p in model.parameters()]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("error", KINDS)
@pytest.mark.parametrize("declare", [False, True])
@pytest.mark.parametrize(("how", "penalty"), [("gradient", L1), ("gradient", L2), ("decoupled", L1), ("proximal", L1)])
def test_a_step_that_raised_and_is_tried_again_penalizes_once(error, declare, how, penalty):
    """As after an error of memory: the same gradients, a second time."""
    plain, optimizer, _ = attached(sgd, penalty(STRENGTH), how)
    train(plain, optimizer)
    ours = mlp()
    optimizer = failing(ours.parameters())
    if declare:
        for layer in (ours[0], ours[2]):
            regularize(layer, penalty(STRENGTH), how=how)
    else:
        regularizer = Regularizer(ours, penalty(STRENGTH), how=how).attach(optimizer)
    for i, batch in enumerate(batches(5)):
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        if i == 2:
            optimizer.error = error("in the step")
            for _ in range(3):
                with pytest.raises(error, match="in the step"):
                    optimizer.step()
            optimizer.error = None
        optimizer.step()
    assert equal(ours, plain)
    if not declare:
        assert regularizer.state_dict()["updates"] == [5]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("how", ["gradient", "proximal"])
def test_a_step_that_raised_is_forgotten_with_its_batch(how, set_to_none):
    ours, optimizer, regularizer = attached(failing, L1(lambda update: STRENGTH * 0.5**update), how)
    kept = []
    for i, batch in enumerate(batches(6)):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(ours, batch).backward()
        if i in (1, 3):
            optimizer.error = RuntimeError("in the step")
            with pytest.raises(RuntimeError, match="in the step"):
                optimizer.step()
            optimizer.error = None
        else:
            optimizer.step()
            kept.append(batch)
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    for update, batch in enumerate(kept):
        strength = STRENGTH * 0.5**update
        hand_optimizer.zero_grad()
        loss_of(hand, batch).backward()
        with torch.no_grad():
            for w in weights(hand):
                w.grad += strength * w.sign() if how == "gradient" else 0.0
            hand_optimizer.step()
            for w in weights(hand):
                soft_(w, 0.0 if how == "gradient" else 0.1 * strength)
    assert equal(ours, hand)
    assert regularizer.state_dict()["updates"] == [4]


def test_a_step_that_raised_late_is_not_penalized_after_the_fact():
    """The weights have moved, the prox has not come: the next step starts from there, as a loop by hand would."""
    ours, optimizer, regularizer = attached(failing, L1(STRENGTH))
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    optimizer.late = True
    for i, batch in enumerate(batches(4)):
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        optimizer.error = RuntimeError("in the step") if i == 1 else None
        if i == 1:
            with pytest.raises(RuntimeError, match="in the step"):
                optimizer.step()
        else:
            optimizer.step()
        train_step(hand_optimizer, loss_of(hand, batch))
        for w in weights(hand) if i != 1 else ():
            soft_(w, 0.1 * STRENGTH)
    assert equal(ours, hand)
    assert regularizer.state_dict()["updates"] == [3]


@pytest.mark.parametrize("error", KINDS)
@pytest.mark.parametrize("how", HOWS)
def test_a_closure_that_raised_at_its_first_call_is_as_if_the_step_was_not(error, how):
    plain, optimizer, _ = attached(sgd, L1(STRENGTH), how)
    train(plain, optimizer)
    ours, optimizer, regularizer = attached(sgd, L1(STRENGTH), how)
    for i, batch in enumerate(batches(5)):
        interrupted = i == 2

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(ours, batch)
            loss.backward()
            if interrupted:  # noqa: B023  # changes between the two steps
                raise error("in the closure")
            return loss

        if interrupted:
            before = copy.deepcopy(ours)
            with pytest.raises(error, match="in the closure"):
                optimizer.step(closure)
            assert equal(ours, before)
            own = gradients_of(ours)
            ours.zero_grad()
            loss_of(ours, batch).backward()
            assert same(gradients_of(ours), own)
            interrupted = False
        optimizer.step(closure)
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [5]


def test_a_closure_that_raised_in_a_line_search_leaves_the_gradients_of_its_last_call():
    """LBFGS itself cannot go on after that, with or without a penalty: its own state is half written."""
    model = mlp()
    optimizer = LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    regularizer = Regularizer(model, L2(STRENGTH), how="gradient").attach(optimizer)
    own = []

    def closure():
        if len(own) == 3:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        loss = loss_of(model, batches(1)[0])
        loss.backward()
        own.append(gradients_of(model))
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert same(gradients_of(model), own[-1])
    assert regularizer.state_dict()["updates"] == [0]


def test_gradients_between_the_calls_of_a_closure_are_the_losses_own():
    seen = []

    class CallsThrice(SGD):
        def step(self, closure):
            for _ in range(3):
                closure()
            super().step()

    model = mlp()
    optimizer = CallsThrice(model.parameters(), lr=0.1)
    Regularizer(model, L2(STRENGTH), how="gradient").attach(optimizer)
    loss_of(model, batches(1)[0]).backward()
    own = gradients_of(model)
    optimizer.step(lambda: seen.append(gradients_of(model)))
    assert len(seen) == 3
    assert all(same(each, own) for each in seen)
    assert same(gradients_of(model), own)


class Breaks(L1):
    """A penalty whose derivative and prox fail when they are told to."""

    broken = False

    def gradient(self, w):
        if Breaks.broken:
            raise MemoryError("in the penalty")
        return super().gradient(w)

    def prox(self, w, step):
        if Breaks.broken:
            raise MemoryError("in the penalty")
        return super().prox(w, step)


@pytest.mark.parametrize("how", ["gradient", "proximal"])
def test_a_penalty_that_raised(monkeypatch, how):
    """The second of two: what the first has added is taken back, and a prox that did not come is not counted."""
    ours = mlp()
    optimizer = sgd(ours.parameters())
    rules = {"0.weight": L1(STRENGTH), "2.weight": Breaks(STRENGTH)}
    regularizer = Regularizer(ours, rules, how=how).attach(optimizer)
    train(ours, optimizer, 2)
    before = copy.deepcopy(ours)
    optimizer.zero_grad()
    loss_of(ours, batches(1)[0]).backward()
    own = gradients_of(ours)
    monkeypatch.setattr(Breaks, "broken", True)
    with pytest.raises(MemoryError, match="in the penalty"):
        optimizer.step()
    monkeypatch.setattr(Breaks, "broken", False)
    assert same(gradients_of(ours), own)
    assert regularizer.state_dict()["updates"] == [2]
    if how == "gradient":
        assert equal(ours, before)
    ours.load_state_dict(before.state_dict())
    train(ours, optimizer, 3)
    plain, plain_optimizer, _ = attached(sgd, L1(STRENGTH), how)
    train(plain, plain_optimizer, 2)
    train(plain, plain_optimizer, 3)
    assert equal(ours, plain)


@pytest.mark.parametrize("how", HOWS)
def test_a_loss_that_is_nan_and_left_out_leaves_everything_as_it_was(how):
    ours, optimizer, regularizer = attached(lambda p: Adam(p, lr=0.01), L1(lambda update: STRENGTH / (1 + update)), how)
    kept = batches(5)
    for i, batch in enumerate(kept):
        optimizer.zero_grad()
        loss = loss_of(ours, batch) * (torch.nan if i == 2 else 1.0)
        loss.backward()
        if loss.isfinite():
            optimizer.step()
    assert regularizer.state_dict()["updates"] == [4]
    del kept[2]
    plain, optimizer, _ = attached(lambda p: Adam(p, lr=0.01), L1(lambda update: STRENGTH / (1 + update)), how)
    train(plain, optimizer, kept)
    assert equal(ours, plain)


@pytest.mark.parametrize("make", [sgd, lambda p: Adam(p, lr=0.01)])
@pytest.mark.parametrize(("how", "penalty"), [("gradient", L1), ("gradient", L2), ("decoupled", L1), ("proximal", L1)])
def test_a_gradient_that_is_nan_stays_in_its_element(make, how, penalty):
    model, optimizer, _ = attached(make, penalty(STRENGTH), how)
    finite, other, _ = attached(make, penalty(STRENGTH), how)
    for trained, opt in ((model, optimizer), (finite, other)):
        loss_of(trained, batches(1)[0]).backward()
        if trained is model:
            model[0].weight.grad[3, 2] = torch.nan
        opt.step()
    hit = torch.zeros(8, 6, dtype=torch.bool)
    hit[3, 2] = True
    assert torch.equal(model[0].weight.isnan(), hit)
    assert torch.equal(model[0].weight[~hit], finite[0].weight[~hit])
    assert equal(model[2], finite[2])


def test_a_gradient_that_is_nan_stays_in_its_group():
    model, optimizer, _ = attached(sgd, GroupLasso(STRENGTH, Rows()))
    finite, other, _ = attached(sgd, GroupLasso(STRENGTH, Rows()))
    for trained, opt in ((model, optimizer), (finite, other)):
        loss_of(trained, batches(1)[0]).backward()
        if trained is model:
            model[0].weight.grad[3, 2] = torch.nan
        opt.step()
    rows = torch.arange(8) != 3
    assert model[0].weight[3, 2].isnan()
    assert torch.equal(model[0].weight[rows], finite[0].weight[rows])
    assert equal(model[2], finite[2])


def test_zeros_that_averages_hold_take_in_a_gradient_once():
    """A step that raised has averaged its gradient for nothing: tried again, it must not count twice."""
    plain, plain_optimizer, plain_regularizer = attached(sgd, L1(STRENGTH), hold_zeros=0.9)
    train(plain, plain_optimizer, 40)
    ours, optimizer, regularizer = attached(failing, L1(STRENGTH), hold_zeros=0.9)
    for i, batch in enumerate(batches(40)):
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        if i % 3 == 0:
            optimizer.error = RuntimeError("in the step")
            with pytest.raises(RuntimeError, match="in the step"):
                optimizer.step()
            optimizer.error = None
        optimizer.step()
    assert equal(ours, plain)
    (found,), (expected,) = (each.state_dict()["averages"] for each in (regularizer, plain_regularizer))
    for name in expected:
        assert torch.equal(found[name]["total"], expected[name]["total"])
        assert torch.equal(found[name]["weight"], expected[name]["weight"])


def test_penalties_added_before_the_clipping_are_not_added_again_when_a_step_is_tried_again():
    ours, optimizer, regularizer = attached(failing, L1(STRENGTH), "gradient")
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    for i, batch in enumerate(batches(4)):
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        regularizer.add_gradients_()
        nn.utils.clip_grad_norm_(ours.parameters(), 0.5)
        if i % 2:
            optimizer.error = RuntimeError("in the step")
            with pytest.raises(RuntimeError, match="in the step"):
                optimizer.step()
            optimizer.error = None
        optimizer.step()
        hand_optimizer.zero_grad()
        loss_of(hand, batch).backward()
        (STRENGTH * sum(w.abs().sum() for w in weights(hand))).backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 0.5)
        hand_optimizer.step()
    assert equal(ours, hand)


def test_decay_that_came_before_a_step_that_raised_has_happened():
    """As with AdamW, which decays before it raises; the loop by hand has decayed twice too."""
    ours, optimizer, _ = attached(failing, L2(STRENGTH), "decoupled")
    expected = [w.detach() * (1 - 0.1 * STRENGTH) * (1 - 0.1 * STRENGTH) for w in weights(ours)]
    for p in ours.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.error = RuntimeError("in the step")
    with pytest.raises(RuntimeError, match="in the step"):
        optimizer.step()
    optimizer.error = None
    optimizer.step()
    assert same([w.detach() for w in weights(ours)], expected)
