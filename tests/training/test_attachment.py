"""What happens around a step, against loops written by hand: equality, where nothing is rounded differently."""

import contextlib
import copy
import functools

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW

from models import (
    CallsItsParent,
    attached,
    batches,
    closure_of,
    equal,
    loss_of,
    mlp,
    soft_,
    train,
    train_step,
    weights,
    zeros,
)
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    ElasticNet,
    GroupLasso,
    MetricError,
    ParameterError,
    Regularizer,
    Rows,
    Rule,
    Toward,
    register_metric,
    regularize,
)
from shrinkage.execution.buckets import Joined

STRENGTH = 0.02


def adam_step_size(optimizer, w, group=0):
    state, options = optimizer.state[w], optimizer.param_groups[group]
    correction = 1 - options["betas"][1] ** float(state["step"])
    return options["lr"] / ((state["exp_avg_sq"] / correction).sqrt() + options["eps"])


def by_hand(make):
    model = mlp()
    return model, make(model.parameters())


def sgd(p):
    return SGD(p, lr=0.1)


def adam(p):
    return Adam(p, lr=0.01)


def fused_sgd(p):
    return SGD(p, lr=0.1, fused=True)


def fused_adam(p):
    return Adam(p, lr=0.01, fused=True)


@pytest.mark.parametrize("make", [adam, fused_adam])
def test_proximal_thresholds_in_adams_metric_after_the_step(make, without_native):
    ours, optimizer, _ = attached(make, L1(STRENGTH))
    train(ours, optimizer, 20)
    hand, hand_optimizer = by_hand(make)

    def after():
        for w in weights(hand):
            soft_(w, STRENGTH * adam_step_size(hand_optimizer, w))

    train(hand, hand_optimizer, 20, after=after)
    assert zeros(ours) > 5
    assert equal(ours, hand)


def test_decoupled_thresholds_by_the_learning_rate_after_the_step():
    ours, optimizer, _ = attached(adam, L1(STRENGTH), "decoupled")
    train(ours, optimizer, 20)
    hand, hand_optimizer = by_hand(adam)
    train(hand, hand_optimizer, 20, after=lambda: [soft_(w, 0.01 * STRENGTH) for w in weights(hand)])
    assert equal(ours, hand)


def test_gradient_adds_the_derivative_before_the_step():
    ours, optimizer, _ = attached(adam, ElasticNet(STRENGTH, 0.5), "gradient")
    train(ours, optimizer, 20)
    hand, hand_optimizer = by_hand(adam)

    def before():
        for w in weights(hand):
            w.grad += STRENGTH * w.detach().sign() + 0.5 * w.detach()

    train(hand, hand_optimizer, 20, before=before)
    assert equal(ours, hand)


def test_a_group_penalty_thresholds_rows():
    ours, optimizer, _ = attached(sgd, GroupLasso(0.2, Rows()))
    train(ours, optimizer, 20)
    hand, hand_optimizer = by_hand(sgd)

    @torch.no_grad()
    def after():
        for w in weights(hand):
            norm = w.norm(dim=1, keepdim=True)
            w *= (1 - 0.1 * 0.2 * w.shape[1] ** 0.5 / norm).clamp_min(0)

    train(hand, hand_optimizer, 20, after=after)
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_maximize_still_minimises_the_penalty():
    def make(p):
        return SGD(p, lr=0.1, maximize=True)

    for how in ("gradient", "decoupled", "proximal"):
        model, optimizer, _ = attached(make, L2(0.5), how)
        before = weights(model)[0].detach().norm()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert weights(model)[0].detach().norm() < before


@pytest.mark.parametrize("how", ["gradient", "decoupled", "proximal"])
@pytest.mark.parametrize("penalty", [L1(STRENGTH), L2(STRENGTH)])
@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_gives_what_the_plain_loop_gives(how, penalty, keyword):
    plain, optimizer, _ = attached(adam, penalty, how)
    train(plain, optimizer)
    ours, optimizer, _ = attached(adam, penalty, how)
    for batch in batches(5):
        closure = closure_of(optimizer, functools.partial(loss_of, ours, batch))
        optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert equal(ours, plain)


