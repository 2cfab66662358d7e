"""Gradients of penalties on what layers put out, added in the backward pass.

A marked loss is the root of the pass. Its gradient is the number that the loop multiplies the loss by: 1 over the
micro-batches, a loss scale, a share of the tokens. Each penalized output adds that many times its penalty's derivative
to the gradient that passes through it.

A compiler sees operators in place of the functions of this file, so that what they look up is not compiled in.
"""

import itertools
import math
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd import Function, Variable

from shrinkage.errors import ActivityError, listed, warn_user
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.elementwise import Elementwise, Radial
from shrinkage.private import private
from shrinkage.proximal.precision import upcast

PATIENCE = 10  # marked backward passes, after which a layer that none of them reached is told
UNMARKED = (
    "a backward pass goes through the penalized output of {name!r}, and its loss is not marked: call backward on "
    "activities.mark(loss), times whatever the loop multiplies it by. For gradients without the penalty, such as those "
    "of a gradient penalty, compute them in `with activities.paused():`"
)


class Passes:
    """What the hooks of one `Activities` share: the penalties, and how far the loss of this backward pass is scaled.

    A copy, or one from a pickle, is not alive until the copy of its `Activities` takes it over.
    """

    def __init__(self) -> None:
        self.handle = f"activities {next(_handles)}"  # a text, which compilers guard: they make variables of numbers
        self.names: list[str] = []
        self.penalties: list[Penalty] = []
        self.alive = False
        self.paused = 0
        self.measured: list[tuple[int, Tensor]] | None = None  # outputs, while `value` calls the model
        self._factor: Tensor | None = None  # in a marked backward pass
        self._update: int | None = None
        self._marked = 0
        self._reached: set[int] = set()
        self._moved: dict[tuple[int, torch.device], Penalty] = {}
        _passes[self.handle] = self

    def __reduce__(self) -> Any:
        return Passes, ()

    def forget(self) -> None:
        """Leave nothing behind of a backward pass that raised."""
        self._factor = None

    def begin(self, grad: Tensor, update: int | None) -> None:
        """Begin a backward pass in which the marked loss is multiplied by `grad`."""
        if self._factor is not None:
            raise ActivityError(
                "two marked losses are in one backward pass, so it is not clear by which number penalties are "
                "multiplied: mark their sum, or call backward on each"
            )
        self._factor, self._update = upcast(grad.detach()).reshape(()), update
        engine = private(Variable, "_execution_engine", "know when a backward pass ends")
        private(engine, "queue_callback", "know when a backward pass ends")(self._end)

    def _end(self) -> None:
        self._factor = None
        self._marked += 1
        if self._marked == PATIENCE and len(self._reached) < len(self.names):
            missed = [name for index, name in enumerate(self.names) if index not in self._reached]
            warn_user(
                f"no backward pass of {PATIENCE} marked losses went through the outputs of {listed(missed)}, which are "
                "penalized: what is frozen, or is not called as a module, has no part in it, nor has a model that "
                "torch.compile compiled before Activities(...)"
            )

    def added(self, grad: Tensor, a: Tensor, index: int, samples: int) -> Tensor:
        """Return `grad` plus the derivative of a penalty at the output `a`; `grad` is never written."""
        if not self.alive or self.paused:
            return grad
        if self._factor is None:
            raise ActivityError(UNMARKED.format(name=self.names[index]))
        self._reached.add(index)
        penalty = self.penalty(index, a.device, self._update)
        return plus_derivative(grad, a, penalty, self._factor.to(a.device), samples)

    def penalty(self, index: int, device: torch.device, update: int | None) -> Penalty:
        """Return the penalty of a layer at an update, with its tensors on `device`."""
        if (index, device) not in self._moved:
            self._moved[index, device] = self.penalties[index].with_tensors(lambda tensor: tensor.to(device))
        penalty = self._moved[index, device]
        return penalty.at(0 if update is None else update) if penalty.scheduled else penalty


def plus_derivative(grad: Tensor, a: Tensor, penalty: Penalty, factor: Tensor, samples: int) -> Tensor:
    """Return grad + factor * R'(a) / N, with N the number of samples in `a`.

    Where R is a sum of |a| or of squares, one new tensor is made and filled in place. `grad` is not written: other
    branches of the graph may have it too.
    """
    factor = factor / samples_in(a, samples)
    radial = plain_radial(penalty)
    if radial is None:
        slopes = penalty.gradient(upcast(joined(a, samples))).reshape(a.shape)
        return torch.mul(slopes, factor).add_(grad).to(a.dtype)
    if not radial.linear:
        return torch.mul(a, factor * radial.quadratic).add_(grad)
    total = a.sign().mul_(factor * radial.linear).add_(grad)
    return total.addcmul_(a, factor * radial.quadratic) if radial.quadratic else total


