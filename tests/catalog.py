"""One catalogue of cases. A new penalty, constraint or optimizer is one line here, and has to pass every property."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Blocks,
    Box,
    Columns,
    ElasticNet,
    FusedLasso,
    Grouped,
    GroupLasso,
    GroupLInf,
    Heads,
    Huber,
    Kernels,
    L1Ball,
    LogSum,
    Lp,
    MaxNorm,
    NofM,
    NonNegative,
    Nuclear,
    Orthogonal,
    Penalty,
    Rows,
    Simplex,
    SparseGroupLasso,
    SpectralBall,
    TopK,
    Toward,
    UnitNorm,
    Weighted,
    Whole,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PenaltyCase:
    """A penalty as a function of its strength and of the shape that it charges.

    Args:
        small: a shape with at most 2 elements per group, for the grid.
        convex: whether the minimiser is unique.
        proportional: whether value and gradient are proportional to the strength.
        closed: whether `prox` is the minimiser; else the reason why not stands beside the case.
        unit: the value of `strength_max` for which the penalty is `make(1.0)`.
        origin: whether 0 is where an infinite strength leads.
        round_trip: whether `repr` can be evaluated.
    """

    name: str
    build: Callable[[float, Shape], Penalty]
    shape: Shape = (4, 6)
    small: Shape = (1, 2)
    convex: bool = True
    proportional: bool = True
    closed: bool = True
    unit: float = 1.0
    origin: bool = True
    round_trip: bool = True

    def make(self, strength: float, shape: Shape | None = None) -> Penalty:
        return self.build(strength, self.shape if shape is None else shape)

    def __str__(self) -> str:
        return self.name


def ramp(shape: Shape) -> Tensor:
    """Weights 0, 0.4, 0.8 ... of a shape."""
    count = torch.Size(shape).numel()
    return (0.4 * torch.arange(count, dtype=torch.float64)).reshape(shape)


def wave(shape: Shape) -> Tensor:
    """A reference of a shape."""
    return torch.sin(1.0 + ramp(shape))


PENALTIES = [
    PenaltyCase("L1", lambda s, _: L1(s)),
    PenaltyCase("L2", lambda s, _: L2(s)),
    PenaltyCase("ElasticNet", lambda s, _: ElasticNet(s, 0.7 * s)),
    PenaltyCase("Huber", lambda s, _: Huber(s, delta=0.6)),
    PenaltyCase("MCP", lambda s, _: MCP(s), convex=False, proportional=False),
    PenaltyCase("MCP gamma 1.2", lambda s, _: MCP(s, gamma=1.2), convex=False, proportional=False),
    PenaltyCase("SCAD", lambda s, _: SCAD(s), convex=False, proportional=False),
    PenaltyCase("SCAD a 2.1", lambda s, _: SCAD(s, a=2.1), convex=False, proportional=False),
    PenaltyCase("LogSum", lambda s, _: LogSum(s, epsilon=0.4), convex=False),
    PenaltyCase("L0", lambda s, _: L0(s), convex=False, unit=0.0),
    PenaltyCase("Lp 1/2", lambda s, _: Lp(s, p=1 / 2), convex=False, unit=0.0),
    PenaltyCase("Lp 2/3", lambda s, _: Lp(s, p=2 / 3), convex=False, unit=0.0),
    PenaltyCase("Weighted L1", lambda s, shape: Weighted(L1(s), ramp(shape)), round_trip=False),
    PenaltyCase(
        "Weighted MCP",
        lambda s, shape: Weighted(MCP(s), ramp(shape)),
        convex=False,
        proportional=False,
        round_trip=False,
    ),
    PenaltyCase("GroupLasso rows", lambda s, _: GroupLasso(s, Rows())),
    PenaltyCase("GroupLasso columns", lambda s, _: GroupLasso(s, Columns()), small=(2, 1)),
    PenaltyCase("GroupLasso kernels", lambda s, _: GroupLasso(s, Kernels()), shape=(3, 2, 2, 3), small=(1, 1, 2)),
    PenaltyCase("GroupLasso heads", lambda s, _: GroupLasso(s, Heads(2)), small=(2, 1)),
    PenaltyCase("GroupLasso heads of columns", lambda s, _: GroupLasso(s, Heads(3, dim=1)), small=(1, 3)),
    PenaltyCase("GroupLasso blocks", lambda s, _: GroupLasso(s, Blocks(2, 2)), small=(2, 2)),
    PenaltyCase("GroupLasso whole", lambda s, _: GroupLasso(s, Whole())),
    PenaltyCase("GroupLasso without weights", lambda s, _: GroupLasso(s, Rows(), weigh_by_size=False)),
    PenaltyCase("Grouped L2", lambda s, _: Grouped(L2(s), Rows())),
    PenaltyCase("Grouped ElasticNet", lambda s, _: Grouped(ElasticNet(s, 0.7 * s), Columns()), small=(2, 1)),
    PenaltyCase("Grouped Huber", lambda s, _: Grouped(Huber(s, delta=0.6), Rows())),
    PenaltyCase("Grouped MCP", lambda s, _: Grouped(MCP(s), Rows()), convex=False, proportional=False),
    PenaltyCase("Grouped SCAD", lambda s, _: Grouped(SCAD(s), Rows()), convex=False, proportional=False),
    PenaltyCase("Grouped LogSum", lambda s, _: Grouped(LogSum(s, epsilon=0.4), Rows()), convex=False),
    PenaltyCase("Grouped L0", lambda s, _: Grouped(L0(s), Rows()), convex=False, unit=0.0),
    PenaltyCase("Grouped Lp 1/2", lambda s, _: Grouped(Lp(s, p=1 / 2), Rows()), convex=False, unit=0.0),
    PenaltyCase("Grouped Lp 2/3", lambda s, _: Grouped(Lp(s, p=2 / 3), Rows()), convex=False, unit=0.0),
    PenaltyCase(
        "Grouped Weighted L1",
        lambda s, shape: Grouped(Weighted(L1(s), 0.3 + ramp((shape[0],))), Rows()),
        round_trip=False,
    ),
    PenaltyCase(
        "Grouped Weighted SCAD",
        lambda s, shape: Grouped(Weighted(SCAD(s), 0.3 + ramp((shape[0],))), Rows()),
        convex=False,
        proportional=False,
        round_trip=False,
    ),
    PenaltyCase("SparseGroupLasso", lambda s, _: SparseGroupLasso(s, 0.6 * s, Rows()), unit=1.6),
    PenaltyCase(
        "SparseGroupLasso columns", lambda s, _: SparseGroupLasso(0.3 * s, s, Columns()), small=(2, 1), unit=1.3
    ),
    PenaltyCase("GroupLInf", lambda s, _: GroupLInf(s, Rows())),
    PenaltyCase("GroupLInf columns", lambda s, _: GroupLInf(s, Columns(), weigh_by_size=False), small=(2, 1)),
    PenaltyCase("Nuclear", lambda s, _: Nuclear(s)),
    PenaltyCase("Nuclear of a convolution", lambda s, _: Nuclear(s), shape=(3, 2, 2, 2), small=(1, 2, 1)),
    PenaltyCase("FusedLasso", lambda s, _: FusedLasso(s), origin=False),
    PenaltyCase("FusedLasso along dimension 0", lambda s, _: FusedLasso(s, dim=0), small=(3, 1), origin=False),
    # No prox in closed form: one step along the derivative is taken instead.
    PenaltyCase("Orthogonal", lambda s, _: Orthogonal(s), small=(2, 1), convex=False, closed=False, origin=False),
    PenaltyCase(
        "Orthogonal spectral", lambda s, _: Orthogonal(s, form="spectral"), convex=False, closed=False, origin=False
    ),
    PenaltyCase("NonNegative L1", lambda s, _: NonNegative(L1(s))),
    PenaltyCase("NonNegative MCP", lambda s, _: NonNegative(MCP(s)), convex=False, proportional=False),
    PenaltyCase("NonNegative GroupLasso", lambda s, _: NonNegative(GroupLasso(s, Rows()))),
    PenaltyCase("NonNegative GroupLInf", lambda s, _: NonNegative(GroupLInf(s, Rows()))),
    PenaltyCase("NonNegative SparseGroupLasso", lambda s, _: NonNegative(SparseGroupLasso(s, s, Rows())), unit=2.0),
    PenaltyCase("Toward L2", lambda s, shape: Toward(L2(s), wave(shape)), origin=False, round_trip=False),
    PenaltyCase("Toward L1", lambda s, shape: Toward(L1(s), wave(shape)), origin=False, round_trip=False),
    PenaltyCase(
        "Toward GroupLasso",
        lambda s, shape: Toward(GroupLasso(s, Rows()), wave(shape)),
        origin=False,
        round_trip=False,
    ),
]

SPARSE_PENALTIES = [case for case in PENALTIES if not case.make(1.0).smooth and case.origin]
SMOOTH_PENALTIES = [case for case in PENALTIES if case.make(1.0).smooth]
EXPLICIT_PENALTIES = [case for case in PENALTIES if case.make(1.0).explicit]


@dataclass(frozen=True)
class ConstraintCase:
    """A constraint, and points of its set that are made without it.

    Args:
        points: turns random tensors, stacked along dimension 0, into points of the set, many of them on its boundary.
        small: a shape in which random points come close to every point of the set.
        exact: how far from the nearest point a projection may be, relative to the distance.
    """

    name: str
    make: Callable[[], Penalty]
    points: Callable[[Tensor], Tensor]
    shape: Shape = (4, 6)
    small: Shape = (1, 2)

    def __str__(self) -> str:
        return self.name


def some_kept(points: Tensor, count: int) -> Tensor:
    """Set all but `count` elements of each row to zero, at random."""
    rows = points.reshape(len(points), -1)
    kept = torch.rand_like(rows).argsort(1)[:, :count]
    return (rows * torch.zeros_like(rows).scatter(1, kept, 1.0)).reshape(points.shape)


def unit_rows(points: Tensor) -> Tensor:
    return points / points.norm(dim=-1, keepdim=True)


def in_l1_ball(points: Tensor, radius: float) -> Tensor:
    sizes = points.abs().flatten(1).sum(1).reshape(-1, *[1] * (points.dim() - 1))
    return radius * points / sizes * torch.rand_like(sizes).round().clamp_min(0.8)


def simplex_points(points: Tensor) -> Tensor:
    """Return points whose elements are not negative and sum to 2, some of them corners."""
    positive = points.abs().flatten(1)
    corners = torch.eye(positive.shape[1], dtype=points.dtype)[torch.randint(positive.shape[1], (len(points),))]
    shares = torch.where(torch.rand(len(points), 1) < 0.1, corners, positive / positive.sum(1, keepdim=True))
    return 2 * shares.reshape(points.shape)


def with_singular_values_up_to(points: Tensor, limit: float) -> Tensor:
    left, values, right = torch.linalg.svd(points, full_matrices=False)
    return (left * (0.3 * values).clamp(max=limit)[:, None]) @ right


CONSTRAINTS = [
    ConstraintCase("NonNegative", NonNegative, lambda p: p.abs() * torch.rand_like(p).round()),
    ConstraintCase("Box", lambda: Box(-0.5, 1.5), lambda p: (2 * p).clamp(-0.5, 1.5)),
    ConstraintCase(
        "MaxNorm", lambda: MaxNorm(1.3), lambda p: 1.3 * unit_rows(p) * torch.rand(len(p), 1, 1).clamp_min(0.8)
    ),
    ConstraintCase("UnitNorm", UnitNorm, unit_rows),
    ConstraintCase(
        "L1Ball", lambda: L1Ball(1.7), lambda p: in_l1_ball(some_kept(p, 1 + int(torch.randint(2, ()))), 1.7)
    ),
    ConstraintCase("Simplex", lambda: Simplex(2.0), simplex_points),
    ConstraintCase("TopK", lambda: TopK(0.5), lambda p: some_kept(p, 2), small=(2, 2)),
    ConstraintCase("TopK of rows", lambda: TopK(0.5, Rows()), lambda p: some_kept(p, 1)),
    ConstraintCase("NofM", lambda: NofM(1, 2), lambda p: some_kept(p, 1)),
    ConstraintCase(
        "SpectralBall", lambda: SpectralBall(1.1), lambda p: with_singular_values_up_to(p, 1.1), small=(2, 2)
    ),
]


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer that solves the convex problems of `problems.py` to rounding in `iterations` full-batch steps."""

    name: str
    make: Callable[[Iterable[Tensor]], Optimizer]
    iterations: int = 1500

    def __str__(self) -> str:
        return self.name


