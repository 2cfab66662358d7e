"""Training loops as people write them, each against the same loop with the penalty written out by hand."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from catalog import OPTIMIZERS
from models import attached, batches, closure_of, equal, loss_of, mlp, soft_, train, train_step, weights, zeros
from shrinkage import L1, L2, ElasticNet, GroupLasso, Regularizer, Rows, register_metric, regularize

STRENGTH = 0.05
PENALTY = L1(STRENGTH)
HOWS = ["gradient", "decoupled", "proximal"]


def sgd(p, **options):
    return SGD(p, lr=0.1, **options)


def penalize_by_hand(model, how, step):
    """What L1 does with plain SGD: its derivative before `step`, or a soft threshold after it."""
    with torch.no_grad():
        if how == "gradient":
            for w in weights(model):
                if w.grad is not None:
                    w.grad += STRENGTH * w.sign()
        step()
        if how != "gradient":
            for w in weights(model):
                if w.grad is not None:
                    soft_(w, 0.1 * STRENGTH)


# Stepping twice on the same gradients.

# torch's own weight_decay is coupled in all of these.
DECAYING = [
    SGD,
    Adam,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.ASGD,
    torch.optim.RMSprop,
]
VARIANTS = [
    pytest.param(make, options, id=" ".join((make.__name__, *(name for name, on in options.items() if on))))
    for make in DECAYING
    for options in ({"foreach": False}, {"foreach": True}, {"fused": True}, {"maximize": True})
    if "fused" not in options or make in (SGD, Adam, torch.optim.Adagrad)
]


@pytest.mark.parametrize(("make", "options"), VARIANTS)
def test_stepping_twice_on_the_same_gradients_penalizes_as_weight_decay_does(make, options):
    ours, theirs = mlp(), mlp()
    optimizer = make(ours.parameters(), lr=0.01, **options)
    other = make(theirs.parameters(), lr=0.01, weight_decay=STRENGTH, **options)
    Regularizer(ours, {"*": L2(STRENGTH)}, how="gradient").attach(optimizer)
    for batch in batches(4):
        for model, opt in ((ours, optimizer), (theirs, other)):
            train_step(opt, loss_of(model, batch))
            opt.step()
    assert equal(ours, theirs)
    assert not equal(ours, mlp())


@pytest.mark.parametrize(("make", "options"), VARIANTS)
def test_a_step_leaves_gradients_as_they_were(make, options):
    model = mlp()
    optimizer = make(model.parameters(), lr=0.01, **options)
    Regularizer(model, {"*": L2(STRENGTH)}, how="gradient").attach(optimizer)
    loss_of(model, batches(1)[0]).backward()
    own = [(p.grad, p.grad.clone()) for p in model.parameters()]
    optimizer.step()
    for p, (grad, value) in zip(model.parameters(), own, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, value)


def test_gradients_that_are_never_cleared_accumulate_without_the_penalty():
    ours, optimizer, _ = attached(sgd, PENALTY, "gradient")
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    for batch in batches(4):
        loss_of(ours, batch).backward()
        optimizer.step()
        loss_of(hand, batch).backward()
        kept = [p.grad.clone() for p in hand.parameters()]
        penalize_by_hand(hand, "gradient", hand_optimizer.step)
        for p, grad in zip(hand.parameters(), kept, strict=True):
            p.grad = grad
    assert equal(ours, hand)


class Clears(SGD):
    """An optimizer that clears the gradients at the end of its own step."""

    set_to_none = True

    def step(self, closure=None):
        super().step(closure)
        self.zero_grad(set_to_none=self.set_to_none)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_optimizer_that_clears_its_gradients(how, set_to_none):
    register_metric(Clears, lambda group, state, w: group["lr"])
    ours, optimizer, regularizer = attached(lambda p: Clears(p, lr=0.1), PENALTY, how)
    optimizer.set_to_none = set_to_none
    for batch in batches(5):
        loss_of(ours, batch).backward()
        optimizer.step()
        assert all(p.grad is None if set_to_none else not p.grad.any() for p in ours.parameters())
    assert regularizer.state_dict()["updates"] == [5]
    plain, plain_optimizer, _ = attached(sgd, PENALTY, how)
    train(plain, plain_optimizer)
    assert equal(ours, plain)


# Backward passes.


@pytest.mark.parametrize("how", HOWS)
def test_two_backward_passes_of_one_graph_and_several_losses_are_one_update(how):
    ours, optimizer, _ = attached(sgd, PENALTY, how)
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    for batch in batches(5):
        for model, opt in ((ours, optimizer), (hand, hand_optimizer)):
            opt.zero_grad()
            loss = loss_of(model, batch)
            loss.backward(retain_graph=True)
            loss.backward()
            model(batch[0]).mean().backward()
        optimizer.step()
        penalize_by_hand(hand, how, hand_optimizer.step)
    assert equal(ours, hand)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("how", HOWS)
def test_activation_checkpointing(how, reentrant):
    plain, optimizer, _ = attached(sgd, PENALTY, how)
    train(plain, optimizer)
    ours, optimizer, _ = attached(sgd, PENALTY, how)
    for x, y in batches(5):
        optimizer.zero_grad()
        hidden = checkpoint(ours[:2], x.requires_grad_(), use_reentrant=reentrant)
        (checkpoint(ours[2], hidden, use_reentrant=reentrant) - y).square().mean().backward()
        optimizer.step()
    assert equal(ours, plain)


@pytest.mark.parametrize("make", [sgd, Adam])
def test_gradients_of_zero_are_penalized_as_weight_decay_penalizes_them(make):
    """zero_grad(set_to_none=False) leaves zeros for a layer that a batch does not use."""
    ours, theirs = mlp(), mlp()
    optimizer = make(ours.parameters())
    Regularizer(ours, {"*": L2(STRENGTH)}, how="gradient").attach(optimizer)
    other = make(theirs.parameters(), weight_decay=STRENGTH)
    for i, (x, y) in enumerate(batches(6)):
        for model, opt in ((ours, optimizer), (theirs, other)):
            opt.zero_grad(set_to_none=False)
            output = model(x) if i % 2 == 0 else model[2](x[:, [0, 1, 2, 3, 4, 5, 0, 1]])
            (output - y).square().mean().backward()
            opt.step()
    assert equal(ours, theirs)


@pytest.mark.parametrize("how", ["gradient", "proximal"])
@pytest.mark.parametrize("clear", [True, False])
def test_a_layer_that_a_batch_does_not_use_is_penalized_only_where_its_gradient_is_zero(how, clear):
    ours, optimizer, _ = attached(sgd, PENALTY, how)
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    for i, (x, y) in enumerate(batches(6)):
        for model, opt in ((ours, optimizer), (hand, hand_optimizer)):
            opt.zero_grad(set_to_none=clear)
            output = model(x) if i % 2 == 0 else model[2](x[:, [0, 1, 2, 3, 4, 5, 0, 1]])
            (output - y).square().mean().backward()
        optimizer.step()
        penalize_by_hand(hand, how, hand_optimizer.step)
    assert equal(ours, hand)


@pytest.mark.parametrize("how", HOWS)
def test_optimizers_that_step_inside_of_the_backward_pass(how):
    """One optimizer per parameter; a regularizer attaches to those that hold what it penalizes."""
    plain, optimizer, _ = attached(sgd, PENALTY, how)
    train(plain, optimizer)
    ours = mlp()
    regularizer = Regularizer(ours, L1(STRENGTH), how=how)
    penalized = {entry.name for entry in regularizer.plan}
    kept = []
    for name, parameter in ours.named_parameters():
        own = sgd([parameter])
        kept.append(own)
        if name in penalized:
            regularizer.attach(own)

        def step(parameter, own=own):
            own.step()
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(step)
    for batch in batches(5):
        loss_of(ours, batch).backward()
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [5, 5]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_torchs_own_optimizers_in_backward():
    from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers

    plain, optimizer, _ = attached(sgd, PENALTY)
    train(plain, optimizer)
    ours = mlp()
    _apply_optimizer_in_backward(SGD, ours.parameters(), {"lr": 0.1})
    regularizer = Regularizer(ours, L1(STRENGTH))
    for own in _get_in_backward_optimizers(ours):
        if own.param_groups[0]["params"][0].dim() == 2:
            regularizer.attach(own)
    for batch in batches(5):
        loss_of(ours, batch).backward()
    assert equal(ours, plain)


# Averages of weights.


def averaged(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))


def test_an_average_in_the_loop_takes_in_the_weights_with_their_zeros():
    ours, optimizer, _ = attached(sgd, L1(0.3))
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    average, expected = averaged(ours), averaged(hand)
    for batch in batches(20):
        for model, opt in ((ours, optimizer), (hand, hand_optimizer)):
            train_step(opt, loss_of(model, batch))
        for w in weights(hand):
            soft_(w, 0.1 * 0.3)
        average.update_parameters(ours)
        expected.update_parameters(hand)
    assert equal(average, expected)
    assert zeros(ours) > 20
    assert zeros(average) < zeros(ours)  # an average is zero only where all of its members were


# Hooks of the loop's own: registered before the penalties, or one step after them.

WHEN = [pytest.param(False, id="before"), pytest.param(True, id="after")]


def train_with(hook, declare, late, penalty, how="proximal", make=sgd):
    """Train with penalties and with what `hook` registers, and return the model."""
    model = mlp()
    optimizer = make(model.parameters())
    if not late:
        hook(model, optimizer)
    if declare:
        regularize(model, penalty, parameter="*.weight", how=how)
    else:
        Regularizer(model, penalty, how=how).attach(optimizer)
    train(model, optimizer, 1)
    if late:
        hook(model, optimizer)
    train(model, optimizer, 20)
    return model


@pytest.mark.parametrize("late", WHEN)
@pytest.mark.parametrize("declare", [True, False])
def test_an_average_in_a_hook_takes_in_the_weights_with_their_zeros(declare, late):
    averages = []

    def hook(model, optimizer):
        averages.append(averaged(model))
        optimizer.register_step_post_hook(lambda *_: averages[-1].update_parameters(model))

    model = train_with(hook, declare, late, L1(0.3))
    hand = mlp()
    optimizer, expected = sgd(hand.parameters()), averaged(hand)

    def after(update=True):
        for w in weights(hand):
            soft_(w, 0.1 * 0.3)
        if update:
            expected.update_parameters(hand)

    train(hand, optimizer, 1, after=lambda: after(update=not late))
    train(hand, optimizer, 20, after=after)
    assert equal(model, hand)
    assert equal(averages[-1].module, expected.module)


@pytest.mark.parametrize("late", WHEN)
@pytest.mark.parametrize("declare", [True, False])
def test_clipping_in_a_hook_comes_before_the_penalty(declare, late):
    """And `.grad` is afterwards what the clipping left."""

    def hook(model, optimizer):
        optimizer.register_step_pre_hook(lambda *_: clip(model))

    def clip(model):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    model = train_with(hook, declare, late, L1(0.05), "gradient")
    hand, clipped = mlp(), []
    optimizer = sgd(hand.parameters())

    def before(first=False):
        if not (first and late):
            clip(hand)
        clipped[:] = [w.grad.clone() for w in weights(hand)]
        for w in weights(hand):
            w.grad += 0.05 * w.detach().sign()

    train(hand, optimizer, 1, before=lambda: before(first=True))
    train(hand, optimizer, 20, before=before)
    assert equal(model, hand)
    assert all(torch.equal(w.grad, own) for w, own in zip(weights(model), clipped, strict=True))


@pytest.mark.parametrize("late", WHEN)
@pytest.mark.parametrize("declare", [True, False])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
def test_a_gradient_that_a_hook_takes_away_is_not_penalized(case, how, declare, late):
    kept = []

    def hook(model, optimizer):
        kept.append(copy.deepcopy(model[2]))
        optimizer.register_step_pre_hook(lambda *_: model[2].zero_grad())

    model = train_with(hook, declare, late, L1(0.05), how, case.make)
    assert equal(model[2], kept[0])
    assert not equal(model[0], mlp()[0])


def test_stochastic_weight_averaging():
    """The averaged copy of a model with declarations is penalized by nobody; SWALR's learning rate is followed."""

    def run(model, after):
        optimizer = sgd(model.parameters())
        average = AveragedModel(model)
        scheduler = SWALR(optimizer, swa_lr=0.02, anneal_epochs=3)
        for batch in batches(8):
            train_step(optimizer, loss_of(model, batch))
            after(optimizer.param_groups[0]["lr"])
            average.update_parameters(model)
            scheduler.step()
        return average

    declared, hand = mlp(), mlp()
    for layer in (declared[0], declared[2]):
        regularize(layer, L1(STRENGTH))
    average = run(declared, lambda lr: None)

    def threshold(lr):
        for w in weights(hand):
            soft_(w, lr * STRENGTH)

    expected = run(hand, threshold)
    assert equal(declared, hand)
    assert equal(average, expected)


