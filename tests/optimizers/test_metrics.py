"""The metric is what moves a weight under a constant gradient, at rest: measured, not quoted."""

import pytest
import torch
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from catalog import OPTIMIZERS
from models import batches, equal, loss_of, mlp, soft_, train, weights, zeros
from shrinkage import L0, L1, L2, GroupLasso, MetricError, Regularizer, Rows, register_metric
from shrinkage.optimizers.adaptive_step import number
from shrinkage.optimizers.registry import _metrics, metric_of
from shrinkage.training.acting import by_regularizer
from shrinkage.training.attachment import explicit_attachments

UNCENTERED = [case for case in OPTIMIZERS if "centered" not in case.name]


def eta_after(optimizer: Optimizer, parameter: nn.Parameter, group: int = 0, noted=None):
    """The metric as it is now, with what was noted before the step."""
    grad = {} if parameter.grad is None else {"grad": parameter.grad}
    state = {**optimizer.state[parameter], **grad, **(noted or {})}
    with torch.no_grad():
        return number(metric_of(optimizer).eta(optimizer.param_groups[group], state, parameter))


def eta_of_step(optimizer: Optimizer, parameter: nn.Parameter):
    """Make a step, and return the metric in which it was made."""
    before = metric_of(optimizer).before
    with torch.no_grad():
        state = optimizer.state.get(parameter, {})
        noted = before(optimizer.param_groups[0], state, parameter) if before else {}
    optimizer.step()
    return eta_after(optimizer, parameter, noted=noted)


@pytest.mark.parametrize("case", UNCENTERED, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_constant_gradient_moves_a_weight_by_the_metric(case, sign):
    parameter = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    optimizer = case.make([parameter])
    optimizer.param_groups[0]["maximize"] = sign < 0
    grad = torch.tensor([[0.5, -2.0], [1e-3, 7.0]], dtype=torch.float64)
    for _ in range(3000 if "RMSprop" in case.name else 400):  # its second moment has no bias correction
        optimizer.step()
        parameter.grad = grad.clone()
    before = parameter.detach().clone()
    eta = eta_of_step(optimizer, parameter)
    moved = (before - parameter.detach()) * sign
    torch.testing.assert_close(moved, eta * grad, rtol=1e-9, atol=0)


WITHOUT_MOMENTUM = {
    "SGD": lambda p, **o: SGD(p, lr=0.1, **o),
    "SGD tensor": lambda p, **o: SGD(p, lr=torch.tensor(0.1), **o),
    "Adam": lambda p, **o: Adam(p, lr=0.1, betas=(0.0, 0.99), **o),
    "Adam amsgrad": lambda p, **o: Adam(p, lr=0.1, betas=(0.0, 0.9), amsgrad=True, **o),
    "RMSprop": lambda p, **o: RMSprop(p, lr=0.1, **o),
    "RMSprop centered": lambda p, **o: RMSprop(p, lr=0.1, centered=True, **o),
    "Adagrad": lambda p, **o: Adagrad(p, lr=0.1, lr_decay=0.1, **o),
    "NAdam": lambda p, **o: NAdam(p, lr=0.1, betas=(0.0, 0.99), **o),
    "RAdam": lambda p, **o: RAdam(p, lr=0.1, betas=(0.0, 0.99), eps=1e-2, **o),
    "RAdam tensor": lambda p, **o: RAdam(p, lr=torch.tensor(0.1, dtype=torch.float64), betas=(0.0, 0.9), **o),
    "Adamax": lambda p, **o: Adamax(p, lr=0.1, betas=(0.0, 0.9), eps=1e-2, **o),
    "Adadelta": lambda p, **o: Adadelta(p, lr=0.1, eps=1e-2, **o),
    "ASGD": lambda p, **o: ASGD(p, lr=0.1, lambd=0.0, **o),
    "ASGD tensor": lambda p, **o: ASGD(p, lr=torch.tensor(0.1, dtype=torch.float64), lambd=0.0, **o),
    "Rprop": lambda p, **o: Rprop(p, lr=0.1, **o),
    "Adafactor": lambda p, **o: Adafactor(p, lr=0.5, weight_decay=0.0, **o),
    "Adafactor eps": lambda p, **o: Adafactor(p, lr=0.5, eps=(0.3, 0.2), d=1.1, weight_decay=0.0, **o),
}


@pytest.mark.parametrize("name", WITHOUT_MOMENTUM)
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 4), ()], ids=str)
def test_without_momentum_every_step_is_the_metric_times_the_gradient(name, options, shape):
    parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = WITHOUT_MOMENTUM[name]([parameter], **options)
    for _ in range(12):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(shape, dtype=torch.float64)
        eta = eta_of_step(optimizer, parameter)
        moved = (before - parameter.detach()) * (-1 if "maximize" in options else 1)
        torch.testing.assert_close(moved, eta * parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [Adam, Adagrad, SGD])