class CallsItsClosureThrice(SGD):
    def step(self, closure):
        losses = [closure() for _ in range(3)]
        super().step()
        return losses


def test_a_closure_that_is_called_often_decays_once():
    model = mlp()
    optimizer = CallsItsClosureThrice(model.parameters(), lr=0.1)
    Regularizer(model, L2(0.5), how="decoupled").attach(optimizer)
    expected = [w.detach() * (1 - 0.1 * 0.5) for w in weights(model)]

    def closure():
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    optimizer.step(closure)
    assert all(torch.equal(w, e) for w, e in zip(weights(model), expected, strict=True))


def test_the_loss_of_a_closure_includes_the_penalty_of_the_gradient_only():
    batch = batches(1)[0]
    for how, expected in (("gradient", True), ("proximal", False)):
        model, optimizer, regularizer = attached(adam, L1(STRENGTH), how)
        value, loss = regularizer.value(), loss_of(model, batch).detach()

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            return loss_of(model, batch)

        torch.testing.assert_close(optimizer.step(closure).detach(), loss + value * expected)


def test_a_closure_may_return_nothing_and_may_be_partial():
    model, optimizer, _ = attached(adam, L1(STRENGTH), "gradient")

    def closure(model):
        optimizer.zero_grad()
        loss_of(model, batches(1)[0]).backward()

    assert optimizer.step(functools.partial(closure, model)) is None
    plain, plain_optimizer, _ = attached(adam, L1(STRENGTH), "gradient")
    train(plain, plain_optimizer, 1)
    assert equal(model, plain)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_minimises_loss_and_penalty(line_search):
    def make(p):
        return LBFGS(p, lr=0.5, line_search_fn=line_search)

    batch = batches(1, torch.float64)[0]
    ours, hand = mlp(torch.float64), mlp(torch.float64)
    optimizer, hand_optimizer = make(ours.parameters()), make(hand.parameters())
    seen = []
    schedule = lambda update: seen.append(update) or 0.1  # noqa: E731
    regularizer = Regularizer(ours, {"*": L2(schedule)}, how="gradient").attach(optimizer)

    def penalized():
        return loss_of(hand, batch) + 0.05 * sum(p.square().sum() for p in hand.parameters())

    closure = closure_of(optimizer, lambda: loss_of(ours, batch))
    hand_closure = closure_of(hand_optimizer, penalized)
    for _ in range(5):
        torch.testing.assert_close(optimizer.step(closure), hand_optimizer.step(hand_closure))
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert sorted(set(seen)) == [0, 1, 2, 3, 4]  # its closure runs up to 20 times in a step, which is one update
    assert regularizer.state_dict()["updates"] == [5]


def test_gradients_that_accumulate_are_penalized_once_per_update():
    ours, optimizer, _ = attached(sgd, L1(STRENGTH), "gradient")
    hand, hand_optimizer = by_hand(sgd)
    for model, opt in ((ours, optimizer), (hand, hand_optimizer)):
        for i, batch in enumerate(batches(8)):
            (loss_of(model, batch) / 4).backward()
            if i % 4 == 3:
                if model is hand:
                    for w in weights(hand):
                        w.grad += STRENGTH * w.detach().sign()
                opt.step()
                opt.zero_grad()
    assert equal(ours, hand)


def test_the_penalty_comes_after_clipping():
    ours, optimizer, _ = attached(sgd, L2(5.0), "gradient")
    hand, hand_optimizer = by_hand(sgd)

    def clip_and_add():
        nn.utils.clip_grad_norm_(hand.parameters(), 0.1)
        for w in weights(hand):
            w.grad.add_(w.detach(), alpha=5.0)

    train(ours, optimizer, before=lambda: nn.utils.clip_grad_norm_(ours.parameters(), 0.1))
    train(hand, hand_optimizer, before=clip_and_add)
    assert equal(ours, hand)


