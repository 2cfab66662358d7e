"""What is handed back is what was compared: tensors of earlier calls, modes, the state of model and process."""

import functools
import random
import sys
import types
from typing import ClassVar

import numpy
import pytest
import torch
from torch import nn

from late import torchvision_models
from shrinkage import CoupledChannels, ShrinkPlan, apply_plan, shrink
from shrinkage.compression.calls.outputs import outputs
from shrinkage.compression.copying.caches import caches_of
from shrinkage.compression.plans import applying
from shrinkage.compression.removal import bisection

X = torch.linspace(-2, 2, 120).reshape(3, 5, 8).sin()


class Attention(nn.Module):
    """Attention with biases for places, which it keeps in evaluation mode; the first of two heads can be zero."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.queries_keys_values, self.out, self.heads = nn.Linear(8, 48, bias=False), nn.Linear(16, 8), 2
        self.biases, self.kept = nn.Parameter(torch.randn(2, 5, 5)), {}
        self.eval()

    def looked_up(self):
        if self.training:
            return self.biases * 1.0
        if "biases" not in self.kept:
            self.kept["biases"] = self.biases * 1.0
        return self.kept["biases"]

    def forward(self, x):
        split = self.queries_keys_values(x).view(*x.shape[:2], self.heads, 3, -1)
        q, k, v = split.permute(3, 0, 2, 1, 4)
        scores = q @ k.mT / 8**0.5 + self.looked_up()[:, : x.shape[1], : x.shape[1]]
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def zeroed(self):
        self.queries_keys_values.weight.view(2, 3, 8, 8)[0] = 0
        self.biases[0] = 0


class EmptiedAlways(Attention):
    def train(self, mode=True):
        self.kept = {}
        return super().train(mode)


class EmptiedForTraining(Attention):
    def train(self, mode=True):
        if mode:
            self.kept.clear()
        return super().train(mode)


class EmptiedForEvaluation(Attention):
    def train(self, mode=True):
        if not mode:
            self.kept = {}
        return super().train(mode)


class EmptiedUnlessTrained(Attention):
    """A frozen model, which refuses to be trained."""

    def train(self, mode=True):
        if mode:
            raise RuntimeError("frozen")
        self.kept = {}
        return super().train(mode)


class EmptiedWhenMoved(Attention):
    def _apply(self, *arguments, **keywords):
        self.kept = {}
        return super()._apply(*arguments, **keywords)


EMPTIED = [EmptiedAlways, EmptiedForTraining, EmptiedForEvaluation, EmptiedUnlessTrained, EmptiedWhenMoved]


@torch.no_grad()
def called(model, when):
    """`model` with a head that is zero, called in evaluation mode before or after that, and perhaps trained in part."""
    if when == "before":
        model(X)
    model.zeroed()
    if when != "before":
        model(X)
    if when == "training":
        model.train().out.eval()
    return model


def modes(model):
    return {path: module.training for path, module in model.named_modules()}


@pytest.mark.parametrize("when", ["before", "after", "training"])
@pytest.mark.parametrize("kind", EMPTIED)
def test_tensors_that_a_model_empties_by_itself_hold_no_channel(kind, when):
    if kind is EmptiedUnlessTrained and when == "training":
        when = "after"
    model = called(kind(), when)
    before, kept = modes(model), dict(model.kept)
    result = shrink(model, X)
    assert result.model.heads == 1
    assert modes(result.model) == modes(model) == before
    assert kept.keys() == model.kept.keys()
    assert all(model.kept[name] is kept[name] for name in kept)
    assert result.model.kept == {}
    torch.testing.assert_close(result.model(X), model(X))
    torch.testing.assert_close(result.model.eval()(X), kind_of(model)(X))


def kind_of(model):
    """A model of the same class and weights that was never called."""
    fresh = type(model)()
    fresh.load_state_dict(model.state_dict())
    return fresh


@pytest.mark.parametrize("kind", EMPTIED)
def test_a_plan_is_applied_to_a_model_that_was_called(kind):
    model = called(kind(), "after")
    small = apply_plan(model, shrink(kind_of(model), X).plan)
    assert small.heads == 1
    torch.testing.assert_close(small(X), model(X))


def test_tensors_that_nothing_empties_are_named_as_the_reason():
    model = called(Attention(), "after")
    result = shrink(model, X)
    torch.testing.assert_close(result.model(X), model(X))
    assert result.model.heads == 2
    assert any(kept.reason.endswith("`kept` keeps tensors of an earlier call") for kept in result.report.kept)
    assert any("empty what it keeps" in kept.advice for kept in result.report.kept)


class PerOptimizer(nn.Module):
    """One module keeps tensors; another one, whose name begins alike, is not called."""

    def __init__(self):
        super().__init__()
        self.layer, self.layer_of_others = nn.Linear(6, 6), nn.Linear(6, 6)
        self.layer.kept = torch.ones(6)
        with torch.no_grad():
            self.layer_of_others.weight[0] = 0

    def forward(self, x):
        return self.layer(x)


def test_a_module_that_keeps_tensors_is_no_reason_for_others():
    (kept,) = shrink(PerOptimizer().eval(), torch.randn(2, 6)).report.kept
    assert kept.name == "layer_of_others.weight"
    assert "not used by any" in kept.reason
    assert "keeps tensors" not in kept.reason


POSITIONS: dict[int, torch.Tensor] = {}
LENGTHS: list[torch.Tensor] = []


@functools.lru_cache
def scales(length):
    return torch.arange(length) / length


class KeepsGlobally(nn.Module):
    """A model whose code keeps tensors in global variables, and has its width as a number."""

    made: ClassVar[dict[int, torch.Tensor]] = {}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        samples, length, _ = x.shape
        for kept in (POSITIONS, self.made):
            if length not in kept:
                kept[length] = torch.arange(length, device=x.device).float()
                LENGTHS.append(kept[length])
        hidden = self.first(x).relu().view(samples, length, 8)
        hidden = self.second(hidden) + (POSITIONS[length] * self.made[length] + scales(length))[:, None]
        return self.last(hidden.relu())


@pytest.mark.parametrize("search", [CoupledChannels, shrink])
@pytest.mark.parametrize("called_before", [False, True])
def test_graphs_and_shapes_leave_no_tensors_in_global_variables(search, called_before):
    for kept in (POSITIONS, LENGTHS, KeepsGlobally.made):
        kept.clear()
    scales.cache_clear()
    model, x = KeepsGlobally().eval(), torch.randn(2, 5, 6)
    if called_before:
        model(x)
    before = dict(POSITIONS)
    search(model, x)
    found = [*POSITIONS.values(), *LENGTHS, *KeepsGlobally.made.values(), scales(5), scales(4)]
    assert all(type(tensor) is torch.Tensor and not tensor.is_meta for tensor in found)
    assert all(POSITIONS[length] is tensor for length, tensor in before.items())
    assert type(model(x)) is torch.Tensor


def test_graphs_leave_no_tensors_in_global_variables_of_another_file(monkeypatch):
    other = types.ModuleType("file_with_positions")
    code = "import torch\nKEPT = {}\ndef kept(length):\n    return KEPT.setdefault(length, torch.arange(length))"
    exec(code, vars(other))  # what `from file_with_positions import kept` would bring
    monkeypatch.setitem(sys.modules, other.__name__, other)
    monkeypatch.setitem(globals(), "kept", other.kept)

    class Located(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.first(x).relu() + other.kept(x.shape[1])[:, None])

    CoupledChannels(Located().eval(), torch.randn(2, 5, 6))
    assert all(type(tensor) is torch.Tensor and not tensor.is_meta for tensor in other.KEPT.values())


def test_widths_as_numbers_are_found_beside_global_variables():
    x = torch.randn(2, 5, 6)
    channels = CoupledChannels(KeepsGlobally().eval(), x)
    assert channels.count == 16


def test_what_is_out_of_date_in_the_smaller_model_is_seen(monkeypatch):
    """A comparison that tells the copy to evaluate again would see nothing: the copy forgets then."""
    monkeypatch.setattr(applying, "emptied", lambda model: model)
    model = called(EmptiedAlways(), "after")
    result = shrink(model, X)
    torch.testing.assert_close(result.model(X), model(X))
    assert result.model.heads == 2


def test_the_model_that_was_compared_is_handed_back(monkeypatch):
    compared = []

    def error(checks, small, measure=bisection.Checks.error):
        compared.append(small)
        return measure(checks, small)

    monkeypatch.setattr(bisection.Checks, "error", error)
    result = shrink(called(EmptiedAlways(), "after"), X)
    assert any(small is result.model for small in compared)


class Auxiliary(nn.Module):
    """A second head that is called in training alone, as in GoogLeNet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.middle, self.outer, self.second = (
            nn.Linear(*sizes) for sizes in ((8, 16), (16, 12), (12, 3), (16, 3))
        )
        with torch.no_grad():
            for layer in (self.inner, self.middle):
                layer.weight[:5] = layer.bias[:5] = 0

    def forward(self, x):
        hidden = torch.relu(self.inner(x))
        result = self.outer(torch.relu(self.middle(hidden)))
        return (result, self.second(hidden)) if self.training else result