def plain_radial(penalty: Penalty) -> Radial | None:
    """Return a penalty of elements as a function of their size if it is linear plus quadratic, and one for all."""
    radial = penalty.radial() if isinstance(penalty, Elementwise) else None
    return None if radial is None or any(isinstance(part, Tensor) for part in radial) else radial


def samples_in(a: Tensor, samples: int) -> int:
    """Return the number of samples in an output, the product of its first dimensions; 1 for an empty one."""
    return max(math.prod(a.shape[:samples]), 1)


def joined(a: Tensor, samples: int) -> Tensor:
    """Return an output with its dimensions of samples as one."""
    return a.flatten(0, samples - 1) if samples > 1 else a


def value_of(penalty: Penalty, a: Tensor, samples: int) -> Tensor:
    """Return R(a) / N, a 0-dim tensor."""
    return penalty.value(upcast(joined(a, samples))) / samples_in(a, samples)


_handles = itertools.count()
_passes: WeakValueDictionary[str, Passes] = WeakValueDictionary()


def _mark(grad: Tensor, handle: str, update: int) -> Tensor:
    """Begin a backward pass, and return its gradient."""
    passes = _passes.get(handle)
    if passes is not None:
        passes.begin(grad, None if update < 0 else update)
    return grad


def _add(grad: Tensor, a: Tensor, handle: str, index: int, samples: int) -> Tensor:
    """Return the gradient of an output with that of its penalty; those of an `Activities` that is gone add nothing."""
    passes = _passes.get(handle)
    return grad if passes is None else passes.added(grad, a, index, samples)


def _mark_new(grad: Tensor, handle: str, update: int) -> Tensor:
    return _mark(grad, handle, update).clone()


def _add_new(grad: Tensor, a: Tensor, handle: str, index: int, samples: int) -> Tensor:
    result = _add(grad, a, handle, index, samples)
    return result.clone() if result is grad else result


def _fake_mark(grad: Tensor, handle: str, update: int) -> Tensor:
    return torch.empty_like(grad)


def _fake_add(grad: Tensor, a: Tensor, handle: str, index: int, samples: int) -> Tensor:
    return torch.empty_like(a)


def _operator(name: str, kernel: Any, fake: Any) -> Any:
    """Return the operator of this name; its result is a new tensor."""
    operator = f"shrinkage::{name}"
    if not hasattr(torch.ops.shrinkage, name):
        schema = torch.library.infer_schema(kernel, mutates_args=())
        torch.library.define(operator, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(operator, "CompositeExplicitAutograd", kernel)
        torch.library.impl(operator, "Meta", fake)
    return getattr(torch.ops.shrinkage, name).default


mark_operator = _operator("mark_activities", _mark_new, _fake_mark)
add_operator = _operator("add_activity_gradient", _add_new, _fake_add)


class ActivitiesOutput(Function):
    """The identity, whose backward adds the derivative of a penalty. torch's messages name this class."""

    @staticmethod
    def forward(a: Tensor, handle: str, index: int, samples: int, clone: bool) -> Tensor:
        """Return the output, or a copy of it."""
        return a.clone() if clone else a.view_as(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the output."""
        a, ctx.handle, ctx.index, ctx.samples, _ = inputs
        ctx.save_for_backward(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient with that of the penalty."""
        (a,) = ctx.saved_tensors
        add = add_operator if torch.compiler.is_compiling() else _add
        return add(grad, a, ctx.handle, ctx.index, ctx.samples), None, None, None, None


class MarkedLoss(Function):
    """The identity of a loss, whose backward tells penalties what the loss is multiplied by."""

    @staticmethod
    def forward(loss: Tensor, handle: str, update: int) -> Tensor:
        """Return the loss."""
        return loss.view_as(loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep whom to tell."""
        _, ctx.handle, ctx.update = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Tell it, and return the gradient."""
        mark = mark_operator if torch.compiler.is_compiling() else _mark
        return mark(grad, ctx.handle, ctx.update), None, None