# Learning rates, groups and copies.


def test_reduce_on_plateau_and_one_cycle_are_followed():
    def schedulers(optimizer):
        return [
            torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=20, cycle_momentum=False),
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
        ]

    ours, optimizer, _ = attached(sgd, PENALTY)
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    cycle, plateau = schedulers(optimizer)
    hand_cycle, hand_plateau = schedulers(hand_optimizer)
    rates = set()
    for batch in batches(10):
        train_step(optimizer, loss_of(ours, batch))
        train_step(hand_optimizer, loss_of(hand, batch))
        lr = hand_optimizer.param_groups[0]["lr"]
        for w in weights(hand):
            soft_(w, lr * STRENGTH)
        rates.add(lr)
        for each in (cycle, hand_cycle):
            each.step()
        for each in (plateau, hand_plateau):
            each.step(1.0)
    assert len(rates) > 5
    assert equal(ours, hand)


@pytest.mark.parametrize("make", [sgd, lambda p: Adam(p, lr=0.1), lambda p: AdamW(p, lr=0.1, fused=True)])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("penalty", [L1(STRENGTH), ElasticNet(STRENGTH, 0.1), GroupLasso(STRENGTH, Rows())])
@pytest.mark.parametrize("hold_zeros", [None, 0.9])
def test_a_warm_up_from_zero_moves_nothing_and_then_everything(make, how, penalty, hold_zeros):
    model, optimizer, _ = attached(make, penalty, how, hold_zeros=hold_zeros)
    with torch.no_grad():
        model[0].weight[:2] = 0.0
    before = copy.deepcopy(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: max(update - 1, 0) / 4)
    for update, batch in enumerate(batches(6)):
        train_step(optimizer, loss_of(model, batch))
        scheduler.step()
        assert equal(model, before) == (update < 2)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_group_that_is_added_later_is_penalized_from_then_on():
    def run(model, regularize_by):
        optimizer = sgd(model[0].parameters())
        after = regularize_by(model, optimizer)
        for i, batch in enumerate(batches(6)):
            train_step(optimizer, loss_of(model, batch))
            after([model[0].weight, model[2].weight][: 1 + (i >= 3)])
            if i == 2:
                optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.1})
        return model

    def ours(model, optimizer):
        Regularizer(model, L1(STRENGTH)).attach(optimizer)
        return lambda penalized: None

    def by_hand(model, optimizer):
        def after(penalized):
            for w in penalized:
                soft_(w, 0.1 * STRENGTH)

        return after

    assert equal(run(mlp(), ours), run(mlp(), by_hand))


