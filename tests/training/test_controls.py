"""Strengths that find themselves: bounds with a multiplier, and decay that follows the learning rate."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW

from models import batches, equal, loss_of, mlp, train
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    Activities,
    AttachmentError,
    Bound,
    Corrected,
    Coupled,
    ElasticNet,
    GroupLasso,
    L1Ball,
    Member,
    MetricError,
    Regularizer,
    Rows,
    Rule,
    TopK,
    regularize,
)
from shrinkage.penalties.controls import Seen

LIMIT = 6.0


def regression():
    """The second moments of 200 examples of 20 features, of which five matter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    truth = torch.zeros(20, dtype=torch.float64)
    truth[:5] = torch.tensor([3.0, -2.0, 1.5, 1.0, -1.0])
    y = x @ truth + 0.5 * torch.randn(200, generator=generator, dtype=torch.float64)
    return x.T @ x / 200, x.T @ y / 200


def solved(make, penalty, count, **options):
    """A linear model trained on the regression."""
    squares, products = regression()
    torch.manual_seed(1)
    model = nn.Linear(20, 1, bias=False, dtype=torch.float64)
    optimizer = make(model.parameters())
    regularizer = Regularizer(model, penalty, **options).attach(optimizer)
    for _ in range(count):
        model.weight.grad = model.weight.detach() @ squares - products
        optimizer.step()
    return model.weight.detach(), regularizer


def strength_of(regularizer, name="weight"):
    """The strength that was found."""
    return regularizer.plan.penalties()[name].strength


MAKERS = {"SGD": lambda p: SGD(p, lr=0.1), "Adam": lambda p: Adam(p, lr=0.02)}


@pytest.mark.parametrize(
    ("make", "rate", "count"),
    [
        (MAKERS["SGD"], 0.02, 800),
        pytest.param(MAKERS["SGD"], None, 2000, marks=pytest.mark.slow),
        pytest.param(MAKERS["Adam"], 0.01, 2500, marks=pytest.mark.slow),
        pytest.param(MAKERS["Adam"], None, 2500, marks=pytest.mark.slow),
    ],
)
def test_a_bound_ends_in_the_ball_and_tells_the_strength(make, rate, count):
    weight, regularizer = solved(make, L1(Bound(LIMIT, rate=rate)), count)
    inside, _ = solved(make, L1Ball(LIMIT), count)
    torch.testing.assert_close(weight, inside, rtol=0, atol=1e-12)
    assert abs(float(weight.abs().sum()) - LIMIT) < 1e-12
    squares, products = regression()
    slope = (weight @ squares - products)[weight != 0]  # -strength * sign where a weight is not 0
    torch.testing.assert_close(slope.abs(), torch.full_like(slope, strength_of(regularizer)), rtol=0, atol=1e-10)
    assert 0 < int((weight == 0).sum()) < 20


def test_a_bound_that_holds_anyway_does_nothing():
    weight, regularizer = solved(MAKERS["SGD"], L1(Bound(100.0)), 100)
    free, _ = solved(MAKERS["SGD"], L1(0.0), 100)
    assert torch.equal(weight, free)
    assert strength_of(regularizer) == 0


@pytest.mark.parametrize(
    ("penalty", "how", "value"),
    [
        (lambda s: L2(s), "gradient", lambda w: w.square().sum() / 2),
        (lambda s: L2(s), "decoupled", lambda w: w.square().sum() / 2),
        (lambda s: GroupLasso(s, Rows()), "proximal", lambda w: (w.norm(dim=1) * w.shape[1] ** 0.5).sum()),
        (lambda s: ElasticNet(s, 0.1), "proximal", lambda w: w.abs().sum()),
        (lambda s: L1(s) * 2, "proximal", lambda w: 2 * w.abs().sum()),
    ],
)
def test_any_penalty_and_way_reaches_its_limit(penalty, how, value):
    weight, _ = solved(MAKERS["SGD"], penalty(Bound(2.0)), 600, how=how)
    assert float(value(weight)) == pytest.approx(2.0, abs=1e-2)


