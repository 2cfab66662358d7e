"""Rules in two stages: a penalty until an update, then frozen zeros, and what is penalized after."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW

from late import linear_model
from models import batches, equal, loss_of, mlp, train, weights, zeros
from problems import diabetes_lasso
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    Budget,
    Columns,
    Coupled,
    ElasticNet,
    GroupError,
    GroupLasso,
    Member,
    Ramp,
    Regularizer,
    Rows,
    Rule,
    SelectionError,
    TopK,
    Toward,
    freeze_zeros,
)
from shrinkage.training.prepared import Prepared

N = 6
MAKERS = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
}
PENALTIES = {"L1": L1(0.05), "rows": GroupLasso(0.02, Rows()), "ramp": L1(Ramp(0.05, 4)), "density": TopK(0.5)}


def trained(make, rule, steps, **options):
    model = mlp()
    optimizer = make(model.parameters())
    regularizer = Regularizer(model, rule, **options).attach(optimizer)
    train(model, optimizer, steps)
    return model, optimizer, regularizer


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("options", [{}, {"compile": False}, {"hold_zeros": 0.9}], ids=["usual", "plain", "held"])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_it_is_one_regularizer_after_the_other(make, penalty, options, closure):
    model, optimizer, _ = trained(make, Rule(penalty, until=N), N, **options)
    other, by_hand, first = trained(make, Rule(penalty), N, **options)
    assert equal(model, other)
    assert zeros(model) > 0
    first.detach()
    groups = penalty.zero_groups
    freeze_zeros(other, groups).attach(by_hand)
    train(model, optimizer, batches(2 * N)[N:], closure=closure)
    train(other, by_hand, batches(2 * N)[N:], closure=closure)
    assert equal(model, other)


@pytest.mark.parametrize("how", ["proximal", "gradient", "decoupled"])
def test_what_comes_after_is_penalized_and_zeros_stay(how):
    """Against a loop that masks by hand, around a regularizer of what comes after."""
    model, optimizer, _ = trained(MAKERS["AdamW"], Rule(L1(0.05), until=N), N)
    other, by_hand = copy.deepcopy((model, optimizer))
    optimizer = AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    by_hand = AdamW(other.parameters(), lr=0.05, weight_decay=0.1)
    masks = [w == 0 for w in weights(other)]
    Regularizer(model, Rule(L1(0.5), how=how, until=0, after=ElasticNet(0.02, 0.1))).attach(optimizer)
    Regularizer(other, ElasticNet(0.02, 0.1), how=how).attach(by_hand)

    @torch.no_grad()
    def clear():
        for w, mask in zip(weights(other), masks, strict=True):
            w.grad[mask] = 0.0

    @torch.no_grad()
    def restore():
        for w, mask in zip(weights(other), masks, strict=True):
            w[mask] = 0.0
            mask |= w == 0

    train(model, optimizer, 8)
    train(other, by_hand, 8, before=clear, after=restore)
    assert equal(model, other)
    assert all(bool((w == 0)[mask].all()) for w, mask in zip(weights(model), masks, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_relaxed_lasso(share):
    """Meinshausen's: the lasso of a smaller strength on the weights that the larger one leaves; at 0, least squares."""
    problem = diabetes_lasso()
    support = (problem.solution != 0)[0]
    x, y = problem.x[:, support].numpy(), problem.y[:, 0].numpy()
    lasso = linear_model.Lasso(alpha=share * problem.strength, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
    solver = lasso if share else linear_model.LinearRegression(fit_intercept=False)
    exact = torch.tensor(solver.fit(x, y).coef_)
    model = problem.model()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    after = L1(share * problem.strength) if share else None
    Regularizer(model, Rule(L1(problem.strength), until=1500, after=after)).attach(optimizer)
    for _ in range(3500):
        optimizer.zero_grad()
        problem.loss(model).backward()
        optimizer.step()
    w = model.weight.detach()[0]
    assert torch.equal(w != 0, support)
    assert float((w[support] - exact).abs().max()) <= 1e-10


@pytest.mark.parametrize("stop", [N - 1, N, N + 1])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("penalty", [L1(0.05), GroupLasso(0.02, Rows())], ids=str)
def test_a_run_resumes_bit_for_bit(make, penalty, stop):
    rule = Rule(penalty, until=N, after=L1(0.01))
    whole, _, _ = trained(make, rule, 2 * N, hold_zeros=0.9)
    model, optimizer, _ = trained(make, rule, stop, hold_zeros=0.9)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights_of, state = torch.load(file, weights_only=True)
    again = mlp()
    again.load_state_dict(weights_of)
    other = make(again.parameters())
    Regularizer(again, rule, hold_zeros=0.9).attach(other)
    other.load_state_dict(state)
    train(again, other, batches(2 * N)[stop:])
    assert equal(again, whole)


def test_usual_steps_are_prepared_until_then(monkeypatch):
    steps = []
    original = Prepared.after
    monkeypatch.setattr(Prepared, "after", lambda self: (steps.append(1), original(self))[1])
    trained(MAKERS["SGD"], Rule(L1(0.05), until=N), 2 * N)
    if steps:  # there are native kernels here
        assert len(steps) == N - 1


def test_schedules_are_not_asked_any_more():
    seen = []
    trained(MAKERS["SGD"], Rule(L1(lambda update: seen.append(update) or 0.01), until=3), 6)
    assert seen == [0, 1, 2]


def test_what_comes_after_has_schedules():
    seen = []
    after = L1(lambda update: seen.append(update) or 0.01)
    trained(MAKERS["SGD"], Rule(L1(0.1), until=0, after=after), 3)
    assert seen == [0, 1, 2]


def test_rules_differ():
    """One rule may be over while the others go on."""
    model, optimizer, regularizer = trained(
        MAKERS["SGD"], [Rule(L1(0.05), "0.weight", until=3), Rule(L1(0.05), "2.weight")], 3
    )
    mask = (model[0].weight == 0).clone()
    train(model, optimizer, 10)
    assert torch.equal(model[0].weight == 0, mask)
    assert regularizer.value() == pytest.approx(0.05 * float(model[2].weight.detach().abs().sum()))


def test_every_prox_comes_before_the_end():
    model, optimizer, _ = trained(MAKERS["SGD"], Rule(L1(0.05), every=3, until=6), 6)
    mask = [w == 0 for w in weights(model)]
    assert any(bool(each.any()) for each in mask)
    train(model, optimizer, 4)
    assert all(torch.equal(w == 0, each) for w, each in zip(weights(model), mask, strict=True))


def test_an_update_that_is_skipped_is_not_counted():
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.05, fused=True)
    Regularizer(model, Rule(L1(0.05), until=3)).attach(optimizer)
    scaler = GradScaler("cpu", init_scale=64.0)
    counts = []
    for index, batch in enumerate(batches(8)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch) * (float("inf") if index == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        counts.append(zeros(model))
    other = mlp()
    plain = Adam(other.parameters(), lr=0.05, fused=True)
    Regularizer(other, Rule(L1(0.05), until=3)).attach(plain)
    for index, batch in enumerate(batches(8)):
        if index != 1:
            train(other, plain, [batch])
    assert equal(model, other)
    assert len(set(counts[3:])) == 1


def test_coupled_groups_have_a_second_stage():
    coupled = Coupled([Member("0.weight", 0, range(8)), Member("0.bias", 0, range(8)), Member("2.weight", 1, range(8))])
    for after in (None, GroupLasso(0.001, coupled), L1(0.001)):
        model, optimizer, regularizer = trained(
            MAKERS["SGD"], Rule(GroupLasso(0.01, coupled), until=20, after=after), 20
        )
        gone = (model[0].weight == 0).all(1)
        assert 0 < int(gone.sum()) < 8
        train(model, optimizer, 5)
        for part in ((model[0].weight == 0).all(1), model[0].bias == 0, (model[2].weight == 0).all(0)):
            assert bool(part[gone].all())
        assert float(regularizer.value()) == 0 if after is None else float(regularizer.value()) > 0


def test_weights_at_a_reference_stay_there():
    model = mlp()
    reference = {name: w.detach().clone() for name, w in model.named_parameters()}
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, Rule(Toward(L1(0.1), reference), until=2)).attach(optimizer)
    train(model, optimizer, 2)
    mask = model[0].weight == reference["0.weight"]
    assert 0 < int(mask.sum()) < mask.numel()
    train(model, optimizer, 5)
    assert torch.equal(model[0].weight == reference["0.weight"], mask)