def test_without_momentum_every_step_of_a_fused_optimizer_is_the_metric_times_the_gradient(make):
    parameter = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    optimizer = make([parameter], lr=0.1, fused=True, **({"betas": (0.0, 0.99)} if make is Adam else {}))
    for _ in range(12):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(3, 4, dtype=torch.float64)
        eta = eta_of_step(optimizer, parameter)
        torch.testing.assert_close(before - parameter.detach(), eta * parameter.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: NAdam(p, lr=0.1, momentum_decay=0.01),
        lambda p: NAdam(p, lr=0.1, momentum_decay=0.1, betas=(0.8, 0.99)),
        lambda p: RAdam(p, lr=0.1),
        lambda p: Adamax(p, lr=0.1),
    ],
)
def test_the_metric_is_that_of_the_step_count_as_soon_as_the_momentum_has_settled(make):
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = make([parameter])
    grad = torch.tensor([0.5, -2.0, 1e-3], dtype=torch.float64)
    for step in range(310):
        before = parameter.detach().clone()
        parameter.grad = grad.clone()
        eta = eta_of_step(optimizer, parameter)
        if step > 300:
            torch.testing.assert_close(before - parameter.detach(), eta * grad, rtol=1e-11, atol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sparse_adam_moves_the_rows_that_a_gradient_touches_by_its_metric(sign):
    parameter = nn.Parameter(torch.zeros(4, 2, dtype=torch.float64))
    optimizer = SparseAdam([parameter], lr=0.1, eps=1e-2, betas=(0.0, 0.99), maximize=sign < 0)
    for rows in ([0], [0, 2], [2, 2, 3], [0, 3]):
        before = parameter.detach().clone()
        values = torch.randn(len(rows), 2, dtype=torch.float64)
        with torch.sparse.check_sparse_tensor_invariants():
            parameter.grad = torch.sparse_coo_tensor([rows], values, parameter.shape)
            eta = eta_of_step(optimizer, parameter)
        moved = (before - parameter.detach()) * sign
        torch.testing.assert_close(moved, eta * parameter.grad.to_dense(), rtol=1e-12, atol=0)
    assert eta[1].tolist() == [0.1, 0.1]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_centered_rmsprop_divides_by_the_standard_deviation(momentum):
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = RMSprop([parameter], lr=0.1, centered=True, momentum=momentum)
    for _ in range(50):
        parameter.grad = torch.randn(3, dtype=torch.float64)
        optimizer.step()
    state = optimizer.state[parameter]
    deviation = (state["square_avg"] - state["grad_avg"] ** 2).sqrt()
    expected = 0.1 / (1 - momentum) / (deviation + 1e-8)
    torch.testing.assert_close(eta_after(optimizer, parameter), expected)


@pytest.mark.parametrize("make", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_adam_corrects_the_second_moment_from_the_first_step_on(make, amsgrad, options):
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = make([parameter], lr=0.1, amsgrad=amsgrad, **options)
    squares, largest = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(1, 6):
        parameter.grad = torch.randn(3, dtype=torch.float64) / t
        squares = 0.999 * squares + 0.001 * parameter.grad**2
        largest = torch.maximum(largest, squares)
        optimizer.step()
        second_moment = (largest if amsgrad else squares) / (1 - 0.999**t)
        torch.testing.assert_close(eta_after(optimizer, parameter), 0.1 / (second_moment.sqrt() + 1e-8))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Adam(p, lr=0.1),
        lambda p: Adam(p, lr=0.1, amsgrad=True),
        lambda p: RMSprop(p, lr=0.1),
        lambda p: RMSprop(p, lr=0.1, centered=True),
        lambda p: Adagrad(p, lr=0.1),
        lambda p: Adam(p, lr=torch.tensor(0.1)),
        lambda p: Adamax(p, lr=0.1),
        lambda p: Adamax(p, lr=0.1, foreach=True),
        lambda p: Adadelta(p, lr=0.1),
        lambda p: Rprop(p, lr=0.1),
        lambda p: RAdam(p, lr=0.1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_element_that_never_had_a_gradient_takes_the_learning_rate(make, dtype):
    parameter = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = make([parameter])
    for _ in range(20):
        parameter.grad = torch.tensor([0.0, 4.0], dtype=dtype)
        step = eta_of_step(optimizer, parameter)
    rectified = 1.0 if not isinstance(optimizer, RAdam) else step[0] / 0.1
    assert step.dtype == torch.float32
    assert 0 < rectified <= 1
    assert step[0] == torch.tensor(0.1) * rectified
    assert step[1] != torch.tensor(0.1)


def test_an_element_without_a_gradient_takes_the_numerator_of_adafactor():
    parameter = nn.Parameter(torch.tensor([[1.0, 2.0, 2.0], [4.0, 4.0, 0.0]]))
    optimizer = Adafactor([parameter], lr=0.1, weight_decay=0.0)
    for factor in (1.0, 9.0):  # the second is clipped: the moments lag behind
        rms = float(parameter.detach().square().mean().sqrt())
        parameter.grad = factor * torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 4.0]])
        step = eta_of_step(optimizer, parameter)
    # The mean squares of rows and columns, of which 2^-0.8 is new at the second step.
    moment = (1 + 80 * 2**-0.8) * torch.tensor([[10.0], [16.0]]) / 3 * torch.tensor([0.0, 4.5, 8.5]) / (13 / 3)
    update = (parameter.grad / moment.sqrt()).nan_to_num()
    clip = float(update.square().mean().sqrt())
    assert clip > 1.1
    expected = 0.1 * rms / clip / torch.where(moment == 0, 1.0, moment.sqrt())
    torch.testing.assert_close(step, expected)
    assert step[0, 0] < 0.1 * rms / 1.1


