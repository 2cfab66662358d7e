"""Penalties of the norms of groups: a whole row, column or head becomes zero at once."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from shrinkage import prox, radial
from shrinkage.errors import GroupError
from shrinkage.groups import Groups, Layout, at_least_float32, norms_within
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L1
from shrinkage.penalties.elementwise import Elementwise, infinite_unless_zero
from shrinkage.penalties.per_group import PerGroup, check_groups
from shrinkage.schedules import Strength, check_strength, fixed, total

BISECTIONS = 70


@dataclass(frozen=True, slots=True)
class Grouped(PerGroup):
    """Charge the Euclidean norm of each group as `penalty` charges the size of one weight.

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
        GroupError: from any method, if the tensor can not be divided into these groups.

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
                f"Grouped: penalty must be one of single elements (L1, L2, ElasticNet, MCP ...), got {self.penalty!r}"
            )
        check_groups(self.groups)

    @property
    def smooth(self) -> bool:
        """Whether the charge of a norm is smooth at 0."""
        return self.penalty.smooth

    @property
    def explicit(self) -> bool:
        """Whether the charge of a norm can act through its derivative."""
        return self.penalty.explicit

    @property
    def holds_zeros(self) -> bool:
        """Whether the charge of a norm has a kink at 0."""
        return self.penalty.holds_zeros

    def slope(self, shape: Sequence[int]) -> float:
        """Return the largest norm of gradient that a zero group withstands."""
        return self.weight(shape) * self.penalty.slope((self.groups.layout(shape).count,))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` does not fall into the groups, or there are too few weights."""
        self.penalty.check_shape((self.groups.layout(shape).count,))

    def cut(self, shape: Sequence[int]) -> int | None:
        """Cut between groups, unless the charge is another in each group."""
        return None if self.penalty.cut((2,)) is None else PerGroup.cut(self, shape)

    def bound(self, name: str, parameter: Tensor) -> "Grouped":
        """Return the same with the charge of a norm on the parameter's device."""
        bound = self.penalty.bound(name, parameter)
        return replace(self, penalty=bound) if isinstance(bound, Elementwise) else self

    def charge_text(self, shape: Sequence[int] | None) -> tuple[str, str]:
        """Return what a norm is charged."""
        penalty, strength, _ = self.penalty.describe(None)
        return "GroupLasso" if isinstance(self.penalty, L1) else f"Grouped {penalty}", strength

    def value(self, w: Tensor) -> Tensor:
        """sum of weight * phi(||w_g||)."""
        return self.weight(w.shape) * self.penalty.value(self.groups.norms(w))

    def gradient(self, w: Tensor) -> Tensor:
        """weight * phi'(||w_g||) * w_g / ||w_g||, and 0 in a group that is zero."""
        norms = self.groups.norms(w)
        slopes = self.weight(w.shape) * self.penalty.gradient(norms) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return w * self.groups.spread(slopes.to(w.dtype), w.shape)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Scale each group by prox_phi(||w_g||) / ||w_g||; in a diagonal metric, solve the secular equation."""
        layout = self.groups.layout(w.shape)
        split = w.reshape(layout.shape).to(at_least_float32(w.dtype))
        if isinstance(step, Tensor) and step.dim():
            steps = step.to(split.dtype).expand_as(w).reshape(layout.shape)
            scaled = self._prox_in_metric(split, steps, layout, self.weight(w.shape))
        else:
            norms = norms_within(split, layout.within)
            shrunk = self.penalty.prox(norms.reshape(-1), step * self.weight(w.shape)).reshape(norms.shape)
            scale = (shrunk / norms.clamp_min(torch.finfo(norms.dtype).tiny)).masked_fill(norms.isinf(), 1.0)
            scaled = split * scale
        return scaled.reshape(w.shape).to(w.dtype)

    def _prox_in_metric(self, w: Tensor, steps: Tensor, layout: Layout, weight: float) -> Tensor:
        """Solve for all groups at once; the quadratic part of phi is taken in first.

        The prox of R + q/2 ||.||^2 with step s at w is that of R with step s / (1 + s q) at w / (1 + s q).
        """
        parts = self.penalty.radial()
        if parts is None:
            charge = radial.Charge(
                cost=lambda norms: weight * self.penalty.cost(norms.reshape(-1)).reshape(layout.kept),
                slope=lambda norms: weight * self.penalty.gradient(norms.reshape(-1)).reshape(layout.kept),
                slope_at_zero=weight * as_column(self.penalty.slope_at_zero, layout.kept),
            )
            return w * radial.radial_scale_in_metric(w, steps, layout.within, charge)
        linear, quadratic = (weight * as_column(part, layout.kept) for part in parts)
        if isinstance(quadratic, Tensor) or quadratic:
            w, steps = w / (1 + steps * quadratic), steps / (1 + steps * quadratic)
        if not isinstance(linear, Tensor) and not linear:
            return w.clone()
        return w * radial.block_scale_in_metric(w, steps * linear, layout.within)

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

    def combined(self, other: Penalty) -> Penalty | None:
        """L1 + GroupLasso is SparseGroupLasso; two of the same groups are one; groups that overlap are refused."""
        if isinstance(other, L1) and isinstance(self.penalty, L1):
            strength = self.penalty.strength
            return SparseGroupLasso(other.strength, strength, self.groups, weigh_by_size=self.weigh_by_size)
        if not isinstance(other, Grouped):
            return None
        if (other.groups, other.weigh_by_size) != (self.groups, self.weigh_by_size):
            raise GroupError(
                f"{self.groups} and {other.groups} overlap: an element would stand in two groups, and no exact prox is "
                "known then; charge one of them, or a group per block with Blocks(rows, columns)"
            )
        both = self.penalty.combined(other.penalty) or other.penalty.combined(self.penalty)
        return Grouped(both, self.groups, weigh_by_size=self.weigh_by_size) if isinstance(both, Elementwise) else None


def GroupLasso(strength: Strength, groups: Groups, *, weigh_by_size: bool = True) -> Grouped:
    """Charge the norm of each group, which makes whole groups exactly zero: `Grouped(L1(strength), groups)`.

    R(w) = strength * sum over groups g of  sqrt(size of g) * ||w_g||,  without the root if `weigh_by_size` is False

    Args:
        strength: >= 0, loss units per unit of norm; or a schedule of the update count.
        groups: which elements belong together, as in `Grouped`.
        weigh_by_size: multiply the cost of a group by the square root of its size, as in `Grouped`.

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


@dataclass(frozen=True, slots=True)
class SparseGroupLasso(PerGroup):
    """Charge weights and norms of groups together: zero groups, and zeros inside the others.

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
        GroupError: from any method, if the tensor can not be divided into these groups.

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
        check_strength("SparseGroupLasso", "l1", self.l1)
        check_strength("SparseGroupLasso", "group", self.group)
        check_groups(self.groups)

    @property
    def of_groups(self) -> Grouped:
        """The part that charges norms."""
        return GroupLasso(self.group, self.groups, weigh_by_size=self.weigh_by_size)

    def slope(self, shape: Sequence[int]) -> float:
        """Return the norm of gradient that a zero group withstands beyond `l1`, plus `l1`."""
        return fixed(self.l1) + self.of_groups.slope(shape)

    def charge_text(self, shape: Sequence[int] | None) -> tuple[str, str]:
        """Return both strengths."""
        texts = ["schedule" if callable(strength) else f"{strength:g}" for strength in (self.l1, self.group)]
        return "SparseGroupLasso", ", ".join(texts)

    def value(self, w: Tensor) -> Tensor:
        """l1 * sum |w| plus the group lasso's value."""
        return L1(self.l1).value(w) + self.of_groups.value(w)

    def gradient(self, w: Tensor) -> Tensor:
        """l1 * sign(w) plus the group lasso's gradient."""
        return L1(self.l1).gradient(w) + self.of_groups.gradient(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold, then the group lasso's prox."""
        return self.of_groups.prox(L1(self.l1).prox(prox.wide(w), step), step).to(w.dtype)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance per group, shape `(groups,)`."""
        norms = self.groups.norms(w)
        beyond = prox.soft_threshold(grad, fixed(self.l1))
        at_zero = self.of_groups.residual(torch.zeros_like(w), beyond)
        inside = torch.where(w == 0, beyond, grad + self.gradient(w))
        return torch.where(norms == 0, at_zero, self.groups.norms(inside))

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

    def combined(self, other: Penalty) -> Penalty | None:
        """Add L1, or GroupLasso of the same groups, to its part."""
        if isinstance(other, L1):
            return replace(self, l1=total(self.l1, other.strength))
        if isinstance(other, Grouped) and isinstance(other.penalty, L1):
            both = self.of_groups.combined(other)
            if isinstance(both, Grouped) and isinstance(both.penalty, L1):
                return replace(self, group=both.penalty.strength)
        return None


def as_column(part: float | Tensor, shape: tuple[int, ...]) -> float | Tensor:
    """Return one value per group in the shape that broadcasts against the groups, a number as it is."""
    return part.reshape(shape) if isinstance(part, Tensor) and part.dim() else part
