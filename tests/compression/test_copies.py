"""What copies of a model carry over, what they cannot, and what calls of them leave behind: nothing."""

import threading
import types
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shrinkage import CoupledChannels, ShrinkError, ShrinkPlan, apply_plan, shrink, to_dense, to_sparse
from shrinkage.compression.copying.copies import copy_of

GLOBAL = nn.Linear(8, 8)
X = torch.linspace(-1, 1, 32).view(4, 8)
Pair = namedtuple("Pair", "first second")


def mlp(*, gone: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].weight[:gone] = 0
        model[0].bias[:gone] = 0
    return model


def test_two_attributes_share_the_copy_of_what_they_shared() -> None:
    model = mlp()
    layer = model[0]

    def call(x: Tensor) -> Tensor:
        nonlocal layer
        return layer(x)

    def put(other: nn.Module) -> None:
        nonlocal layer
        layer = other

    model.one, model.two, model.put = call, [call], put
    copy = copy_of(model, {})
    assert copy.one is copy.two[0]
    assert copy.one is not call
    other = nn.Identity()
    copy.put(other)
    assert copy.one(X) is X
    assert model.one(X).shape == (4, 16)


class WithState(nn.Linear):
    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"written": True}


class Restored(nn.Linear):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.restored = True


class Alone(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        return nn.Identity()


def test_modules_are_copied_as_deepcopy_does_it() -> None:
    """Copies take a path of their own through modules, whose containers are empty as a rule."""
    alone = nn.Linear(8, 8)
    alone.__deepcopy__ = lambda memo: nn.Identity()
    model = nn.Sequential(WithState(8, 8), Restored(8, 8), nn.Linear(8, 8), Alone(8, 8), alone)
    shared: list[int] = []
    ordered = OrderedDict[str, int]()
    ordered.note = "kept"
    for layer in model[1:3]:
        layer.shared, layer.ordered, layer.tables = shared, ordered, {"none": {}, "weight": [layer.weight], 3: (4, [5])}
    known, copy = deepcopy(model), copy_of(model, {})
    for each in (known, copy):
        assert [type(layer) for layer in each] == [WithState, Restored, nn.Linear, nn.Identity, nn.Identity]
        assert each[0].written
        assert each[1].restored
        assert each[1].shared is each[2].shared is not shared
        assert each[1].ordered is each[2].ordered is not ordered
        assert each[1].ordered.note == "kept"
        assert each[1].tables["weight"][0] is each[1].weight is not model[1].weight
        assert each[1].tables["none"] is not model[1].tables["none"]
        assert each[1].tables[3][1] is not model[1].tables[3][1]
    assert vars(copy[2]).keys() == vars(known[2]).keys()
    assert all(vars(copy[2])[name] is not value for name, value in vars(model[2]).items() if isinstance(value, dict))


def test_hooks_of_modules_follow_and_what_they_collect_in_stays_the_same() -> None:
    model, seen = mlp(), []
    first = model[0]
    model[2].register_forward_hook(lambda module, args, out: out + first.weight.shape[0])
    model[1].register_forward_pre_hook(lambda module, args: seen.append(len(first.bias)))
    model[2].register_full_backward_hook(lambda module, grads, outs: seen.append(len(first.weight)))
    small = shrink(model, X, verify=False).model
    seen.clear()
    torch.testing.assert_close(small(X), model(X) - 3)  # of 16 rows 13 are left
    small(X).sum().backward()
    assert seen == [13, 16, 13, 13]


def test_a_forward_that_was_replaced_is_one_of_the_copy() -> None:
    for wrap in (
        lambda old: lambda x: 2 * old(x),
        lambda old: types.MethodType(lambda self, x: 2 * old(x), old.__self__),
    ):
        model = mlp()
        model.forward = wrap(model.forward)
        small = shrink(model, X).model
        torch.testing.assert_close(small(X), model(X))
        small(X).sum().backward()
        assert small[0].weight.shape == (13, 8)
        assert all(p.grad is not None for p in small.parameters())
        assert model[0].weight.grad is None


def test_an_object_that_can_not_be_copied_is_shared_by_hooks() -> None:
    class Trainer:
        def __init__(self, model: nn.Module) -> None:
            self.model, self.lock, self.calls = model, threading.Lock(), 0

    model = mlp()
    trainer = Trainer(model)
    model[0].register_forward_hook(lambda *_: setattr(trainer, "calls", trainer.calls + 1))
    small = shrink(model, X).model
    calls = trainer.calls
    small(X).sum().backward()
    assert trainer.calls == calls + 1
    assert small[0].weight.shape == (13, 8)
    assert model[0].weight.grad is None


def through_global(x: Tensor) -> Tensor:
    return GLOBAL(x)


class Reader(nn.Module):
    def __init__(self, read: Any) -> None:
        super().__init__()
        self.layer, self.read, self.norm = GLOBAL, read, nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.read(x)) + self.layer(x)


class Inside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ GLOBAL.weight.detach()


