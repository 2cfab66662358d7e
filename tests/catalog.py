"""One catalogue of cases. A new penalty, constraint or optimizer is one line here, and has to pass every property."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Blocks,
    Box,
    Columns,
    Counted,
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
    MinMaxNorm,
    NofM,
    NonNegative,
    Nuclear,
    Orthogonal,
    Penalty,
    Ridged,
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
    """A penalty as a function of its strength and of the shape that it penalizes.

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
    PenaltyCase("L0 + L2", lambda s, _: L0(s) + L2(0.7 * s), convex=False, unit=0.0),
    PenaltyCase("L0 + L1", lambda s, _: Counted(L1(0.5 * s), s), convex=False, unit=0.0),
    PenaltyCase("Grouped L0 + L2", lambda s, _: Grouped(Counted(L2(0.7 * s), s), Rows()), convex=False, unit=0.0),
    PenaltyCase("Ridged MCP", lambda s, _: MCP(s) + L2(0.7 * s), convex=False, proportional=False),
    PenaltyCase("Ridged GroupLasso", lambda s, _: GroupLasso(s, Rows()) + L2(0.7 * s)),
    PenaltyCase("Ridged GroupLInf", lambda s, _: Ridged(GroupLInf(s, Rows()), 0.7 * s)),
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
    """A constraint, and its set told without it.

    Args:
        contains: whether a point is in the set, to 1e-9.
        points: turns random tensors, stacked along dimension 0, and the tensor that is projected into points of the
            set: points all around, or all that could be nearest.
        convex: whether the set is.
        small: a shape in which random points come close to every point of the set.
    """

    name: str
    make: Callable[[], Penalty]
    contains: Callable[[Tensor], Tensor]
    points: Callable[[Tensor, Tensor], Tensor]
    convex: bool = True
    shape: Shape = (4, 6)
    small: Shape = (1, 2)

    def __str__(self) -> str:
        return self.name


SLACK = 1 + 1e-9


def some_kept(random: Tensor, w: Tensor, count: int) -> Tensor:
    """Return `w` with all but `count` elements of each row set to zero, in many ways."""
    kept = random.argsort(-1)[..., :count]
    return w * torch.zeros_like(random).scatter(-1, kept, 1.0)


def some_kept_of_all(random: Tensor, w: Tensor, count: int) -> Tensor:
    """Return `w` with all but `count` elements set to zero, in many ways."""
    return some_kept(random.flatten(1), w.flatten(), count).reshape(random.shape)


def unit_rows(points: Tensor) -> Tensor:
    return points / points.norm(dim=-1, keepdim=True)


