"""Products with a matrix in CSR: operators with derivatives, which compilers and exporters take as they are.

A matrix of CSR's own layout is made inside of each and does not leave it. Where an operator is traced, its fake says
which shape the result has.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

NARROW = {torch.float16, torch.bfloat16}


@cache
def silence_beta() -> None:
    """Let torch give its only warning about CSR tensors, that they are in beta, now and without showing it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([]), (1, 1))


def check_input(x: Tensor, values: Tensor, in_features: int) -> None:
    """Raise an error unless `x` has the features and the type of the layer: columns beyond it are never looked up."""
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(f"expected an input of shape (*, {in_features}), got {tuple(x.shape)}")
    if x.dtype != values.dtype:
        raise TypeError(f"expected an input of type {values.dtype}, that of the layer, got {x.dtype}; cast one of both")


def as_rows(x: Tensor) -> Tensor:
    """Return `x` as a matrix whose rows are its last dimension."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def multiplied_in(x: Tensor) -> torch.dtype:
    """Return the type in which `x` is multiplied: the CPU's kernels have no 16 bits."""
    return torch.float32 if x.dtype in NARROW and x.device.type == "cpu" else x.dtype


# Kinds of devices that have an autocast: asked here, since compilers up to that of torch 2.11 cannot ask it.
DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", "ipu", "xla", "privateuseone")
AUTOCAST = frozenset(kind for kind in DEVICES if torch.amp.is_autocast_available(kind))


def autocast_type(x: Tensor) -> torch.dtype | None:
    """Return the type to which autocast casts on the device of `x`; None where it is off."""
    kind = x.device.type
    on = kind in AUTOCAST and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def as_given(x: Tensor) -> torch.autocast:
    """Return a context in which products are computed in the type of their factors, autocast or not."""
    return torch.autocast(x.device.type, enabled=False)


def _product(x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None, in_features: int) -> Tensor:
    """Return x W' + b, with W in CSR."""
    check_input(x, values, in_features)
    silence_beta()
    dtype, shape = multiplied_in(x), (len(crow) - 1, in_features)
    rows = as_rows(x).to(dtype)
    with as_given(x):
        w = torch.sparse_csr_tensor(crow, col, values.to(dtype), shape, check_invariants=False)
        # A product with a vector takes half the time of one with a matrix of one column.
        y = (w @ rows[0])[None] if len(rows) == 1 else (w @ rows.T.contiguous()).T.contiguous()
    if bias is not None:
        y += bias.to(dtype)
    result: Tensor = y.to(x.dtype).reshape(*x.shape[:-1], shape[0])
    return result


def _input_gradient(grad: Tensor, crow: Tensor, col: Tensor, values: Tensor, in_features: int) -> Tensor:
    """Return grad W: the CSR of W is the CSC of its transpose."""
    dtype = multiplied_in(grad)
    rows = as_rows(grad).to(dtype)
    shape = (in_features, len(crow) - 1)
    transposed = torch.sparse_csc_tensor(crow, col, values.to(dtype), shape, check_invariants=False)
    with as_given(grad):
        product = (transposed @ rows.T.contiguous()).T.contiguous()
    return product.to(grad.dtype).reshape(*grad.shape[:-1], in_features)


def _values_gradient(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """Return the entries of grad' x in the places of W, and compute no others."""
    dtype = multiplied_in(grad)
    g, rows = as_rows(grad).to(dtype), as_rows(x).to(dtype)
    zeros = g.new_zeros(len(col))
    places = torch.sparse_csr_tensor(crow, col, zeros, (g.shape[1], rows.shape[1]), check_invariants=False)
    with as_given(grad):
        product = torch.sparse.sampled_addmm(places, g.T, rows, beta=0.0)
    result: Tensor = product.values().to(grad.dtype, copy=True)
    return result


def _fake_product(
    x: Tensor, crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None, in_features: int
) -> Tensor:
    check_input(x, values, in_features)
    return x.new_empty(*x.shape[:-1], crow.shape[0] - 1)


def _fake_input_gradient(grad: Tensor, crow: Tensor, col: Tensor, values: Tensor, in_features: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], in_features)


def _fake_values_gradient(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return grad.new_empty(col.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, crow, col, values, _, ctx.in_features = inputs
    ctx.save_for_backward(x, crow, col, values)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, crow, col, values = ctx.saved_tensors
    of_x, _, _, of_values, of_bias, _ = ctx.needs_input_grad
    return (
        input_gradient(grad, crow, col, values, ctx.in_features) if of_x else None,
        None,
        None,
        values_gradient(grad, x, crow, col) if of_values else None,
        as_rows(grad).sum(0) if of_bias else None,
        None,
    )


def _refuse(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError("a sparse layer has no second derivatives; to_dense(model) makes one that has")


def _operator(
    schema: str,
    kernel: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    backward: Callable[..., Any] = _refuse,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Return the operator of this schema. It outlives its module: where that is imported anew, the operator is there.

    One library for all takes a third of the time of `torch.library.custom_op`, which makes many and reads signatures.
    """
    name = schema.partition("(")[0]
    own: Any = torch.ops.shrinkage
    if not hasattr(own, name):
        make: Any = torch.library.Library
        library = own.library = vars(own).get("library") or make("shrinkage", "FRAGMENT")
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, kernel, "CompositeExplicitAutograd")
        library.impl(name, fake, "Meta")
        torch.library.register_autograd(f"shrinkage::{name}", backward, setup_context=setup_context, lib=library)
    return getattr(own, name).default


input_gradient = _operator(
    "sparse_linear_input_gradient(Tensor grad, Tensor crow, Tensor col, Tensor values, SymInt in_features) -> Tensor",
    _input_gradient,
    _fake_input_gradient,
)
values_gradient = _operator(
    "sparse_linear_values_gradient(Tensor grad, Tensor x, Tensor crow, Tensor col) -> Tensor",
    _values_gradient,
    _fake_values_gradient,
)
sparse_linear = _operator(
    "sparse_linear(Tensor x, Tensor crow, Tensor col, Tensor values, Tensor? bias, SymInt in_features) -> Tensor",
    _product,
    _fake_product,
    _gradients,
    _save,
)
