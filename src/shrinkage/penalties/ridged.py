"""Squares on top of another penalty: the one sum whose prox is always known."""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from shrinkage.errors import shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.convex import L2
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.schedules import Strength, fixed, multiple, strength_text
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision
from shrinkage.proximal.reductions import Reduction


@value_class
class Ridged(Penalty):
    """Penalize half the sum of squares on top of another penalty, or inside of a constraint.

    R(w) = penalty(w) + l2 / 2 * sum w^2

    `TopK(0.5) + L2(l2)` is `Ridged(TopK(0.5), l2)`. The prox is exact in every metric in which the penalty's own is:
    that of the penalty with step / (1 + step * l2) at w / (1 + step * l2).

    Args:
        penalty: any penalty or constraint.
        l2: >= 0, strength of the squares, as in `L2`; or a schedule of the update count.

    Raises:
        TypeError: `penalty` is not a penalty.
        ValueError: the strength is negative or not finite.

    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 2.2, "affine addition" and "regularization".

    >>> import torch
    >>> from shrinkage import TopK
    >>> Ridged(TopK(0.5), 1.0).prox(torch.tensor([-3.0, 0.5]), step=0.5)
    tensor([-2.,  0.])
    """

    penalty: Penalty
    l2: Strength

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty):
            raise TypeError(f"Ridged: expected a penalty or a constraint, got {shown(self.penalty)}")
        Penalty.__post_init__(self)

    @property
    def smooth(self) -> bool:
        return self.penalty.smooth

    @property
    def explicit(self) -> bool:
        return self.penalty.explicit

    @property
    def holds_zeros(self) -> bool:
        return self.penalty.holds_zeros

    @property
    def solid(self) -> bool:
        return self.penalty.solid

    @property
    def squares(self) -> L2:
        """The part that penalizes squares."""
        return L2(self.l2)

    def slope(self, shape: Sequence[int]) -> float:
        """Return the penalty's: squares are flat at 0."""
        return self.penalty.slope(shape)

    def origin(self, w: Tensor) -> Tensor:
        return self.penalty.origin(w)

    def unrounded(self, w: Tensor) -> Tensor:
        return self.penalty.unrounded(w)

    def value(self, w: Tensor) -> Tensor:
        return self.penalty.value(w) + self.squares.value(w)

    def gradient(self, w: Tensor) -> Tensor:
        return self.penalty.gradient(w) + self.squares.gradient(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the penalty's, for a smaller step and from a point nearer to 0."""
        return self.penalty.prox(*self._inside(w, step)).to(w.dtype)

    def prox_by_sums(
        self, w: Tensor, step: float | Tensor, shape: Sequence[int], cut: Collection[int] = ()
    ) -> Reduction[Tensor] | None:
        return self.penalty.prox_by_sums(*self._inside(w, step), shape, cut)

    def gradient_by_sums(self, w: Tensor, shape: Sequence[int], cut: Collection[int] = ()) -> Reduction[Tensor] | None:
        computation = self.penalty.gradient_by_sums(w, shape, cut)
        return None if computation is None else self._with_squares(w, computation)

    def _with_squares(self, w: Tensor, computation: Reduction[Tensor]) -> Reduction[Tensor]:
        return (yield from computation) + self.squares.gradient(w)

    def _inside(self, w: Tensor, step: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """Return the point and the step that are left for the penalty."""
        upcast = precision.upcast(w)
        shrunk = 1 + (precision.as_tensor(step, upcast) if isinstance(step, Tensor) else step) * fixed(self.l2)
        return upcast / shrunk, step / shrunk

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the penalty's, for a loss that has the squares in it."""
        return self.penalty.residual(w, grad + self.squares.gradient(w))

    @property
    def zero_groups(self) -> Groups | None:
        return self.penalty.zero_groups

    def nonzero(self, w: Tensor) -> Tensor:
        return self.penalty.nonzero(w)

    def stays(self, w: Tensor, average: Tensor) -> Tensor:
        return self.penalty.stays(w, average + self.squares.gradient(w))

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the penalty's, likewise: `l2` stays as it is."""
        return self.penalty.strength_max(grad + self.squares.gradient(self.penalty.origin(grad)))

    def scaled(self, factor: float) -> Penalty:
        """Multiply both; a constraint inside stays as it is."""
        inner = self.penalty if self.penalty.strengthless else self.penalty.scaled(factor)
        return Ridged(inner, multiple(factor, self.l2))

    def check_shape(self, shape: Sequence[int]) -> None:
        self.penalty.check_shape(shape)

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.penalty.cuts(shape)

    def with_tensors(self, take: Callable[[Tensor], Tensor]) -> Penalty:
        inner = self.penalty.with_tensors(take)
        return self if inner is self.penalty else Ridged(inner, self.l2)

    def bound(self, name: str, parameter: Tensor) -> Penalty:
        inner = self.penalty.bound(name, parameter)
        return self if inner is self.penalty else Ridged(inner, self.l2)

    def describe(self, shape: Sequence[int] | None) -> Description:
        penalty, strength, groups = self.penalty.describe(shape)
        squares = strength_text(self.l2)
        return Description(f"{penalty} + L2", squares if strength == "-" else f"{strength}, {squares}", groups)