def test_the_first_steps_are_those_of_the_formula():
    """One multiplier for both parameters: it sees their sum before each update."""
    make, limit, rate = (lambda p: SGD(p, lr=0.1)), 1.5, 0.003
    ours, by_hand = mlp(torch.float64), mlp(torch.float64)
    optimizer, plain = make(ours.parameters()), make(by_hand.parameters())
    regularizer = Regularizer(ours, L1(Bound(limit, rate=rate))).attach(optimizer)
    multiplier, last = 0.0, 0.0
    for batch in batches(20, torch.float64):
        excess = sum(float(by_hand[i].weight.detach().abs().sum()) for i in (0, 2)) - limit
        multiplier = max(0.0, multiplier + rate * (min(excess, 0.1 * limit) if 0 < excess < 0.975 * last else excess))
        strength, last = max(0.0, multiplier + 20 * rate * excess), excess
        for model, each in ((ours, optimizer), (by_hand, plain)):
            each.zero_grad()
            loss_of(model, batch).backward()
            each.step()
        with torch.no_grad():
            for i in (0, 2):
                w = by_hand[i].weight
                w.copy_(w.sign() * (w.abs() - 0.1 * strength).clamp(min=0))
        torch.testing.assert_close(ours[0].weight, by_hand[0].weight, rtol=0, atol=1e-14)
    assert strength_of(regularizer, "0.weight") == strength_of(regularizer, "2.weight") == pytest.approx(strength)


def test_groups_that_span_layers_are_measured_as_a_whole():
    """A hidden unit is a row of the first weight and a column of the second, 9 elements together."""
    limit, rate = 9.0, 0.002
    model = mlp(torch.float64)
    units = Coupled([Member("0.weight", 0, range(8)), Member("2.weight", 1, range(8))])
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, [Rule(GroupLasso(Bound(limit, rate=rate), units))]).attach(optimizer)
    multiplier, last = 0.0, 0.0

    def measured():
        rows, columns = model[0].weight.detach(), model[2].weight.detach()
        return 3 * float((rows.square().sum(1) + columns.square().sum(0)).sqrt().sum())

    for batch in batches(30, torch.float64):
        excess = measured() - limit
        multiplier = max(0.0, multiplier + rate * (min(excess, 0.1 * limit) if 0 < excess < 0.975 * last else excess))
        strength, last = max(0.0, multiplier + 20 * rate * excess), excess
        train(model, optimizer, [batch])
        found = regularizer.plan.penalties()["0.weight"].penalty.strength
        assert found == pytest.approx(strength, rel=1e-12)
    regularizer.detach()
    Regularizer(model, [Rule(GroupLasso(Bound(limit), units))]).attach(optimizer)
    train(model, optimizer, batches(1, torch.float64) * 600)
    assert measured() == pytest.approx(limit, rel=5e-3)


def test_two_rules_with_equal_bounds_find_a_strength_each():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, {"0.weight": L1(Bound(2.0)), "2.weight": L1(Bound(2.0))}).attach(optimizer)
    train(model, optimizer, 60)
    assert strength_of(regularizer, "0.weight") != strength_of(regularizer, "2.weight")


def test_two_optimizers_share_the_limit_of_a_rule():
    model = mlp()
    optimizers = [SGD(model[0].parameters(), lr=0.1), Adam(model[2].parameters(), lr=0.01)]
    regularizer = Regularizer(model, L1(Bound(0.5)))
    for optimizer in optimizers:
        regularizer.attach(optimizer)
    for batch in batches(1) * 300:
        model.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    total = float(model[0].weight.detach().abs().sum() + model[2].weight.detach().abs().sum())
    assert total == pytest.approx(0.5, rel=0.05)
    assert strength_of(regularizer, "0.weight") == strength_of(regularizer, "2.weight") > 0


@pytest.mark.parametrize("compile", ["auto", False])
def test_prepared_steps_find_the_same(compile):
    found, _ = solved(MAKERS["Adam"], L1(Bound(LIMIT)), 40, compile=compile)
    plain, _ = solved(MAKERS["Adam"], L1(Bound(LIMIT)), 40, compile=False)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-14)


RULES = {
    "bound": lambda: {"*.weight": L1(Bound(2.0)), "*.bias": L2(Bound(0.01, rate=0.1))},
    "corrected": lambda: [Rule(L2(Corrected(0.3)), "*.weight", "decoupled")],
    "stages": lambda: [Rule(L1(Bound(2.0)), until=6, after=L1(Bound(1.0)))],
}