SCALED = [
    ("SGD", sgd),
    ("SGD fused", fused_sgd),
    ("SGD momentum fused", lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True)),
    ("Adam", adam),
    ("Adam fused", fused_adam),
    ("AdamW fused", lambda p: AdamW(p, lr=0.01, weight_decay=0.0, fused=True)),
    ("Adagrad fused", lambda p: Adagrad(p, lr=0.1, fused=True)),
]
# An overflow at its first step leaves torch's fused SGD with a momentum buffer that was never written.
SCALED_RUNS = [
    pytest.param(make, overflow_at, id=f"{name}, overflow at {overflow_at}")
    for name, make in SCALED
    for overflow_at in (None, 0, 2)
    if not (name == "SGD momentum fused" and overflow_at == 0)
]


def row_lasso(strength):
    return GroupLasso(strength, Rows())


SCALED_RULES = [
    *((how, L1) for how in ("gradient", "decoupled", "proximal")),
    *((how, L2) for how in ("gradient", "decoupled")),
    *((how, row_lasso) for how in ("gradient", "proximal")),
]


@pytest.mark.parametrize(("make", "overflow_at"), SCALED_RUNS)
@pytest.mark.parametrize("rule", SCALED_RULES, ids=lambda rule: f"{rule[0]} {rule[1].__name__}")
@pytest.mark.parametrize("unscale", [False, True])
def test_loss_scaling_with_an_overflow_is_the_plain_loop_without_that_batch(make, rule, unscale, overflow_at):
    how, penalty = rule
    ours, optimizer, regularizer = attached(make, penalty(STRENGTH), how)
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=1000, backoff_factor=0.5)
    kept = []
    for i, batch in enumerate(batches(5)):
        optimizer.zero_grad()
        scaler.scale(loss_of(ours, batch)).backward()
        if i == overflow_at:
            ours[0].weight.grad[0, 0] = torch.inf
        else:
            kept.append(batch)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    plain, plain_optimizer = by_hand(make)
    # Where gradients are scaled, strength * w is rounded before it is scaled; otherwise it is added without rounding.
    scaled = getattr(plain_optimizer, "_step_supports_amp_scaling", False) and not unscale  # torch 2.11: not Adagrad
    rounds = rule == ("gradient", L2) and scaled
    if not rounds:
        Regularizer(plain, penalty(STRENGTH), how=how).attach(plain_optimizer)

    def before():
        for w in weights(plain) if rounds else ():
            w.grad += STRENGTH * w.detach()

    train(plain, plain_optimizer, kept, before=before)
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [len(kept)]


@pytest.mark.parametrize("make", [fused_sgd, fused_adam])
@pytest.mark.parametrize("how", ["decoupled", "proximal"])
@pytest.mark.parametrize("penalty", [L1(0.5), L2(0.5)])
def test_an_overflow_on_several_devices_is_one(make, how, penalty):
    """`found_inf` is summed over devices: a factor of 1 less 2 would push weights away from zero.

    torch's own kernel skips its step for 1 only; gradients of zero show the penalty alone.
    """
    model, optimizer, regularizer = attached(make, penalty, how)
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(2.0)
    optimizer.step()
    assert equal(model, before)
    assert regularizer.state_dict()["updates"] == [0]