OPTIMIZERS = [
    OptimizerCase("SGD", lambda p: SGD(p, lr=0.2)),
    OptimizerCase("SGD momentum", lambda p: SGD(p, lr=0.05, momentum=0.9)),
    OptimizerCase("SGD nesterov", lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True)),
    OptimizerCase("SGD dampening", lambda p: SGD(p, lr=0.2, momentum=0.9, dampening=0.5)),
    OptimizerCase("SGD tensor lr", lambda p: SGD(p, lr=torch.tensor(0.2, dtype=torch.float64))),
    OptimizerCase("SGD fused", lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True)),
    OptimizerCase("Adam", lambda p: Adam(p, lr=0.01)),
    OptimizerCase("Adam amsgrad", lambda p: Adam(p, lr=0.01, amsgrad=True)),
    OptimizerCase("Adam fused", lambda p: Adam(p, lr=0.01, fused=True)),
    OptimizerCase("AdamW", lambda p: AdamW(p, lr=0.01, weight_decay=0.0)),
    OptimizerCase("AdamW foreach", lambda p: AdamW(p, lr=0.01, weight_decay=0.0, foreach=True)),
    OptimizerCase("RMSprop", lambda p: RMSprop(p, lr=0.01)),
    OptimizerCase("RMSprop momentum", lambda p: RMSprop(p, lr=0.001, momentum=0.9), 3000),
    # At rest the variance of a gradient is 0, so eps alone bounds the step; after about 3000 more iterations the
    # variance rounds to a negative number, whose root makes torch's own update NaN.
    OptimizerCase("RMSprop centered", lambda p: RMSprop(p, lr=0.01, centered=True, eps=0.1)),
    OptimizerCase(
        "RMSprop centered momentum", lambda p: RMSprop(p, lr=0.01, centered=True, momentum=0.9, eps=0.3), 3000
    ),
    OptimizerCase("Adagrad", lambda p: Adagrad(p, lr=0.1)),
    OptimizerCase("Adagrad lr decay", lambda p: Adagrad(p, lr=0.1, lr_decay=1e-4)),
]
