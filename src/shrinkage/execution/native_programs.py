"""Penalties as native kernels take them: short programs of operations on elements, and what norms of groups cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from shrinkage.execution.native_structs import Code
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.box import Box
from shrinkage.penalties.convex import L1, L2, ElasticNet, Huber
from shrinkage.penalties.counting import L0, Counted, Lp
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.nonconvex import MCP, SCAD, LogSum
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.penalties.ridged import Ridged
from shrinkage.penalties.schedules import fixed
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.penalties.toward import Toward
from shrinkage.penalties.weighted import Weighted

Operation = tuple[Code, float, float, float]


@dataclass(frozen=True, eq=False)
class Norms:
    """What the norms of groups cost.

    Args:
        groups: which elements belong together.
        weigh_by_size: whether that is multiplied by the square root of a group's size.
        ops: the proximal operator of a norm, in a plain metric.
        radial: the linear and the quadratic part; None if it is another function, which no kernel takes in a metric.
    """

    groups: Groups
    weigh_by_size: bool
    ops: tuple[Operation, ...]
    radial: tuple[float, float] | None

    @property
    def kind(self) -> object:
        """All but its numbers."""
        return self.groups, self.weigh_by_size, codes(self.ops), self.radial is None


@dataclass(frozen=True, eq=False)
class Program:
    """A penalty's proximal operator: operations on elements, then groups if there are any.

    `extra` holds weights or a reference, one number for each element.
    """

    ops: tuple[Operation, ...]
    extra: Tensor | None = None
    norms: Norms | None = None

    def differs_in_numbers(self, other: "Program") -> bool:
        """Return whether another program has the same operations, groups, and numbers of elements."""
        own = None if self.norms is None else self.norms.kind
        its = None if other.norms is None else other.norms.kind
        return codes(self.ops) == codes(other.ops) and self.extra is other.extra and own == its


def codes(ops: Sequence[Operation]) -> list[Code]:
    """Return operations without their numbers."""
    return [code for code, *_ in ops]


def program_of(penalty: Penalty) -> Program | None:
    """Return the program of a penalty; None if there is no kernel for it.

    By exact class: what is derived from one may have a prox of its own.
    """
    translate = TRANSLATIONS.get(type(penalty))
    return None if translate is None else translate(penalty)


def op(code: Code, *numbers: float) -> Operation:
    """Return an operation with up to three numbers."""
    a, b, c = (*map(float, numbers), 0.0, 0.0, 0.0)[:3]
    return code, a, b, c


def only(code: Code, *names: str) -> Callable[[Any], Program]:
    """Return the translation of a penalty that is one operation, given the names of its numbers."""
    return lambda penalty: Program((op(code, *(fixed(getattr(penalty, name)) for name in names)),))


def of_elastic_net(penalty: ElasticNet) -> Program:
    """Soft threshold, then division."""
    return Program((op(Code.SOFT, fixed(penalty.l1)), op(Code.DIVIDE, fixed(penalty.l2))))


def of_lp(penalty: Lp) -> Program:
    """One operation for each exponent."""
    return Program((op(Code.HALF if penalty.p == 0.5 else Code.TWO_THIRDS, fixed(penalty.strength)),))


def of_weighted(penalty: Weighted) -> Program | None:
    """Steps are multiplied by the weights, unless one is infinite, which says more than a step."""
    inner = program_of(penalty.penalty)
    if inner is None or inner.extra is not None or penalty.forces_zeros:
        return None
    return Program((op(Code.WEIGH), *inner.ops), penalty.weights)


def of_counted(penalty: Counted) -> Program | None:
    """Return the penalty's, and what it costs: linear, and in proportion to squares."""
    inner, radial = program_of(penalty.penalty), numbers_of(penalty.penalty)
    if inner is None or radial is None:
        return None
    count = op(Code.COUNT, fixed(penalty.l0), radial[0], 0.5 * radial[1])
    return Program((op(Code.KEEP), *inner.ops, count))


def of_ridged(penalty: Ridged) -> Program | None:
    """Division of elements and steps, then the penalty's."""
    return after(op(Code.RIDGE, fixed(penalty.l2)), penalty.penalty)


def of_non_negative(penalty: NonNegative) -> Program | None:
    """No element below 0, then the penalty's."""
    first = (op(Code.BOUNDED), op(Code.POSITIVE))
    if penalty.penalty is None:
        return Program(first)
    inner = program_of(penalty.penalty)
    return None if inner is None else replace(inner, ops=(*first, *inner.ops))


def of_box(penalty: Box) -> Program | None:
    """Return the penalty's, then bounds, which have to be numbers."""
    inner = Program(()) if penalty.penalty is None else program_of(penalty.penalty)
    if inner is None or inner.extra is not None or isinstance(penalty.low, Tensor) or isinstance(penalty.high, Tensor):
        return None
    return Program((op(Code.BOUNDED), *inner.ops, op(Code.CLAMP, penalty.low, penalty.high)))


def of_toward(penalty: Toward) -> Program | None:
    """Return the penalty's of the distance to a reference, which uses the room that counting needs."""
    inner = program_of(penalty.penalty)
    if inner is None or inner.extra is not None or inner.norms is not None or not isinstance(penalty.reference, Tensor):
        return None
    if any(code == Code.KEEP for code, *_ in inner.ops):
        return None
    return Program((op(Code.LEAVE), *inner.ops, op(Code.RETURN)), penalty.reference)


def of_grouped(penalty: Grouped) -> Program | None:
    """Norms, scaled by the penalty's own operator in a plain metric."""
    inner = program_of(penalty.penalty)
    if inner is None or inner.extra is not None:
        return None
    norms = Norms(penalty.groups, penalty.weigh_by_size, inner.ops, numbers_of(penalty.penalty))
    return Program((), None, norms)


def of_sparse_group(penalty: SparseGroupLasso) -> Program | None:
    """Soft threshold, then norms."""
    return after(op(Code.SOFT, fixed(penalty.l1)), penalty.of_groups)


def after(first: Operation, penalty: Penalty) -> Program | None:
    """Return the program of `penalty` after one operation more."""
    inner = program_of(penalty)
    return None if inner is None else replace(inner, ops=(first, *inner.ops))


def numbers_of(penalty: Elementwise) -> tuple[float, float] | None:
    """Return the linear and the quadratic part of a penalty of one element that has no others, as numbers."""
    radial = penalty.radial()
    if radial is None or isinstance(radial.linear, Tensor) or isinstance(radial.quadratic, Tensor):
        return None
    return float(radial.linear), float(radial.quadratic)


def weight_of(norms: Norms, size: int) -> float:
    """Return what the penalty of a group of `size` elements is multiplied by."""
    return math.sqrt(max(1, size)) if norms.weigh_by_size else 1.0


TRANSLATIONS: MappingProxyType[type[Penalty], Callable[[Any], Program | None]] = MappingProxyType(
    {
        L1: only(Code.SOFT, "strength"),
        L2: only(Code.DIVIDE, "strength"),
        ElasticNet: of_elastic_net,
        Huber: only(Code.HUBER, "strength", "delta"),
        MCP: only(Code.FIRM, "strength", "gamma"),
        SCAD: only(Code.CLIPPED, "strength", "a"),
        LogSum: only(Code.LOG, "strength", "epsilon"),
        L0: only(Code.HARD, "strength"),
        Lp: of_lp,
        Weighted: of_weighted,
        Counted: of_counted,
        Ridged: of_ridged,
        NonNegative: of_non_negative,
        Box: of_box,
        Toward: of_toward,
        Grouped: of_grouped,
        SparseGroupLasso: of_sparse_group,
    }
)
