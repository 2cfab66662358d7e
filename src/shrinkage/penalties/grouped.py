"""Penalties of the norms of groups: a whole row, column or head becomes zero at once."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from shrinkage import prox
from shrinkage.groups import Groups, norms_within
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.elementwise import L1, Elementwise
from shrinkage.schedules import Strength


@dataclass(frozen=True, slots=True)
class Grouped(Penalty):
    """Charge the Euclidean norm of each group as `penalty` charges the size of one weight.

    R(w) = sum over groups g of  weight_g * phi(||w_g||),  where phi is `penalty` of one element and weight_g is the
    square root of the group's size.

    Args:
        penalty: what a norm costs: `L1`, `L2` or `ElasticNet`.
        groups: which elements belong together: `Rows()`, `Columns()`, `Kernels()`, `Heads(count)`, `Whole()`.
        weigh_by_size: multiply the cost of a group by the square root of its size, so that one strength suits layers
            of any width.

    Raises:
        TypeError: `penalty` is not an elementwise penalty, or `groups` is not a group view.
        GroupError: from any method, if the tensor can not be divided into these groups.

    Reference: Yuan and Lin (2006), "Model selection and estimation in regression with grouped variables", eq. 2.1.

    >>> from shrinkage import Rows
    >>> Grouped(L1(1.0), Rows(), weigh_by_size=False).prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), step=2.5)
    tensor([[1.5000, 2.0000],
            [0.0000, 0.0000]])
    """

    penalty: Elementwise
    groups: Groups
    _: KW_ONLY
    weigh_by_size: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Elementwise):
            raise TypeError(f"Grouped: penalty must be elementwise (L1, L2, ElasticNet), got {self.penalty!r}")
        if not isinstance(self.groups, Groups):
            raise TypeError(f"the groups must be a group view, an instance such as Rows(), got {self.groups!r}")

    @property
    def smooth(self) -> bool:
        """Whether the charge of a norm is smooth at 0."""
        return self.penalty.smooth

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` does not fall into the groups."""
        self.groups.layout(shape)

    def cut(self, shape: Sequence[int]) -> int | None:
        """Cut between groups, unless they are counted as `Heads` are, which a piece has fewer of."""
        layout = self.groups.layout(shape)
        return layout.between[0] if layout.between and layout.shape == tuple(shape) else None

    def describe(self, shape: Sequence[int] | None) -> Description:
        """Return the charge of a norm, and how many groups there are."""
        penalty, strength, _ = self.penalty.describe(shape)
        count = "" if shape is None else f"{self.groups.layout(shape).count} x "
        name = "GroupLasso" if isinstance(self.penalty, L1) else f"Grouped {penalty}"
        return Description(name, strength, f"{count}{self.groups}")

    def value(self, w: Tensor) -> Tensor:
        """sum of weight * phi(||w_g||)."""
        return self._weight(w) * self.penalty.value(self.groups.norms(w))

    def gradient(self, w: Tensor) -> Tensor:
        """weight * phi'(||w_g||) * w_g / ||w_g||, and 0 in a group that is zero."""
        layout = self.groups.layout(w.shape)
        split = w.reshape(layout.shape)
        norms = norms_within(split, layout.within)
        slopes = self._weight(w) * self.penalty.gradient(norms) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return (split * slopes.to(w.dtype)).reshape(w.shape)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Scale each group by max(1 - step * weight * strength / ||w_g||, 0); in a diagonal metric, the exact root.

        The quadratic part of phi is taken in first: prox of R + q/2 ||.||^2 with step s at w is prox of R with step
        s / (1 + s q) at w / (1 + s q), in any diagonal metric.
        """
        linear, quadratic = (self._weight(w) * part for part in self.penalty.radial())
        if quadratic:
            w, step = w / (1 + step * quadratic), step / (1 + step * quadratic)
        if not linear:
            return w.clone()
        layout = self.groups.layout(w.shape)
        split = w.reshape(layout.shape)
        if isinstance(step, Tensor) and step.dim():
            thresholds = (step * linear).to(w.dtype).expand_as(w).reshape(layout.shape)
            scale = prox.block_scale_in_metric(split, thresholds, layout.within)
        else:
            scale = prox.block_scale(norms_within(split, layout.within), step * linear).to(w.dtype)
        return (split * scale).reshape(w.shape)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance per group, shape `(groups,)`: to the ball of radius weight * strength where w_g is 0."""
        weight = self._weight(w)
        norms = self.groups.norms(w)
        at_zero = weight * self.penalty.residual(torch.zeros_like(norms), self.groups.norms(grad) / weight)
        elsewhere = self.groups.norms(grad + self.gradient(w))
        return torch.where(norms == 0, at_zero, elsewhere)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the largest ||grad_g|| / weight for `L1`."""
        return self.penalty.strength_max(self.groups.norms(grad) / self._weight(grad))

    def _weight(self, w: Tensor) -> float:
        """Return the weight of a group."""
        return math.sqrt(max(self.groups.layout(w.shape).size, 1)) if self.weigh_by_size else 1.0


def GroupLasso(strength: Strength, groups: Groups, *, weigh_by_size: bool = True) -> Grouped:
    """Charge the norm of each group, which makes whole groups exactly zero: `Grouped(L1(strength), groups)`.

    R(w) = strength * sum over groups g of  sqrt(size of g) * ||w_g||,  without the root if `weigh_by_size` is False

    Args:
        strength: >= 0, loss units per unit of norm; or a schedule of the update count.
        groups: which elements belong together: `Rows()`, `Columns()`, `Kernels()`, `Heads(count)`, `Whole()`.
        weigh_by_size: multiply the cost of a group by the square root of its size, so that one strength suits layers
            of any width.

    Raises:
        ValueError: the strength is negative or not finite.
        TypeError: the strength is not a number, or `groups` is not a group view.
        GroupError: from any method, if the tensor can not be divided into these groups.

    Reference: Yuan and Lin (2006), "Model selection and estimation in regression with grouped variables", eq. 2.1.

    >>> from shrinkage import Rows
    >>> GroupLasso(1.0, Rows()).value(torch.tensor([[3.0, 4.0]]))
    tensor(7.0711)
    """
    return Grouped(L1(strength), groups, weigh_by_size=weigh_by_size)
