"""Other people's optimizers, registered as the guide says: the guide's code runs, and gives the solution."""

import re
from pathlib import Path

import pytest
import torch
from pytorch_optimizer import ADOPT, AggMo, DAdaptAdam, Prodigy, ScheduleFreeAdamW
from schedulefree import AdamWScheduleFree, AdamWScheduleFreeClosure, SGDScheduleFree
from torch import nn
from torch.optim import SGD, Optimizer

from catalog import OptimizerCase
from late import transformers
from models import batches, equal, loss_of, mlp, soft_, train, train_step, weights
from problems import diabetes_lasso, digits_group_lasso, solve
from shrinkage import L1, L2, Columns, GroupLasso, MetricError, Regularizer, Rule, regularize
from shrinkage.optimizers.adaptive_step import number
from shrinkage.optimizers.registry import _metrics, metric_of
from shrinkage.training.acting import by_regularizer
from shrinkage.training.attachment import explicit_attachments

GUIDE = (Path(__file__).parents[2] / "docs/optimizers.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def names():
    """What the guide's code defines, after all of it has run; what it registers is known in this file only."""
    torch.manual_seed(0)
    found, known = {}, dict(_metrics)
    for code in CODE:
        exec(code, found)
    yield found
    _metrics.clear()
    _metrics.update(known)


def test_the_guides_example_ends_with_exact_zeros(names):
    model = names["model"]
    last = names["optimizer"].state[model.weight]["z"]
    assert torch.equal(model.weight == 0, last == 0)
    assert (model.weight[:, 10:] == 0).sum() > 50
    assert (model.weight[:, :10].diagonal() > 0.1).all()


def test_the_guide_names_every_optimizer_of_torch():
    for made in vars(torch.optim).values():
        if isinstance(made, type) and issubclass(made, Optimizer) and made is not Optimizer:
            assert f"`{made.__name__}`" in GUIDE


SCHEDULE_FREE = [
    OptimizerCase("SGD", lambda p: SGDScheduleFree(p, lr=0.3, r=20.0), 800),
    OptimizerCase("SGD warm-up", lambda p: SGDScheduleFree(p, lr=0.3, r=20.0, warmup_steps=20, foreach=False), 800),
    OptimizerCase("AdamW", lambda p: AdamWScheduleFree(p, lr=0.03, r=20.0), 800),
    OptimizerCase("AdamW for-loop", lambda p: AdamWScheduleFree(p, lr=0.03, r=20.0, foreach=False), 800),
]


def solve_schedule_free(problem, penalty, make, iterations):
    """The average, with the zeros of the last iterate; and that iterate."""
    model = problem.model()
    optimizer = make(model.parameters())
    optimizer.train()
    Regularizer(model, penalty).attach(optimizer)
    for _ in range(iterations):
        train_step(optimizer, problem.loss(model))
    optimizer.eval()
    last = optimizer.state[model.weight]["z"]
    return torch.where(last == 0, 0.0, model.weight.detach()), last


@pytest.mark.parametrize("case", SCHEDULE_FREE, ids=str)
def test_the_lasso_of_schedule_free_is_scikit_learns(case):
    problem = diabetes_lasso()
    for found in solve_schedule_free(problem, L1(problem.strength), case.make, case.iterations):
        assert torch.equal(found != 0, problem.solution != 0)
        assert (found - problem.solution).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "make", [lambda p: SGDScheduleFree(p, lr=1.0, r=20.0), lambda p: AdamWScheduleFree(p, lr=0.05, r=20.0)]
)
def test_the_group_lasso_of_schedule_free_is_scikit_learns(make):
    problem = digits_group_lasso(0.5)
    penalty = GroupLasso(problem.strength, Columns(), weigh_by_size=False)
    for found in solve_schedule_free(problem, penalty, make, 600):
        assert torch.equal(found != 0, problem.solution != 0)
        assert (found - problem.solution).abs().max() <= 1e-9


