"""Penalties in `.grad` before the clipping, against a term of the loss; and what the step does with them then."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from models import attached, batches, equal, loss_of, mlp, train, weights
from shrinkage import L1, L2, AttachmentError, GroupLasso, ParameterError, Regularizer, Rows

STRENGTH = 0.5
PENALTY = L1(STRENGTH)


def l1(model):
    return STRENGTH * sum(w.abs().sum() for w in weights(model))


def l2(model):
    return 0.5 * STRENGTH * sum(w.square().sum() for w in weights(model))


def rows(model):
    return STRENGTH * sum(w.norm(dim=1).sum() * w.shape[1] ** 0.5 for w in weights(model))


def sgd(p):
    return SGD(p, lr=0.1, momentum=0.5)


def fused_adam(p):
    return Adam(p, lr=0.01, fused=True)


def clipped_steps(model, optimizer, *, add=lambda: None, term=None, micro=1):
    """Train with clipping; the penalty comes from `add`, called before the clipping, or as a `term` of the loss."""
    norms = []
    for batch in batches(6):
        optimizer.zero_grad()
        for _ in range(micro):
            (loss_of(model, batch) / micro).backward()
        if term is not None:
            term(model).backward()
        add()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.7))
        optimizer.step()
    return torch.stack(norms)


@pytest.mark.parametrize("make", [sgd, fused_adam])
@pytest.mark.parametrize("micro", [1, 2])
def test_clipped_with_the_penalty_it_is_a_term_of_the_loss_bit_for_bit(make, micro):
    ours, optimizer, regularizer = attached(make, PENALTY, "gradient")
    norms = clipped_steps(ours, optimizer, add=regularizer.add_gradients_, micro=micro)
    hand = mlp()
    expected = clipped_steps(hand, make(hand.parameters()), term=l1, micro=micro)
    assert (norms > 0.7).all()
    assert torch.equal(norms, expected)
    assert equal(ours, hand)


@pytest.mark.parametrize(("penalty", "term"), [(L2(STRENGTH), l2), (GroupLasso(STRENGTH, Rows()), rows)])
def test_other_penalties_are_the_term_of_the_loss_to_rounding(penalty, term):
    ours, optimizer, regularizer = attached(sgd, penalty, "gradient")
    clipped_steps(ours, optimizer, add=regularizer.add_gradients_)
    hand = mlp()
    clipped_steps(hand, sgd(hand.parameters()), term=term)
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_without_a_clip_it_makes_no_difference():
    plain, optimizer, _ = attached(sgd, PENALTY, "gradient")
    train(plain, optimizer)
    ours, optimizer, regularizer = attached(sgd, PENALTY, "gradient")
    train(ours, optimizer, before=regularizer.add_gradients_)
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [5]


def test_a_step_without_the_call_adds_the_penalty_itself():
    """The call is about one step; the loop may leave it out the next time."""
    plain, optimizer, _ = attached(sgd, PENALTY, "gradient")
    train(plain, optimizer)
    ours, optimizer, regularizer = attached(sgd, PENALTY, "gradient")
    for i, batch in enumerate(batches(5)):
        optimizer.zero_grad(set_to_none=False)
        loss_of(ours, batch).backward()
        if i % 2:
            regularizer.add_gradients_()
        optimizer.step()
    assert equal(ours, plain)


def test_the_strength_is_that_of_the_coming_update():
    penalty = L1(lambda update: 0.1 * 0.5**update)
    plain, optimizer, _ = attached(sgd, penalty, "gradient")
    train(plain, optimizer)
    ours, optimizer, regularizer = attached(sgd, penalty, "gradient")
    train(ours, optimizer, before=regularizer.add_gradients_)
    assert equal(ours, plain)


@pytest.mark.parametrize("inside", [True, False])
def test_with_a_closure(inside):
    """Lightning calls it inside of the closure (automatic), or before a closure that does nothing (manual)."""
    ours, optimizer, regularizer = attached(sgd, PENALTY, "gradient")
    for batch in batches(6):

        def backward(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(ours, batch)
            loss.backward()
            regularizer.add_gradients_()
            nn.utils.clip_grad_norm_(ours.parameters(), 0.7)
            return loss

        if inside:
            optimizer.step(backward)
        else:
            backward()
            optimizer.step(lambda: None)
    hand = mlp()
    clipped_steps(hand, sgd(hand.parameters()), term=l1)
    assert equal(ours, hand)


def test_lbfgs_gets_the_value_of_what_was_added_inside_its_closure():
    batch = batches(1, torch.float64)[0]
    ours, hand = mlp(torch.float64), mlp(torch.float64)
    optimizer, hand_optimizer = (LBFGS(m.parameters(), line_search_fn="strong_wolfe") for m in (ours, hand))
    regularizer = Regularizer(ours, L2(0.1), how="gradient").attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(ours, batch)
        loss.backward()
        regularizer.add_gradients_()
        return loss

    def hand_closure():
        hand_optimizer.zero_grad()
        loss = loss_of(hand, batch) + 0.05 * sum(w.square().sum() for w in weights(hand))
        loss.backward()
        return loss

    for _ in range(3):
        torch.testing.assert_close(optimizer.step(closure), hand_optimizer.step(hand_closure))
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_maximize_takes_the_penalty_off():
    ours, _, regularizer = attached(lambda p: SGD(p, lr=0.1, maximize=True), PENALTY, "gradient")
    hand, before = mlp(), copy.deepcopy(ours)
    loss_of(ours, batches(1)[0]).backward()
    regularizer.add_gradients_()
    (loss_of(hand, batches(1)[0]) - l1(hand)).backward()
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert equal(ours, before)


@pytest.mark.parametrize("how", ["proximal", "decoupled"])
def test_rules_that_act_around_the_step_are_not_concerned(how):
    plain, optimizer, _ = attached(sgd, PENALTY, how)
    train(plain, optimizer)
    ours, optimizer, regularizer = attached(sgd, PENALTY, how)
    for batch in batches(5):
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        kept = [p.grad.clone() for p in ours.parameters()]
        regularizer.add_gradients_()
        assert all(torch.equal(p.grad, g) for p, g in zip(ours.parameters(), kept, strict=True))
        optimizer.step()
    assert equal(ours, plain)


@pytest.mark.parametrize("between", ["nothing", "clip", "backward"])
def test_a_second_call_on_the_same_gradients_is_refused(between):
    model, _, regularizer = attached(sgd, PENALTY, "gradient")
    loss_of(model, batches(1)[0]).backward()
    regularizer.add_gradients_()
    if between == "clip":
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    if between == "backward":
        loss_of(model, batches(1)[0]).backward()
    kept = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(
        AttachmentError, match=r"on this gradient of '0\.weight' of shape \(8, 6\) already.*set_to_none"
    ):
        regularizer.add_gradients_()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), kept, strict=True))


def test_a_step_that_the_loop_leaves_out_is_forgotten_with_its_gradients():
    ours, optimizer, regularizer = attached(sgd, PENALTY, "gradient")
    kept = []
    for i, batch in enumerate(batches(6)):
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        regularizer.add_gradients_()
        nn.utils.clip_grad_norm_(ours.parameters(), 0.7)
        if i not in (1, 2):
            optimizer.step()
            kept.append(batch)
    hand = mlp()
    hand_optimizer = sgd(hand.parameters())
    for batch in kept:
        hand_optimizer.zero_grad()
        loss_of(hand, batch).backward()
        l1(hand).backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 0.7)
        hand_optimizer.step()
    assert equal(ours, hand)


def test_one_of_several_optimizers():
    """Each steps by itself, as in adversarial training: the gradients of the other are not touched."""
    model = mlp()
    parts = [sgd(model[0].parameters()), sgd(model[2].parameters())]
    regularizer = Regularizer(model, L1(STRENGTH), how="gradient").attach(parts[0]).attach(parts[1])
    alone, optimizer, _ = attached(sgd, PENALTY, "gradient")
    train(alone, optimizer)
    for batch in batches(5):
        model.zero_grad()
        loss_of(model, batch).backward()
        own = model[2].weight.grad.clone()
        regularizer.add_gradients_(parts[0])
        assert torch.equal(model[2].weight.grad, own)
        parts[0].step()
        regularizer.add_gradients_(parts[1])
        parts[1].step()
    assert equal(model, alone)
    loss_of(model, batches(1)[0]).backward()
    regularizer.add_gradients_()  # both
    with pytest.raises(AttachmentError, match="already"):
        regularizer.add_gradients_(parts[1])


def test_it_needs_an_attached_optimizer():
    model, _, regularizer = attached(sgd, PENALTY, "gradient")
    with pytest.raises(AttachmentError, match="optimizer that this regularizer is attached to"):
        Regularizer(model, L1(STRENGTH), how="gradient").add_gradients_()
    with pytest.raises(AttachmentError, match="optimizer that this regularizer is attached to"):
        regularizer.add_gradients_(sgd(model.parameters()))


def test_a_sparse_gradient_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True))
    optimizer = sgd(model.parameters())
    regularizer = Regularizer(model, {"*.weight": L2(0.1)}, how="gradient").attach(optimizer)
    (model[0](torch.ones(3)).sum() + model[1](torch.tensor([1])).sum()).backward()
    with pytest.raises(ParameterError, match=r"gradient of '1\.weight' of shape \(5, 3\) is sparse"):
        regularizer.add_gradients_()
    assert torch.equal(model[0].weight.grad, torch.ones(3, 3))


def test_parameters_without_a_gradient_stay_without_one():
    model, _, regularizer = attached(sgd, PENALTY, "gradient")
    model[2](torch.ones(8)).sum().backward()
    regularizer.add_gradients_()
    assert model[0].weight.grad is None
    assert torch.equal(model[2].weight.grad, 1 + STRENGTH * model[2].weight.detach().sign())