def test_residuals_leave_frozen_zeros_alone():
    problem = diabetes_lasso()
    model = problem.model()
    model.weight.data.copy_(problem.solution)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    regularizer = Regularizer(model, Rule(L1(problem.strength), until=0)).attach(optimizer)
    before = regularizer.residuals(lambda: problem.loss(model))
    assert not before.solved
    assert before.worst.max == pytest.approx(problem.strength, rel=1e-6)  # what the lasso's weights are biased by
    for _ in range(3000):
        optimizer.zero_grad()
        problem.loss(model).backward()
        optimizer.step()
    assert regularizer.residuals(lambda: problem.loss(model), tolerance=1e-9).solved


def test_what_a_plan_prints():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    rules = [Rule(L1(0.1), "0.weight", until=8000, after=L1(0.01)), Rule(L1(0.1), "1.weight", every=2, until=10)]
    assert [line.split("  ")[-1].strip() for line in str(Regularizer(model, rules).plan).splitlines()[2:4]] == [
        "proximal, until 8000, then L1 0.01",
        "proximal, every 2 steps, until 10",
    ]


def test_rules_are_values():
    rule = Rule(L1(0.1), "*", until=5, after=L1(0.01))
    assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule
    assert rule != Rule(L1(0.1), "*", until=5)
    assert rule != Rule(L1(0.1), "*", until=6, after=L1(0.01))


