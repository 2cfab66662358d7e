"""Budgets of single weights: exactly so many zeros, while the dense weights are kept aside."""

import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adagrad, AdamW, Muon, Optimizer

from shrinkage import Budget, Regularizer

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
    dense = {name: model.get_parameter(name).detach() + aside for name, aside in asides.items()}
    optimizer.due = True
    with pytest.raises(RuntimeError, match="half"):
        step(model, optimizer, 30)
    for name, value in dense.items():
        now = model.get_parameter(name).detach()
        untouched = slice(12, None) if name == "0.weight" else slice(None)
        assert torch.equal(now[untouched], value[untouched])
    step(model, optimizer, 31)
    assert zeros(model) == HUNDRED.zeros_at(31, 552)


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
