"""Membership in groups that span tensors: which slices of a tensor are in which group."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.errors import shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.coupled_groups import NONE, Coupled
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal.precision import at_least_float32, widest_float


@value_class
class Membership:
    """Which groups the slices of one tensor belong to.

    Args:
        dim: the dimension that is sliced.
        groups: the number of each slice's group, shape `(size of dim,)`; `count` for a slice in none.
        count: of all groups.
        first: the number of the first slice's group if all follow each other; None if they do not.
        counts: whether its sums are added up here; False for a copy of what another process adds up.
    """

    dim: int
    groups: Tensor
    count: int
    first: int | None = None
    counts: bool = True

    def split(self, w: Tensor) -> Tensor:
        """Return a view of `w` that has dimensions within its slices."""
        return w if w.dim() > 1 else w.unsqueeze(-1)

    def within(self, w: Tensor) -> tuple[int, ...]:
        """Return the dimensions of a `split` tensor that run within a slice."""
        return tuple(dim for dim in range(w.dim()) if dim != self.dim)

    def cut(self, start: int, length: int) -> "Membership":
        """Return the membership of `length` slices from `start` on."""
        first = None if self.first is None else self.first + start
        return replace(self, groups=self.groups[start : start + length], first=first)

    def add_(self, total: Tensor, sums: Tensor) -> None:
        """Add sums per slice, shape `(k, ...)`, to those per group, shape `(k, count + 1)`."""
        rows = sums.reshape(len(sums), -1).to(total.device, total.dtype)
        if self.first is None:
            total.index_add_(1, self.groups.to(total.device), rows)
        else:
            total[:, self.first : self.first + len(self.groups)].add_(rows)

    def values(self, padded: Tensor) -> Tensor:
        """Return one value per slice from one per group, shape `(count + 1,)`, the last for slices in none."""
        if self.first is not None:
            return padded[self.first : self.first + len(self.groups)].to(self.groups.device)
        return padded.to(self.groups.device)[self.groups]

    def column(self, padded: Tensor, like: Tensor) -> Tensor:
        """Return one value per group, shape `(count + 1,)`, as one per slice that broadcasts against `like`."""
        shape = [1] * like.dim()
        shape[self.dim] = -1
        return self.values(padded).to(at_least_float32(like.dtype)).view(shape)


class GroupPenalty(NamedTuple):
    """The penalty of groups: `penalty` of each norm, times the weight of the group, shape `(count,)`."""

    penalty: Elementwise
    weights: Tensor


def group_penalty_of(penalty: Penalty, weights: Tensor) -> GroupPenalty:
    """Return what `penalty` penalizes groups that have these weights."""
    if not isinstance(penalty, Grouped):
        raise TypeError(f"groups that span parameters are penalized by Grouped or GroupLasso, got {shown(penalty)}")
    return GroupPenalty(penalty.penalty, weights)


def weights_of(penalty: Penalty, device: torch.device) -> Tensor:
    """Return what the penalty of each group is multiplied by: the square root of its size, or 1."""
    groups = coupled_of(penalty)
    if groups is None or not isinstance(penalty, Grouped):
        raise TypeError(f"expected a penalty of groups that span parameters, got {shown(penalty)}")
    weights = [math.sqrt(max(size, 1)) if penalty.weigh_by_size else 1.0 for size in groups.sizes]
    return torch.tensor(weights, dtype=widest_float(device), device=device)


def membership_of(penalty: Penalty, name: str, device: torch.device) -> Membership | None:
    """Return which groups the slices of the parameter `name` belong to, if `penalty` penalizes groups that span it."""
    groups = coupled_of(penalty)
    return None if groups is None else membership_in(groups, name, device)


def membership_in(groups: Coupled, name: str, device: torch.device) -> Membership:
    """Return which of `groups` the slices of the parameter `name` belong to."""
    member = groups.slices(name)
    numbers = torch.tensor(member.groups, dtype=torch.long, device=device)
    first = next(iter(member.groups), NONE)
    in_order = first != NONE and member.groups == tuple(range(first, first + len(member.groups)))
    numbers = torch.where(numbers < 0, groups.count, numbers)
    return Membership(member.dim, numbers, groups.count, first if in_order else None)


def coupled_of(penalty: Penalty | Budget | None) -> Coupled | None:
    """Return the groups that `penalty` penalizes, or a budget ranks, if they span several parameters."""
    groups = penalty.groups if isinstance(penalty, Grouped | Budget) else None
    return groups if isinstance(groups, Coupled) else None


def padded(values: Tensor, none: float) -> Tensor:
    """Return one value per group with one more for slices in none."""
    return torch.cat([values, values.new_full((1,), none)])
