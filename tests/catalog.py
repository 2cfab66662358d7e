"""One catalogue of cases. A new penalty or optimizer is one line here, and every property is checked for it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from shrinkage import L1, L2, Columns, ElasticNet, Grouped, GroupLasso, Heads, Kernels, Penalty, Rows, Whole


@dataclass(frozen=True)
class PenaltyCase:
    """A penalty as a function of its strength, a shape that it charges, and one with at most 2 elements per group."""

    name: str
    make: Callable[[float], Penalty]
    shape: tuple[int, ...] = (4, 6)
    small: tuple[int, ...] = (1, 2)

    def __str__(self) -> str:
        return self.name


PENALTIES = [
    PenaltyCase("L1", L1),
    PenaltyCase("L2", L2),
    PenaltyCase("ElasticNet", lambda s: ElasticNet(s, 0.7 * s)),
    PenaltyCase("GroupLasso rows", lambda s: GroupLasso(s, Rows())),
    PenaltyCase("GroupLasso columns", lambda s: GroupLasso(s, Columns()), small=(2, 1)),
    PenaltyCase("GroupLasso kernels", lambda s: GroupLasso(s, Kernels()), shape=(3, 2, 2, 3), small=(1, 1, 2)),
    PenaltyCase("GroupLasso heads", lambda s: GroupLasso(s, Heads(2)), small=(2, 1)),
    PenaltyCase("GroupLasso heads of columns", lambda s: GroupLasso(s, Heads(3, dim=1)), small=(1, 3)),
    PenaltyCase("GroupLasso whole", lambda s: GroupLasso(s, Whole())),
    PenaltyCase("GroupLasso without weights", lambda s: GroupLasso(s, Rows(), weigh_by_size=False)),
    PenaltyCase("Grouped L2", lambda s: Grouped(L2(s), Rows())),
    PenaltyCase("Grouped ElasticNet", lambda s: Grouped(ElasticNet(s, 0.7 * s), Columns()), small=(2, 1)),
]

SPARSE_PENALTIES = [case for case in PENALTIES if not case.make(1.0).smooth]
SMOOTH_PENALTIES = [case for case in PENALTIES if case.make(1.0).smooth]


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