@pytest.mark.parametrize("foreach", [False, True])
def test_schedule_free_with_a_prox_is_the_papers_loop_with_a_prox(foreach):
    """Defazio et al. (2024), "The road less scheduled", eqs. 3 to 5, with a soft threshold after the step of z."""
    ours, hand = mlp(torch.float64), mlp(torch.float64)
    optimizer = SGDScheduleFree(ours.parameters(), lr=0.2, momentum=0.8, foreach=foreach)
    optimizer.train()
    Regularizer(ours, L1(0.05)).attach(optimizer)
    train(ours, optimizer, 15)
    last = {p: p.detach().clone() for p in hand.parameters()}
    average = {p: p.detach().clone() for p in hand.parameters()}
    for t, batch in enumerate(batches(15, torch.float64), start=1):
        hand.zero_grad()
        loss_of(hand, batch).backward()
        with torch.no_grad():
            for p in hand.parameters():
                last[p] -= 0.2 * p.grad
                if p.dim() == 2:
                    soft_(last[p], 0.2 * 0.05)
                average[p] += (last[p] - average[p]) / t
                p.copy_(0.2 * last[p] + 0.8 * average[p])
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(optimizer.state[one]["z"], last[other], rtol=1e-11, atol=1e-13)
        assert torch.equal(optimizer.state[one]["z"] == 0, last[other] == 0)
    optimizer.eval()
    for one, other in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), average[other], rtol=1e-10, atol=1e-12)
    assert sum(int((last[w] == 0).sum()) for w in weights(hand)) > 3


def test_zeros_of_schedule_free_stay_in_all_that_it_keeps():
    model = mlp()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.05, weight_decay=0.1)
    optimizer.train()
    Regularizer(model, Rule(L1(0.1), until=10)).attach(optimizer)
    train(model, optimizer, 10)
    masks = [optimizer.state[w]["z"] == 0 for w in weights(model)]
    assert any(bool(mask.any()) for mask in masks)
    train(model, optimizer, 10)
    for w, mask in zip(weights(model), masks, strict=True):
        assert torch.equal(optimizer.state[w]["z"] == 0, mask)
        assert torch.equal(w == 0, mask)
    optimizer.eval()
    assert all(torch.equal(w == 0, mask) for w, mask in zip(weights(model), masks, strict=True))


@pytest.mark.parametrize("hold_zeros", [None, 0.99])
def test_zeros_of_schedule_free_are_held_where_gradients_move_it(hold_zeros):
    model = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    optimizer = SGDScheduleFree(model.parameters(), lr=0.1)
    optimizer.train()
    Regularizer(model, L1(0.3), hold_zeros=hold_zeros).attach(optimizer)
    nn.init.constant_(model.weight, 0.05)
    held = []
    for step in range(60):  # no gradient, and then one that is 2 half of the time and 0 on average
        size = 0.0 if step < 30 else 2.0
        model.weight.grad = torch.full_like(model.weight, size if step % 2 else -size)
        optimizer.step()
        if step > 1:
            held.append(bool((optimizer.state[model.weight]["z"] == 0).all()))
            assert (model.weight != 0).all()  # the average remembers
    assert all(held) == (hold_zeros is not None)
    assert all(held[:28])


@pytest.mark.parametrize("make", [SGDScheduleFree, AdamWScheduleFree])
def test_a_smooth_decay_of_schedule_free_is_refused_and_another_acts_on_what_gradients_move(make):
    model = nn.Linear(6, 3, bias=False)
    optimizer = make(model.parameters(), lr=0.1)
    optimizer.train()
    with pytest.raises(MetricError, match=r"decoupled.*'weight'.*ScheduleFree moves another tensor.*proximal"):
        Regularizer(model, L2(0.1), how="decoupled").attach(optimizer)
    Regularizer(model, L1(0.5), how="decoupled").attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    expected = model.weight.detach().clone()
    soft_(expected, 0.1 * 0.5)
    optimizer.step()
    assert torch.equal(optimizer.state[model.weight]["z"], expected)
    torch.testing.assert_close(model.weight.detach(), expected)  # the first z is all of the average


