"""A weight for every element, or for every group, on top of a penalty's strength."""

from collections.abc import Callable, Sequence
from dataclasses import field

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from shrinkage.errors import shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.broadcast import check_spread, spread, spread_together
from shrinkage.penalties.budget import reason
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.value_objects import value_class
from shrinkage.tables import shape_text


@value_class
class Weighted(Elementwise):
    """Penalize each element by its own multiple of a penalty: the adaptive lasso, or elements without a penalty.

    R(w) = sum over elements j of  weights_j * phi(w_j),  where phi is `penalty` of one element

    Inside of `Grouped` there is one weight per group.

    Args:
        penalty: what an element costs: any penalty of single elements.
        weights: >= 0, the shape of the parameter (of its groups, inside of `Grouped`), or one that spreads over it in
            one way: `(4, 1)` for the rows of a matrix, `(1, 8)` for its columns, a single number for all. 0 leaves an
            element free, infinity sets it to zero. The adaptive lasso takes 1 / |w|^gamma of an earlier estimate.

    Raises:
        TypeError: `penalty` is not elementwise, or `weights` is not a floating point tensor.
        ValueError: a weight is negative or NaN.
        GroupError: when resolved, if `weights` does not spread over the parameter, or does in several ways.

    Reference: Zou (2006), "The adaptive lasso and its oracle properties", eq. 4.

    >>> from shrinkage import L1
    >>> weights = torch.tensor([0.0, 1.0, torch.inf])
    >>> Weighted(L1(1.0), weights).prox(torch.tensor([3.0, 3.0, 3.0]), step=1.0)
    tensor([3., 2., 0.])
    """

    penalty: Elementwise
    weights: Tensor
    forces_zeros: bool = field(init=False, repr=False)  # asked at every step, where reading a tensor would wait

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Elementwise):
            raise TypeError(
                f"Weighted: penalty must be one of single elements such as L1(1e-3), got {shown(self.penalty)}; one "
                f"weight for each group is Grouped(Weighted(L1(strength), weights), groups){reason(self.penalty)}"
            )
        if not (isinstance(self.weights, Tensor) and self.weights.is_floating_point()):
            raise TypeError(f"Weighted: weights must be a floating point tensor, got {shown(self.weights)}")
        known = not self.weights.is_meta
        if known and not bool((self.weights >= 0).all()):
            raise ValueError(f"Weighted: weights must be >= 0 and not NaN, the least is {float(self.weights.min())}")
        object.__setattr__(self, "weights", self.weights.detach().clone())
        object.__setattr__(self, "forces_zeros", known and bool(self.weights.isinf().any()))

    @property
    def smooth(self) -> bool:
        """Whether the penalty is smooth, and no weight is infinite."""
        return self.penalty.smooth and not self.forces_zeros

    @property
    def explicit(self) -> bool:
        """Whether the penalty can act through its derivative, and no weight is infinite."""
        return self.penalty.explicit and not self.forces_zeros

    @property
    def holds_zeros(self) -> bool:
        return self.penalty.holds_zeros

    @property
    def slope_at_zero(self) -> Tensor:
        slope = self.penalty.slope_at_zero
        return times(self.weights, slope if isinstance(slope, Tensor) else torch.full_like(self.weights, slope))

    def slope(self, shape: Sequence[int]) -> float:
        """Return the penalty's own times the least weight that is neither 0 nor infinite."""
        penalized = self.weights[(self.weights > 0) & self.weights.isfinite()]
        return self.penalty.slope(shape) * (float(penalized.min()) if penalized.numel() else 1.0)

    def cost(self, w: Tensor) -> Tensor:
        return times(self.weights, self.penalty.cost(w))

    def gradient(self, w: Tensor) -> Tensor:
        return times(self.weights, self.penalty.gradient(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the penalty's prox with step * weights, and 0 where the weight is infinite."""
        forced = self.weights.isinf()
        y = self.penalty.prox(w, step * self.weights.masked_fill(forced, 0.0))
        return torch.where(forced & (torch.as_tensor(step) != 0), 0.0, y)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the penalty's for grad / weights; elements that are free have no part in it."""
        return self.penalty.strength_max((grad / self.weights).masked_fill(self.weights == 0, 0.0))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless `weights` spreads over `shape`."""
        check_spread("weights", self.weights.shape, shape)

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Cut anywhere, unless the weights have yet to be spread over the parameter."""
        return Elementwise.cuts(self, shape) if tuple(self.weights.shape) == tuple(shape) else ()

    def refusal(self, other: Penalty) -> str | None:
        if not isinstance(other, Weighted) or spread_together(self.weights, other.weights):
            return None
        shapes = " and ".join(shape_text(each.weights.shape) for each in (self, other))
        return f"their weights, {shapes}, do not spread over each other"

    def with_tensors(self, take: Callable[[Tensor], Tensor]) -> "Weighted":
        return Weighted(self.penalty, take(self.weights))

    def bound(self, name: str, parameter: Tensor) -> "Weighted":
        """Return the same with one weight per element, on the parameter's device."""
        if is_lazy(parameter):
            return self
        if self.weights.device == parameter.device and self.weights.shape == parameter.shape:
            return self
        return Weighted(self.penalty, spread(self.weights.to(parameter.device), "weights", parameter.shape))

    def describe(self, shape: Sequence[int] | None) -> Description:
        penalty, strength, groups = self.penalty.describe(shape)
        return Description(f"Weighted {penalty}", strength, groups)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weighted):
            return NotImplemented
        return self.penalty == other.penalty and torch.equal(self.weights, other.weights)

    def __hash__(self) -> int:
        return hash((Weighted, self.penalty, self.weights.shape))

    def __repr__(self) -> str:
        return f"Weighted({self.penalty!r}, <{shape_text(self.weights.shape)} weights>)"


def times(weights: Tensor, values: Tensor) -> Tensor:
    """Return weights * values in the type of `values`, and 0 where a value is 0, whatever its weight."""
    return (weights * values).masked_fill(values == 0, 0.0).to(values.dtype)
