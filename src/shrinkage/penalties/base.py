"""What a penalty is, and the factor conventions, once for all of them.

Let R be the penalty, its strength included. Then

* `value(w)` is R(w);
* `gradient(w)` is the element of least norm of R's subdifferential at w: 0 at 0;
* `prox(w, step)` is argmin over y of  1/2 sum (y - w)^2 / step + R(y);
* `residual(w, grad)` is the distance from -grad to the subdifferential at w: 0 where L + R is stationary, if `grad`
  is the gradient of L;
* `strength_max(grad)` is the least strength at which 0 is stationary, if `grad` is the gradient of L at 0.

Strengths are per mean loss: loss units per unit of |w| (L1) or of w^2 / 2 (L2). L2 is strength / 2 * ||w||^2, so that
its gradient matches torch's `weight_decay`. A strength may be a schedule, a function of the update count; `at` gives
the penalty of one update, and the five methods need that.

A constraint is a penalty that is 0 on a set and infinite outside: its prox is the projection onto the set, and its
strength plays no part.
"""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from shrinkage.penalties.controls import Control
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.schedules import Strength, as_factor, at, check_strength, multiple, strength_text
from shrinkage.penalties.value_objects import Value
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import Reduction


class Description(NamedTuple):
    """A penalty in words: its name, its strength, and the groups it penalizes."""

    penalty: str
    strength: str
    groups: str


