"""Penalties of the norms of groups: a whole row, column or head becomes zero at once."""

from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, replace

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from shrinkage.errors import GroupError, shown
from shrinkage.penalties import group_norms
from shrinkage.penalties.base import Description
from shrinkage.penalties.budget import reason
from shrinkage.penalties.convex import L1
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.groups import Groups, norms_within
from shrinkage.penalties.per_group import Parts, PerGroup, check_groups
from shrinkage.penalties.schedules import Strength
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal.precision import at_least_float32
from shrinkage.proximal.reductions import Reduction, alone


@value_class
class Grouped(PerGroup):
    """Penalize the Euclidean norm of each group as `penalty` penalizes the size of one weight.

    R(w) = sum over groups g of  weight_g * phi(||w_g||),  where phi is `penalty` of one element and weight_g is the
    square root of the group's size.

    Exact in a diagonal metric too. There, a penalty other than `L1`, `L2` and `ElasticNet` is searched for minima on a
    grid, which costs about 180 passes over the weights.

    Args:
        penalty: what a norm costs: `L1`, `L2`, `ElasticNet`, `MCP`, `SCAD`, `LogSum`, `Lp`, `L0`, `Huber`, or one of
            them `Weighted` with one weight per group.
        groups: `Rows()`, `Columns()`, `Kernels()`, `Heads(count)`, `Blocks(rows, columns)` or `Whole()`.
        weigh_by_size: multiply the cost of a group by the square root of its size, so that strengths suit any width.

    Raises:
        TypeError: `penalty` is not an elementwise penalty, or `groups` is not a group view.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Yuan and Lin (2006), "Model selection and estimation in regression with grouped variables", eq. 2.1;
    Huang, Breheny and Ma (2012), "A selective review of group selection in high-dimensional models", eq. 2.3, for
    penalties that are not convex.

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
            raise TypeError(
                "Grouped: penalty must be one of single elements (L1, L2, ElasticNet, MCP ...), got "
                f"{shown(self.penalty)}{reason(self.penalty)}"
            )
        check_groups(self.groups)

    @property
    def smooth(self) -> bool:
        return self.penalty.smooth

    @property
    def explicit(self) -> bool:
        return self.penalty.explicit

    @property
    def holds_zeros(self) -> bool:
        return self.penalty.holds_zeros

    def slope(self, shape: Sequence[int]) -> float:
        """Return the largest norm of gradient that a zero group withstands."""
        return self.weight(shape) * self.penalty.slope((self.groups.layout(shape).count,))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` does not fall into the groups, or there are too few weights."""
        self.penalty.check_shape((self.groups.layout(shape).count,))

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Cut between groups, unless the penalty is another in each group."""
        return () if self._differs else PerGroup.cuts(self, shape)

    @property
    def _differs(self) -> bool:
        """Whether the penalty of a norm is another in each group."""
        return self.penalty.with_tensors(Tensor.detach) is not self.penalty

    def bound(self, name: str, parameter: Tensor) -> "Grouped":
        """Return the same with the penalty of a norm on the parameter's device."""
        if is_lazy(parameter) or not self._differs:
            return self
        try:
            norms = torch.empty(self.groups.count_in(parameter.shape), device=parameter.device)
        except GroupError:  # `check_shape` says so, with the parameter's name
            return self
        bound = self.penalty.bound(name, norms)
        if bound is self.penalty or not isinstance(bound, Elementwise):
            return self
        return replace(self, penalty=bound)

    def parts(self, shape: Sequence[int]) -> Parts | None:
        """Return the penalty of a norm if it is linear plus quadratic, times the weight."""
        radial, weight = self.penalty.radial(), self.weight(shape)
        if radial is None or isinstance(radial.linear, Tensor) or isinstance(radial.quadratic, Tensor):
            return None
        return Parts(0.0, weight * radial.linear, weight * radial.quadratic)

    def describe(self, shape: Sequence[int] | None) -> Description:
        penalty, strength, _ = self.penalty.describe(None)
        name = "GroupLasso" if isinstance(self.penalty, L1) else f"Grouped {penalty}"
        return super().describe(shape)._replace(penalty=name, strength=strength)

    def value(self, w: Tensor) -> Tensor:
        """sum of weight * phi(||w_g||)."""
        return self.weight(w.shape) * self.penalty.value(self.groups.norms(w))

    def gradient(self, w: Tensor) -> Tensor:
        """weight * phi'(||w_g||) * w_g / ||w_g||, and 0 in a group that is zero."""
        slopes = group_norms.slopes(self.groups.norms(w), self.penalty, self.weight(w.shape))
        return w * self.groups.spread(slopes.to(w.dtype), w.shape)

    def gradient_by_sums(self, w: Tensor, shape: Sequence[int], cut: Collection[int] = ()) -> Reduction[Tensor] | None:
        """Sum squares over each group."""
        if not self._add_up(shape, cut):
            return None
        layout = self.groups.layout(w.shape)
        split = w.reshape(layout.shape)
        return group_norms.reshaped(group_norms.gradient_by_sums(split, layout, self.penalty, self.weight(shape)), w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Scale each group by prox_phi(||w_g||) / ||w_g||; in a diagonal metric, solve the secular equation."""
        if isinstance(step, Tensor) and step.dim():
            return alone(self._in_metric(w, step, w.shape, to_rest=w.device.type == "cpu"))
        layout = self.groups.layout(w.shape)
        split = w.reshape(layout.shape).to(at_least_float32(w.dtype))
        scales = group_norms.scales(norms_within(split, layout.within), step, self.penalty, self.weight(w.shape))
        return (split * scales).reshape(w.shape).to(w.dtype)

    def prox_by_sums(
        self, w: Tensor, step: float | Tensor, shape: Sequence[int], cut: Collection[int] = ()
    ) -> Reduction[Tensor] | None:
        """Sum squares over each group, or what is asked of them in a diagonal metric."""
        if not self._add_up(shape, cut):
            return None
        if isinstance(step, Tensor) and step.dim():
            # Processes would have to agree on whether the iteration has converged.
            return self._in_metric(w, step, shape, to_rest=not cut and w.device.type == "cpu")
        layout = self.groups.layout(w.shape)
        split = w.reshape(layout.shape).to(at_least_float32(w.dtype))
        return group_norms.reshaped(
            group_norms.in_plain_metric(split, step, layout, self.penalty, self.weight(shape)), w
        )

    def _in_metric(self, w: Tensor, step: Tensor, shape: Sequence[int], *, to_rest: bool) -> Reduction[Tensor]:
        """Solve the secular equation of each group, or search for the best of its minima."""
        weight, layout = self.weight(shape), self.groups.layout(w.shape)
        split = w.reshape(layout.shape).to(at_least_float32(w.dtype))
        steps = step.to(split.dtype).expand_as(w).reshape(layout.shape)
        return group_norms.in_metric(split, steps, layout, self.penalty, weight, like=w, to_rest=to_rest)

    def _add_up(self, shape: Sequence[int], cut: Collection[int]) -> bool:
        """Return whether sums over shards of groups add up to those over groups if `shape` is cut along `cut`."""
        layout = self.groups.layout(shape)
        between = any(dim in layout.between for dim in cut)
        return not any(dim in layout.split for dim in cut) and not (between and self._differs)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance per group, shape `(groups,)`: to the ball of radius weight * slope where w_g is 0."""
        weight = self.weight(w.shape)
        norms = self.groups.norms(w)
        at_zero = weight * self.penalty.residual(torch.zeros_like(norms), self.groups.norms(grad) / weight)
        elsewhere = self.groups.norms(grad + self.gradient(w))
        return torch.where(norms == 0, at_zero, elsewhere)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the strength that the largest ||grad_g|| / weight asks of `penalty`."""
        return self.penalty.strength_max(self.groups.norms(grad) / self.weight(grad.shape))


def GroupLasso(strength: Strength, groups: Groups, *, weigh_by_size: bool = True) -> Grouped:
    """Penalize the norm of each group, which makes whole groups exactly zero: `Grouped(L1(strength), groups)`.

    R(w) = strength * sum over groups g of  sqrt(size of g) * ||w_g||,  without the root if `weigh_by_size` is False

    Args:
        strength: >= 0, loss units per unit of norm; or a schedule of the update count.
        groups: which elements belong together, as in `Grouped`.
        weigh_by_size: multiply the cost of a group by the square root of its size, as in `Grouped`.

    Raises:
        ValueError: the strength is negative or not finite.
        TypeError: the strength is not a number, or `groups` is not a group view.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Yuan and Lin (2006), "Model selection and estimation in regression with grouped variables", eq. 2.1.

    >>> from shrinkage import Rows
    >>> GroupLasso(1.0, Rows()).value(torch.tensor([[3.0, 4.0]]))
    tensor(7.0711)
    """
    return Grouped(L1(strength), groups, weigh_by_size=weigh_by_size)
