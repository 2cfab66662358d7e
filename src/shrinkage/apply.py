"""The three ways in which a penalty enters an optimizer's step. All in-place work on parameters is here.

Everything is computed in float32 at least and written back in the type of the parameter. The plain form takes any
penalty; a penalty that torch's own optimizers know is registered beside it with the very operation that they use, so
that results agree with theirs bit for bit.
"""

from functools import singledispatch

from torch import Tensor, nn

from shrinkage.groups import at_least_float32
from shrinkage.penalties import L2, Penalty
from shrinkage.schedules import fixed

Number = float | Tensor


def add_gradient_(penalty: Penalty, parameter: nn.Parameter, factor: Number) -> None:
    """Add `factor` times the penalty's derivative to the gradient of `parameter`."""
    grad = parameter.grad
    if grad is None:
        return
    if grad.dtype == at_least_float32(grad.dtype) == parameter.dtype:
        add_derivative_(penalty, grad, parameter.detach(), factor)
    else:
        widened = wide(grad)
        add_derivative_(penalty, widened, wide(parameter.detach()).to(widened.dtype), factor)
        grad.copy_(widened)


@singledispatch
def add_derivative_(penalty: Penalty, grad: Tensor, w: Tensor, factor: Number) -> None:
    """grad <- grad + factor * R'(w)."""
    grad.add_(penalty.gradient(w) * factor)


@add_derivative_.register
def _(penalty: L2, grad: Tensor, w: Tensor, factor: Number) -> None:
    if isinstance(factor, Tensor):
        grad.add_(penalty.gradient(w) * factor)
    else:
        grad.add_(w, alpha=factor * fixed(penalty.strength))


def decay_(penalty: Penalty, parameter: nn.Parameter, step: Number) -> None:
    """Move `parameter` by -step * R'(w): the decoupled form of a smooth penalty."""
    w = parameter.detach()
    widened = wide(w)
    decay_by_derivative_(penalty, widened, step)
    if widened is not w:
        w.copy_(widened)


@singledispatch
def decay_by_derivative_(penalty: Penalty, w: Tensor, step: Number) -> None:
    """w <- w - step * R'(w)."""
    w.sub_(penalty.gradient(w) * step)


@decay_by_derivative_.register
def _(penalty: L2, w: Tensor, step: Number) -> None:
    w.mul_(1 - step * fixed(penalty.strength))


def prox_(penalty: Penalty, parameter: nn.Parameter, step: Number) -> None:
    """Move `parameter` to the penalty's proximal point, `step` a number, 0-dim or shaped like the parameter."""
    w = parameter.detach()
    w.copy_(penalty.prox(wide(w), step))


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` itself, or a copy in float32 if it is narrower."""
    return tensor.to(at_least_float32(tensor.dtype))