def test_a_state_that_is_loaded_in_the_middle():
    """A divergence is rolled back: the dictionaries of the groups and the states are new ones then."""

    def adam(p):
        return Adam(p, lr=0.01)

    straight, optimizer, _ = attached(adam, PENALTY)
    train(straight, optimizer, 3)
    train(straight, optimizer, 3)
    ours, optimizer, regularizer = attached(adam, PENALTY)
    train(ours, optimizer, 3)
    saved = copy.deepcopy([each.state_dict() for each in (ours, optimizer, regularizer)])
    train(ours, optimizer, 2)
    for each, state in zip((ours, optimizer, regularizer), saved, strict=True):
        each.load_state_dict(state)
    train(ours, optimizer, 3)
    assert equal(ours, straight)
    assert regularizer.state_dict()["updates"] == [6]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_an_optimizer_is_not_attached_and_can_be_attached_again(copied):
    straight, optimizer, _ = attached(sgd, PENALTY)
    train(straight, optimizer, 3)
    train(straight, optimizer, 3)
    ours, optimizer, regularizer = attached(sgd, PENALTY)
    train(ours, optimizer, 3)
    model, optimizer, regularizer = copied((ours, optimizer, regularizer))
    assert "not attached" in repr(regularizer)
    regularizer.attach(optimizer)
    train(model, optimizer, 3)
    assert equal(model, straight)
    assert regularizer.state_dict()["updates"] == [6]


