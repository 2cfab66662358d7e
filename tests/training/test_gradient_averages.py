"""Zeros that averaged gradients hold: against a loop written by hand, and what the averages are not concerned with."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from models import batches, equal, loss_of, mlp, soft_, train, train_step, weights
from shrinkage import L0, L1, L2, ElasticNet, GroupLasso, NonNegative, Regularizer, Rows, TopK, Toward
from shrinkage.training.gradient_averages import Averages

DECAY = 0.9
STRENGTH = 0.02


def sgd(parameters, **options):
    return SGD(parameters, lr=0.1, **options)


def noisy(model: nn.Module, optimizer, count: int = 60) -> None:
    """Train on random targets, whose gradients are noise."""
    train(model, optimizer, count)


def by_hand(optimizer_of, after, count: int = 60) -> nn.Module:
    """The rule written out: average, note the zeros that the average holds, step, threshold, set them back."""
    model = mlp()
    optimizer = optimizer_of(model.parameters())
    averages = [torch.zeros_like(w) for w in weights(model)]
    for update, batch in enumerate(batches(count)):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        held = []
        for w, average in zip(weights(model), averages, strict=True):
            average.mul_(DECAY).add_(w.grad, alpha=1 - DECAY)
            corrected = average / (1 - DECAY ** (update + 1))
            held.append((w.detach() == 0) & (corrected.abs() <= STRENGTH))
        optimizer.step()
        with torch.no_grad():
            for w, zero in zip(weights(model), held, strict=True):
                after(w, optimizer)
                w[zero] = 0
    return model


def test_sgd_with_entry_is_the_loop_written_by_hand():
    model = mlp()
    optimizer = sgd(model.parameters())
    Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY).attach(optimizer)
    noisy(model, optimizer)
    expected = by_hand(sgd, lambda w, optimizer: soft_(w, 0.1 * STRENGTH))
    for found, by_loop in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, by_loop)
        assert torch.equal(found == 0, by_loop == 0)


def test_adam_with_entry_is_the_loop_written_by_hand():
    def soft_in_metric(w, optimizer):
        state = optimizer.state[w]
        corrected = state["exp_avg_sq"] / (1 - 0.999 ** state["step"])
        soft_(w, 0.01 * STRENGTH / (corrected.sqrt() + 1e-8))

    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.01)
    Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY).attach(optimizer)
    noisy(model, optimizer)
    expected = by_hand(lambda p: Adam(p, lr=0.01), soft_in_metric)
    for found, by_loop in zip(weights(model), weights(expected), strict=True):
        assert torch.equal(found == 0, by_loop == 0)
        torch.testing.assert_close(found, by_loop, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("penalty", [L1(0.02), ElasticNet(0.02, 0.1), GroupLasso(0.01, Rows()), NonNegative(L1(0.01))])
def test_more_zeros_stay_than_without(penalty):
    zeros = []
    for hold_zeros in (None, 0.99):
        model = mlp()
        optimizer = sgd(model.parameters())
        Regularizer(model, {"*.weight": penalty}, hold_zeros=hold_zeros).attach(optimizer)
        noisy(model, optimizer, 200)
        zeros.append(sum(int((w == 0).sum()) for w in weights(model)))
    assert zeros[1] > zeros[0]


def test_weights_held_at_a_reference():
    model = mlp()
    reference = copy.deepcopy(model.state_dict())
    optimizer = sgd(model.parameters())
    Regularizer(model, {"*.weight": Toward(L1(0.05))}, hold_zeros=0.99).attach(optimizer)
    noisy(model, optimizer, 200)
    moved = [w != reference[name] for name, w in model.named_parameters() if name.endswith("weight")]
    assert 0 < sum(int(m.sum()) for m in moved) < sum(m.numel() for m in moved)


@pytest.mark.parametrize(("penalty", "how"), [(L2(0.1), "proximal"), (L0(1e-3), "proximal"), (TopK(0.5), "proximal")])
def test_penalties_whose_zeros_are_not_in_question_are_left_as_they_are(penalty, how):
    models = []
    for hold_zeros in (None, 0.9):
        model = mlp()
        optimizer = sgd(model.parameters())
        regularizer = Regularizer(model, {"*.weight": penalty}, how=how, hold_zeros=hold_zeros).attach(optimizer)
        noisy(model, optimizer)
        assert "averages" not in regularizer.state_dict()
        models.append(model)
    assert equal(*models)


@pytest.mark.parametrize("how", ["gradient", "decoupled"])
def test_only_proximal_rules_are_concerned(how):
    model = mlp()
    optimizer = sgd(model.parameters())
    regularizer = Regularizer(model, {"*.weight": L1(0.02)}, how=how, hold_zeros=0.9).attach(optimizer)
    noisy(model, optimizer)
    assert "averages" not in regularizer.state_dict()


def test_a_run_that_is_interrupted_goes_on_bit_for_bit():
    def start():
        model = mlp()
        optimizer = Adam(model.parameters(), lr=0.01)
        return model, optimizer, Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY).attach(optimizer)

    whole, optimizer, _ = start()
    noisy(whole, optimizer, 40)

    first, optimizer, regularizer = start()
    train(first, optimizer, batches(40)[:25])
    stream = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict(), regularizer.state_dict()], stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)

    second, optimizer, regularizer = start()
    second.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    regularizer.load_state_dict(saved[2])
    train(second, optimizer, batches(40)[25:])
    assert equal(second, whole)


def test_detaching_and_copying_keep_the_averages():
    model = mlp()
    optimizer = sgd(model.parameters())
    regularizer = Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY).attach(optimizer)
    noisy(model, optimizer, 5)
    before = regularizer.state_dict()["averages"][0]["0.weight"]["total"].clone()
    for kept in (copy.deepcopy(regularizer), regularizer):
        kept.detach()
        assert torch.equal(kept.state_dict()["averages"][0]["0.weight"]["total"], before)


@pytest.mark.parametrize("closure", [False, True])
def test_a_closure_and_loss_scaling_change_nothing(closure):
    """A fused optimizer's gradients carry the loss scale; a closure computes them inside of the step."""
    plain, other = mlp(), mlp()
    for model, scaled in ((plain, False), (other, True)):
        optimizer = sgd(model.parameters(), fused=True)
        Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY).attach(optimizer)
        for batch in batches(30):

            def compute(model=model, optimizer=optimizer, batch=batch, scaled=scaled):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                (loss * 1024 if scaled and not closure else loss).backward()
                return loss

            if scaled and not closure:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
            if scaled and closure:
                optimizer.step(compute)
            else:
                compute()
                optimizer.step()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)
        assert torch.equal(one == 0, two == 0)


