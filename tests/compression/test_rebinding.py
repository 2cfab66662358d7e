"""A smaller model computes with layers and tensors of its own, however the dense one keeps and calls its layers."""

import functools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shrinkage import ShrinkPlan, apply_plan, shrink, to_sparse
from shrinkage.compression.copying.copies import copy_of, with_own_state

GONE = 5


class Block(nn.Module):
    """A perceptron whose layers are called by what `keep` puts into the attribute `call`."""

    def __init__(self, keep: Callable[["Block"], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.7))
        self.call = keep(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)

    def both(self, x: Tensor) -> Tensor:
        """Compute what all of the blocks below do."""
        return x + self.b(torch.relu(self.a(x))) * self.scale


def by_lambda(block: Block) -> Any:
    a, b, scale = block.a, block.b, block.scale
    return lambda x: x + b(torch.relu(a(x))) * scale


def by_closure_over_itself(block: Block) -> Any:
    return lambda x: block.both(x)


def by_method(block: Block) -> Any:
    return block.both


def by_function_as_method(block: Block) -> Any:
    def call(self: Block, x: Tensor) -> Tensor:
        return self.both(x)

    return types.MethodType(call, block)


def by_partial(block: Block) -> Any:
    def call(x: Tensor, a: nn.Module, *, b: nn.Module) -> Tensor:
        return x + b(torch.relu(a(x))) * block.scale

    return functools.partial(functools.partial(call, b=block.b), a=block.a)


def by_partial_in_a_closure(block: Block) -> Any:
    inner = functools.partial(lambda layer, x: torch.relu(layer(x)), block.a)
    return lambda x: x + block.b(inner(x)) * block.scale


def by_defaults(block: Block) -> Any:
    def call(x: Tensor, a: nn.Module = block.a, *, rest: Any = (block.b, block.scale)) -> Tensor:
        return x + rest[0](torch.relu(a(x))) * rest[1]

    return call


def by_containers(block: Block) -> Any:
    steps = [{"a": (block.a, torch.relu)}, [block.b]]

    def call(x: Tensor) -> Tensor:
        layer, act = steps[0]["a"]
        return x + steps[1][0](act(layer(x))) * block.scale

    return call


def by_nested_functions(block: Block) -> Any:
    def inner(x: Tensor) -> Tensor:
        def inmost(y: Tensor) -> Tensor:
            return block.a(y)

        return torch.relu(inmost(x))

    def outer(x: Tensor) -> Tensor:
        return x + block.b(inner(x)) * block.scale

    return outer


def by_recursion(block: Block) -> Any:
    def call(x: Tensor, depth: int = 1) -> Tensor:
        return call(x, depth - 1) if depth else block.both(x)

    return call


def by_wrapper(block: Block) -> Any:
    @functools.wraps(block.both)
    def call(*args: Any) -> Any:
        return call.__wrapped__(*args)  # type: ignore[attr-defined]

    return call


def by_cache(block: Block) -> Any:
    layer = functools.lru_cache(maxsize=2)(lambda name: getattr(block, name))
    return lambda x: x + layer("b")(torch.relu(layer("a")(x))) * block.scale


def by_callable(block: Block) -> Any:
    @dataclass(eq=False)
    class Call:
        held: Any

        def __call__(self, x: Tensor) -> Tensor:
            return self.held(x)

    held = Call(block.both)
    return lambda x: held(x)


def by_slots(block: Block) -> Any:
    class Call:
        __slots__ = ("held",)

        def __call__(self, x: Tensor) -> Tensor:
            return self.held(x)

    made = Call()
    made.held = by_lambda(block)
    return made


def by_method_of_a_tensor(block: Block) -> Any:
    times = block.scale.mul
    return lambda x: x + times(block.b(torch.relu(block.a(x))))


def by_weak_reference(block: Block) -> Any:
    block.b.parent = weakref.ref(block)
    return lambda x: block.b.parent().both(x)


def by_weak_method(block: Block) -> Any:
    weak = weakref.WeakMethod(block.both)
    return lambda x: weak()(x)


def by_weak_proxy(block: Block) -> Any:
    block.b.parents = [weakref.proxy(block)]
    return lambda x: block.b.parents[0].both(x)


def by_weak_dictionary(block: Block) -> Any:
    weak = weakref.WeakValueDictionary({"block": block})
    return lambda x: weak["block"].both(x)


def by_keys(block: Block) -> Any:
    order = {block.a: "a", block.b: "b"}

    def call(x: Tensor) -> Tensor:
        a, b = sorted(order, key=order.__getitem__)
        return x + b(torch.relu(a(x))) * block.scale

    return call


KEEPS = [value for name, value in list(globals().items()) if name.startswith("by_")]


def with_zeros(block: Block) -> nn.Module:
    with torch.no_grad():
        block.a.weight[:GONE] = 0
        block.a.bias[:GONE] = 0
    return nn.Sequential(block, nn.Linear(8, 2)).eval()


@pytest.mark.parametrize("keep", KEEPS, ids=lambda keep: keep.__name__)
def test_a_smaller_model_calls_its_own_layers(keep: Callable[[Block], Any]) -> None:
    torch.manual_seed(0)
    dense, plain = with_zeros(Block(keep)), with_zeros(Block(by_method))
    plain.load_state_dict(dense.state_dict())
    x, before = torch.randn(4, 8), dense[0].call
    expected = dense(x)

    small = shrink(dense, x).model

    assert small[0].a.weight.shape == (16 - GONE, 8)  # the layers behind the function are seen
    torch.testing.assert_close(small(x), expected)
    small(x).square().sum().backward()
    plain(x).square().sum().backward()
    kept = {"0.a.weight": slice(GONE, None), "0.a.bias": slice(GONE, None), "0.b.weight": (..., slice(GONE, None))}
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad[kept.get(name, ...)])
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert dense[0].call is before  # what was given is as it was
    torch.testing.assert_close(dense(x), expected)
    with torch.no_grad():
        [parameter.zero_() for parameter in small.parameters()]
    torch.testing.assert_close(dense(x), expected)
    with torch.no_grad():
        [parameter.zero_() for parameter in dense.parameters()]
        [parameter.fill_(0.1) for parameter in small.parameters()]
    assert float(small(torch.ones(4, 8)).detach().abs().min()) > 0


@pytest.mark.parametrize("keep", KEEPS, ids=lambda keep: keep.__name__)
def test_plans_and_sparse_models_call_their_own_layers(keep: Callable[[Block], Any]) -> None:
    torch.manual_seed(0)
    dense, x = with_zeros(Block(keep)), torch.randn(4, 8)
    with torch.no_grad():
        dense[0].a.weight[:13] = 0
    expected = dense(x)
    plan = ShrinkPlan.of(
        dense, {"0.b.weight": {1: range(5, 16)}, "0.a.weight": {0: range(5, 16)}, "0.a.bias": {0: range(5, 16)}}
    )
    sparse = to_sparse(dense, keep_if_faster=False, example_inputs=x)
    assert sparse.report.converted
    for small in (apply_plan(dense, plan), sparse.model, copy_of(dense, {})):
        small(x).square().sum().backward()
        assert all(parameter.grad is not None for parameter in small.parameters())
        assert all(parameter.grad is None for parameter in dense.parameters())
    assert torch.equal(with_own_state(dense)(x), expected)