def resumable(rules):
    model = mlp()
    optimizer = Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    return model, optimizer, schedule, Regularizer(model, rules()).attach(optimizer)


def run(model, optimizer, schedule, made):
    for batch in made:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("by", ["optimizer", "regularizer"])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_a_run_that_resumes_is_the_run_that_went_on(rules, by):
    model, optimizer, schedule, regularizer = resumable(rules)
    run(model, optimizer, schedule, batches(12))
    first, its, own, saving = resumable(rules)
    run(first, its, own, batches(12)[:5])
    file = io.BytesIO()
    torch.save([each.state_dict() for each in (first, its, own, saving)], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    again, new, following, loading = resumable(rules)
    if by == "regularizer":
        states[1]["param_groups"][0].pop("shrinkage")
        new.load_state_dict(states[1])
        loading.load_state_dict(states[3])
    else:
        new.load_state_dict(states[1])
    again.load_state_dict(states[0])
    following.load_state_dict(states[2])
    run(again, new, following, batches(12)[5:])
    assert equal(again, model)
    assert repr(loading) == repr(regularizer)


def test_another_control_is_refused_when_loading():
    _, optimizer, *_ = resumable(RULES["bound"])
    _, other, *_ = resumable(lambda: {"*.weight": L1(Bound(9.0)), "*.bias": L2(Bound(0.01, rate=0.1))})
    with pytest.raises(ValueError, match="was saved with Bound"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_go_on_by_themselves(copied):
    model, optimizer, schedule, regularizer = resumable(RULES["bound"])
    run(model, optimizer, schedule, batches(4))
    other = copied(regularizer)
    before = strength_of(other, "0.weight")
    assert before == strength_of(regularizer, "0.weight") > 0
    run(model, optimizer, schedule, batches(8)[4:])
    assert strength_of(other, "0.weight") == before != strength_of(regularizer, "0.weight")


def test_corrected_decay_is_adamw_with_its_decay_set_before_each_step():
    ours, theirs = mlp(), mlp()
    optimizer = AdamW(
        [{"params": ours[0].parameters()}, {"params": ours[2].parameters(), "lr": 0.01}], 0.05, weight_decay=0
    )
    other = AdamW([{"params": theirs[0].parameters()}, {"params": theirs[2].parameters(), "lr": 0.01}], 0.05)
    Regularizer(ours, {"*": L2(Corrected(0.1))}, how="decoupled").attach(optimizer)
    peaks = [0.0, 0.0]
    for index, batch in enumerate(batches(12)):
        for i, factor in enumerate((1 + index if index < 5 else 12 - index, 1 / (1 + index))):
            lr = (0.05, 0.01)[i] * factor
            optimizer.param_groups[i]["lr"] = other.param_groups[i]["lr"] = lr
            peaks[i] = max(peaks[i], lr)
            other.param_groups[i]["weight_decay"] = 0.1 * lr / peaks[i]
        for model, each in ((ours, optimizer), (theirs, other)):
            each.zero_grad()
            loss_of(model, batch).backward()
            each.step()
    assert equal(ours, theirs)


def test_a_closure_meets_one_strength_in_all_evaluations():
    model = mlp(torch.float64)
    optimizer = LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    regularizer = Regularizer(model, L2(Bound(1.0, rate=0.01)), how="gradient").attach(optimizer)
    (batch,), seen = batches(1, torch.float64), []

    def closure():
        optimizer.zero_grad()
        seen[-1].append(strength_of(regularizer, "0.weight"))
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    for _ in range(5):
        seen.append([])
        optimizer.step(closure)
    assert all(len(each) > 1 == len(set(each)) for each in seen)
    assert len({each[0] for each in seen}) == 5


def test_steps_without_gradients_are_no_updates_to_look_before():
    model = mlp(torch.float64)
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(Bound(1.0, rate=0.01))).attach(optimizer)
    train(model, optimizer, batches(3, torch.float64))
    optimizer.zero_grad()
    found = set()
    for _ in range(4):
        optimizer.step()
        found.add(strength_of(regularizer, "0.weight"))
    assert len(found) == 1


def test_a_bound_needs_a_line_search():
    """Without one, what the strength changes between two steps is taken for curvature, and a network diverges."""
    model = mlp(torch.float64)
    regularizer = Regularizer(model, L2(Bound(1.0)), how="gradient")
    with pytest.raises(AttachmentError, match=r"'0.weight', of shape \(8, 6\), .* use line_search_fn=\"strong_wolfe\""):
        regularizer.attach(LBFGS(model.parameters()))
    optimizer = LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    regularizer.attach(optimizer)
    train(model, optimizer, batches(1, torch.float64) * 60, closure=True)
    found = sum(float(model[i].weight.detach().square().sum()) / 2 for i in (0, 2))
    assert 1 < found < 3  # 49.5 without a penalty; so many steps are too few to end at the limit


def test_an_update_that_is_skipped_is_no_look():
    def trained(skipped):
        model = mlp()
        optimizer = AdamW(model.parameters(), lr=0.05, fused=True, weight_decay=0)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        regularizer = Regularizer(model, L1(Bound(1.0))).attach(optimizer)
        for index, batch in enumerate(batches(8)):
            for fails in (True, False) if index == skipped else (False,):
                optimizer.zero_grad()
                scaler.scale(loss_of(model, batch)).backward()
                if fails:
                    model[0].weight.grad[0, 0] = torch.inf
                scaler.step(optimizer)
                scaler.update(8.0)
        return model, strength_of(regularizer, "0.weight")

    (plain, strength), (other, same) = trained(None), trained(4)
    assert equal(plain, other)
    assert same == strength > 0


def test_looks_are_between_the_proximal_operators_of_a_rule_with_intervals():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, Rule(L1(Bound(2.0)), every=4)).attach(optimizer)
    for _ in range(10):
        train(model, optimizer, 40)
    assert float(model[0].weight.detach().abs().sum() + model[2].weight.detach().abs().sum()) == pytest.approx(
        2.0, rel=0.1
    )