@pytest.mark.parametrize("foreach", [False, True])
def test_a_decoupled_penalty_of_schedule_free_warms_up_with_it(foreach):
    model = nn.Linear(6, 3, bias=False)
    optimizer = SGDScheduleFree(model.parameters(), lr=0.1, warmup_steps=4, foreach=foreach)
    optimizer.train()
    Regularizer(model, L1(0.5), how="decoupled").attach(optimizer)
    expected = model.weight.detach().clone()
    for step in range(1, 7):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        soft_(expected, 0.1 * min(step / 4, 1) * 0.5)
        torch.testing.assert_close(optimizer.state[model.weight]["z"], expected)
    assert (expected == 0).any()


def test_decoupled_l2_is_prodigys_weight_decay_bit_for_bit_once_d_has_settled():
    ours, theirs = mlp(), mlp()
    settled = {"lr": 0.5, "d0": 0.1, "growth_rate": 1.0}
    optimizer = Prodigy(weights(ours), **settled)
    Regularizer(ours, L2(0.2), how="decoupled").attach(optimizer)
    train(ours, optimizer, 10)
    train(theirs, Prodigy(weights(theirs), weight_decay=0.2, weight_decouple=True, **settled), 10)
    assert equal(ours, theirs)


def test_decoupled_l1_shrinks_by_the_rate_that_prodigy_has_learned():
    model, plain = mlp(), mlp()
    settled = {"lr": 0.5, "d0": 0.1, "growth_rate": 1.0}
    optimizer = Prodigy(weights(model), **settled)
    Regularizer(model, L1(0.2), how="decoupled").attach(optimizer)
    train(model, optimizer, 1)
    train(plain, Prodigy(weights(plain), **settled), 1)
    for w, expected in zip(weights(model), weights(plain), strict=True):
        soft_(expected.detach(), 0.1 * 0.5 * 0.2)
        torch.testing.assert_close(w, expected)


def adafactor(parameters, **options):
    return transformers.Adafactor(parameters, **options)


OTHER_RATES = [
    (DAdaptAdam, {}, "d"),
    (ScheduleFreeAdamW, {"warmup_steps": 4}, "lr_max"),
    (AdamWScheduleFreeClosure, {"warmup_steps": 4}, "scheduled_lr"),
    (adafactor, {}, "relative_step"),
    (adafactor, {"lr": 1e-3, "relative_step": False}, "scale_parameter"),
]


@pytest.mark.parametrize("how", ["decoupled", "proximal"])
@pytest.mark.parametrize("declare", [True, False])
@pytest.mark.parametrize(("make", "options", "told_by"), OTHER_RATES)
def test_a_penalty_times_lr_is_refused_and_not_advised_where_an_optimizer_steps_by_another(
    make, options, told_by, declare, how
):
    layer = nn.Linear(3, 2)
    optimizer = make(layer.parameters(), **options)
    expected = rf"steps '?weight.* by another one .* as '{told_by}' in the group says.*, \.\.\., lr=\.\.\.\)"
    regularizer = Regularizer(layer, L1(0.1), how=how)
    if declare:
        regularize(layer, L1(0.1), how=how)
    with pytest.raises(MetricError, match=expected if how == "decoupled" else 'choose how="gradient"'):
        optimizer.step() if declare else regularizer.attach(optimizer)


def test_a_penalty_times_lr_takes_optimizers_that_step_by_it():
    layer = nn.Linear(3, 2)
    for optimizer in (
        transformers.Adafactor(layer.parameters(), lr=1e-3, relative_step=False, scale_parameter=False),
        SGD([{"params": layer.parameters(), "d": "an option of the user's own"}], lr=0.1),
    ):
        Regularizer(layer, L1(0.1), how="decoupled").attach(optimizer)


