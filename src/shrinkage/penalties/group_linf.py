"""A penalty of the largest weight of each group."""

from collections.abc import Sequence
from dataclasses import KW_ONLY

import torch
from torch import Tensor

from shrinkage.penalties.elementwise import largest
from shrinkage.penalties.groups import Groups, norms_within
from shrinkage.penalties.per_group import PerGroup, check_groups
from shrinkage.penalties.schedules import Strength, fixed
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision, projections
from shrinkage.proximal.precision import at_least_float32


@value_class
class GroupLInf(PerGroup):
    """Penalize the largest weight of each group: whole groups become zero, others are clipped to one size.

    R(w) = strength * sum over groups g of  sqrt(size of g) * max |w_g|,  without the root if `weigh_by_size` is False

    Exact in every diagonal metric. Each group is sorted.

    Args:
        strength: >= 0, loss units per unit of |w|; or a schedule of the update count.
        groups: which elements belong together, such as `Rows()`.
        weigh_by_size: multiply the cost of a group by the square root of its size.

    Raises:
        ValueError: the strength is negative or not finite.
        TypeError: `groups` is not a group view.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Quattoni et al. (2009), "An efficient projection for l1,infinity regularization", eq. 1.

    >>> from shrinkage import Rows
    >>> penalty = GroupLInf(1.0, Rows(), weigh_by_size=False)
    >>> penalty.prox(torch.tensor([[4.0, -3.5], [0.5, 0.25]]), step=1.0)
    tensor([[ 3.2500, -3.2500],
            [ 0.0000,  0.0000]])
    """

    strength: Strength
    groups: Groups
    _: KW_ONLY
    weigh_by_size: bool = True

    def __post_init__(self) -> None:
        PerGroup.__post_init__(self)
        check_groups(self.groups)

    def slope(self, shape: Sequence[int]) -> float:
        """Return the sum of sizes of gradient that a zero group withstands."""
        return fixed(self.strength) * self.weight(shape)

    def value(self, w: Tensor) -> Tensor:
        """strength * sum of weight * max |w_g|."""
        rows = self.groups.view(w).abs()
        return self.slope(w.shape) * (rows.amax(1).sum() if rows.numel() else rows.new_zeros(()))

    def gradient(self, w: Tensor) -> Tensor:
        """strength * weight * sign(w) shared among the largest of each group, and 0 in a group that is zero."""
        rows = self.groups.view(w)
        if not rows.numel():
            return torch.zeros_like(w)
        top = (rows.abs() == rows.abs().amax(1, keepdim=True)).to(w.dtype)
        slopes = self.slope(w.shape) * rows.sign() * top / top.sum(1, keepdim=True)
        return self.groups.restore(slopes, w.shape)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Clip each group at the level above which sizes hold strength * weight, in units of w / step."""
        rows = self.groups.view(w).to(at_least_float32(w.dtype))
        if not rows.numel():
            return w.clone()
        steps = precision.as_tensor(step, rows)
        steps = self.groups.view(steps.expand_as(w)) if steps.dim() else steps.expand_as(rows)
        level = projections.clip_level(rows, steps, self.slope(w.shape))
        clipped = torch.where(steps > 0, rows.clamp(-level, level), rows) if self.slope(w.shape) else rows
        return self.groups.restore(clipped, w.shape).to(w.dtype)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance per group, shape `(groups,)`, to the subdifferential.

        That is, at 0, the ball sum |s| <= strength * weight; elsewhere the vectors that share strength * weight, with
        the signs of w, among the largest elements.
        """
        rows, steepest = self.groups.view(w), self.groups.view(-grad)
        if not rows.numel():
            return rows.new_zeros(len(rows))
        slope, plain = self.slope(w.shape), torch.ones_like(rows)
        at_zero = steepest - projections.l1_ball(steepest, plain, slope)
        top = (rows.abs() == rows.abs().amax(1, keepdim=True)) & (rows != 0)
        along = torch.where(top, steepest * rows.sign(), -torch.inf)
        shared = torch.where(top, projections.simplex(along.masked_fill(~top, -1e30), plain, slope), 0.0)
        elsewhere = torch.where(top, along - shared, steepest)
        distance = torch.where((rows == 0).all(1, keepdim=True), at_zero, elsewhere)
        return norms_within(distance, (1,))[:, 0]

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the largest sum of |grad_g| / weight."""
        return largest(self.groups.view(grad).abs().sum(1)) / self.weight(grad.shape)
