"""Groups that span parameters: as one tensor that holds all of them, by brute force, and what is refused."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop

from models import train_step
from oracle import best_improvement
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    AttachmentError,
    Coupled,
    ElasticNet,
    Grouped,
    GroupError,
    GroupLasso,
    Huber,
    LogSum,
    Lp,
    Member,
    MetricError,
    ParameterError,
    Regularizer,
    Rows,
    Rule,
    SelectionError,
    SparseGroupLasso,
    Weighted,
    register_metric,
    regularize,
    strength_max,
)
from shrinkage.training.acting import by_regularizer
from shrinkage.training.attachment import explicit_attachments

CHANNELS = 6
MEMBERS = ("0.weight", "0.bias", "1.weight", "1.bias")
PENALTIES = [
    L1(0.5),
    L2(2.0),
    ElasticNet(0.4, 0.5),
    Huber(0.5, 0.1),
    MCP(0.4),
    SCAD(0.4),
    LogSum(0.3, 0.2),
    L0(0.05),
    Lp(0.3, 0.5),
    Weighted(L1(0.5), torch.linspace(0.5, 2.0, CHANNELS, dtype=torch.float64)),
]
OPTIMIZERS = [
    lambda p: SGD(p, lr=0.03, momentum=0.5),
    lambda p: Adam(p, lr=0.02),
    lambda p: RMSprop(p, lr=0.005, centered=True),
]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.Flatten(), nn.Linear(CHANNELS * 4, 3)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for name in MEMBERS:
            model.get_parameter(name).normal_()
    return model


def channels(names=MEMBERS) -> Coupled:
    return Coupled([Member(name, 0, range(CHANNELS)) for name in names])


def joined(tensors) -> Tensor:
    """The members of each channel in one row."""
    return torch.cat([tensor.detach().reshape(CHANNELS, -1) for tensor in tensors], 1)


def weights_of(model: nn.Module) -> Tensor:
    return joined(model.get_parameter(name) for name in MEMBERS)


class OneTensor(nn.Module):
    """A parameter that holds all members of each channel in one row."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights_of(model))


def steps(count: int = 12, noise: float = 0.3) -> list[dict[str, Tensor]]:
    """Gradients of the members that pull to zero, with some that are 0 as of dead inputs."""
    generator = torch.Generator().manual_seed(2)
    model = network()
    found = []
    for _ in range(count):
        grads = {name: torch.randn(model.get_parameter(name).shape, generator=generator).double() for name in MEMBERS}
        grads["0.weight"][:, 0, 0] = 0
        found.append({name: noise * grad + 0.2 * model.get_parameter(name).detach() for name, grad in grads.items()})
    return found


def give(model: nn.Module, grads: dict[str, Tensor]) -> None:
    for name, grad in grads.items():
        model.get_parameter(name).grad = grad.clone()


def train_both(penalty, how, make, *, hold_zeros=None, every=1, noise=0.3, zero=0):
    """The coupled members and the one tensor that holds them, after the same gradients; the first `zero` start at 0."""
    model = network()
    for name in MEMBERS:
        model.get_parameter(name).detach()[:zero] = 0
    one = OneTensor(model)
    optimizer, other = make(list(model.parameters())), make(list(one.parameters()))
    own = Regularizer(model, Rule(Grouped(penalty, channels()), how=how, every=every), hold_zeros=hold_zeros).attach(
        optimizer
    )
    whole = Regularizer(one, Rule(Grouped(penalty, Rows()), how=how, every=every), hold_zeros=hold_zeros).attach(other)
    for grads in steps(noise=noise):
        give(model, grads)
        one.weight.grad = joined(grads.values())
        optimizer.step()
        other.step()
    return own, whole, weights_of(model), one.weight.detach()


def combinations():
    """RMSprop, whose metric is as general as Adam's, is slow for all penalties but one."""
    for penalty, (name, make) in itertools.product(PENALTIES, zip(("SGD", "Adam", "RMSprop"), OPTIMIZERS, strict=True)):
        marks = pytest.mark.slow if name == "RMSprop" and penalty is not PENALTIES[0] else ()
        yield pytest.param(penalty, make, id=f"{type(penalty).__name__}-{name}", marks=marks)