def test_a_schedule_counts_updates_and_not_skipped_steps():
    seen = []

    def schedule(iteration):
        seen.append(iteration)
        return STRENGTH

    model = mlp()
    optimizer = fused_adam(model.parameters())
    Regularizer(model, {"0.weight": L1(schedule)}).attach(optimizer)
    scaler = GradScaler("cpu", init_scale=1024.0)
    for i, batch in enumerate(batches(5)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if i in (0, 2):
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert seen == [0, 0, 1, 1, 2]


class CallsItsParentTwiceRemoved(CallsItsParent):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("how", ["gradient", "decoupled", "proximal"])
@pytest.mark.parametrize("make", [CallsItsParent, CallsItsParentTwiceRemoved])
@pytest.mark.parametrize("declare", [False, True])
def test_a_step_that_calls_its_parents_is_one_step(how, make, declare):
    SGD([nn.Parameter(torch.zeros(1))])  # from now on torch runs the hooks around the parent's step too
    register_metric(make, lambda group, state, parameter: group["lr"])
    ours = mlp()
    optimizer = make(ours.parameters(), lr=0.1)
    if declare:
        for layer in (ours[0], ours[2]):
            regularize(layer, L1(STRENGTH), how=how)
    else:
        regularizer = Regularizer(ours, L1(STRENGTH), how=how).attach(optimizer)
    train(ours, optimizer)
    plain, plain_optimizer, _ = attached(sgd, L1(STRENGTH), how)
    train(plain, plain_optimizer)
    assert equal(ours, plain)
    assert declare or regularizer.state_dict()["updates"] == [5]


@pytest.mark.parametrize("how", ["gradient", "decoupled", "proximal"])
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_an_optimizer_lists_twice_is_penalized_once(how):
    """Which plain SGD then steps twice: on gradients of zero that shows the penalty alone."""
    model = mlp()
    w = model[0].weight
    optimizer = SGD([w, w], lr=0.1)
    Regularizer(model, {"0.weight": L1(STRENGTH)}, how=how).attach(optimizer)
    w.grad = torch.zeros_like(w)
    expected = w.detach().clone()
    if how == "gradient":
        for _ in range(2):
            expected.add_(STRENGTH * w.detach().sign(), alpha=-0.1)
    else:
        soft_(expected, 0.1 * STRENGTH)
    optimizer.step()
    assert torch.equal(w, expected)


class Fails(SGD):
    fail = False

    def step(self, closure=None):
        super().step(closure)
        if self.fail:
            raise RuntimeError("a step that fails")


@pytest.mark.parametrize("how", ["gradient", "proximal"])
def test_a_step_that_raised_does_not_swallow_the_next_one(how):
    register_metric(Fails, lambda group, state, parameter: group["lr"])
    ours, optimizer, regularizer = attached(lambda p: Fails(p, lr=0.1), L1(STRENGTH), how)
    kept_alive = []
    for parameter in ours.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.fail = True
    for _ in range(3):
        with pytest.raises(RuntimeError, match="a step that fails") as caught:
            optimizer.step()
        kept_alive.append(caught)
    optimizer.fail = False
    ours.load_state_dict(mlp().state_dict())
    train(ours, optimizer)
    plain, plain_optimizer, _ = attached(sgd, L1(STRENGTH), how)
    train(plain, plain_optimizer)
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [5]


def test_parameters_without_a_gradient_are_left_alone():
    for how in ("gradient", "decoupled", "proximal"):
        model, optimizer, _ = attached(adam, {"*": L2(0.5)}, how)
        model[0].requires_grad_(False)
        before = copy.deepcopy(model[0])
        train(model, optimizer)
        assert equal(model[0], before)


def test_parameters_that_were_replaced_are_found_again():
    model, optimizer, _ = attached(sgd, L1(0.5))
    train(model, optimizer, 1)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    optimizer.param_groups[0]["params"] = list(model.parameters())
    plain, plain_optimizer, _ = attached(sgd, L1(0.5))
    train(plain, plain_optimizer, 1)
    train(model, optimizer, 4)
    train(plain, plain_optimizer, 4)
    assert zeros(model) > 0
    assert equal(model, plain)


def test_groups_are_read_fresh():
    """load_state_dict replaces the dictionaries of the groups; a learning rate in an old one would be stale."""
    model, optimizer, _ = attached(sgd, L1(STRENGTH))
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.5
    optimizer.load_state_dict(state)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    expected = [w.detach().clone() for w in weights(model)]
    optimizer.step()
    for w, before in zip(weights(model), expected, strict=True):
        soft_(before, 0.5 * STRENGTH)
        assert torch.equal(w, before)


def test_each_group_has_its_own_metric():
    model = mlp()
    optimizer = SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "momentum": 0.5}], lr=0.1
    )
    Regularizer(model, L1(STRENGTH)).attach(optimizer)
    expected = [w.detach().clone() for w in weights(model)]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    soft_(expected[0], 0.5 * STRENGTH)
    soft_(expected[1], 0.1 / 0.5 * STRENGTH)
    assert all(torch.equal(w, e) for w, e in zip(weights(model), expected, strict=True))