def test_a_model_that_is_handed_over_in_training_can_be_trained_on():
    model = Auxiliary().train()
    result = shrink(model, X)
    assert result.model.training
    for one, other in zip(result.model(X), model(X), strict=True):
        torch.testing.assert_close(one, other)
    assert (result.model.inner.out_features, result.model.middle.out_features) == (16, 7)
    torch.testing.assert_close(result.model.eval()(X), model.eval()(X))
    assert shrink(Auxiliary().eval(), X).model.inner.out_features == 11


class Leaving(nn.Module):
    """A forward pass that leaves traces in its class, in gradients and in random states."""

    seen: ClassVar[dict[int, torch.Tensor]] = {}
    lengths: ClassVar[list[int]] = []

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.inner.weight[:5] = self.inner.bias[:5] = 0

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.seen[x.shape[1]] = x.mean()
            self.lengths.append(x.shape[1])
            random.random()
            numpy.random.rand()
            torch.rand(1)
            if self.inner.weight.requires_grad:
                with torch.enable_grad():
                    self.inner.weight.square().sum().backward()
        return self.outer(torch.relu(self.inner(x)))


@pytest.mark.parametrize("training", [True, False])
def test_comparing_leaves_model_class_and_process_as_they_were(training, monkeypatch):
    seen = {7: X.mean()}
    monkeypatch.setattr(Leaving, "seen", dict(seen))
    monkeypatch.setattr(Leaving, "lengths", [7])
    model = Leaving().train(training)
    gradient = torch.ones(16, 8)
    model.inner.weight.grad = gradient
    states = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[2]
    result = shrink(model, X)
    assert result.model.inner.out_features == 11
    assert (Leaving.seen, Leaving.lengths) == (seen, [7])
    assert model.inner.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(16, 8))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert numpy.random.get_state()[2] == states[2]
    assert all(parameter.grad is None for parameter in result.model.parameters())


