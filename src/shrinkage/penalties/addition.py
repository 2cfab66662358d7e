"""What the sum of two penalties is, if one penalty penalizes both with an exact prox.

Each function is asked for both orders of a pair, in the order in which they are listed at the end.
"""

import math
from dataclasses import replace

import torch

from shrinkage.errors import GroupError, shown
from shrinkage.penalties.balls import L1Ball, MaxNorm, Simplex, SpectralBall
from shrinkage.penalties.base import SUMS, Penalty, Sum, sum_of
from shrinkage.penalties.box import Box, is_convex, narrower
from shrinkage.penalties.broadcast import spread_together
from shrinkage.penalties.constraints import Constraint, NofM, TopK
from shrinkage.penalties.convex import L1, L2, ElasticNet
from shrinkage.penalties.counting import L0, Counted
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.nonconvex import MCP
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.penalties.ridged import Ridged
from shrinkage.penalties.schedules import total
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.penalties.toward import Toward
from shrinkage.penalties.weighted import Weighted


def register_sum(rule: Sum) -> Sum:
    """Register the sum of two penalties, so that `one + other` returns it.

    Args:
        rule: a function of two penalties that returns the one penalty which penalizes both with an exact prox, or None
            if it knows of none. It is asked for both orders of a pair, before all that are known here.

    Raises:
        TypeError: `rule` cannot be called.

    Returns:
        The rule, so that this is a decorator too.

    >>> class Lasso(L1):
    ...     pass
    >>> @register_sum
    ... def of_lassos(one, other):
    ...     match one, other:
    ...         case Lasso(strength), L2(more):
    ...             return ElasticNet(strength, more)
    >>> L2(0.5) + Lasso(0.25)
    ElasticNet(l1=0.25, l2=0.5)
    >>> SUMS.remove(of_lassos)  # which forgets it
    """
    if not callable(rule):
        raise TypeError(f"expected a function of two penalties, got {shown(rule)}")
    SUMS.insert(0, rule)
    return rule