def test_a_learning_rate_schedule_is_followed():
    ours, optimizer, _ = attached(sgd, L1(STRENGTH))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    hand, hand_optimizer = by_hand(sgd)
    for i, batch in enumerate(batches(4)):
        for model, opt in ((ours, optimizer), (hand, hand_optimizer)):
            opt.param_groups[0]["lr"] = 0.1 * 0.5**i if model is hand else opt.param_groups[0]["lr"]
            train_step(opt, loss_of(model, batch))
        for w in weights(hand):
            soft_(w, 0.1 * 0.5**i * STRENGTH)
        scheduler.step()
    assert equal(ours, hand)


@pytest.mark.parametrize("make", [sgd, adam, fused_adam])
@pytest.mark.parametrize("penalty", [L1(0.5), GroupLasso(0.5, Rows())])
def test_a_learning_rate_of_zero_changes_nothing(make, penalty):
    """Warm-up starts there; a careless threshold divides zero by zero."""
    model, optimizer, _ = attached(make, penalty)
    optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        model[0].weight[:2] = 0.0
    before = copy.deepcopy(model)
    train(model, optimizer, 2)
    assert equal(model, before)


def test_nothing_is_recorded_and_autocast_is_off():
    class Spy(L1.__base__):
        smooth = False

        def value(self, w):
            raise AssertionError

        gradient = residual = strength_max = slope_at_zero = cost = describe = value
        scheduled = False
        seen = None

        def check_shape(self, shape):
            pass

        def prox(self, w, step):
            Spy.seen = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), w.requires_grad)
            return w

    model = mlp()
    optimizer = sgd(model.parameters())
    Regularizer(model, {"0.weight": Spy()}).attach(optimizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_of(model, batches(1)[0]).backward()
        optimizer.step()
    assert Spy.seen == (False, False, False)
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("closure", [False, True])
def test_a_sparse_gradient_is_refused_before_anything_changes(closure):
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True))
    optimizer = sgd(model.parameters())
    regularizer = Regularizer(model, {"*.weight": L2(0.1)}, how="gradient").attach(optimizer)

    def backward():
        (model[0](torch.ones(3)).sum() + model[1](torch.tensor([1])).sum()).backward()

    if not closure:
        backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ParameterError, match=r"gradient of '1\.weight' of shape \(5, 3\) is sparse.*proximal.*sparse=False"
    ):
        optimizer.step(backward if closure else None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(3, 3))
    assert regularizer.state_dict()["updates"] == [0]


def test_an_optimizer_without_a_metric_takes_the_other_ways():
    model = mlp()
    optimizer = torch.optim.Muon(weights(model))
    with pytest.raises(MetricError):
        Regularizer(model, L1(STRENGTH)).attach(optimizer)
    Regularizer(model, [Rule(L1(1.0), "0.weight", "gradient"), Rule(L1(1.0), "2.weight", "decoupled")]).attach(
        optimizer
    )
    train(model, optimizer, 1)


def test_a_compiled_step_runs_the_hooks_each_time():
    def make(parameters):
        return SGD(parameters, lr=0.1, foreach=True)  # as torch compiles it, up to torch 2.11

    ours, optimizer, regularizer = attached(make, L1(STRENGTH))
    step = torch.compile(optimizer.step, backend="eager")
    for batch in batches(4):
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        step()
    plain, plain_optimizer, _ = attached(make, L1(STRENGTH))
    train(plain, plain_optimizer, 4)
    assert regularizer.state_dict()["updates"] == [4]
    assert equal(ours, plain)


def test_a_closure_may_return_anything_if_nothing_is_added_to_the_loss():
    model, optimizer, _ = attached(sgd, L1(STRENGTH))

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batches(1)[0])
        loss.backward()
        return {"loss": loss, "parts": (1, 2)}

    assert optimizer.step(closure)["parts"] == (1, 2)


class StepsByLoss(SGD):
    """An optimizer whose step takes a number, as Polyak's does."""

    def step(self, loss=None):
        self.seen = loss
        super().step()


def test_an_argument_that_is_no_closure_is_passed_on():
    model = mlp()
    optimizer = StepsByLoss(model.parameters(), lr=0.1)
    Regularizer(model, L1(STRENGTH), how="gradient").attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5)
    assert optimizer.seen == 0.5