def test_layers_by_global_variables_are_refused_by_name() -> None:
    with pytest.raises(ShrinkError, match=r"'layer.weight' .* `the model`, through .* attribute 'read'"):
        shrink(Reader(through_global), X)
    with pytest.raises(ShrinkError, match=r"'layer.weight' .* attribute 'read'"):
        to_sparse(Reader(through_global), example_inputs=X, keep_if_faster=False)
    for frozen in (False, True):
        GLOBAL.requires_grad_(not frozen)
        with pytest.raises(ShrinkError, match=r"computes with 'layer.weight' of the model that was given, in `read`"):
            shrink(Reader(Inside()), X, verify=False)


def test_a_layer_by_a_global_variable_is_left_as_it_was() -> None:
    norm = globals()["NORM"] = nn.BatchNorm1d(8)
    model = Reader(lambda x: NORM(x))  # type: ignore[name-defined]  # noqa: F821
    model.norm = norm
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ShrinkError, match=r"'norm\."):
        shrink(model, X)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert norm.training


def test_what_is_made_of_parameters_once_is_refused_by_name() -> None:
    for make in (lambda w: w.T, lambda w: w.data, lambda w: [w * 2], lambda w: w.detach()[:]):
        model = nn.Linear(8, 8)
        model.kept = make(model.weight)
        model.forward = types.MethodType(
            lambda self, x: x @ (self.kept[0] if isinstance(self.kept, list) else self.kept) + self.bias, model
        )
        with pytest.raises(ShrinkError, match="attribute 'kept', which was made from parameters"):
            shrink(model, X)
        model.forward = types.MethodType(lambda self, x: x @ self.weight + self.bias, model)
        shrink(model, X)  # kept for a picture, say


@dataclass
class Kept:
    tensor: Tensor
    rest: Any = None


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda y: y,
    "list": lambda y: [y, [y * 2]],
    "dictionary": lambda y: {"a": {"b": (y, y.sum())}},
    "named tuple": lambda y: Pair(y, [y]),
    "dataclass": lambda y: Kept(y, Kept(y.exp())),
    "namespace": lambda y: types.SimpleNamespace(y=y),
    "distribution": lambda y: torch.distributions.Normal(y, 1.0, validate_args=False),
    "function": lambda y: lambda: y,
}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_a_model_that_keeps_what_it_computed_with_gradients(keep: Callable[[Tensor], Any]) -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.kept, self.losses = mlp(), None, []
            self.register_buffer("mean", torch.zeros(2))
            self.net[1].register_forward_hook(lambda module, args, out: setattr(module, "out", out))

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            self.kept, self.mean = keep(y), y.mean(0)
            self.losses.append(y.square().mean())
            return y + self.mean

    model = Keeping()
    model(X).square().sum().backward()
    kept, history = model.kept, model.net[1].out
    CoupledChannels(model, X)
    small = shrink(model, X)
    assert small.model.net[0].weight.shape == (13, 8)
    torch.testing.assert_close(small.model(X), model(X))
    model.kept, model.net[1].out = kept, history
    plan = ShrinkPlan.from_json(small.plan.to_json())
    for other in (apply_plan(model, plan), to_dense(model), to_sparse(model, keep_if_faster=False).model):
        assert other.mean.grad_fn is None
        assert len(other.losses) == 2
        other(X).sum().backward()
    assert model.kept is kept
    assert history.grad_fn is not None


def test_a_gradient_with_a_history_is_copied() -> None:
    model = mlp()
    model.point = torch.ones(8, requires_grad=True)
    (grad,) = torch.autograd.grad(model(model.point).square().sum(), model.point, create_graph=True)
    model.point.grad = grad
    assert shrink(model, X).model[0].weight.shape == (13, 8)


def test_what_can_not_be_copied_is_named() -> None:
    model = mlp()
    model[1].lock = threading.Lock()
    with pytest.raises(ShrinkError, match=r"makes none of the attribute '1\.lock': cannot pickle"):
        shrink(model, X)


def test_hooks_on_gradients_are_told_once() -> None:
    model = mlp(gone=14)
    model[2].weight.register_hook(lambda grad: grad * 0)
    model[0].bias.register_post_accumulate_grad_hook(lambda parameter: None)
    told = "hooks on the gradients of 0.bias, 2.weight do not pass to the new model"
    with pytest.warns(UserWarning, match=told) as caught:
        small = shrink(model, X)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert small.report.hooked == ("0.bias", "2.weight")
    assert "register again" in str(small.report)
    for make in (
        lambda: apply_plan(model, small.plan),
        lambda: to_sparse(model, keep_if_faster=False),
        lambda: to_dense(model),
    ):
        with pytest.warns(UserWarning, match=told) as caught:
            make()
        assert len(caught) == 1
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shrink(mlp(), X).report.hooked == ()


class Branching(nn.Module):
    """A branch by `torch.cond`, which torch compiles where it is called outside of an export."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.second(torch.cond(hidden.sum() > 40, lambda h: h * 2, lambda h: h - 1, (hidden,)))


def test_a_branch_of_the_graph_that_no_dispatch_mode_sees_is_called_as_before():
    model, x = Branching().eval(), torch.randn(3, 8)
    small = shrink(model, x).model
    with torch.no_grad():
        for scale in (0.1, 10):
            torch.testing.assert_close(small(scale * x), model(scale * x))
