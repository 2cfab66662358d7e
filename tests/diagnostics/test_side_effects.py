"""What is asked of a model leaves it as it was: everything that a closure changes is looked at before and after."""

import copy
import random
from collections import defaultdict, deque
from functools import partial

import numpy
import pytest
import torch
from torch import nn
from torch.ao.quantization import MinMaxObserver
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as older_spectral_norm
from torch.nn.utils import weight_norm as older_weight_norm
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, TensorDataset

from shrinkage import L1, Regularizer, strength_max
from shrinkage.diagnostics.side_effects import modules_of


class Keeps(nn.Module):
    """It keeps, in all the ways there are, something of each call."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("replaced", torch.zeros(4))
        self.register_buffer("resized", torch.zeros(0))
        self.register_buffer("positions", torch.arange(4).expand(3, 4))
        self.register_buffer("graph", torch.eye(4).to_sparse())
        self.plain, self.last, self.calls = torch.zeros(4), None, 0
        self.history, self.counts, self.recent = [], defaultdict(int), deque(maxlen=2)
        self.caches = {"keys": [torch.zeros(4)]}
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        y = self.linear(x + 0.1 * torch.randn(4, generator=self.generator))
        with torch.no_grad():
            self.mean.lerp_(y.mean(0), 0.1)
            self.replaced = self.replaced + 1
            self.resized.resize_(self.calls + 1).fill_(1.0)
            self.plain.add_(1)
            self.graph.mul_(2)
            self.caches["keys"][0].add_(1)
        self.last, self.calls = y, self.calls + 1
        setattr(self, f"call{self.calls}", y)
        self.history.append(self.calls)
        self.counts["calls"] += 1
        self.recent.append(self.calls)
        self.register_buffer("made", y.detach())
        return y


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        Keeps(),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        older_spectral_norm(nn.Linear(4, 4)),
        MinMaxObserver(),
        nn.Dropout(0.5),
        torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))),
        nn.Linear(4, 1),
    )


def cloned(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def snapshot(model):
    """All that can be seen of a model: which objects it holds, and a copy of what stands in them."""
    seen = {}
    for path, module in model.named_modules():
        seen[path, "training"] = module.training
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            grad = tensor.grad
            scripted = isinstance(module, torch.jit.ScriptModule)  # it makes a new object for every look at a tensor
            seen[path, name] = 0 if scripted else id(tensor), cloned(tensor), tensor.requires_grad, id(grad)
            seen[path, name, "grad"] = None if grad is None else grad.clone()
        for name, value in vars(module).items():
            if not isinstance(module, torch.jit.ScriptModule) and not name.startswith("_"):
                seen[path, name, "attribute"] = id(value), tree_map(cloned, value)
    keeps = model[2]
    numbers = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    return seen, numbers, keeps.generator.get_state(), copy.deepcopy(dict(keeps.counts))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.layout == other.layout and torch.equal(one.to_dense(), other.to_dense())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def through_strength_max(model, closure, data):
    return strength_max(model, closure, {"0.weight": L1(1.0)}, data)


def through_residuals(model, closure, data):
    return Regularizer(model, {"0.weight": L1(1.0)}).residuals(closure, data)


ASK = pytest.mark.parametrize("ask", [through_strength_max, through_residuals])


@ASK
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("clear", ["keep", "none", "zero", "step"])
def test_anything_may_change(ask, raises, loader, clear):
    model, x = network(), torch.randn(6, 4)
    model(x)
    model(x).sum().backward()
    model[0].bias.requires_grad_(False)
    frozen = model[0].bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure(*batch):
        if clear == "step":
            optimizer.zero_grad()
        elif clear != "keep":
            model.zero_grad(set_to_none=clear == "none")
        random.random(), numpy.random.rand(), torch.rand(1)
        model[1].eval()
        model[7].eval()
        frozen.requires_grad_(True)
        loss = model(batch[0][0] if batch else x).sum()
        model[1].train()
        model[1](x)
        model[6].eval()
        if clear == "zero":
            loss.backward(retain_graph=True)
        if raises:
            raise ZeroDivisionError
        return loss

    generator = torch.Generator().manual_seed(1)
    data = DataLoader(TensorDataset(x), batch_size=2, shuffle=True, generator=generator) if loader else None
    before, drawn = snapshot(model), generator.get_state()
    if raises:
        with pytest.raises(ZeroDivisionError):
            ask(model, closure, data)
    else:
        ask(model, closure, data)
    assert same(snapshot(model), before)
    assert torch.equal(generator.get_state(), drawn)


@ASK
def test_other_modules_that_the_closure_calls_are_left_as_they_were_too(ask):
    made = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    judge = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(6, 4)
    judge(made(x)).sum().backward()
    before = copy.deepcopy([judge.state_dict(), [p.grad for p in judge.parameters()]])

    def closure():
        judge.zero_grad()
        return judge(made(x)).mean()

    ask(made, closure, None)
    ask(nn.Sequential(made[0]), closure, None)
    assert same([judge.state_dict(), [p.grad for p in judge.parameters()]], before)


JUDGE = nn.BatchNorm1d(2)


def judged(x):
    return next(JUDGE(each) for each in (x,))


class Trainer:
    def __init__(self):
        self.parts = {"judge": nn.BatchNorm1d(2)}

    def loss(self):
        return self.parts["judge"](torch.ones(2, 2))

    def __call__(self):
        return self.loss()


def test_modules_are_found_in_whatever_a_closure_refers_to():
    trainer = Trainer()
    own = trainer.parts["judge"]
    assert modules_of(lambda: judged(torch.ones(2, 2))) == [JUDGE]
    assert modules_of(trainer.loss) == modules_of(trainer) == modules_of(lambda: trainer.loss()) == [own]
    assert modules_of(partial(judged, own)) in ([JUDGE, own], [own, JUDGE])
    assert modules_of(lambda judge=own: judge) == [own]
    assert modules_of(lambda: torch.nn.functional.relu(torch.ones(2))) == []


@ASK
def test_a_closure_that_calls_backward_is_told_to_leave_that_out(ask):
    model = nn.Sequential(nn.Linear(2, 1))
    model[0].weight.grad = grad = torch.ones(1, 2)

    def closure():
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"calls backward\(\): it has to return the loss, and to leave that out"):
        ask(model, closure, None)
    assert model[0].weight.grad is grad
    assert torch.equal(grad, torch.ones(1, 2))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_an_older_weight_norm_computes_on_the_same_weight():
    model = nn.Sequential(nn.Linear(2, 2), older_weight_norm(nn.Linear(2, 1)))
    before = vars(model[1])["weight"]
    strength_max(model, lambda: model(torch.ones(1, 2)).sum(), {"0.weight": L1(1.0)})
    assert vars(model[1])["weight"] is before


def test_gradients_are_those_of_the_model_as_it_is():
    """Hiding `.grad` and putting buffers back does not change what is computed."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    with torch.no_grad():
        dense = copy.deepcopy(model)
        dense[0].weight.zero_()
    dense(x).square().mean().backward()
    found = strength_max(model, lambda: model(x).square().mean(), {"0.weight": L1(1.0)})
    assert found == pytest.approx(float(dense[0].weight.grad.abs().max()), rel=1e-12)