def of_squares_on_top(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum with a penalty that has squares on top: they stay there, and all else is added below."""
    match one, other:
        case Ridged(penalty, l2), L2(more):
            return Ridged(penalty, total(l2, more))
        case Ridged(penalty, l2), Ridged(another, more):
            both = sum_of(penalty, another)
            return None if both is None else Ridged(both, total(l2, more))
        case Ridged(penalty, l2), _:
            both = sum_of(penalty, other)
            return None if both is None else sum_of(both, L2(l2))
    return None


def of_elements(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum of two penalties of elements."""
    match one, other:
        case L1(l1), L2(l2):
            return ElasticNet(l1, l2)
        case ElasticNet(l1, l2), L1(more):
            return ElasticNet(total(l1, more), l2)
        case ElasticNet(l1, l2), L2(more):
            return ElasticNet(l1, total(l2, more))
        case ElasticNet(l1, l2), ElasticNet(more_l1, more_l2):
            return ElasticNet(total(l1, more_l1), total(l2, more_l2))
        case MCP(strength, gamma), MCP(more, another) if end_together(one, other):
            return MCP(total(strength, more), 1 / (1 / gamma + 1 / another))
        case Weighted(penalty, weights), Weighted(same, more) if penalty == same and spread_together(weights, more):
            return Weighted(penalty, weights + more)
        case Weighted(penalty, weights), _ if penalty == other:
            return Weighted(penalty, weights + 1)
        case Counted(penalty, l0), L0(more):
            return Counted(penalty, total(l0, more))
        case Counted(penalty, l0), Elementwise():
            both = sum_of(penalty, other)
            return Counted(both, l0) if isinstance(both, Elementwise) else None
    return None


def end_together(one: MCP, other: MCP) -> bool:
    """Return whether both are known to be constant beyond the same size of a weight, so that their sum is too."""
    if callable(one.strength) or callable(other.strength):
        return False
    return math.isclose(one.gamma * one.strength, other.gamma * other.strength, rel_tol=1e-12)


def of_groups(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum of two penalties of groups, or of groups and their elements."""
    match one, other:
        case Grouped(L1(group), groups), L1(l1):
            return SparseGroupLasso(l1, group, groups, weigh_by_size=one.weigh_by_size)
        case Grouped(penalty), Grouped(another):
            check_same_groups(one, other)
            both = sum_of(penalty, another)
            return replace(one, penalty=both) if isinstance(both, Elementwise) else None
        case SparseGroupLasso(l1), L1(more):
            return replace(one, l1=total(l1, more))
        case SparseGroupLasso(_, group), Grouped(L1(more)):
            check_same_groups(one, other)
            return replace(one, group=total(group, more))
    return None


def check_same_groups(one: Grouped | SparseGroupLasso, other: Grouped) -> None:
    """Raise `GroupError` unless both penalize the same groups, with the same weights."""
    if (other.groups, other.weigh_by_size) != (one.groups, one.weigh_by_size):
        raise GroupError(
            f"{one.groups} and {other.groups} overlap: an element would stand in two groups, and no exact prox is "
            "known then; penalize one of them, or a group per block with Blocks(rows, columns)"
        )


def in_a_box(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum with bounds: the narrower of two, or a convex penalty of elements inside."""
    match one, other:
        case Box(low, high, penalty), Box(another_low, another_high, another):
            if not spread_together(low, high, another_low, another_high):
                return None
            low = narrower(low, another_low, torch.maximum, max)
            high = narrower(high, another_high, torch.minimum, min)
            if penalty is None or another is None:
                return Box(low, high, penalty or another)
            both = sum_of(penalty, another)
            return Box(low, high, both) if isinstance(both, Elementwise) else None
        case Box(low, high, penalty), Elementwise() if is_convex(other):
            both = other if penalty is None else sum_of(penalty, other)
            return Box(low, high, both) if isinstance(both, Elementwise) else None
    return None


def in_non_negative(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum with a sign constraint: what does not look at signs is penalized inside."""
    match one, other:
        case NonNegative(), NonNegative(None):
            return one
        case NonNegative(), NonNegative(Penalty() as inner):
            return in_non_negative(one, inner)
        case NonNegative(None), Box():
            return in_a_box(Box(0.0, math.inf), other)
        case NonNegative(Elementwise() as penalty), Box():
            return in_a_box(Box(0.0, math.inf, penalty), other) if is_convex(penalty) else None
        case NonNegative(), Box():
            return None
        case NonNegative(penalty), Simplex():
            return other if penalty is None else None
        case NonNegative(Constraint()), L2():
            return None  # squares go on top of all else
        case NonNegative(penalty), _:
            both = other if penalty is None else sum_of(penalty, other)
            return NonNegative(both) if both is not None and both.solid else None
    return None


def of_sets(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the smaller of two sets of one kind; a set twice is the set."""
    match one, other:
        case MaxNorm(limit, groups), MaxNorm(another, same) if groups == same:
            return MaxNorm(min(limit, another), groups)
        case L1Ball(radius, groups), L1Ball(another, same) if groups == same:
            return L1Ball(min(radius, another), groups)
        case SpectralBall(limit), SpectralBall(another):
            return SpectralBall(min(limit, another))
        case TopK(density, groups), TopK(another, same) if groups == same:
            if callable(density) or callable(another):
                return one if one == other else None
            return TopK(min(density, another), groups)
        case NofM(n, m), NofM(another, same) if m == same:
            return NofM(min(n, another), m)
        case Constraint(), Constraint() if one == other:
            return one
    return None


def of_one_reference(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum of what two penalties penalize of the distance to the same reference."""
    match one, other:
        case Toward(penalty), Toward(another) if replace(other, penalty=penalty) == one:
            both = sum_of(penalty, another)
            return None if both is None else replace(one, penalty=both)
    return None


def of_one_kind(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum of two penalties that are equal, or differ in nothing but their strength."""
    if type(one) is not type(other):
        return None
    if one == other:
        return one.scaled(2.0)
    if not one.proportional or "strength" not in one.__dataclass_fields__:
        return None
    strengths = [each.arguments()["strength"] for each in (one, other)]
    alike = [replace(each, **{"strength": 1.0}) for each in (one, other)]
    return replace(one, **{"strength": total(*strengths)}) if alike[0] == alike[1] else None


def on_top(one: Penalty, other: Penalty) -> Penalty | None:
    """Return the sum with what goes on top of others: squares on all, a price per weight on penalties of elements."""
    match one, other:
        case L0(l0), Elementwise():
            return Counted(other, l0)
        case L2(l2), _ if not isinstance(other, L0):
            return Ridged(other, l2)
        case ElasticNet(l1, l2), _:
            both = sum_of(L1(l1), other)
            return None if both is None else sum_of(both, L2(l2))
    return None


SUMS += [of_squares_on_top, of_elements, of_groups, in_non_negative, in_a_box, of_sets]
SUMS += [of_one_reference, of_one_kind, on_top]