def test_an_overflow_leaves_the_average_alone():
    averages = Averages(0.9)
    first = averages.update("w", torch.tensor([1.0, -2.0]), torch.tensor(0.0))
    averages.commit()
    assert torch.equal(first, torch.tensor([1.0, -2.0]))
    skipped = averages.update("w", torch.tensor([torch.inf, torch.nan]), torch.tensor(1.0))
    averages.commit()
    assert torch.equal(skipped, first)
    second = averages.update("w", torch.tensor([0.0, 0.0]), torch.tensor(0.0))
    torch.testing.assert_close(second, first * 0.09 / 0.19)


def test_maximize_turns_the_gradient_around():
    """NonNegative looks at the sign: a loss that is maximised pushes the other way."""
    found = []
    for sign in (1.0, -1.0):
        model = mlp()
        optimizer = sgd(model.parameters(), maximize=sign < 0)
        Regularizer(model, {"*.weight": NonNegative(L1(STRENGTH))}, hold_zeros=DECAY).attach(optimizer)
        for batch in batches(40):
            train_step(optimizer, sign * loss_of(model, batch))
        found.append(model)
    assert equal(*found)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, 1, "0.9", True])
def test_bad_decays_are_refused(bad):
    with pytest.raises(ValueError, match=r"hold_zeros must be a decay between 0 and 1 such as 0\.99, or None, got"):
        Regularizer(mlp(), L1(0.1), hold_zeros=bad)