class Penalty(Value, ABC):
    """A function of a tensor that is added to the loss. Concrete penalties are frozen dataclasses."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    proportional: ClassVar[bool] = True  # to its strengths

    def __post_init__(self) -> None:
        """Raise unless the strengths are finite numbers >= 0, or schedules."""
        for name in strengths_of(type(self)):
            check_strength(type(self).__name__, name, getattr(self, name))
            if isinstance(control := getattr(self, name), Control):
                control.check(self)

    @abstractmethod
    def value(self, w: Tensor) -> Tensor:
        """Return R(w), a 0-dim tensor."""

    @abstractmethod
    def gradient(self, w: Tensor) -> Tensor:
        """Return the subgradient of least norm at `w`, the shape of `w`."""

    @abstractmethod
    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return argmin over y of 1/2 sum (y - w)^2 / step + R(y), the shape of `w`.

        Args:
            w: where to start from.
            step: >= 0; a number, a 0-dim tensor, or a tensor shaped like `w` (a diagonal metric). Where it is 0, the
                element comes back as it is.
        """

    @abstractmethod
    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance from `-grad` to the subdifferential at `w`, one value per element or per group."""

    @abstractmethod
    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the least strength at which 0 is stationary, a 0-dim tensor, given the gradient of the loss at 0."""

    @abstractmethod
    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` cannot be penalized."""

    @abstractmethod
    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the dimensions along which a tensor of `shape` may be sharded so that each shard is penalized
        by itself.

        Empty if only the whole tensor can be penalized.
        """

    def describe(self, shape: Sequence[int] | None) -> Description:
        """Return what a printed plan says of this penalty on a tensor of `shape` (None: not yet known).

        That is the class, its strengths, and its other numbers with their names.
        """
        strengths = strengths_of(type(self))
        texts = [
            strength_text(value) if name in strengths else f"{name} {float(value):g}"
            for name, value in self.arguments().items()
            if name in strengths or (isinstance(value, Real) and not isinstance(value, bool))
        ]
        return Description(type(self).__name__, ", ".join(texts) or "-", "-")

    @property
    def smooth(self) -> bool:
        """Whether the penalty has a derivative everywhere, so that it gives no exact zeros."""
        return False

    @property
    def explicit(self) -> bool:
        """Whether the penalty can act through its derivative, with `how="gradient"`."""
        return True

    @property
    def holds_zeros(self) -> bool:
        """Whether 0 is stationary for small gradients and for no others, so that an averaged gradient can hold it."""
        return False

    @property
    def strengthless(self) -> bool:
        """Whether this is a set and penalizes nothing inside of it, so that it cannot be multiplied."""
        return False

    @property
    def solid(self) -> bool:
        """Whether elements that shrink, or change their signs, never cost more."""
        return False

    def slope(self, shape: Sequence[int]) -> float:
        """Return the derivative beside 0, of an element or a group's norm: the size of gradient that 0 withstands.

        0 if there is no kink at 0, infinity if 0 withstands every gradient.
        """
        return 0.0

    def origin(self, w: Tensor) -> Tensor:
        """Return the point that the penalty draws `w` to."""
        return torch.zeros_like(w)

    def unrounded(self, w: Tensor) -> Tensor:
        """Return `w` in float32 at least, inside of the set that a constraint keeps if only rounding put it outside.

        A point of the set is rounded when it is written into bfloat16 or float16, and often lies outside then.
        """
        return upcast(w)

    def stays(self, w: Tensor, average: Tensor) -> Tensor:
        """Return where `w` is 0 and stationary for the gradient `average`, a mask shaped like `w`."""
        return (w == 0) & (self.residual(torch.zeros_like(w), average) == 0)

    @property
    def zero_groups(self) -> Groups | None:
        """The groups that are zero only as a whole; None if each element is zero by itself."""
        return None

    def nonzero(self, w: Tensor) -> Tensor:
        """Return where `w` is not at the origin, a mask shaped like `w`."""
        return w != 0

    def zeros(self, w: Tensor) -> Tensor:
        """Return the elements that are zero, or that are in groups that are zero, a mask shaped like `w`."""
        groups = self.zero_groups
        return ~self.nonzero(w) if groups is None else groups.without(self.nonzero(w))

    def prox_by_sums(
        self, w: Tensor, step: float | Tensor, shape: Sequence[int], cut: Collection[int] = ()
    ) -> Reduction[Tensor] | None:
        """Return a computation of the prox of a shard that needs sums over the full tensor; None if it needs more.

        Which computation it is, and how often it asks, depends on nothing but the class of `step`, `shape` and `cut`.

        Args:
            w: the shard.
            step: a number, or a tensor shaped like the shard.
            shape: of the full tensor.
            cut: the dimensions along which the tensor is sharded.
        """
        return None

    def gradient_by_sums(self, w: Tensor, shape: Sequence[int], cut: Collection[int] = ()) -> Reduction[Tensor] | None:
        """Return a computation of the gradient of a shard, as `prox_by_sums` does of the prox."""
        return None

    def with_tensors(self, take: Callable[[Tensor], Tensor]) -> "Penalty":
        """Return the penalty with `take` applied to the tensors in it that have the parameter's shape.

        With a `take` that cuts a shard out, it is the penalty of that shard.
        """
        return self

    def bound(self, name: str, parameter: Tensor) -> "Penalty":
        """Return the penalty as it penalizes `parameter`, which the model calls `name`."""
        return self

    def refusal(self, other: "Penalty") -> str | None:
        """Return why no exact prox of this and `other` together is known, if this knows."""
        return None

    def __add__(self, other: object) -> "Penalty":
        """Return the one penalty that penalizes both.

        >>> from shrinkage import L1, L2
        >>> L1(0.1) + L2(0.2)
        ElasticNet(l1=0.1, l2=0.2)
        """
        if not isinstance(other, Penalty):
            return NotImplemented
        both = sum_of(self, other)
        if both is None:
            reason = self.refusal(other) or other.refusal(self) or "no exact prox of their sum is known here"
            raise TypeError(
                f"{self} and {other} cannot be penalized together: {reason}, and one prox after the other solves "
                "another problem. L2 can be added to everything, L0 to penalties of elements, a sign constraint to "
                "what does not look at signs, L1 to GroupLasso"
            )
        return both

    def __radd__(self, other: object) -> "Penalty":
        """Return this penalty for the 0 that `sum` begins with.

        >>> from shrinkage import L1, L2
        >>> sum([L1(0.1), L2(0.2)])
        ElasticNet(l1=0.1, l2=0.2)
        """
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: float) -> "Penalty":
        """Return the penalty that penalizes `factor` times as much.

        >>> from shrinkage import ElasticNet
        >>> 2 * ElasticNet(0.25, 0.5)
        ElasticNet(l1=0.5, l2=1.0)
        """
        return self.scaled(as_factor(factor))

    __rmul__ = __mul__

    def scaled(self, factor: float) -> "Penalty":
        """Return the penalty that penalizes `factor` >= 0 times as much: all strengths in it are multiplied."""
        changes = {
            name: value.scaled(factor) if isinstance(value, Penalty) else multiple(factor, value)
            for name, value in self.arguments().items()
            if isinstance(value, Penalty) or name in strengths_of(type(self))
        }
        return dataclasses.replace(self, **changes)

    @property
    def scheduled(self) -> bool:
        """Whether a strength of this penalty is a schedule."""
        return any(callable(value) or is_scheduled(value) for value in self.arguments().values())

    def at(self, iteration: int) -> Self:
        """Return this penalty with the strengths of update number `iteration`, the first being 0."""
        if not self.scheduled:
            return self
        changes = {name: resolved(value, iteration) for name, value in self.arguments().items()}
        return dataclasses.replace(self, **changes)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments this penalty was made with; none of a class of a user's that is no dataclass."""
        fields = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        return {field.name: getattr(self, field.name) for field in fields if field.init}


@functools.cache
def strengths_of(kind: type[Penalty]) -> tuple[str, ...]:
    """Return the names of the strengths among the arguments of a penalty: the fields of that type."""
    return tuple(field.name for field in dataclasses.fields(kind) if field.type == Strength)


def is_scheduled(value: object) -> bool:
    """Return whether `value` is a penalty with a schedule in it."""
    return isinstance(value, Penalty) and value.scheduled


def resolved(value: Any, iteration: int) -> Any:
    """Return one field of a penalty as it is at update `iteration`."""
    if isinstance(value, Penalty):
        return value.at(iteration)
    return at(value, iteration)


Sum = Callable[[Penalty, Penalty], Penalty | None]
SUMS: list[Sum] = []  # filled by `addition.py`, which knows all penalties


def sum_of(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the one penalty that penalizes both with an exact prox, None if none is known."""
    for rule in SUMS:
        both = rule(one, other) or rule(other, one)
        if both is not None:
            return both
    return None
