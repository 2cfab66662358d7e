"""Budgets of single weights: exactly so many zeros, while the dense weights are kept aside."""

import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import LBFGS, SGD, Adagrad, AdamW, Muon, Optimizer

from catalog import OPTIMIZERS as CASES
from catalog import OptimizerCase
from shrinkage import (
    L1,
    AttachmentError,
    Blocks,
    Budget,
    Columns,
    Heads,
    ParameterError,
    Regularizer,
    Rows,
    SelectionError,
    ShrinkError,
    regularize,
    shrink,
    shrink_optimizer_,
)

X = torch.randn(256, 10, generator=torch.Generator().manual_seed(0))
Y = torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
HUNDRED = Budget(zeros=0.9, updates=100)  # begins at 10, ends at 40, freezes at 60


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 2)]
    return nn.Sequential(*layers).to(dtype)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def loss(model: nn.Module, n: int) -> Tensor:
    at = torch.arange(32) + 32 * (n % 8)
    dtype = next(model.parameters()).dtype
    return mse_loss(model(X[at].to(dtype)), Y[at].to(dtype))


def step(model: nn.Module, optimizer: Optimizer, n: int) -> None:
    optimizer.zero_grad()
    loss(model, n).backward()
    optimizer.step()


def zeros(model: nn.Module) -> int:
    return sum(int((parameter == 0).sum()) for parameter in matrices(model))


def largest(model: nn.Module, where: list[Tensor] | None = None) -> float:
    masks = where or [torch.ones_like(parameter, dtype=torch.bool) for parameter in matrices(model)]
    pairs = zip(matrices(model), masks, strict=True)
    return max(float(parameter.detach()[mask].abs().max()) for parameter, mask in pairs)


OPTIMIZERS = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda model: AdamW(model.parameters(), lr=1e-2),
    "Adagrad": lambda model: Adagrad(model.parameters(), lr=1e-2),
    "Muon": lambda model: Muon(matrices(model), lr=1e-2),
}


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_follow_the_ramp_and_stay(name):
    model = net()
    optimizer = OPTIMIZERS[name](model)
    Regularizer(model, HUNDRED).attach(optimizer)
    count = sum(map(torch.numel, matrices(model)))
    for n in range(100):
        step(model, optimizer, n)
        done = min(max((n + 1 - 10) / 30, 0), 1)
        assert zeros(model) == math.ceil(0.9 * (1 - (1 - done) ** 3) * count)


@pytest.mark.filterwarnings("ignore:.*floor")
def test_bfloat16_and_tied_weights_are_counted_exactly():
    model = net(torch.bfloat16)
    model[2].weight = nn.Parameter(model[2].weight.detach())
    model.tied = nn.Linear(24, 12, dtype=torch.bfloat16)
    model.tied.weight = model[2].weight
    model.forward = lambda x: model[4](torch.tanh(model.tied(torch.tanh(model[0](x))) + model[2](model[0](x))))
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    Regularizer(model, HUNDRED).attach(optimizer)
    count = sum(map(torch.numel, matrices(model)))
    assert count == 552
    for n in range(100):
        step(model, optimizer, n)
        done = min(max((n + 1 - 10) / 30, 0), 1)
        assert zeros(model) == math.ceil(0.9 * (1 - (1 - done) ** 3) * count)
        assert not any(bool(p.detach()[p.detach() == 0].signbit().any()) for p in matrices(model))