OTHERS = [
    OptimizerCase("AggMo", lambda p: AggMo(p, lr=0.1, betas=(0.0, 0.9, 0.95)), 800),
    OptimizerCase("AggMo for-loop", lambda p: AggMo(p, lr=0.1, betas=(0.0, 0.9, 0.95), foreach=False), 800),
    OptimizerCase("ADOPT", lambda p: ADOPT(p, lr=0.02, betas=(0.9, 0.95)), 800),
    OptimizerCase("Prodigy", lambda p: Prodigy(p, lr=0.1, d0=0.1, growth_rate=1.0), 1500),
    OptimizerCase("ADOPT for-loop", lambda p: ADOPT(p, lr=0.02, betas=(0.9, 0.95), foreach=False), 800),
]


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_the_lasso_of_pytorch_optimizers_is_scikit_learns(case):
    problem = diabetes_lasso()
    found = solve(problem, L1(problem.strength), case.make, case.iterations)
    assert torch.equal(found != 0, problem.solution != 0)
    assert (found - problem.solution).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "make", [lambda p: AggMo(p, lr=0.3, betas=(0.0, 0.9)), lambda p: ADOPT(p, lr=0.05, betas=(0.9, 0.95))]
)
def test_the_group_lasso_of_pytorch_optimizers_is_scikit_learns(make):
    problem = digits_group_lasso(0.5)
    found = solve(problem, GroupLasso(problem.strength, Columns(), weigh_by_size=False), make, 600)
    assert torch.equal(found != 0, problem.solution != 0)
    assert (found - problem.solution).abs().max() <= 1e-9


@pytest.mark.parametrize("foreach", [False, True])
def test_adopt_divides_by_the_second_moment_of_before(foreach):
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = ADOPT([parameter], lr=0.1, betas=(0.0, 0.9), clip_lambda=None, foreach=foreach)
    metric = metric_of(optimizer)
    for _ in range(6):
        group, before = optimizer.param_groups[0], parameter.detach().clone()
        with torch.no_grad():
            noted = metric.before(group, optimizer.state.get(parameter, {}), parameter)
        parameter.grad = torch.randn(4, dtype=torch.float64)
        optimizer.step()
        eta = number(metric.eta(group, {**optimizer.state[parameter], **noted}, parameter))
        torch.testing.assert_close(before - parameter.detach(), eta * parameter.grad, rtol=1e-12, atol=1e-14)


def test_residuals_know_the_metric_of_registered_optimizers():
    model = mlp()
    optimizer = ADOPT(model.parameters(), lr=0.01)
    Regularizer(model, L1(0.01)).attach(optimizer)
    train(model, optimizer, 4)
    (attachment,) = explicit_attachments[optimizer]
    (acting,) = by_regularizer([(optimizer, attachment)])
    moment = optimizer.state[model[0].weight]["exp_avg_sq"]
    expected = 0.01 / moment.sqrt().clamp(min=optimizer.param_groups[0]["eps"])
    torch.testing.assert_close(acting.steps()["0.weight"], expected)


@pytest.mark.parametrize("make", [AggMo, ADOPT])
@pytest.mark.parametrize("how", ["gradient", "proximal"])
def test_an_optimizer_that_climbs_as_a_whole_is_penalized_as_one_that_descends(make, how):
    models = []
    for sign in (1, -1):
        model = mlp(torch.float64)
        optimizer = make(model.parameters(), lr=0.05, maximize=sign < 0, foreach=False)
        Regularizer(model, L1(0.02), how=how).attach(optimizer)
        for batch in batches(5, torch.float64):
            train_step(optimizer, sign * loss_of(model, batch))
        models.append(model)
    assert equal(*models)


def test_an_unknown_optimizer_is_told_from_one_of_torch_that_has_its_name():
    optimizer = transformers.Adafactor(nn.Linear(3, 2).parameters())
    with pytest.raises(MetricError) as caught:
        metric_of(optimizer)
    message = str(caught.value)
    assert "metric that transformers.optimization.Adafactor steps in" in message
    assert "Adadelta, Adafactor, Adagrad" in message
    assert "pytorch_optimizer.optimizer.aggmo.AggMo" in message