def test_rprop_does_not_penalize_a_weight_that_it_leaves_where_it_is():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Rprop([parameter], lr=0.1)
    Regularizer(nn.ParameterList([parameter]), {"0": L1(0.5)}).attach(optimizer)
    parameter.grad = torch.tensor([2.0, 2.0, 0.0])
    optimizer.step()
    after = parameter.detach().clone()
    torch.testing.assert_close(after, torch.tensor([1 - 0.1 - 0.1 / 2 * 0.5] * 2 + [1 - 0.1 * 0.5]))
    parameter.grad = torch.tensor([-2.0, 2.0, 0.0])  # the first changes its sign
    optimizer.step()
    torch.testing.assert_close(parameter.detach() - after, -torch.tensor([0.0, 0.12 + 0.12 / 2 * 0.5, 0.1 * 0.5]))
    assert parameter[0] == after[0]


def test_half_precision_moments_are_computed_in_float32():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = Adam([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert eta_after(optimizer, parameter).dtype == torch.float32


@pytest.mark.parametrize("how", ["proximal", "decoupled"])
@pytest.mark.parametrize("penalty", [L1(0.3), L2(0.3)])
def test_a_learning_rate_that_is_a_narrow_tensor_is_read_as_its_number(how, penalty):
    lr = torch.tensor(0.1)
    found = []
    for given in (lr, float(lr)):
        model = nn.Linear(5, 4).double()
        torch.nn.init.ones_(model.weight)
        optimizer = SGD(model.parameters(), lr=given)
        Regularizer(model, penalty, how=how).attach(optimizer)
        model.weight.grad = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
        optimizer.step()
        found.append(model.weight.detach())
    assert torch.equal(*found)


# Loops by hand, for steps that are made with what they then change.


def adadelta(p):
    return Adadelta(p, lr=0.5, eps=1e-3)


def adafactor(p):
    return Adafactor(p, lr=0.05, weight_decay=0.0)


def asgd(p):
    return ASGD(p, lr=0.5, lambd=0.3, alpha=0.9)


def nothing(optimizer, w):
    return None


def adadelta_before(optimizer, w):
    return optimizer.state[w]["acc_delta"].clone() if w in optimizer.state else 0.0


def adadelta_eta(optimizer, w, acc_delta):
    return 0.5 * ((acc_delta + 1e-3) / (optimizer.state[w]["square_avg"] + 1e-3)).sqrt()


def asgd_before(optimizer, w):
    return float(optimizer.state[w]["eta"]) if w in optimizer.state else float(torch.tensor(0.5))


def adafactor_before(optimizer, w):
    return w.norm() / w.numel() ** 0.5


def adafactor_eta(optimizer, w, rms):
    state = optimizer.state[w]
    v = state["row_var"] @ state["col_var"] / state["row_var"].mean()
    clip = ((w.grad / v.sqrt()).norm() / w.numel() ** 0.5).clamp_min(1.0)
    return rms * min(0.05, float(state["step"]) ** -0.5) / clip / v.sqrt()


def adamax(p):
    return Adamax(p, lr=0.01)


def adamax_eta(optimizer, w, nothing):
    return 0.01 / optimizer.state[w]["exp_inf"]


BY_HAND = {
    "Adadelta": (adadelta, adadelta_before, adadelta_eta),
    "ASGD": (asgd, asgd_before, lambda optimizer, w, eta: eta),
    "Adafactor": (adafactor, adafactor_before, adafactor_eta),
    "Adamax": (adamax, nothing, adamax_eta),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("closure", [False, True])
def test_thresholds_are_those_of_a_loop_written_by_hand(name, closure):
    make, note, eta = BY_HAND[name]
    ours, hand = mlp(torch.float64), mlp(torch.float64)
    optimizer, hand_optimizer = make(ours.parameters()), make(hand.parameters())
    Regularizer(ours, L1(0.02)).attach(optimizer)
    train(ours, optimizer, 20, closure=closure)
    noted = {}

    def before():
        noted.update({w: note(hand_optimizer, w) for w in weights(hand)})

    def after():
        for w in weights(hand):
            soft_(w, 0.02 * eta(hand_optimizer, w, noted[w]))

    train(hand, hand_optimizer, 20, before=before, after=after)
    assert zeros(ours) > 3
    assert zeros(ours) == zeros(hand)
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (24,)], ids=str)
def test_chunks_are_penalized_as_the_whole_is(monkeypatch, case, shape):
    def run():
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        optimizer = case.make([parameter])
        Regularizer(nn.ParameterList([parameter]), {"0": L1(0.1)}).attach(optimizer)
        for _ in range(5):
            parameter.grad = torch.randn(shape, dtype=torch.float64)
            optimizer.step()
        return parameter.detach()

    whole = run()
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 5)
    torch.testing.assert_close(run(), whole, rtol=1e-13, atol=1e-15)


