"""Bounds: weights that stay between two numbers, or each between its own, with or without a penalty on top."""

from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from shrinkage.errors import shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.broadcast import check_spread, spread, spread_together
from shrinkage.penalties.constraints import Constraint
from shrinkage.penalties.convex import L1, L2, ElasticNet, Huber
from shrinkage.penalties.elementwise import Elementwise, infinite_unless_zero
from shrinkage.penalties.value_objects import value_class
from shrinkage.penalties.weighted import Weighted
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.thresholds import soft_threshold
from shrinkage.tables import shape_text

Bound = float | Tensor


@value_class
class Box(Constraint):
    """Keep every weight between two bounds, with or without a penalty on top.

    R(w) = penalty(w) if low <= w <= high, else infinity

    Args:
        low: smallest weight allowed, -infinity for none; a number, or a tensor that spreads over the parameter.
        high: largest weight allowed, infinity for none; likewise.
        penalty: what weights between the bounds are penalized: a convex penalty of elements, `L1`, `L2`, `ElasticNet`,
            `Huber`, or one of them `Weighted`; None penalizes nothing.

    Raises:
        TypeError: a bound is neither a number nor a floating point tensor, or `penalty` is not convex.
        ValueError: `low` is greater than `high` somewhere, or a bound is NaN.
        GroupError: when resolved, if a bound does not spread over the parameter.

    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.2.3.

    >>> Box(-1.0, 1.0).prox(torch.tensor([-3.0, 0.5]), step=1.0)
    tensor([-1.0000,  0.5000])
    >>> Box(torch.tensor([-2.0, 1.0]), torch.inf).prox(torch.tensor([-3.0, 0.5]), step=1.0)
    tensor([-2.,  1.])
    """

    low: Bound
    high: Bound
    penalty: Elementwise | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = getattr(self, name)
            if isinstance(bound, Tensor) and bound.is_floating_point():
                object.__setattr__(self, name, bound.detach().clone())
            elif not isinstance(bound, Real) or isinstance(bound, bool):
                raise TypeError(f"Box: {name} must be a number or a floating point tensor, got {shown(bound)}")
        if not (self.penalty is None or is_convex(self.penalty)):
            raise TypeError(
                f"Box: penalty must be convex and of single elements (L1, L2 ...), got {shown(self.penalty)}"
            )
        if not any(isinstance(bound, Tensor) and bound.is_meta for bound in (self.low, self.high)):
            self._check_order()

    def _check_order(self) -> None:
        try:
            ordered = torch.as_tensor(self.low <= self.high)
        except RuntimeError as error:
            shapes = f"{shown(self.low)} and {shown(self.high)}"
            raise ValueError(f"Box: low and high do not spread over each other, {shapes}") from error
        if not bool(ordered.all()):
            found = f"low={shown(self.low)}, high={shown(self.high)}"
            raise ValueError(f"Box: low must not be greater than high, got {found}")

    @property
    def strengthless(self) -> bool:
        return self.penalty is None

    def project(self, w: Tensor, step: Tensor) -> Tensor:
        """Clamp what the penalty's prox gives, which is exact because that is convex."""
        moved = w if self.penalty is None else self.penalty.prox(w, step)
        return self._clamped(moved)

    def _bounds(self, w: Tensor) -> tuple[Bound, Bound]:
        """Return the bounds in the type of `w`, in which a weight can be equal to them."""
        low, high = (bound.to(w.dtype) if isinstance(bound, Tensor) else bound for bound in (self.low, self.high))
        return low, high

    def _clamped(self, w: Tensor) -> Tensor:
        low, high = self._bounds(w)
        raised = torch.maximum(w, low) if isinstance(low, Tensor) else w.clamp(min=low)
        return torch.minimum(raised, high) if isinstance(high, Tensor) else raised.clamp(max=high)

    def unrounded(self, w: Tensor) -> Tensor:
        """Return `w` with the bounds themselves where it is equal to bounds of its type."""
        exact = upcast(w)
        for bound in (self.low, self.high):
            full = torch.as_tensor(bound, dtype=exact.dtype, device=w.device)
            exact = torch.where(w == full.to(w.dtype), full, exact)
        return exact

    def value(self, w: Tensor) -> Tensor:
        """Return the penalty's value if nothing is outside of the bounds."""
        penalized = w.new_zeros(()) if self.penalty is None else self.penalty.value(w)
        return torch.where((self._clamped(w) == w).all(), penalized, torch.inf)

    def gradient(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w) if self.penalty is None else self.penalty.gradient(w)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the size of the derivative, but for what would push beyond a bound."""
        slope = grad
        if self.penalty is not None:
            at_zero = soft_threshold(grad, self.penalty.slope_at_zero)
            slope = torch.where(w == 0, at_zero, grad + self.penalty.gradient(w))
        low, high = self._bounds(w)
        slope = torch.where(w <= low, slope.clamp_max(0), slope)
        return torch.where(w >= high, slope.clamp_min(0), slope).abs()

    @property
    def holds_zeros(self) -> bool:
        return self.penalty is not None and self.penalty.holds_zeros

    def slope(self, shape: Sequence[int]) -> float:
        return 0.0 if self.penalty is None else self.penalty.slope(shape)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the penalty's for what does not push beyond a bound; infinity if 0 is outside of one."""
        zero = torch.zeros_like(grad)
        upwards = torch.where(zero <= self.low, grad.clamp_max(0), grad)
        inwards = torch.where(zero >= self.high, upwards.clamp_min(0), upwards)
        least = infinite_unless_zero(inwards) if self.penalty is None else self.penalty.strength_max(inwards)
        return torch.where((self._clamped(zero) == 0).all(), least, torch.inf)

    def refusal(self, other: Penalty) -> str | None:
        """Name what is not convex, and bounds that do not fit together."""
        if isinstance(other, Box) and not spread_together(self.low, self.high, other.low, other.high):
            return "the shapes of their bounds do not spread over each other"
        if isinstance(other, Elementwise) and not is_convex(other):
            return f"{other} is not convex, so that the best point between bounds need not be the nearest to its prox"
        return None

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless the bounds, and the penalty, fit `shape`."""
        for name, bound in (("low", self.low), ("high", self.high)):
            if isinstance(bound, Tensor):
                check_spread(f"the bounds {name}", bound.shape, shape)
        if self.penalty is not None:
            self.penalty.check_shape(shape)

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Cut anywhere, unless a bound has yet to be spread over the parameter."""
        bounds = [bound for bound in (self.low, self.high) if isinstance(bound, Tensor)]
        if any(tuple(bound.shape) != tuple(shape) for bound in bounds):
            return ()
        return tuple(range(len(shape))) if self.penalty is None else self.penalty.cuts(shape)

    def with_tensors(self, take: Callable[[Tensor], Tensor]) -> Penalty:
        low, high = (take(bound) if isinstance(bound, Tensor) else bound for bound in (self.low, self.high))
        inner = None if self.penalty is None else self.penalty.with_tensors(take)
        same = low is self.low and high is self.high and inner is self.penalty
        return self if same or not (inner is None or isinstance(inner, Elementwise)) else Box(low, high, inner)

    def bound(self, name: str, parameter: Tensor) -> Penalty:
        """Return the same with one bound per element, of the parameter's type and on its device."""
        inner = None if self.penalty is None else self.penalty.bound(name, parameter)

        def spread_out(side: Bound, what: str) -> Bound:
            if not isinstance(side, Tensor) or is_lazy(parameter):
                return side
            return spread(side.to(parameter.device, parameter.dtype), f"the bounds {what}", parameter.shape)

        low, high = spread_out(self.low, "low"), spread_out(self.high, "high")
        same = not isinstance(low, Tensor) and not isinstance(high, Tensor) and inner is self.penalty
        return self if same or not (inner is None or isinstance(inner, Elementwise)) else Box(low, high, inner)

    def describe(self, shape: Sequence[int] | None) -> Description:
        bounds = f"low {text(self.low)}, high {text(self.high)}"
        if self.penalty is None:
            return Description("Box", bounds, "-")
        penalty, strength, groups = self.penalty.describe(shape)
        return Description(f"Box {penalty}", f"{strength}, {bounds}", groups)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Box):
            return NotImplemented
        return self.penalty == other.penalty and same(self.low, other.low) and same(self.high, other.high)

    def __hash__(self) -> int:
        return hash((Box, text(self.low), text(self.high), self.penalty))

    def __repr__(self) -> str:
        low, high = (f"<{text(side)}>" if isinstance(side, Tensor) else repr(side) for side in (self.low, self.high))
        return f"Box(low={low}, high={high}" + (")" if self.penalty is None else f", penalty={self.penalty!r})")


def is_convex(penalty: Penalty | None) -> bool:
    """Return whether `penalty` is a convex one of single elements."""
    inner = penalty.penalty if isinstance(penalty, Weighted) else penalty
    return isinstance(inner, L1 | L2 | ElasticNet | Huber)


def text(bound: Bound) -> str:
    """Return a bound as a plan prints it: of a tensor its shape."""
    return shape_text(bound.shape) if isinstance(bound, Tensor) else f"{bound:g}"


def same(one: Bound, other: Bound) -> bool:
    """Return whether two bounds are equal, numbers or tensors."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def narrower(
    one: Bound,
    other: Bound,
    of_tensors: Callable[[Tensor, Tensor], Tensor],
    of_numbers: Callable[[float, float], float],
) -> Bound:
    """Return the narrower of two bounds, of tensors element by element."""
    if isinstance(one, Tensor):
        return of_tensors(one, torch.as_tensor(other, dtype=one.dtype, device=one.device))
    if isinstance(other, Tensor):
        return of_tensors(other, torch.as_tensor(one, dtype=other.dtype, device=other.device))
    return of_numbers(one, other)