@pytest.mark.filterwarnings("ignore:.*floor")
def test_zeros_are_exact_when_a_step_has_two_gradients():
    """Sharpness-aware: climb, take the gradient there, come back, step."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    Regularizer(model, HUNDRED).attach(optimizer)
    for n in range(70):
        optimizer.zero_grad()
        loss(model, n).backward()
        old = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
            for parameter in model.parameters():
                parameter.add_(parameter.grad * 0.05 / norm)
        optimizer.zero_grad()
        loss(model, n).backward()
        with torch.no_grad():
            for parameter, own in zip(model.parameters(), old, strict=True):
                parameter.copy_(own)
        optimizer.step()
        assert zeros(model) == HUNDRED.zeros_at(n + 1, 552)


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_resumes_bit_for_bit_at_every_phase(name):
    at = (5, 9, 10, 11, 25, 39, 40, 41, 59, 60, 61, 80)
    model = net()
    optimizer = OPTIMIZERS[name](model)
    Regularizer(model, HUNDRED).attach(optimizer)
    saved = {}
    for n in range(100):
        if n in at:
            file = io.BytesIO()
            torch.save((model.state_dict(), optimizer.state_dict()), file)
            saved[n] = file.getvalue()
        step(model, optimizer, n)
    for begun, data in saved.items():
        again = net()
        other = OPTIMIZERS[name](again)
        weights, state = torch.load(io.BytesIO(data))
        again.load_state_dict(weights)
        Regularizer(again, HUNDRED).attach(other)
        other.load_state_dict(state)
        for n in range(begun, 100):
            step(again, other, n)
        assert all(map(torch.equal, again.parameters(), model.parameters())), begun


class Raises(SGD):
    """Raises once, after it has stepped half of a parameter."""

    due = False

    def _init_group(self, group, *rest):
        if self.due:
            self.due = False
            group["params"][0].data[:12] += 1.0
            raise RuntimeError("half of a step")
        return super()._init_group(group, *rest)


@pytest.mark.filterwarnings("ignore:.*floor")
def test_a_step_that_raises_loses_nothing():
    model = net()
    optimizer = Raises(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, HUNDRED).attach(optimizer)
    for n in range(30):
        step(model, optimizer, n)
    asides = regularizer.state_dict()["budgets"][0]["0"]["asides"]
    dense_before = dict(zip(asides, dense(model, regularizer), strict=True))
    optimizer.due = True
    with pytest.raises(RuntimeError, match="half"):
        step(model, optimizer, 30)
    for name, value in dense_before.items():
        now = model.get_parameter(name).detach()
        untouched = slice(12, None) if name == "0.weight" else slice(None)
        assert torch.equal(now[untouched], value[untouched])
    optimizer.param_groups[0]["lr"] = 0.0
    step(model, optimizer, 31)
    assert zeros(model) == HUNDRED.zeros_at(31, 552)
    now = dict(zip(asides, dense(model, regularizer), strict=True))
    assert torch.equal(now["0.weight"][12:], dense_before["0.weight"][12:])
    assert torch.equal(now["2.weight"], dense_before["2.weight"])


@pytest.mark.filterwarnings("ignore:.*floor")
def test_what_a_loop_writes_into_weights_stays():
    model = net()
    optimizer = SGD(model.parameters(), lr=1e-6)
    Regularizer(model, HUNDRED).attach(optimizer)
    for n in range(30):
        step(model, optimizer, n)
    written = [parameter.detach() != 0 for parameter in matrices(model)]
    assert largest(model, written) > 0.25
    with torch.no_grad():
        for parameter in matrices(model):
            parameter.clamp_(-0.2, 0.2)
    step(model, optimizer, 30)
    assert 0 < largest(model, written) <= 0.2001
    assert largest(model) > 0.2001  # what came back had been cut, and was not written to


@pytest.mark.filterwarnings("ignore:.*floor")
def test_a_closure_is_a_plain_loop_and_sees_the_sparse_model():
    plain, closed = net(), net()
    one, other = (SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (plain, closed))
    for model, optimizer in ((plain, one), (closed, other)):
        Regularizer(model, HUNDRED).attach(optimizer)
    seen = []
    closed.register_forward_pre_hook(lambda module, args: seen.append(zeros(module)))
    for n in range(100):

        def closure(n: int = n) -> Tensor:
            other.zero_grad()
            value = loss(closed, n)
            value.backward()
            return value

        step(plain, one, n)
        other.step(closure)
        assert all(map(torch.equal, plain.parameters(), closed.parameters()))
    assert seen == [HUNDRED.zeros_at(n, 552) for n in range(100)]


def test_narrow_weights_are_restored_once():
    """A step that raises between its hooks restores, and the next one does so again."""
    model = net(torch.bfloat16)
    optimizer = Raises(model.parameters(), lr=0.0)
    regularizer = Regularizer(model, Budget(zeros=0.5, updates=100)).attach(optimizer)
    for n in range(30):
        step(model, optimizer, n)
    before = dense(model, regularizer)
    optimizer.due = True
    with pytest.raises(RuntimeError, match="half"):
        step(model, optimizer, 30)
    step(model, optimizer, 31)
    assert all(map(torch.equal, dense(model, regularizer)[1:], before[1:]))


class Twice(SGD):
    """Evaluates its closure twice, with a move in between, and steps by the second gradient."""

    def step(self, closure):
        closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(parameter.grad, alpha=1e-3)
        return super().step(closure)


@pytest.mark.filterwarnings("ignore:.*floor")
def test_each_evaluation_of_a_closure_sees_the_sparse_model():
    model = net()
    optimizer = Twice(model.parameters(), lr=0.05)
    Regularizer(model, HUNDRED).attach(optimizer)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(zeros(module)))
    for n in range(60):

        def closure(n: int = n) -> Tensor:
            optimizer.zero_grad()
            value = loss(model, n)
            value.backward()
            return value

        optimizer.step(closure)
        assert zeros(model) == HUNDRED.zeros_at(n + 1, 552)
    assert seen == [HUNDRED.zeros_at(n, 552) for n in range(60) for _ in range(2)]


@pytest.mark.filterwarnings("ignore:.*floor")
def test_a_step_that_overflows_leaves_the_dense_weights_and_the_ramp():
    model = net()
    optimizer = AdamW(model.parameters(), lr=1e-2, fused=True)
    regularizer = Regularizer(model, HUNDRED).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for n in range(40):
        optimizer.zero_grad()
        scaler.scale(loss(model, n)).backward()
        if n == 30:
            model[0].weight.grad.fill_(torch.inf)
            before = dense(model, regularizer)
        scaler.step(optimizer)
        scaler.update()
        if n == 30:
            after = dense(model, regularizer)
            assert all(map(torch.equal, before, after))
            assert regularizer.progress()[0].update == 30
        assert zeros(model) == HUNDRED.zeros_at(n + (n < 30), 552)


def dense(model: nn.Module, regularizer: Regularizer) -> list[Tensor]:
    """The weights with what is kept aside."""
    asides = regularizer.state_dict()["budgets"][0]["0"]["asides"]
    return [model.get_parameter(name).detach() + aside for name, aside in asides.items()]


@pytest.mark.filterwarnings("ignore:.*floor")
def test_accumulated_gradients_are_one_step():
    one, four = net(), net()
    first, second = (SGD(model.parameters(), lr=0.05) for model in (one, four))
    regularizers = [Regularizer(m, HUNDRED).attach(o) for m, o in ((one, first), (four, second))]
    for n in range(30):
        first.zero_grad()
        second.zero_grad()
        loss(one, n).backward()
        for _ in range(4):
            (loss(four, n) / 4).backward()
        first.step()
        second.step()
        assert zeros(four) == zeros(one)
    assert [each.progress()[0].update for each in regularizers] == [30, 30]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), four.parameters(), strict=True))


def test_lbfgs_is_refused():
    model = net()
    with pytest.raises(AttachmentError, match="LBFGS evaluates the loss several times per step"):
        Regularizer(model, HUNDRED).attach(LBFGS(model.parameters()))


def test_another_budget_than_the_saved_one_is_refused():
    model = net()
    optimizers = [SGD(model.parameters(), lr=0.1) for _ in range(2)]
    state = Regularizer(model, HUNDRED).attach(optimizers[0]).state_dict()
    other = Regularizer(model, Budget(zeros=0.95, updates=100)).attach(optimizers[1])
    with pytest.raises(ValueError, match=r"saved with Budget\(zeros=0.9, .*, this one is Budget\(zeros=0.95"):
        other.load_state_dict(state)


def test_a_state_without_what_was_aside_is_told():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, HUNDRED).attach(optimizer)
    with pytest.warns(UserWarning, match="weights that are cut begin at 0; load the optimizer's state"):
        regularizer.load_state_dict({"version": 1, "updates": [25]})


@pytest.mark.filterwarnings("ignore:.*floor")
def test_a_smaller_model_has_no_place_for_what_is_aside():
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 2))
    optimizer = SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, {"0.weight": Budget(zeros=0.5, updates=100, groups=Rows())}).attach(optimizer)
    for n in range(50):
        step(model, optimizer, n)
    with torch.no_grad():
        model[0].bias[(model[0].weight == 0).all(1)] = 0.0
    small = shrink(model, X[:4])
    with pytest.raises(ShrinkError, match=r"kept aside until update 60 of 100 \(now 50\); detach\(\) the regularizer"):
        shrink_optimizer_(optimizer, small.plan, model, small.model)
    regularizer.detach()
    shrink_optimizer_(optimizer, small.plan, model, small.model)
    assert optimizer.param_groups[0]["params"][0].shape == (12, 10)


@pytest.mark.filterwarnings("ignore:.*floor")
def test_what_is_aside_waits_for_the_next_attach():
    plain, left = net(), net()
    one, other = (SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (plain, left))
    Regularizer(plain, HUNDRED).attach(one)
    regularizer = Regularizer(left, HUNDRED).attach(other)
    for n in range(70):
        if n == 30:
            regularizer.detach()
            assert zeros(left) == zeros(plain)
            regularizer.attach(other)
        step(plain, one, n)
        step(left, other, n)
    assert all(map(torch.equal, plain.parameters(), left.parameters()))


def test_a_late_freeze_is_told():
    with pytest.warns(UserWarning, match="freeze=0.8 is beyond 70% of updates=100"):
        Regularizer(net(), Budget(zeros=0.9, updates=100, freeze=0.8))


def test_a_floor_that_binds_is_told_once():
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(0.01)
    optimizer = SGD(model.parameters(), lr=1e-6)
    regularizer = Regularizer(model, HUNDRED).attach(optimizer)
    for n in range(39):
        step(model, optimizer, n)
    with pytest.warns(UserWarning, match=r"'2\.weight' would lose more"):
        step(model, optimizer, 39)
    for n in range(40, 100):  # warnings are errors
        step(model, optimizer, n)
    assert int((model[2].weight != 0).sum()) == 9
    assert "held by its floor: 2.weight (9 of 288)" in str(regularizer.progress()[0])


def test_a_parameter_that_is_zero_where_the_ramp_begins_is_refused():
    model = net()
    nn.init.zeros_(model[2].weight)
    optimizer = SGD([model[0].weight, model[4].weight, model[2].weight], lr=0.0)
    Regularizer(model, HUNDRED).attach(optimizer)
    for n in range(10):
        step(model, optimizer, n)
    with pytest.raises(ParameterError, match=r"'2\.weight' of shape .* is zero everywhere when the ramp"):
        step(model, optimizer, 10)


def test_sparse_gradients_are_refused():
    model = nn.Embedding(20, 4, sparse=True)
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, {"weight": Budget(zeros=0.5, updates=100)}).attach(optimizer)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ParameterError, match=r"the gradient of 'weight' of shape .* is sparse"):
        optimizer.step()


def test_layers_declare_no_budget():
    with pytest.raises(TypeError, match="ranks weights of a whole model"):
        regularize(nn.Linear(4, 4), HUNDRED)
    model = net()
    regularize(model[0], L1(0.1))
    with pytest.raises(SelectionError, match=r"two rules clash on '0\.weight'"):
        Regularizer(model, HUNDRED)


@pytest.mark.filterwarnings("ignore:.*floor")
def test_one_object_is_one_budget_and_two_equal_ones_are_two():
    def run(first: Budget, second: Budget) -> list[int]:
        model = net()
        with torch.no_grad():
            model[0].weight.mul_(10)
        optimizer = SGD(model.parameters(), lr=1e-6)
        regularizer = Regularizer(model, {"0.weight": first, "2.weight": second}).attach(optimizer)
        for n in range(50):
            step(model, optimizer, n)
        assert len(regularizer.plan.budgets) == 1 + (first is not second)
        return [int((model[i].weight == 0).sum()) for i in (0, 2)]

    together = run(HUNDRED, HUNDRED)
    assert sum(together) == math.ceil(0.9 * 528)
    assert together[0] < 216
    assert run(Budget(zeros=0.9, updates=100), Budget(zeros=0.9, updates=100)) == [216, 260]


def test_two_equal_budgets_clash_on_a_tied_parameter():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    one, other = Budget(zeros=0.5, updates=100), Budget(zeros=0.5, updates=100)
    with pytest.raises(SelectionError, match="one tied parameter, but two rules clash"):
        Regularizer(model, {"0.weight": one, "1.weight": other})
    assert [each.name for each in Regularizer(model, one).plan.budgets[0].entries] == ["0.weight"]


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("groups", [Rows(), Columns(), Blocks(2, 2), Heads(2)])
def test_groups_inside_of_a_parameter_go_whole(groups):
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 2))
    budget = Budget(zeros=0.4, updates=100, groups=groups)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    regularizer = Regularizer(model, {"0.weight": budget, "2.weight": budget}).attach(optimizer)
    largest_group = max(groups.view(model[i].weight.detach()).shape[1] for i in (0, 2))
    for n in range(100):
        step(model, optimizer, n)
        views = [groups.view(model[i].weight.detach()) for i in (0, 2)]
        assert all(bool(((view == 0).all(1) == (view == 0).any(1)).all()) for view in views)
        found = sum(int((view == 0).sum()) for view in views)
        wanted = budget.zeros_at(n + 1, 528)
        assert wanted <= found < wanted + largest_group
    (progress,) = regularizer.progress()
    assert progress.reached == found


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("groups", [Rows(), Columns(), Blocks(2, 2), Heads(2)])
def test_groups_are_held_whole_after_the_freeze(groups):
    """A single zero in a group that lives is trained on, as by `freeze_zeros` with these groups."""
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = AdamW(model.parameters(), lr=0.01)
    Regularizer(model, {"0.weight": Budget(zeros=0.4, updates=50, groups=groups)}).attach(optimizer)
    for n in range(40):
        step(model, optimizer, n)
    w = model[0].weight
    gone = groups.view(w.detach() == 0).all(1)
    assert 0 < int(gone.sum()) < len(gone)
    single = tuple((w != 0).nonzero()[0])
    with torch.no_grad():
        w[single] = 0.0
    for n in range(40, 60):
        step(model, optimizer, n)
        assert torch.equal(groups.view(w.detach() == 0).all(1), gone)
    assert int((w == 0).sum()) == int((groups.view(w.detach()) == 0).all(1).sum()) * groups.view(w.detach()).shape[1]
    assert bool(w[single] != 0)


def test_groups_are_ranked_by_their_root_mean_square():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(9, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]).expand(4, 4))
        model[1].weight.copy_(torch.tensor([[2.5], [0.5], [9.0], [8.0]]).expand(4, 9))
    optimizer = SGD(model.parameters(), lr=0.0)
    Regularizer(model, Budget(zeros=0.5, updates=100, groups=Rows())).attach(optimizer)
    for _ in range(50):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    expected = [False, False, True, True]
    assert [(each.weight != 0).all(1).tolist() for each in model] == [expected, expected]


@pytest.mark.filterwarnings("ignore:.*floor")
@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "RMSprop", "NAdam", "Rprop", "ASGD", "Adamax", "Adadelta"])
def test_no_zero_leaves_after_the_freeze_and_nothing_is_saved(name):
    model = net()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3)
    regularizer = Regularizer(model, HUNDRED).attach(optimizer)
    for n in range(60):
        step(model, optimizer, n)
    masks = [parameter.detach() == 0 for parameter in matrices(model)]
    assert sum(int(mask.sum()) for mask in masks) == math.ceil(0.9 * 552)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for n in range(60, 200):
        step(model, optimizer, n)
    assert not all(map(torch.equal, model.parameters(), before))
    for parameter, mask in zip(matrices(model), masks, strict=True):
        assert torch.equal(parameter.detach() == 0, mask)
        assert not parameter.detach()[mask].signbit().any()
    assert regularizer.state_dict() == {
        "version": 1,
        "updates": [200],
        "budgets": [{"0": {"budget": "Budget(zeros=0.9, updates=100)"}}],
    }


ROUGH = {"Rprop": 1e-5, "Rprop foreach": 1e-5}  # its step does not shrink with the gradient


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, OptimizerCase("Muon", lambda p: Muon(p, lr=0.01))], ids=str)
def test_no_zero_leaves_in_a_thousand_updates_and_the_rest_is_least_squares(case):
    """Under every optimizer of torch that can have a budget of single weights."""
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(60, 8, dtype=torch.float64)).Q * 180**0.5 / 2  # curvature 1/2
    y = x @ torch.randn(8, 3, dtype=torch.float64) / 10 + 0.1 * torch.randn(60, 3, dtype=torch.float64)
    model = nn.Linear(8, 3, bias=False, dtype=torch.float64)
    nn.init.uniform_(model.weight, -0.03, 0.03)  # Adagrad's steps are short after large gradients
    optimizer = case.make(list(model.parameters()))
    regularizer = Regularizer(model, Budget(zeros=0.5, updates=200)).attach(optimizer)  # frozen from 120 on
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1200)
    zero = torch.zeros(3, 8, dtype=torch.bool)
    for n in range(1200):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
        rate.step()
        zero = model.weight.detach() == 0 if n == 120 else zero
        assert n < 120 or torch.equal(model.weight.detach() == 0, zero), n
    assert int(zero.sum()) == 12
    assert regularizer.state_dict()["budgets"] == [{"0": {"budget": "Budget(zeros=0.5, updates=200)"}}]
    solution = torch.zeros(3, 8, dtype=torch.float64)
    for row, gone, target in zip(solution, zero, y.t(), strict=True):
        row[~gone] = torch.linalg.lstsq(x[:, ~gone], target[:, None]).solution[:, 0]
    if case.name != "Muon":  # whose steps are orthogonal whatever the gradient's size
        assert (model.weight.detach() - solution).abs().max() <= ROUGH.get(case.name, 1e-10)


def test_what_stays_is_refitted_to_the_least_squares_solution():
    torch.manual_seed(0)
    x = torch.randn(60, 8, dtype=torch.float64)
    y = x @ torch.tensor([[3.0], [-2.0], [1.0], *[[0.0]] * 5], dtype=torch.float64)
    y = y + 0.1 * torch.randn(60, 1, dtype=torch.float64)
    model = nn.Linear(8, 1, bias=False, dtype=torch.float64)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
    regularizer = Regularizer(model, Budget(zeros=0.5, updates=300)).attach(optimizer)
    for _ in range(600):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
    support = model.weight.detach()[0] != 0
    assert int(support.sum()) == 4
    solution = torch.linalg.lstsq(x[:, support], y).solution[:, 0]
    assert torch.allclose(model.weight.detach()[0, support], solution, atol=1e-10, rtol=0)
    found = regularizer.residuals(lambda: mse_loss(model(x), y))
    assert found.solved
    assert str(found).endswith("Of weights with a Budget, those that are zero are left out.")
    assert float(regularizer.value()) == 0.0


@pytest.mark.filterwarnings("ignore:.*floor")
def test_progress_tells_of_the_last_ranking():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    regularizer = Regularizer(model, HUNDRED).attach(optimizer)
    phases, before = [], [parameter.detach() == 0 for parameter in matrices(model)]
    for n in range(70):
        (now,) = regularizer.progress()
        phases.append(now.phase)
        assert (now.update, now.target, now.of) == (n, 497, 552)
        assert now.reached == (None if n < 10 else zeros(model))
        masks = [parameter.detach() == 0 for parameter in matrices(model)]
        if 10 <= n <= 60:
            assert now.changed == sum(int((a != b).sum()) for a, b in zip(masks, before, strict=True))
            assert {name: each.stay for name, each in now.layers.items()} == {
                f"{i}.weight": int((model[i].weight != 0).sum()) for i in (0, 2, 4)
            }
        before = masks
        step(model, optimizer, n)
    assert phases == ["waiting"] * 10 + ["ramp"] * 30 + ["held"] * 20 + ["frozen"] * 10


@pytest.mark.filterwarnings("ignore:.*floor")
def test_frozen_parameters_are_left_out_and_named():
    model = net()
    model[2].weight.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, HUNDRED).attach(optimizer)
    assert "frozen, so not ranked: '2.weight'" in str(regularizer.plan)
    assert "238 of 264 weights in 2 parameters" in str(regularizer.plan)
    for n in range(45):
        step(model, optimizer, n)
    assert zeros(model) == 238


@pytest.mark.filterwarnings("ignore:.*floor")
def test_other_rules_of_the_same_optimizer_act_as_ever():
    both, alone = net(), net()
    one, other = (SGD(model.parameters(), lr=0.05) for model in (both, alone))
    Regularizer(both, {"0.weight": HUNDRED, "4.weight": L1(1e-2)}).attach(one)
    Regularizer(alone, {"4.weight": L1(1e-2)}).attach(other)
    for n in range(100):
        step(both, one, n)
        with torch.no_grad():
            for name in ("0.weight", "0.bias", "2.weight", "2.bias", "4.bias"):
                alone.get_parameter(name).copy_(both.get_parameter(name))
        for mine, own in zip(both.parameters(), alone.parameters(), strict=True):
            own.grad = mine.grad.clone()
        other.step()
        assert torch.equal(both[4].weight, alone[4].weight)
    assert int((both[0].weight == 0).sum()) == 216


def test_a_step_keeps_one_tensor_and_little_more():
    model = nn.Linear(2000, 1000, bias=False)
    optimizer = SGD(model.parameters(), lr=1e-4)
    Regularizer(model, Budget(zeros=0.9, updates=1000, begin=0.0)).attach(optimizer)
    model.weight.grad = torch.randn(1000, 2000)
    for _ in range(5):
        optimizer.step()
    with torch.profiler.profile(profile_memory=True) as profiled:
        optimizer.step()
    held = largest_held(profiled)
    assert held <= 2**20


def largest_held(profiled: torch.profiler.profile) -> int:
    """The largest number of bytes that were allocated at one time, beyond what there was before."""
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.filterwarnings("ignore:.*floor")
def test_several_optimizers_rank_by_themselves():
    model = net()
    optimizers = [SGD(model[i].parameters(), lr=0.05) for i in (0, 2, 4)]
    regularizer = Regularizer(model, HUNDRED)
    for each in optimizers:
        regularizer.attach(each)
    assert str(regularizer).endswith("Budget: in 3 optimizers, each by itself")
    for n in range(50):
        loss(model, n).backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
    assert [int((model[i].weight == 0).sum()) for i in (0, 2, 4)] == [216, 260, 22]
    assert [each.target for each in regularizer.progress()] == [216, 260, 22]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*floor")
def test_two_percent_of_a_network_recognise_digits():
    """Seeds 0 to 2: 1,004 of 50,200 weights; a mean error of 6%, and a mean loss of 0.25."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    errors, losses = [], []
    for seed in range(3):
        inputs, labels = load_digits(return_X_y=True)
        split = train_test_split(inputs / 16, labels, test_size=0.4, random_state=seed, stratify=labels)
        x, held_x = (torch.tensor(each, dtype=torch.float32) for each in split[:2])
        y, held_y = map(torch.tensor, split[2:])
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        Regularizer(model, Budget(zeros=0.98, updates=600)).attach(optimizer)
        for n in range(600):
            done = n / 600
            optimizer.param_groups[0]["lr"] = 1e-3 * min(done / 0.05, 1.0) * (1 + math.cos(math.pi * done))
            at = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(1_000_000 * seed + n))
            optimizer.zero_grad()
            cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
        assert sum(int((parameter != 0).sum()) for parameter in matrices(model)) == 1004
        with torch.no_grad():
            outputs = model(held_x)
        losses.append(float(cross_entropy(outputs, held_y)))
        errors.append(float((outputs.argmax(1) != held_y).float().mean()))
    assert sum(losses) / 3 <= 0.27
    assert sum(errors) / 3 <= 0.07