def on_the_simplex(random: Tensor) -> Tensor:
    """Points whose elements are not negative and sum to 1, corners among them."""
    sizes = random.abs().flatten(1)
    sizes[:: len(sizes) // 50, 1:] = 0
    sizes[1 :: len(sizes) // 50, :-1] = 0
    return (sizes / sizes.sum(1, keepdim=True)).reshape(random.shape)


def with_singular_values_up_to(random: Tensor, limit: float) -> Tensor:
    left, values, right = torch.linalg.svd(random, full_matrices=False)
    return (left * (2 * values).clamp(max=limit)[:, None]) @ right


CONSTRAINTS = [
    ConstraintCase("NonNegative", NonNegative, lambda y: (y >= 0).all(), lambda r, w: r.clamp_min(0)),
    ConstraintCase(
        "Box",
        lambda: Box(-0.5, 1.5),
        lambda y: ((y >= -0.5) & (y <= 1.5)).all(),
        lambda r, w: (2 * r).clamp(-0.5, 1.5),
    ),
    ConstraintCase(
        "MaxNorm",
        lambda: MaxNorm(1.3),
        lambda y: (y.norm(dim=1) <= 1.3 * SLACK).all(),
        lambda r, w: 1.3 * unit_rows(r),
    ),
    ConstraintCase(
        "MinMaxNorm",
        lambda: MinMaxNorm(0.8, 1.6),
        lambda y: ((y.norm(dim=1) >= 0.8 / SLACK) & (y.norm(dim=1) <= 1.6 * SLACK)).all(),
        lambda r, w: torch.cat([0.8 * unit_rows(r), 1.6 * unit_rows(r)]),
        convex=False,
    ),
    ConstraintCase(
        "UnitNorm of length 2",
        lambda: UnitNorm(length=2.0),
        lambda y: ((y.norm(dim=1) - 2).abs() < 1e-9).all(),
        lambda r, w: 2 * unit_rows(r),
        convex=False,
    ),
    ConstraintCase(
        "NonNegative MaxNorm",
        lambda: NonNegative(MaxNorm(1.3)),
        lambda y: ((y >= 0).all()) & (y.norm(dim=1) <= 1.3 * SLACK).all(),
        lambda r, w: 1.3 * unit_rows(r).abs(),
    ),
    ConstraintCase(
        "NonNegative L1Ball",
        lambda: NonNegative(L1Ball(1.7)),
        lambda y: ((y >= 0).all()) & (y.sum() <= 1.7 * SLACK),
        lambda r, w: 1.7 * on_the_simplex(r) * (r[:, :1, :1] > 0),
    ),
    ConstraintCase(
        "NonNegative TopK",
        lambda: NonNegative(TopK(0.5)),
        lambda y: ((y >= 0).all()) & ((y != 0).sum() <= y.numel() / 2),
        lambda r, w: some_kept_of_all(r, w.clamp_min(0), r[0].numel() // 2),
        convex=False,
        small=(2, 4),
    ),
    ConstraintCase(
        "UnitNorm",
        UnitNorm,
        lambda y: ((y.norm(dim=1) - 1).abs() < 1e-9).all(),
        lambda r, w: unit_rows(r),
        convex=False,
    ),
    ConstraintCase(
        "L1Ball",
        lambda: L1Ball(1.7),
        lambda y: y.abs().sum() <= 1.7 * SLACK,
        lambda r, w: 1.7 * on_the_simplex(r) * r.sign(),
    ),
    ConstraintCase(
        "Simplex",
        lambda: Simplex(2.0),
        lambda y: ((y >= 0).all()) & ((y.sum() - 2).abs() < 1e-9),
        lambda r, w: 2 * on_the_simplex(r),
    ),
    ConstraintCase(
        "TopK",
        lambda: TopK(0.5),
        lambda y: (y != 0).sum() <= y.numel() / 2,
        lambda r, w: some_kept_of_all(r, w, r[0].numel() // 2),
        convex=False,
        small=(2, 4),
    ),
    ConstraintCase(
        "TopK of rows",
        lambda: TopK(0.5, Rows()),
        lambda y: ((y != 0).sum(1) <= y.shape[1] / 2).all(),
        lambda r, w: some_kept(r, w, r.shape[-1] // 2),
        convex=False,
        small=(2, 4),
    ),
    ConstraintCase(
        "NofM",
        lambda: NofM(2, 3),
        lambda y: ((y != 0).reshape(len(y), -1, 3).sum(2) <= 2).all(),
        lambda r, w: some_kept(r.unflatten(-1, (-1, 3)), w.unflatten(-1, (-1, 3)), 2).flatten(-2),
        convex=False,
        small=(2, 3),
    ),
    ConstraintCase(
        "SpectralBall",
        lambda: SpectralBall(1.1),
        lambda y: torch.linalg.matrix_norm(y, 2) <= 1.1 * SLACK,
        lambda r, w: with_singular_values_up_to(r, 1.1),
        small=(2, 2),
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
    OptimizerCase("Adagrad fused", lambda p: Adagrad(p, lr=0.1, fused=True)),
    OptimizerCase("NAdam", lambda p: NAdam(p, lr=0.02, momentum_decay=0.01), 800),
    OptimizerCase("NAdam foreach", lambda p: NAdam(p, lr=0.02, foreach=True), 800),
    OptimizerCase("RAdam", lambda p: RAdam(p, lr=0.02), 800),
    OptimizerCase("RAdam foreach", lambda p: RAdam(p, lr=0.02, foreach=True), 800),
    OptimizerCase("Adamax", lambda p: Adamax(p, lr=0.03), 1200),
    OptimizerCase("Adamax foreach", lambda p: Adamax(p, lr=0.03, foreach=True), 1200),
    OptimizerCase("Adadelta", lambda p: Adadelta(p, lr=0.3, eps=1e-3), 800),
    OptimizerCase("Adadelta foreach", lambda p: Adadelta(p, lr=0.3, eps=1e-3, foreach=True), 800),
    # `lambd` is an L2 penalty of its own, which the lasso does not have.
    OptimizerCase("ASGD", lambda p: ASGD(p, lr=0.3, lambd=0.0), 800),
    OptimizerCase("ASGD foreach", lambda p: ASGD(p, lr=0.3, lambd=0.0, foreach=True), 800),
    # Its step does not shrink with the gradient: only the largest step size keeps it from jumping across the solution.
    OptimizerCase("Rprop", lambda p: Rprop(p, lr=0.005, step_sizes=(1e-6, 0.01)), 800),
    OptimizerCase("Rprop foreach", lambda p: Rprop(p, lr=0.005, step_sizes=(1e-6, 0.01), foreach=True), 800),
    OptimizerCase("Adafactor", lambda p: Adafactor(p, lr=0.1, weight_decay=0.0), 1200),
    OptimizerCase("Adafactor foreach", lambda p: Adafactor(p, lr=0.1, weight_decay=0.0, foreach=True), 1200),
]