@pytest.mark.parametrize("parent_first", [True, False])
@pytest.mark.parametrize(("how", "penalty"), [("gradient", L1), ("decoupled", L1), ("decoupled", L2)])
def test_a_step_that_calls_its_parents_in_both_orders_of_construction(parent_first, how, penalty):
    """torch wraps `step` of a class when it first makes one: the hooks run twice only if it made a parent before."""

    class Parent(SGD):
        def step(self, closure=None):
            return SGD.step(self, closure)

    class Child(Parent):
        def step(self, closure=None):
            return super().step(closure)

    SGD([nn.Parameter(torch.zeros(1))])
    if parent_first:
        Parent([nn.Parameter(torch.zeros(1))])
    calls = []
    ours, optimizer, regularizer = attached(lambda p: Child(p, lr=0.1), penalty(STRENGTH), how)
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    train(ours, optimizer, 1)
    assert len(calls) == 2 + parent_first
    train(ours, optimizer, 4)
    plain, plain_optimizer, _ = attached(sgd, penalty(STRENGTH), how)
    train(plain, plain_optimizer, 1)
    train(plain, plain_optimizer, 4)
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [5]


# Closures.


class SAM(Optimizer):
    """Sharpness-aware minimisation in the shape of its published code."""

    def __init__(self, params, base_optimizer, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self._parameters()]).norm()
        self.old = [p.data.clone() for p in self._parameters()]
        for p in self._parameters():
            p.add_(p.grad * self.param_groups[0]["rho"] / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p, old in zip(self._parameters(), self.old, strict=True):
            p.data = old
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()

    def _parameters(self):
        return [p for group in self.param_groups for p in group["params"]]


@pytest.mark.parametrize("declare", [True, False])
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("how", HOWS)
def test_sharpness_aware_minimisation_is_penalized_once_at_the_restored_weights(how, closure, declare):
    ours, hand = mlp(), mlp()
    if declare:
        for layer in (ours[0], ours[2]):
            regularize(layer, L1(STRENGTH), how=how)
    optimizer, hand_optimizer = (SAM(m.parameters(), SGD, lr=0.1) for m in (ours, hand))
    if not declare:
        Regularizer(ours, L1(STRENGTH), how=how).attach(optimizer)
    for batch in batches(5):

        def backward(batch=batch):
            loss = loss_of(ours, batch)
            loss.backward()
            return loss

        backward()
        if closure:
            optimizer.step(backward)
        else:
            optimizer.first_step()
            backward()
            optimizer.second_step()
        loss_of(hand, batch).backward()
        hand_optimizer.first_step()
        loss_of(hand, batch).backward()
        for p, old in zip(hand.parameters(), hand_optimizer.old, strict=True):
            p.data = old
        penalize_by_hand(hand, how, hand_optimizer.base_optimizer.step)
        hand_optimizer.zero_grad()
    assert equal(ours, hand)


def test_a_closure_that_does_not_clear_gradients_adds_to_the_losses_alone():
    class Twice(SGD):
        def step(self, closure):
            closure()
            closure()
            super().step()

    ours, optimizer, _ = attached(lambda p: Twice(p, lr=0.1), PENALTY, "gradient")
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    for batch in batches(4):
        optimizer.zero_grad()
        optimizer.step(lambda batch=batch: loss_of(ours, batch).backward())
        hand_optimizer.zero_grad()
        loss_of(hand, batch).backward()
        loss_of(hand, batch).backward()
        penalize_by_hand(hand, "gradient", hand_optimizer.step)
    assert equal(ours, hand)


def test_a_loss_that_is_maximised_loses_the_value_of_the_penalty():
    model, optimizer, regularizer = attached(lambda p: SGD(p, lr=0.1, maximize=True), PENALTY, "gradient")
    value, batch = regularizer.value(), batches(1)[0]
    closure = closure_of(optimizer, lambda: -loss_of(model, batch))
    expected = -loss_of(model, batch).detach() - value
    torch.testing.assert_close(optimizer.step(closure).detach(), expected)
    other, _, _ = attached(sgd, PENALTY)
    other_optimizer = sgd(other.parameters())
    regularizer = Regularizer(other, L1(STRENGTH), how="gradient").attach(other_optimizer)
    train(other, other_optimizer, 1)
    assert equal(model, other)


# Contexts.


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        torch.autograd.set_detect_anomaly,
        lambda on=True: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "enable_grad", "inference_mode", "detect_anomaly", "autocast"],
)
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("penalty", [L1(STRENGTH), L2(STRENGTH), GroupLasso(STRENGTH, Rows())])
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_step_in_any_context_is_the_step_without_it(context, how, penalty):
    found = []
    for inside in (False, True):
        model, optimizer, _ = attached(sgd, penalty, how)
        for batch in batches(4):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            if inside:
                with context() if context is not torch.autograd.set_detect_anomaly else context(True):
                    optimizer.step()
            else:
                optimizer.step()
        found.append(model)
    assert equal(*found)
    assert all(p.requires_grad and p.is_leaf and not p.is_inference() for p in found[1].parameters())