@pytest.mark.parametrize("swapped", [False, True])
def test_parameters_that_move_between_groups_take_their_new_learning_rate(swapped):
    model = mlp()
    first, second = list(model[0].parameters()), list(model[2].parameters())
    optimizer = SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.5}])
    Regularizer(model, L1(STRENGTH)).attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = (second, first) if swapped else (first[:0], first + second)
    optimizer.param_groups[0]["params"], optimizer.param_groups[1]["params"] = moved
    expected = [w.detach().clone() for w in weights(model)]
    optimizer.step()
    for w, before, lr in zip(weights(model), expected, (0.5, 0.1 if swapped else 0.5), strict=True):
        soft_(before, lr * STRENGTH)
        assert torch.equal(w, before)


def test_a_parameter_that_two_regularizers_come_to_share_is_refused():
    model = mlp()
    optimizer = SGD(model[0].parameters(), lr=0.1)
    Regularizer(model, {"*.weight": L1(STRENGTH)}).attach(optimizer)
    Regularizer(model, {"0.bias": L1(STRENGTH), "2.*": L1(STRENGTH)}).attach(optimizer)
    optimizer.add_param_group({"params": model[2].parameters()})
    with pytest.raises(AttachmentError, match=r"'2\.weight' of shape \(3, 8\) is penalized by another Regularizer"):
        optimizer.step()


def test_a_schedule_that_fails_changes_nothing_and_names_its_parameter():
    model = mlp()
    optimizer = sgd(model.parameters())
    rules = {"0.weight": L2(0.5), "2.weight": L1(lambda update: 0.1 - update)}
    regularizer = Regularizer(model, rules, how="decoupled").attach(optimizer)
    train(model, optimizer, 1)
    before = copy.deepcopy(model)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(ValueError, match=r"the schedule of '2\.weight' at update 1: L1: strength .* got -0\.9"):
        optimizer.step()
    assert equal(model, before)
    assert regularizer.state_dict()["updates"] == [1]


@pytest.mark.parametrize("penalty", [L1(STRENGTH), GroupLasso(STRENGTH, Rows())])
def test_a_second_moment_that_overflowed_leaves_the_weights_finite(penalty):
    model, optimizer, _ = attached(adam, penalty)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e25)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_an_error_inside_of_a_hook_leaves_autograd_on():
    model = nn.Linear(2, 2, device="meta")
    optimizer = sgd(model.parameters())
    Regularizer(model, L1(0.1)).attach(optimizer)
    model.weight.grad = torch.zeros(2, 2, device="meta")
    with contextlib.suppress(RuntimeError):
        optimizer.step()
    assert torch.is_grad_enabled()


def test_equal_penalties_are_one_object_and_small_parameters_are_penalized_together(monkeypatch, without_native):
    """Those that layers declare one by one too."""
    batches_of = []
    monkeypatch.setattr(
        "shrinkage.execution.single_tensor.Joined", lambda batch: batches_of.append(len(batch)) or Joined(batch)
    )
    model = nn.Sequential(*(regularize(nn.Linear(3, 3), L1(0.01)) for _ in range(5)), nn.Linear(3, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert batches_of == [5]
    Regularizer(model, {"5.weight": L1(lambda update: 0.01), "*.weight": L1(0.01)}).attach(optimizer)
    optimizer.step()
    assert batches_of == [5, 5]


def test_a_schedule_that_many_parameters_share_is_asked_once():
    asked = []
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, {"*": L1(lambda update: asked.append(update) or 0.01)}).attach(optimizer)
    train(model, optimizer, 3)
    assert asked == [0, 1, 2]


def test_penalties_that_hold_tensors_are_not_compared(monkeypatch):
    """Tensors that are sharded over processes are compared by a message, which not all of them would send."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, {"*.weight": Toward(L1(0.01))}).attach(optimizer)
    monkeypatch.setattr(torch, "equal", lambda *_: pytest.fail("compared"))
    regularizer.attach(SGD(model.parameters(), lr=0.1))
