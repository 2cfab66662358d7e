"""Penalties of the norms of groups: a whole row, column or head becomes zero at once."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from shrinkage import radial
from shrinkage.errors import GroupError
from shrinkage.groups import Groups, at_least_float32, norms_within
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.convex import L1
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.schedules import Strength


class PerGroup(Penalty):
    """A sum over groups, which share nothing: each has its own prox and its own residual."""

    __slots__ = ()

    groups: Groups
    weigh_by_size: bool

    @property
    def smooth(self) -> bool:
        """False: there is a kink where a group is zero."""
        return False

    @property
    def holds_zeros(self) -> bool:
        """True: a group that is zero withstands gradients up to the slope."""
        return True

    @abstractmethod
    def charge_text(self, shape: Sequence[int] | None) -> tuple[str, str]:
        """Return the name and the strength that a printed plan shows."""

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` does not fall into the groups."""
        self.groups.layout(shape)

    def cut(self, shape: Sequence[int]) -> int | None:
        """Cut between groups, unless they are counted as `Heads` are, which a piece has fewer of."""
        layout = self.groups.layout(shape)
        return layout.between[0] if layout.between and layout.shape == tuple(shape) else None

    def describe(self, shape: Sequence[int] | None) -> Description:
        """Return the charge of a group, and how many groups there are."""
        count = "" if shape is None else f"{self.groups.layout(shape).count} x "
        return Description(*self.charge_text(shape), f"{count}{self.groups}")

    def stays(self, w: Tensor, average: Tensor) -> Tensor:
        """Return the elements of groups that are zero and stationary for the gradient `average`."""
        still = (self.groups.norms(w) == 0) & (self.residual(torch.zeros_like(w), average) == 0)
        return self.groups.spread(still, w.shape)

    def weight(self, shape: Sequence[int]) -> float:
        """Return what a group's charge is multiplied by: the square root of its size, or 1."""
        return math.sqrt(max(self.groups.layout(shape).size, 1)) if self.weigh_by_size else 1.0


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
        groups: which elements belong together: `Rows()`, `Columns()`, `Kernels()`, `Heads(count)`,
            `Blocks(rows, columns)`, `Whole()`.
        weigh_by_size: multiply the cost of a group by the square root of its size, so that one strength suits layers
            of any width.

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
            scaled = self._prox_in_metric(split, steps, layout.within, self.weight(w.shape))
        else:
            norms = norms_within(split, layout.within)
            shrunk = self.penalty.prox(norms.reshape(-1), step * self.weight(w.shape)).reshape(norms.shape)
            scale = (shrunk / norms.clamp_min(torch.finfo(norms.dtype).tiny)).masked_fill(norms.isinf(), 1.0)
            scaled = split * scale
        return scaled.reshape(w.shape).to(w.dtype)

    def _prox_in_metric(self, w: Tensor, steps: Tensor, within: tuple[int, ...], weight: float) -> Tensor:
        """Solve for all groups at once; the quadratic part of phi is taken in first.

        The prox of R + q/2 ||.||^2 with step s at w is that of R with step s / (1 + s q) at w / (1 + s q).
        """
        between = norms_shape(w, within)
        parts = self.penalty.radial()
        if parts is None:
            charge = radial.Charge(
                cost=lambda norms: weight * self.penalty.cost(norms.reshape(-1)).reshape(between),
                slope=lambda norms: weight * self.penalty.gradient(norms.reshape(-1)).reshape(between),
                slope_at_zero=weight * as_column(self.penalty.slope_at_zero, between),
            )
            return w * radial.radial_scale_in_metric(w, steps, within, charge)
        linear, quadratic = (weight * as_column(part, between) for part in parts)
        if isinstance(quadratic, Tensor) or quadratic:
            w, steps = w / (1 + steps * quadratic), steps / (1 + steps * quadratic)
        if not isinstance(linear, Tensor) and not linear:
            return w.clone()
        return w * radial.block_scale_in_metric(w, steps * linear, within)

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
        """GroupLasso + GroupLasso of the same groups is GroupLasso; groups that overlap are refused."""
        if not isinstance(other, Grouped):
            return None
        if (other.groups, other.weigh_by_size) != (self.groups, self.weigh_by_size):
            raise GroupError(
                f"{self.groups} and {other.groups} overlap: an element would stand in two groups, and the prox of "
                "overlapping groups is not the one after the other; charge one of them, or a group per block with "
                "Blocks(rows, columns)"
            )
        both = self.penalty.combined(other.penalty) or other.penalty.combined(self.penalty)
        return Grouped(both, self.groups, weigh_by_size=self.weigh_by_size) if isinstance(both, Elementwise) else None


def GroupLasso(strength: Strength, groups: Groups, *, weigh_by_size: bool = True) -> Grouped:
    """Charge the norm of each group, which makes whole groups exactly zero: `Grouped(L1(strength), groups)`.

    R(w) = strength * sum over groups g of  sqrt(size of g) * ||w_g||,  without the root if `weigh_by_size` is False

    Args:
        strength: >= 0, loss units per unit of norm; or a schedule of the update count.
        groups: which elements belong together: `Rows()`, `Columns()`, `Kernels()`, `Heads(count)`,
            `Blocks(rows, columns)`, `Whole()`.
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


def check_groups(groups: object) -> None:
    """Raise `TypeError` unless `groups` is a group view."""
    if not isinstance(groups, Groups):
        raise TypeError(f"the groups must be a group view, an instance such as Rows(), got {groups!r}")


def norms_shape(w: Tensor, within: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the norms of `w` over the dimensions `within`, which stay with size 1."""
    return tuple(1 if dim in within else size for dim, size in enumerate(w.shape))


def as_column(part: float | Tensor, shape: tuple[int, ...]) -> float | Tensor:
    """Return one value per group in the shape that broadcasts against the groups, a number as it is."""
    return part.reshape(shape) if isinstance(part, Tensor) and part.dim() else part
