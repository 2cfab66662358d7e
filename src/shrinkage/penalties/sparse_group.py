"""Penalties of weights and of the norms of their groups together."""

from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, replace

import torch
from torch import Tensor

from shrinkage.penalties.convex import L1
from shrinkage.penalties.elementwise import infinite_unless_zero
from shrinkage.penalties.grouped import Grouped, GroupLasso
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.per_group import Parts, PerGroup, check_groups
from shrinkage.penalties.schedules import Strength, fixed
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision, thresholds
from shrinkage.proximal.reductions import Reduction

BISECTIONS = 70


@value_class
class SparseGroupLasso(PerGroup):
    """Penalize weights and norms of groups together: zero groups, and zeros inside the others.

    R(w) = l1 * sum |w| + group * sum over groups g of  sqrt(size of g) * ||w_g||

    The prox is exact in every diagonal metric: soft threshold first, then `GroupLasso`'s.

    Args:
        l1: >= 0, strength of the absolute values, loss units per unit of |w|; or a schedule of the update count.
        group: >= 0, strength of the norms, as in `GroupLasso`; or a schedule of the update count.
        groups: which elements belong together, such as `Rows()`.
        weigh_by_size: multiply the cost of a group by the square root of its size.

    Raises:
        ValueError: a strength is negative or not finite.
        TypeError: `groups` is not a group view.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Simon et al. (2013), "A sparse-group lasso", eq. 3.

    >>> from shrinkage import Rows
    >>> penalty = SparseGroupLasso(1.0, 1.0, Rows(), weigh_by_size=False)
    >>> penalty.prox(torch.tensor([[4.0, 5.0, 0.5], [1.5, 1.5, 0.0]]), step=1.0)
    tensor([[2.4000, 3.2000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """

    l1: Strength
    group: Strength
    groups: Groups
    _: KW_ONLY
    weigh_by_size: bool = True

    def __post_init__(self) -> None:
        PerGroup.__post_init__(self)
        check_groups(self.groups)

    @property
    def of_groups(self) -> Grouped:
        """The part that penalizes norms."""
        return GroupLasso(self.group, self.groups, weigh_by_size=self.weigh_by_size)

    def slope(self, shape: Sequence[int]) -> float:
        """Return the norm of gradient that a zero group withstands beyond `l1`, plus `l1`."""
        return fixed(self.l1) + self.of_groups.slope(shape)

    def parts(self, shape: Sequence[int]) -> Parts | None:
        return Parts(fixed(self.l1), self.of_groups.weight(shape) * fixed(self.group), 0.0)

    def value(self, w: Tensor) -> Tensor:
        """l1 * sum |w| plus the group lasso's value."""
        return L1(self.l1).value(w) + self.of_groups.value(w)

    def gradient(self, w: Tensor) -> Tensor:
        """l1 * sign(w) plus the group lasso's gradient."""
        return L1(self.l1).gradient(w) + self.of_groups.gradient(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold, then the group lasso's prox."""
        return self.of_groups.prox(L1(self.l1).prox(precision.upcast(w), step), step).to(w.dtype)

    def prox_by_sums(
        self, w: Tensor, step: float | Tensor, shape: Sequence[int], cut: Collection[int] = ()
    ) -> Reduction[Tensor] | None:
        """Soft threshold, then the group lasso's."""
        return self.of_groups.prox_by_sums(L1(self.l1).prox(precision.upcast(w), step), step, shape, cut)

    def gradient_by_sums(self, w: Tensor, shape: Sequence[int], cut: Collection[int] = ()) -> Reduction[Tensor] | None:
        """l1 * sign(w) plus the group lasso's."""
        of_groups = self.of_groups.gradient_by_sums(w, shape, cut)
        return None if of_groups is None else plus(L1(self.l1).gradient(w), of_groups)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance per group, shape `(groups,)`."""
        norms = self.groups.norms(w)
        beyond = thresholds.soft_threshold(grad, fixed(self.l1))
        at_zero = self.of_groups.residual(torch.zeros_like(w), beyond)
        inside = torch.where(w == 0, beyond, grad + self.gradient(w))
        return torch.where(norms == 0, at_zero, self.groups.norms(inside))

    @property
    def zero_groups(self) -> None:
        """None: elements inside of a group are zero by themselves."""

    def stays(self, w: Tensor, average: Tensor) -> Tensor:
        """Return the elements of zero groups that are stationary, and zeros inside the others that `l1` holds."""
        group_stays = PerGroup.stays(self, w, average)
        alive = self.groups.spread(self.groups.norms(w) > 0, w.shape)
        return group_stays | (alive & L1(self.l1).stays(w, average))

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the least l1 + group at which 0 is stationary, in the proportion that they have now."""
        l1, group = fixed(self.l1), fixed(self.group)
        if l1 + group == 0:
            return infinite_unless_zero(grad)
        zero, low, high = torch.zeros_like(grad), 0.0, float(grad.abs().sum())
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            scaled = replace(self, l1=middle * l1 / (l1 + group), group=middle * group / (l1 + group))
            low, high = (low, middle) if bool((scaled.residual(zero, grad) == 0).all()) else (middle, high)
        return grad.new_tensor(high)


def plus(constant: Tensor, computation: Reduction[Tensor]) -> Reduction[Tensor]:
    """Return the result of `computation` plus `constant`."""
    result = yield from computation
    return constant + result