def test_the_printed_regularizer_says_so():
    assert "zeros held by gradients averaged with decay 0.9" in repr(Regularizer(mlp(), L1(0.1), hold_zeros=0.9))
    assert "zeros held" not in repr(Regularizer(mlp(), L1(0.1)))


def narrowed(model, optimizer):
    """Let the first layer have half of its rows."""
    for name, dim in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        module, attribute = model[int(name[0])], name[2:]
        whole = getattr(module, attribute)
        setattr(module, attribute, nn.Parameter(whole.detach().narrow(dim, 0, whole.shape[dim] // 2).clone()))
    optimizer.param_groups[0]["params"] = list(model.parameters())


def test_a_parameter_that_is_replaced_by_one_of_another_shape_is_averaged_anew():
    model = mlp()
    optimizer = sgd(model.parameters())
    regularizer = Regularizer(model, {"*.weight": L1(STRENGTH), "2.bias": L1(STRENGTH)}, hold_zeros=DECAY).attach(
        optimizer
    )
    noisy(model, optimizer, 5)
    narrowed(model, optimizer)
    train_step(optimizer, loss_of(model, batches(1)[0]))
    averages = regularizer.state_dict()["averages"][0]
    assert averages["0.weight"]["total"].shape == model[0].weight.shape
    torch.testing.assert_close(averages["0.weight"]["weight"].item(), 1 - DECAY)
    torch.testing.assert_close(averages["2.bias"]["weight"].item(), 1 - DECAY**6)


@pytest.mark.parametrize("way", ["regularizer", "optimizer", "attach", "attach with its own state"])
def test_a_state_that_was_saved_after_a_replacement_can_be_loaded(way):
    """Also by a regularizer that was made before it."""

    def start(attached):
        model = mlp()
        optimizer = sgd(model.parameters())
        regularizer = Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY)
        if attached:
            regularizer.attach(optimizer)
        narrowed(model, optimizer)
        return model, optimizer, regularizer

    straight, optimizer, regularizer = start(attached=True)
    noisy(straight, optimizer, 5)
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), regularizer.state_dict()))
    noisy(straight, optimizer, 5)

    resumed, optimizer, regularizer = start(attached=not way.startswith("attach"))
    resumed.load_state_dict(saved[0])
    if way in ("optimizer", "attach"):
        optimizer.load_state_dict(saved[1])
    else:
        regularizer.load_state_dict(saved[2])
    regularizer.attach(optimizer)
    noisy(resumed, optimizer, 5)
    assert equal(straight, resumed)


def test_averages_of_other_shapes_that_are_loaded_first_are_refused_when_attached():
    def start():
        model = mlp()
        optimizer = sgd(model.parameters())
        return model, optimizer, Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY)

    model, optimizer, saved = start()
    saved.attach(optimizer)
    narrowed(model, optimizer)
    noisy(model, optimizer, 2)
    state = saved.state_dict()
    _, optimizer, regularizer = start()
    regularizer.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'0\.weight' .*\(4, 6\).*expected the parameter's shape \(8, 6\)"):
            regularizer.attach(optimizer)
    assert "not attached" in repr(regularizer)
    assert regularizer.state_dict()["updates"] == [2]


def test_weights_that_come_apart_are_averaged_each_and_saved():
    def start():
        model = nn.ModuleDict({"one": nn.Linear(3, 3), "other": nn.Linear(3, 3)})
        model["other"].weight = model["one"].weight
        return model, Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY)

    model, regularizer = start()
    model["other"].weight = nn.Parameter(torch.ones(3, 3))
    optimizer = sgd(model.parameters())
    state = regularizer.attach(optimizer).state_dict()
    assert state["averages"][0].keys() == {"one.weight", "other.weight"}
    _, resumed = start()
    resumed.load_state_dict(state)


def test_averages_follow_the_type_of_the_model():
    model = mlp()
    optimizer = sgd(model.parameters())
    Regularizer(model, {"*.weight": L1(STRENGTH)}, hold_zeros=DECAY).attach(optimizer)
    train(model, optimizer, 2)
    model.double()
    train(model, optimizer, 2)
    assert model[0].weight.dtype == torch.float64