@pytest.mark.parametrize("how", ["proximal", "decoupled", "gradient"])
@pytest.mark.parametrize(("penalty", "make"), list(combinations()))
def test_members_move_as_one_tensor_that_holds_them(penalty, how, make):
    if how == "gradient" and not penalty.explicit:
        with pytest.raises(ValueError, match="has no derivative"):
            train_both(penalty, how, make)
        return
    own, whole, found, expected = train_both(penalty, how, make)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert torch.equal(found == 0, expected == 0)
    rounding = 1e-6 if isinstance(penalty, L0) else 1e-9  # a count of one tensor's groups comes in float32
    torch.testing.assert_close(own.value(), whole.value(), rtol=rounding, atol=0.0, check_dtype=False)


def test_zeros_are_zeros_of_whole_groups():
    _, _, found, _ = train_both(L1(1.5), "proximal", OPTIMIZERS[1])
    zero = (found == 0).all(1)
    assert 0 < int(zero.sum()) < CHANNELS
    assert not (found[~zero] == 0).any()


@pytest.mark.parametrize(("how", "strength"), [("proximal", 2.0), ("decoupled", 5.0)])
@pytest.mark.parametrize("make", OPTIMIZERS[:2], ids=["SGD", "Adam"])
def test_every_third_step(how, strength, make):
    _, _, found, expected = train_both(L1(strength), how, make, every=3)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert (found == 0).any()