def test_what_cannot_be_a_second_stage():
    for until in (-1, 2.5, True, "end"):
        with pytest.raises(ValueError, match="until must be an update, a whole number >= 0"):
            Rule(L1(0.1), until=until)
    with pytest.raises(ValueError, match="needs until="):
        Rule(L1(0.1), after=L1(0.01))
    with pytest.raises(ValueError, match="needs a penalty that makes zeros; freeze_zeros"):
        Rule(None, until=5)
    with pytest.raises(ValueError, match="until=10 is no multiple of every=4"):
        Rule(L1(0.1), every=4, until=10)
    with pytest.raises(TypeError, match="after: expected a penalty"):
        Rule(L1(0.1), until=5, after=0.01)
    with pytest.raises(ValueError, match="cannot be applied with how"):
        Rule(L1(0.1), how="gradient", until=5, after=TopK(0.5))
    with pytest.raises(ValueError, match="takes its reference from the model"):
        Rule(L1(0.1), until=5, after=Toward(L2(0.1)))
    coupled = Coupled([Member("0.weight", 0, range(8)), Member("0.bias", 0, range(8))])
    with pytest.raises(ValueError, match="needs the same groups"):
        Rule(L1(0.1), until=5, after=GroupLasso(0.1, coupled))
    with pytest.raises(ValueError, match="until=5 does not go with a Budget"):
        Rule(Budget(zeros=0.5, updates=100), until=5)
    with pytest.raises(TypeError, match="a Budget stands alone"):
        Rule(L1(0.1), until=5, after=Budget(zeros=0.5, updates=100))
    with pytest.raises(GroupError, match=r"'0\.bias'"):
        Regularizer(mlp(), Rule(L1(0.1), "0.bias", until=5, after=GroupLasso(0.1, Columns())))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(SelectionError, match="two rules clash on it"):
        Regularizer(tied, [Rule(L1(0.1), "0.weight", until=5), Rule(L1(0.1), "1.weight", until=6)])


def test_a_graph_would_repeat_the_first_stage(monkeypatch):
    monkeypatch.setattr("shrinkage.training.checks_before_step.is_captured", lambda parameter: True)
    with pytest.raises(AttachmentError, match="until=5, and a CUDA graph"):
        trained(MAKERS["SGD"], Rule(L1(0.1), until=5), 1)
    trained(MAKERS["SGD"], Rule(L1(0.1), until=0), 1)