# torch refuses a learning rate that is a tensor in the foreach form of an optimizer.
@pytest.mark.parametrize("case", [case for case in OPTIMIZERS if "foreach" not in case.name], ids=str)
def test_a_learning_rate_that_is_a_tensor_is_its_number(case):
    found = []
    for rate_of in (float, lambda lr: torch.tensor(float(lr), dtype=torch.float64)):
        model = mlp(torch.float64)
        optimizer = case.make(model.parameters())
        optimizer.param_groups[0]["lr"] = rate_of(optimizer.param_groups[0]["lr"])
        Regularizer(model, L1(0.2)).attach(optimizer)
        train(model, optimizer, 20)
        found.append(model)
    assert zeros(found[0]) == zeros(found[1]) > 0
    for one, other in zip(*(model.parameters() for model in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [asgd, *(case.make for case in OPTIMIZERS)], ids=["ASGD lambd", *map(str, OPTIMIZERS)])
def test_each_group_has_its_own_learning_rate(make):
    together, apart = mlp(torch.float64), mlp(torch.float64)
    groups = [{"params": w, "lr": lr} for w, lr in zip(weights(together), (0.05, 0.7), strict=True)]
    optimizer = make(groups)
    Regularizer(together, L1(0.04)).attach(optimizer)
    train(together, optimizer, 6)
    for w, lr in zip(weights(apart), (0.05, 0.7), strict=True):
        each = make([w])
        each.param_groups[0]["lr"] = lr
        Regularizer(apart, L1(0.04)).attach(each)
        w.attached = each
    for batch in batches(6, torch.float64):
        apart.zero_grad()
        loss_of(apart, batch).backward()
        for w in weights(apart):
            w.attached.step()
    assert zeros(together) > 0
    assert equal(together, apart)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
def test_residuals_are_taken_in_the_metric_of_the_next_step(case):
    model = mlp(torch.float64)
    optimizer = case.make(weights(model))
    regularizer = Regularizer(model, L0(1e-4)).attach(optimizer)
    train(model, optimizer, 8)
    optimizer.zero_grad()
    (attachment,) = explicit_attachments[optimizer]
    (acting,) = by_regularizer([(optimizer, attachment)])
    steps = acting.steps()
    assert list(steps) == ["0.weight", "2.weight"]
    before = metric_of(optimizer).before
    for w, step in zip(weights(model), steps.values(), strict=True):
        with torch.no_grad():
            noted = before(optimizer.param_groups[0], optimizer.state[w], w) if before else {}
        expected = torch.as_tensor(eta_after(optimizer, w, noted=noted))
        assert torch.equal(torch.as_tensor(step), expected)
        assert expected.isfinite().all()
        assert (expected > 0).all()
    batch = batches(1, torch.float64)[0]
    assert all(each.max == each.max for each in regularizer.residuals(lambda: loss_of(model, batch)).penalized)


# Sparse gradients.


def embedding(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Embedding(7, 3, sparse=True, dtype=dtype)


def train_embedding(model, optimizer, after=lambda: None, count=30):
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        rows = torch.randint(7, (4,), generator=generator)
        optimizer.zero_grad()
        (model(rows) - 1).square().mean().backward()
        with torch.sparse.check_sparse_tensor_invariants():  # Adagrad warns where nothing is said about them
            optimizer.step()
        with torch.no_grad():
            after()


SPARSE = {
    "SGD": lambda p: SGD(p, lr=0.3),
    "SGD momentum": lambda p: SGD(p, lr=0.1, momentum=0.5),
    "Adagrad": lambda p: Adagrad(p, lr=0.3),
    "SparseAdam": lambda p: SparseAdam(p, lr=0.05),
}


def sparse_eta(name, optimizer, w):
    state = optimizer.state[w]
    if name.startswith("SGD"):
        return 0.3 if name == "SGD" else 0.1 * (1 / (1 - 0.5))
    if name == "Adagrad":
        return torch.where(state["sum"] == 0, 0.3, 0.3 / (state["sum"].sqrt() + 1e-10))
    moment = state["exp_avg_sq"]
    correction = 1 - 0.999 ** state["step"]
    return torch.where(moment == 0, 0.05, 0.05 * correction**0.5 / (moment.sqrt() + 1e-8))


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("how", ["proximal", "decoupled"])
@pytest.mark.parametrize("chunk", [1 << 18, 5])
def test_a_sparse_gradient_is_followed_by_a_penalty_of_all_rows(monkeypatch, name, how, chunk):
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", chunk)
    ours, hand = embedding(), embedding()
    optimizer, hand_optimizer = SPARSE[name](ours.parameters()), SPARSE[name](hand.parameters())
    Regularizer(ours, {"weight": L1(0.05)}, how=how).attach(optimizer)
    train_embedding(ours, optimizer)

    def after():
        eta = sparse_eta(name, hand_optimizer, hand.weight) if how == "proximal" else optimizer.param_groups[0]["lr"]
        soft_(hand.weight, 0.05 * eta)

    train_embedding(hand, hand_optimizer, after)
    torch.testing.assert_close(ours.weight, hand.weight, rtol=1e-12, atol=1e-15)
    assert not torch.equal(ours.weight, embedding().weight)


def test_a_group_lasso_of_an_embedding_zeroes_rows_that_help_nobody():
    model = embedding()
    optimizer = SparseAdam(model.parameters(), lr=0.05)
    Regularizer(model, {"weight": GroupLasso(0.3, Rows())}).attach(optimizer)
    train_embedding(model, optimizer, count=400)
    assert (model.weight == 0).all()


@pytest.mark.parametrize("make", [SPARSE["SGD momentum"], SPARSE["SparseAdam"]])
def test_zeros_of_an_embedding_are_held_by_the_gradient_of_all_rows(make):
    sparse, dense = embedding(), embedding()
    nn.init.zeros_(sparse.weight)
    nn.init.zeros_(dense.weight)
    dense.sparse = False
    optimizers = make(sparse.parameters()), SGD(dense.parameters(), lr=0.1, momentum=0.5)
    for model, optimizer in zip((sparse, dense), optimizers, strict=True):
        Regularizer(model, {"weight": L1(0.5)}, hold_zeros=0.9).attach(optimizer)
        train_embedding(model, optimizer)
    one, other = (explicit_attachments[optimizer][0].averages.state_dict()["weight"] for optimizer in optimizers)
    torch.testing.assert_close(one["weight"], other["weight"])
    if isinstance(optimizers[0], SGD):
        torch.testing.assert_close(one["total"], other["total"])
        assert torch.equal(sparse.weight, dense.weight)
    assert one["total"].layout == torch.strided
    assert (sparse.weight == 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.02),
        lambda p: SGD(p, lr=0.01, momentum=0.5),
        lambda p: SparseAdam(p, lr=0.005, betas=(0.9, 0.9)),
        lambda p: Adagrad(p, lr=0.3),
    ],
)
def test_rows_that_half_of_the_steps_touch_rest_where_the_mean_gradient_does(make):
    """Rows 0 to 4 in the even steps, 5 to 9 in the odd ones, each with twice its gradient: the lasso of all."""
    target = torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None]
    model = nn.Embedding(10, 1, sparse=True, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    optimizer = make(model.parameters())
    Regularizer(model, {"weight": L1(0.3)}).attach(optimizer)
    for step in range(800):
        rows = torch.arange(5) + 5 * (step % 2)
        optimizer.zero_grad()
        (model(rows) - target[rows]).square().sum().backward()
        with torch.sparse.check_sparse_tensor_invariants():
            optimizer.step()
    solution = target.sign() * (target.abs() - 0.3).clamp_min(0)
    assert torch.equal(model.weight == 0, solution == 0)
    assert (model.weight - solution).abs().max() < 0.01


# Optimizers without a metric, and those of other people.


class Unknown(Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        pass


def test_an_unknown_optimizer_is_refused_when_attaching_with_the_ways_out():
    model = nn.Linear(3, 2)
    with pytest.raises(MetricError) as caught:
        Regularizer(model, L1(0.1)).attach(Unknown(model.parameters()))
    for word in ("Unknown", 'how="decoupled"', 'how="gradient"', "register_metric(Unknown, ...)"):
        assert word in str(caught.value)
    for known in _metrics:
        assert known.__name__ in str(caught.value)


def test_every_optimizer_of_torch_has_a_metric_or_a_reason_why_not():
    classes = [made for made in vars(torch.optim).values() if isinstance(made, type) and issubclass(made, Optimizer)]
    assert len(classes) >= 16
    for optimizer_class in classes:
        if optimizer_class is not Optimizer:
            parameter = nn.Parameter(torch.zeros(2, 2))
            optimizer = optimizer_class([parameter], lr=0.1)
            if optimizer_class in (LBFGS, Muon):
                with pytest.raises(MetricError, match=f"{optimizer_class.__name__} has none: it moves"):
                    metric_of(optimizer)
            else:
                assert metric_of(optimizer) is _metrics[optimizer_class]


@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1)])
def test_lbfgs_takes_the_gradient_alone(penalty):
    model = nn.Linear(3, 2)
    optimizer = LBFGS(model.parameters())
    with pytest.raises(MetricError, match=r'LBFGS.*curvature.*how="gradient"') as caught:
        Regularizer(model, penalty, how="decoupled").attach(optimizer)
    assert "'weight'" in str(caught.value)
    with pytest.raises(MetricError, match=r'LBFGS.*curvature.*how="gradient"') as caught:
        Regularizer(model, penalty).attach(optimizer)
    assert "decoupled" not in str(caught.value)
    assert not optimizer._optimizer_step_pre_hooks
    Regularizer(model, penalty, how="gradient").attach(optimizer)