@pytest.mark.parametrize("make", OPTIMIZERS[:2], ids=["SGD", "Adam"])
def test_averaged_gradients_hold_zeros(make):
    _, _, found, expected = train_both(L1(1.0), "proximal", make, hold_zeros=0.95, noise=2.0, zero=4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    _, _, free, _ = train_both(L1(1.0), "proximal", make, noise=2.0, zero=4)
    held = (found == 0).all(1)
    assert held.any()
    assert int(held.sum()) > int((free == 0).all(1).sum()) or make is OPTIMIZERS[1]


def test_a_strength_is_scheduled():
    own, whole, found, expected = train_both(L1(lambda update: 0.2 * update), "proximal", OPTIMIZERS[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert own.state_dict() == whole.state_dict()


@pytest.mark.parametrize("make", OPTIMIZERS[:2], ids=["SGD", "Adam"])
@pytest.mark.parametrize("penalty", [L1(1.0), MCP(2.0), ElasticNet(0.5, 0.5)], ids=lambda each: type(each).__name__)
def test_a_step_in_several_metrics_is_the_least_of_the_objective(make, penalty):
    """Members that learn at rates of their own: no point near or far is better, in the metric of all of them."""
    model, twin = network(), network()
    optimizers = []
    for each in (model, twin):
        rates = zip(MEMBERS, (0.02, 0.2, 0.1, 0.5), strict=True)
        optimizers.append(make([{"params": [each.get_parameter(name)], "lr": rate} for name, rate in rates]))
    Regularizer(model, Grouped(penalty, channels())).attach(optimizers[0])
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        give(each, steps(1)[0])
        optimizer.step()
    (attachment,) = explicit_attachments[optimizers[0]]
    (acting,) = by_regularizer([(optimizers[0], attachment)])
    sizes = acting.steps()
    eta = joined(torch.as_tensor(sizes[name]).expand(model.get_parameter(name).shape) for name in MEMBERS)
    found, before = weights_of(model), weights_of(twin)
    assert best_improvement(Grouped(penalty, Rows()), found, before, eta) <= 1e-9
    assert best_improvement(Grouped(penalty, Rows()), before, before, eta) > 1e-3


def lasso_problem():
    """A regression whose weights lie in two layers: groups of a column of one and a row of the other."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(5, 3, bias=False), "second": nn.Linear(4, 5, bias=False)}).double()
    x, y = torch.randn(60, 5).double(), torch.randn(60, 4).double()
    truth = torch.randn(60, 3).double()

    def loss():
        return F.mse_loss(model["first"](x), truth + x[:, :1]) + F.mse_loss(x @ model["second"].weight, y + x[:, :1])

    return model, Coupled([Member("first.weight", 1, range(5)), Member("second.weight", 0, range(5))]), loss


@pytest.mark.parametrize(
    ("make", "steps"), [(lambda p: SGD(p, lr=0.1), 500), (lambda p: Adam(p, lr=0.02), 1000)], ids=["SGD", "Adam"]
)
def test_training_ends_where_the_stated_problem_is_solved(make, steps):
    """Columns of one weight and rows of another; the certificate is the residual, which was not 0 before."""
    model, groups, loss = lasso_problem()
    optimizer = make(model.parameters())
    regularizer = Regularizer(model, GroupLasso(0.12, groups)).attach(optimizer)
    assert not regularizer.residuals(loss).solved
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] *= 0.985 if isinstance(optimizer, Adam) and step > 300 else 1.0
        train_step(optimizer, loss())
    residuals = regularizer.residuals(loss, tolerance=1e-6)
    assert residuals.solved
    assert [each.name for each in residuals.penalized] == ["first.weight and 1 more"]
    columns, rows = model["first"].weight.detach(), model["second"].weight.detach()
    zero = (columns == 0).all(0)
    assert 0 < int(zero.sum()) < 5
    assert torch.equal(zero, (rows == 0).all(1))
    assert residuals.penalized[0].zeros == pytest.approx(float(zero.double().mean()))


def test_all_groups_are_zero_from_strength_max_on():
    model, groups, loss = lasso_problem()
    least = strength_max(model, loss, GroupLasso(1.0, groups))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert Regularizer(model, GroupLasso(least * (1 + 1e-9), groups)).residuals(loss, tolerance=1e-12).solved
    assert not Regularizer(model, GroupLasso(least * 0.999, groups)).residuals(loss, tolerance=1e-12).solved


@pytest.mark.parametrize("penalty", [L1(0.5), MCP(0.5), L0(0.1)], ids=lambda penalty: type(penalty).__name__)
def test_residuals_are_those_of_one_tensor(penalty):
    model = network()
    for name in MEMBERS:
        model.get_parameter(name).detach()[2] = 0
    one, factor = OneTensor(model), joined(steps(1)[0].values())

    def loss():
        return (torch.cat([model.get_parameter(n).reshape(CHANNELS, -1) for n in MEMBERS], 1) * factor).sum()

    own = Regularizer(model, Grouped(penalty, channels())).residuals(loss).penalized[0]
    whole = Regularizer(one, {"weight": Grouped(penalty, Rows())}).residuals(lambda: (one.weight * factor).sum())
    expected = whole.penalized[0]
    assert own.measure == expected.measure
    found = (own.max, own.mean, own.relative, own.zeros)
    assert found == pytest.approx((expected.max, expected.mean, expected.relative, expected.zeros), rel=1e-9)


def test_several_ranges_of_one_parameter_are_in_one_group_and_others_in_none():
    """The rows of query, key and value of a head in a fused projection; the last rows belong to nothing."""
    torch.manual_seed(0)
    heads, size = 3, 2
    model = nn.ModuleDict({"qkv": nn.Linear(4, 3 * heads * size + 2), "scale": nn.Linear(4, heads * size)})
    rows = [row // size for row in range(heads * size)]
    ranges = [[-1] * (part * len(rows)) + rows + [-1] * ((2 - part) * len(rows) + 2) for part in range(3)]
    several = [Member(name, 0, groups) for name in ("qkv.weight", "qkv.bias") for groups in ranges]
    once = [Member(name, 0, [*rows, *rows, *rows, -1, -1]) for name in ("qkv.weight", "qkv.bias")]
    results = []
    for members in (several, once):
        own, alone = copy.deepcopy(model), copy.deepcopy(model)
        optimizer, free = (AdamW(each.parameters(), lr=0.1, weight_decay=0.0) for each in (own, alone))
        last = Member("scale.bias", 0, [2, 2, 1, 1, 0, 0])
        Regularizer(own, GroupLasso(5.0, Coupled([*members, last]))).attach(optimizer)
        for step in range(4):
            for one, other in zip(own.parameters(), alone.parameters(), strict=True):
                one.grad = other.grad = torch.sin(torch.arange(one.numel()) + step).view(one.shape)
            optimizer.step()
            free.step()
        for name in ("weight", "bias"):  # what is in no group is not touched at all
            assert torch.equal(own["qkv"].get_parameter(name)[-2:], alone["qkv"].get_parameter(name)[-2:])
        results.append({name: value.detach() for name, value in own.named_parameters()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert (results[0]["qkv.weight"][:-2] == 0).any()


def test_two_families_in_one_are_two_rules():
    apart, together = network(), network()
    first = [Member(name, 0, range(CHANNELS)) for name in MEMBERS[:2]]
    second = [Member(name, 0, range(CHANNELS)) for name in MEMBERS[2:]]
    shifted = [Member(name, 0, range(CHANNELS, 2 * CHANNELS)) for name in MEMBERS[2:]]
    both = Regularizer(together, GroupLasso(1.0, Coupled([*first, *shifted])))
    rules = [Rule(GroupLasso(1.0, Coupled(first))), Rule(GroupLasso(1.0, Coupled(second))), Rule(L1(1.0), "3.*")]
    for model, regularizer in ((apart, Regularizer(apart, rules)), (together, both)):
        optimizer = Adam(model.parameters(), lr=0.1)
        regularizer.attach(optimizer)
        for grads in steps():
            give(model, grads)
            optimizer.step()
    torch.testing.assert_close(weights_of(apart), weights_of(together), rtol=1e-12, atol=1e-12)
    assert len(both.plan.families()) == 2
    *table, last = str(both.plan).splitlines()
    assert len(table) == 4
    assert last == "no rule names these matrices (72 weights), though `shrink` cuts what reads the channels: '3.weight'"


def test_the_plan_has_one_line_for_a_family():
    plan = Regularizer(network(), [Rule(GroupLasso(0.1, channels())), Rule(L1(0.2), "*.weight")]).plan
    assert str(plan).splitlines()[2:] == [
        "0.weight and 3 more  6x30   6 x Coupled  GroupLasso  0.1       proximal",
        "3.weight             3x24   -            L1          0.2       proximal",
    ]
    assert [entry.name for entry in plan] == [*MEMBERS, "3.weight"]


def test_a_member_that_takes_no_gradient_takes_no_part():
    results = []
    for names in (MEMBERS, MEMBERS[:2]):
        model = network()
        for name in MEMBERS[2:]:
            model.get_parameter(name).requires_grad_(False)
        optimizer = Adam(model.parameters(), lr=0.1)
        regularizer = Regularizer(model, GroupLasso(1.0, channels(names), weigh_by_size=False)).attach(optimizer)
        for grads in steps():
            give(model, {name: grads[name] for name in MEMBERS[:2]})
            optimizer.step()
        results.append((weights_of(model), float(regularizer.value())))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_a_member_without_a_gradient_counts_and_stays():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, GroupLasso(1.0, channels())).attach(optimizer)
    give(model, {name: torch.zeros_like(model.get_parameter(name)) for name in MEMBERS[:3]})
    before = weights_of(model)
    expected = GroupLasso(1.0, Rows()).prox(before, 0.1)
    optimizer.step()
    found = weights_of(model)
    assert torch.equal(found[:, -1], before[:, -1])
    torch.testing.assert_close(found[:, :-1], expected[:, :-1], rtol=1e-12, atol=1e-12)


def test_a_family_that_two_optimizers_share_is_refused():
    model = network()
    optimizer = SGD([model.get_parameter(name) for name in MEMBERS[:2]], lr=0.1)
    regularizer = Regularizer(model, GroupLasso(1.0, channels()))
    with pytest.raises(AttachmentError, match=r"'0.weight' and '1.weight' share groups, and this optimizer steps the"):
        regularizer.attach(optimizer)
    for name in MEMBERS[2:]:
        model.get_parameter(name).requires_grad_(False)
    regularizer.attach(optimizer)


def test_a_member_that_joins_late_acts_with_the_others():
    """At every third step, of the whole family."""
    model = network()
    late = model.get_parameter("1.bias")
    late.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, Rule(GroupLasso(20.0, channels()), every=3)).attach(optimizer)
    zeros = []
    for step in range(6):
        late.requires_grad_(step > 1)
        give(model, {name: torch.ones_like(model.get_parameter(name)) for name in MEMBERS[: 3 + (step > 1)]})
        optimizer.step()
        zeros.append(int((weights_of(model) == 0).sum()))
    assert zeros == [0, 0, weights_of(model).numel(), 0, 0, weights_of(model).numel()]


def test_an_optimizer_whose_parameters_follow_other_tensors_is_refused():
    class Following(SGD):
        def step(self, closure=None):
            return super().step(closure)

    register_metric(Following, lambda group, state, w: 0.1, iterate=lambda group, state, w: (state["z"], 1.0))
    model = network()
    optimizer = Following(model.parameters(), lr=0.1)
    with pytest.raises(MetricError, match="shares groups with other parameters, and Following moves other tensors"):
        Regularizer(model, GroupLasso(1.0, channels())).attach(optimizer)
    Regularizer(model, Rule(GroupLasso(1.0, channels()), how="gradient")).attach(optimizer)


def test_what_was_saved_goes_on():
    """Steps that wait, averages and update counts ride in the optimizer's state."""
    results = []
    for stop in (None, 5):
        model = network()
        optimizer = Adam(model.parameters(), lr=0.05)
        rule = Rule(GroupLasso(lambda update: 0.3 * update, channels()), every=3)
        Regularizer(model, rule, hold_zeros=0.9).attach(optimizer)
        for index, grads in enumerate(steps()):
            if index == stop:
                state, weights = copy.deepcopy(optimizer.state_dict()), model.state_dict()
                model = network()
                model.load_state_dict(weights)
                optimizer = Adam(model.parameters(), lr=0.05)
                optimizer.load_state_dict(state)
                Regularizer(model, rule, hold_zeros=0.9).attach(optimizer)
            give(model, grads)
            optimizer.step()
        results.append(weights_of(model))
    assert torch.equal(*results)


def test_a_closure_gets_the_value_and_the_derivative():
    model, groups, loss = lasso_problem()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=50)
    regularizer = Regularizer(model, Rule(Grouped(L2(0.5), groups), how="gradient")).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(10):
        reported = optimizer.step(closure)
    assert reported.item() == pytest.approx((loss() + regularizer.value()).item(), rel=1e-6)
    assert regularizer.residuals(loss, tolerance=1e-4).solved


def test_an_overflow_moves_nothing():
    model = network().float()
    optimizer = Adam(model.parameters(), lr=0.1)
    Regularizer(model, GroupLasso(1.0, channels())).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights_of(model)
    scaler.scale(model(torch.full((2, 3, 4, 4), torch.inf)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(before, weights_of(model))


@pytest.mark.parametrize("stochastic", [False, True])
def test_half_precision(stochastic):
    model = network().bfloat16()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, GroupLasso(1.0, channels()), stochastic_rounding=stochastic).attach(optimizer)
    before = weights_of(model).double()
    give(model, {name: torch.zeros_like(model.get_parameter(name)) for name in MEMBERS})
    optimizer.step()
    found = weights_of(model).double()
    expected = GroupLasso(1.0, Rows()).prox(before, 0.1)
    assert ((found - expected).abs() <= expected.abs() * 2.0**-7).all()
    assert not torch.equal(found, before)


def test_copies_and_pickles():
    groups = channels()
    assert pickle.loads(pickle.dumps(groups)) == groups
    regularizer = Regularizer(network(), GroupLasso(0.3, groups))
    twin = copy.deepcopy(regularizer)
    assert str(twin.plan) == str(regularizer.plan)
    assert torch.equal(twin.value(), regularizer.value())


def test_groups_of_different_sizes_weigh_by_their_own():
    model = nn.ModuleDict({"a": nn.Linear(3, 4, bias=False), "b": nn.Linear(2, 2, bias=False)}).double()
    groups = Coupled([Member("a.weight", 0, [0, 0, 1, -1]), Member("b.weight", 1, [1, 2])])
    a, b = model["a"].weight.detach(), model["b"].weight.detach()
    norms = torch.stack([a[:2].norm(), (a[2].square().sum() + b[:, 0].square().sum()).sqrt(), b[:, 1].norm()])
    expected = 0.7 * (norms * torch.tensor([6.0, 5.0, 2.0]).double().sqrt()).sum()
    torch.testing.assert_close(Regularizer(model, GroupLasso(0.7, groups)).value(), expected)
    plain = Regularizer(model, GroupLasso(0.7, groups, weigh_by_size=False))
    torch.testing.assert_close(plain.value(), 0.7 * norms.sum())
    assert "3x2-6" in str(plain.plan)


@pytest.mark.parametrize(
    ("members", "error", "text"),
    [
        ([], GroupError, "no members"),
        (["0.weight"], TypeError, "expected Member"),
        ([Member("a", 0, range(6)), Member("a", 0, range(6))], GroupError, "claim the same elements of 'a'"),
        ([Member("a", 0, [0, -1]), Member("a", 1, [-1, 0])], GroupError, "claim the same elements of 'a'"),
    ],
)
def test_members_that_overlap_are_refused(members, error, text):
    with pytest.raises(error, match=text):
        Coupled(members)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((nn.Linear, 0, [0]), TypeError),
        (("a", 0.0, [0]), ValueError),
        (("a", -1, [0]), ValueError),
        (("a", 0, [0.5]), TypeError),
        (("a", 0, torch.arange(3)), TypeError),
        (("a", 0, [-2]), ValueError),
    ],
)
def test_members_are_checked(arguments, error):
    with pytest.raises(error, match="Member: "):
        Member(*arguments)


@pytest.mark.parametrize(
    ("rules", "error", "text"),
    [
        (GroupLasso(1.0, Coupled([Member("0.wieght", 0, range(6))])), SelectionError, "nearest names: '0.weight'"),
        (GroupLasso(1.0, Coupled([Member("0.weight", 0, range(5))])), GroupError, "numbers 5 indices of dimension 0"),
        (GroupLasso(1.0, Coupled([Member("0.bias", 1, range(5))])), GroupError, "has shape"),
        (
            [Rule(L1(1.0), "*.weight"), Rule(GroupLasso(1.0, channels()))],
            SelectionError,
            "two rules penalize '0.weight'",
        ),
        (
            [Rule(GroupLasso(1.0, channels(("0.weight", "0.bias")))), Rule(GroupLasso(1.0, channels()))],
            SelectionError,
            "two rules penalize '0.weight'",
        ),
        (SparseGroupLasso(1.0, 1.0, channels()), GroupError, "spans several parameters"),
    ],
)
def test_rules_that_can_not_be_are_refused(rules, error, text):
    with pytest.raises(error, match=text):
        Regularizer(network(), rules)


def test_a_selector_beside_coupled_groups_is_refused():
    with pytest.raises(ValueError, match=r"name their parameters: leave the selector '\*' out"):
        Rule(GroupLasso(1.0, channels()), "*")
    with pytest.raises(ValueError, match="leave the selector"):
        regularize(nn.Linear(2, 2), GroupLasso(1.0, channels()))


def test_lazy_members_are_refused():
    with pytest.raises(ParameterError, match="run one forward pass first"):
        Regularizer(nn.Sequential(nn.LazyLinear(6)), GroupLasso(1.0, channels(("0.weight",))))


def test_one_tensor_is_not_all_of_a_group():
    with pytest.raises(GroupError, match="in a Rule of a Regularizer"):
        GroupLasso(1.0, channels()).value(torch.zeros(6, 3))


def test_families_join_through_a_third():
    members = [Member("a", 0, [0]), Member("b", 0, [1]), Member("c", 0, [2]), Member("d", 0, [1, 0])]
    assert Coupled(members).families() == [("a", "b", "d"), ("c",)]