def test_what_is_frozen_or_over_is_not_measured():
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(Bound(1.0))).attach(optimizer)
    train(model, optimizer, 2)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    for _ in range(10):
        train(model, optimizer, 30)
    assert torch.equal(model[0].weight, before)
    assert float(model[2].weight.detach().abs().sum()) == pytest.approx(1.0, rel=0.05)
    assert "R(w) <= 1" in repr(regularizer)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Bound(0.0), "limit must be a finite number > 0"),
        (lambda: Bound(1.0, rate=-1.0), "rate must be a finite number > 0"),
        (lambda: Corrected(-0.1), "decay must be a finite number >= 0"),
        (lambda: MCP(Bound(1.0)), "not proportional"),
        (lambda: L0(Bound(1.0)), "rate="),
        (lambda: TopK(Bound(0.5)), "no strength"),
        (lambda: TopK(Corrected(0.5)), "no strength"),
        (lambda: Rule(L2(Bound(1.0)), how="cautious"), "no sum"),
        (lambda: regularize(nn.Linear(2, 2), L1(Bound(1.0))), "use Regularizer"),
        (lambda: Activities(mlp(), {"1": L1(Bound(1.0))}), "only weights can find"),
        (lambda: regularize(nn.Linear(2, 2), L2(Corrected(0.1)), how="decoupled"), "use Regularizer"),
    ],
)
def test_what_cannot_be_found_is_refused(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


def test_a_step_that_is_not_known_needs_a_rate():
    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"rate": 0.1})

        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.data.sub_(parameter.grad, alpha=0.1)

    model = mlp()
    with pytest.raises(MetricError, match="give it one, rate="):
        Regularizer(model, L2(Bound(1.0)), how="gradient").attach(Own(model.parameters()))
    with pytest.raises(MetricError, match="have no 'lr'"):
        Regularizer(model, L2(Corrected(1.0)), how="gradient").attach(Own(model.parameters()))
    Regularizer(model, L2(Bound(1.0, rate=0.1)), how="gradient").attach(Own(model.parameters()))


def test_numbers_that_are_not_finite_change_nothing():
    state = {"multiplier": 0.5, "strength": 0.6, "excess": 0.1, "looks": 3}
    assert Bound(1.0).next(state, Seen(value=torch.nan, gain=1.0)) == {**state, "looks": 4}
    assert Bound(1.0).next(state, Seen(value=torch.inf, gain=1.0)) == {**state, "looks": 4}
    assert Bound(1.0, rate=0.1).next(state, Seen(value=2.0))["multiplier"] == pytest.approx(0.6)