def test_muon_takes_its_own_decay_as_decoupled_l2_and_refuses_the_prox():
    ours, theirs = mlp(), mlp()
    optimizer = Muon(weights(ours), lr=0.1, weight_decay=0.0)
    with pytest.raises(MetricError, match=r'Muon.*orthogonal.*how="decoupled".*how="gradient"'):
        Regularizer(ours, L1(0.1)).attach(optimizer)
    Regularizer(ours, L2(0.2), how="decoupled").attach(optimizer)
    train(ours, optimizer)
    train(theirs, Muon(weights(theirs), lr=0.1, weight_decay=0.2))
    assert equal(ours, theirs)


class Inherits(Adam):
    pass


class Overrides(Adam):
    def step(self, closure=None):
        return super().step(closure)


class MixesIn(dict, SGD):
    pass


def test_a_subclass_has_its_parents_metric_only_with_its_parents_step():
    layer = nn.Linear(2, 2)
    assert metric_of(Inherits(layer.parameters())) is metric_of(Adam(layer.parameters()))
    assert metric_of(AdamW(layer.parameters())) is _metrics[AdamW]
    with pytest.raises(MetricError, match="Overrides"):
        metric_of(Overrides(layer.parameters()))


def test_a_metric_can_be_registered():
    model = nn.Linear(2, 2)
    optimizer = Overrides(model.parameters())
    register_metric(Overrides, lambda group, state, parameter: group["lr"])
    assert eta_after(optimizer, model.weight) == 1e-3
    Regularizer(model, L1(0.1)).attach(optimizer)
    with pytest.raises(TypeError, match=r"expected a subclass of torch\.optim\.Optimizer, got"):
        register_metric(nn.Linear, lambda group, state, parameter: 1.0)
