"""Modes of modules, and of the process, around the calls of a model that is made smaller."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shrinkage import CoupledChannels, ShrinkError, shrink, to_sparse
from shrinkage.compression.calls.cost import multiply_adds
from shrinkage.compression.calls.modes import evaluated, process_as_it_was

X = torch.linspace(-1, 1, 32).view(4, 8)


def zero_rows(layer: nn.Linear, count: int = 3) -> None:
    with torch.no_grad():
        layer.weight[:count] = 0
        layer.bias[:count] = 0


class Trained(nn.Linear):
    """A layer that trains itself, as in the forward-forward algorithm."""

    calls = 0

    def train(self, good: Tensor, bad: Tensor) -> None:  # type: ignore[override]
        Trained.calls += 1


class TrainedByDefault(Trained):
    def train(self, data: Any = None, epochs: int = 3) -> None:  # type: ignore[override]
        Trained.calls += 1


class Evaluated(Trained):
    def eval(self, data: Any) -> float:  # type: ignore[override]
        Trained.calls += 1
        return 0.0


class Cached(nn.Module):
    """A layer that forgets what it looked up when its mode changes, and has one whose mode cannot be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cache, self.layer, self.drop = nn.Parameter(torch.ones(16)), {}, nn.Identity(), nn.Dropout()

    def train(self, mode: bool = True) -> nn.Module:
        self.cache.clear()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cache.setdefault("table", self.table)


@pytest.mark.parametrize("kind", [Trained, TrainedByDefault, Evaluated])
def test_a_train_that_is_no_change_of_mode_is_not_called(kind: type[Trained]) -> None:
    Trained.calls = 0
    model = nn.Sequential(kind(8, 16), nn.Sequential(Cached(), nn.Dropout(0.5)), kind(16, 2))
    zero_rows(model[0])
    reference = nn.Sequential(nn.Linear(8, 16), nn.Identity(), nn.Linear(16, 2))
    reference.load_state_dict({name: value for name, value in model.state_dict().items() if "table" not in name})
    small = shrink(model, X)
    assert small.model[0].weight.shape == (13, 8)
    assert small.model[2].training
    torch.testing.assert_close(evaluated(small.model)(X), reference(X))
    assert not any(module.training for module in small.model.modules())
    assert CoupledChannels(model, X).count == 16
    to_sparse(model, example_inputs=X)
    assert Trained.calls == 0
    assert all(module.training for module in model.modules())


def test_a_change_of_mode_runs_the_code_of_a_class() -> None:
    for model in (Cached(), nn.Sequential(Cached(), Trained(16, 16))):
        cached = model if isinstance(model, Cached) else model[0]
        cached.cache["table"] = torch.zeros(16)
        evaluated(model)
        assert not cached.cache
        assert not cached.drop.training


def test_a_change_of_mode_that_writes_into_weights_leaves_the_given_model_alone() -> None:
    class Merged(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 16)
            self.merged, self.low = False, nn.Parameter(torch.ones(16, 8))

        def train(self, mode: bool = True) -> nn.Module:
            if mode == self.merged:
                self.weight.data += self.low if not mode else -self.low
                self.merged = not mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (0 if self.merged else x @ self.low.T)

    model = nn.Sequential(Merged(), nn.ReLU(), nn.Linear(16, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(X)
    small = shrink(model, X)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(small.model(X), expected)


class Transformed(nn.Module):
    """Two layers under a transform of functions."""

    def __init__(self, transform: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.transform = nn.Linear(8, 16), nn.Linear(16, 3), transform
        zero_rows(self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(lambda v: self.b(torch.tanh(self.a(v))), x)


TRANSFORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "vmap": lambda f, x: torch.vmap(f)(x),
    "vmap twice": lambda f, x: torch.vmap(torch.vmap(f))(x.view(2, 2, 8)),
    "vmap in chunks": lambda f, x: torch.vmap(f, chunk_size=2)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_channels_under_transforms_of_functions_go(transform: Callable[[Any, Tensor], Tensor]) -> None:
    model = Transformed(transform)
    small = shrink(model, X).model
    assert small.a.weight.shape == (13, 8)
    torch.testing.assert_close(small(X.flip(0)), model(X.flip(0)))
    nn.Linear(2, 2)  # which draws numbers: not inside a level of vmap


REFUSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "random": lambda f, x: torch.vmap(lambda v: f(v) * torch.rand(3), randomness="different")(x),
    "columns": lambda f, x: torch.vmap(f, in_dims=1, out_dims=1)(x.T),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "gradient": lambda f, x: torch.func.grad(lambda v: f(v).sum())(x),
    "gradients": lambda f, x: torch.vmap(torch.func.grad(lambda v: f(v).sum()))(x),
    "jacrev": lambda f, x: torch.vmap(torch.func.jacrev(f))(x),
    "hessian": lambda f, x: torch.vmap(torch.func.hessian(lambda v: f(v).sum()))(x),
    "fails": lambda f, x: torch.vmap(lambda v: f(v[:7]))(x),
    "forces": lambda f, x: forces(f, x),
}


def forces(function: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = function(x).sum()
        return torch.autograd.grad(energy, x)[0]


def test_operations_of_a_model_that_computes_gradients_are_counted_too() -> None:
    call = ((X,), {})
    found, forward = (multiply_adds(Transformed(each), call) for each in (forces, lambda f, x: f(x)))
    assert found["a"] == forward["a"] > 0
    assert found[""] > forward[""] == forward["a"] + forward["b"]


@pytest.mark.parametrize("transform", REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_followed_is_left_and_the_process_too(transform: Callable[[Any, Tensor], Tensor]) -> None:
    model = Transformed(transform)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    try:
        made = shrink(model, X)
    except ShrinkError as error:
        reason = str(error)
    else:
        reason = ""
        for x in (X, X.flip(0)):
            torch.manual_seed(3)
            found = made.model(x)
            torch.manual_seed(3)
            torch.testing.assert_close(found, model(x))
        torch.manual_seed(3)
        told = " ".join(made.report.not_exported.values())
        assert "lifted_tensor" not in told
        assert "user error" not in told
    assert ("mat1 and mat2" in reason) if transform is REFUSED["fails"] else not reason
    torch.testing.assert_close(torch.rand(4), expected)
    nn.Linear(2, 2)
    assert torch.is_grad_enabled()


def test_the_process_is_given_back_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with process_as_it_was():
        torch._C._functorch._vmap_increment_nesting(2, "error")
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
    assert torch.equal(torch.rand(3), expected)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32


MASK = nn.Transformer.generate_square_subsequent_mask(5)


class Masked(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.body = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, dropout=0.0, **options)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return self.body(x, y, src_mask=mask, tgt_mask=mask, memory_mask=mask)


@pytest.mark.parametrize("mask", [MASK, torch.eye(5).bool(), torch.arange(25).view(5, 5) % 3 == 1])
def test_transformers_with_masks_are_followed_as_a_whole(mask: Tensor) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    models: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
        (nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (x, mask)),
        (Masked(), (x, y, mask)),
        (nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1), (x, y, mask, mask)),
    ]
    for model, call in models:
        zeroed = [module for name, module in model.named_modules() if name.endswith("linear1")]
        for module in zeroed:
            zero_rows(module, 4)
        small = shrink(model, call)
        assert not small.report.not_exported
        assert small.report.before.parameters - small.report.after.parameters == len(zeroed) * 4 * (8 + 1 + 8)
        torch.testing.assert_close(small.model.eval()(*call), model.eval()(*call))
        assert "is_causal" in inspect.signature(nn.TransformerEncoder.forward).parameters