DRAWS = {"python": random.random, "numpy": numpy.random.rand, "torch": lambda: torch.rand(1).item()}


class Noisy(Leaving):
    def __init__(self, source="numpy"):
        super().__init__()
        self.source = source

    def forward(self, x):
        return super().forward(x) + float(DRAWS[self.source]())


@pytest.mark.parametrize("source", DRAWS)
def test_outputs_are_the_same_whatever_was_drawn_before(source):
    model, call = Noisy(source).eval(), ((X,), {})
    (first,) = outputs(model, call)
    DRAWS[source]()
    (second,) = outputs(model, call)
    assert torch.equal(first, second)


def test_a_model_that_draws_with_numpy_is_compared_on_the_same_numbers():
    result = shrink(Noisy().eval(), X)
    assert result.model.inner.out_features == 11
    assert result.report.error < 1e-6


def test_parameters_and_buffers_that_an_attribute_holds_too_are_no_caches():
    model = nn.LSTM(3, 4)
    model.named = {"all": list(model.parameters())}
    assert caches_of(model) == []
    model.named["old"] = torch.zeros(2)
    assert caches_of(nn.Sequential(model)) == ["0.named"]
    assert ShrinkPlan.of(nn.Linear(2, 2), {}).biases == ()


@pytest.mark.slow
def test_levit_of_timm_keeps_biases_in_evaluation():
    with torchvision_models.aside():
        import timm
    torch.manual_seed(0)
    narrow = {"embed_dim": (16, 24, 32), "depth": (1, 1, 1), "num_heads": (2, 3, 4), "key_dim": 8}
    model, x = timm.create_model("levit_128s", num_classes=10, **narrow).eval(), torch.randn(2, 3, 224, 224)
    attention = model.stages[0].blocks[0].attn
    with torch.no_grad():
        attention.qkv.linear.weight.view(2, 32, -1)[0] = 0
        attention.qkv.bn.weight.view(2, 32)[0] = attention.qkv.bn.bias.view(2, 32)[0] = 0
        attention.attention_biases[0] = 0
        expected = model(x)
        small = shrink(model, x).model
        assert small.stages[0].blocks[0].attn.num_heads == 1
        torch.testing.assert_close(small(x), expected)
