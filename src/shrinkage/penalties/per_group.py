"""What penalties have in common that are a sum over groups."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.errors import shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.groups import Groups


class Parts(NamedTuple):
    """A penalty of a group:  l1 * sum |w|  +  linear * ||w||  +  quadratic / 2 * ||w||^2."""

    l1: float
    linear: float
    quadratic: float


class PerGroup(Penalty):
    """A sum over groups, which share nothing: each has its own prox and its own residual."""

    __slots__ = ()

    groups: Groups
    weigh_by_size: bool

    @property
    def holds_zeros(self) -> bool:
        """True: a group that is zero withstands gradients up to the slope."""
        return True

    @property
    def solid(self) -> bool:
        """True: a group costs more the larger its elements are, whatever their signs."""
        return True

    @property
    def zero_groups(self) -> Groups | None:
        return self.groups

    def parts(self, shape: Sequence[int]) -> Parts | None:
        """Return the penalty of a group of a tensor of `shape`, if it is such a sum and the same for all groups."""
        return None

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` does not fall into the groups."""
        self.groups.layout(shape)

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.groups.cuts(shape)

    def describe(self, shape: Sequence[int] | None) -> Description:
        count = "" if shape is None else f"{self.groups.layout(shape).count} x "
        return super().describe(shape)._replace(groups=f"{count}{self.groups}")

    def stays(self, w: Tensor, average: Tensor) -> Tensor:
        """Return the elements of groups that are zero and stationary for the gradient `average`."""
        still = (self.groups.norms(w) == 0) & (self.residual(torch.zeros_like(w), average) == 0)
        return self.groups.spread(still, w.shape)

    def weight(self, shape: Sequence[int]) -> float:
        """Return what the penalty of a group is multiplied by: the square root of its size, or 1."""
        return math.sqrt(max(self.groups.layout(shape).size, 1)) if self.weigh_by_size else 1.0


def check_groups(groups: object) -> None:
    """Raise `TypeError` unless `groups` is a group view."""
    if not isinstance(groups, Groups):
        raise TypeError(f"the groups must be a group view, an instance such as Rows(), got {shown(groups)}")
