"""What is measured: optimizers alone, and with a rule on every matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from benchmarks.timing import Step
from benchmarks.work import Work, is_penalized
from shrinkage import (
    L1,
    MCP,
    Columns,
    Coupled,
    ElasticNet,
    GroupLasso,
    Member,
    Penalty,
    Regularizer,
    Rows,
    SparseGroupLasso,
)
from shrinkage.penalties.schedules import Strength
from shrinkage.selection.plan import How

STRENGTH = 1e-9  # so small that weights and gradients stay what they are
ADAMW, SGD = "AdamW alone", "SGD alone"
Compile = Literal["auto"] | bool


class Trial(NamedTuple):
    """One step of a variant, and the optimizer whose step is in it."""

    step: Step
    optimizer: Optimizer


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Args:
        name: the row's.
        make: returns a trial on given work at a given strength.
        baseline: the name of the variant that it is divided by.
        bytes_per_weight: what it has to move beside its baseline, per float32 weight that is penalized.
        copies: tensors of the size of all penalized parameters that it holds beside the work.
        compiled: whether it compiles.
        rival: whether it is someone else's, so that an error in it is theirs and skips it.
    """

    name: str
    make: Callable[[Work, Strength], Trial]
    baseline: str = ADAMW
    bytes_per_weight: int | None = None
    copies: float = 0.0
    compiled: bool = False
    rival: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of rule: its penalty at a strength, and the bytes per weight that it moves in either metric.

    A threshold reads and writes each weight. That of a group reads all of it before it writes, so twice. In Adam's
    metric the second moment is read as often as the weight; for groups two passes are the floor, Newton's method makes
    more.
    """

    penalty: Callable[[Strength], Penalty]
    plain_bytes: int = 8
    metric_bytes: int = 12


KINDS = {
    "L1": Kind(L1),
    "elastic net": Kind(lambda strength: ElasticNet(strength, strength)),
    "MCP": Kind(MCP),
    "rows": Kind(lambda strength: GroupLasso(strength, Rows()), 12, 20),
    "columns": Kind(lambda strength: GroupLasso(strength, Columns()), 12, 20),
    "sparse rows": Kind(lambda strength: SparseGroupLasso(strength, strength, Rows()), 12, 20),
}
QUICK = ("L1", "rows")  # these two are measured in every way

METRICS: dict[How, str] = {"decoupled": "plain", "proximal": "Adam's metric"}


def target(work: Work, optimizer: Optimizer, penalty: Penalty, how: How, compile: Compile) -> Trial:
    """Return a step of the optimizer with a rule on every matrix."""
    Regularizer(work.parameters, {is_penalized: penalty}, how=how, compile=compile).attach(optimizer)
    return Trial(optimizer.step, optimizer)


def alone(optimizer: Callable[[Work], Optimizer]) -> Callable[[Work, Strength], Trial]:
    """Return how to make a trial of an optimizer alone."""

    def make(work: Work, strength: Strength) -> Trial:
        made = optimizer(work)
        return Trial(made.step, made)

    return make


def rule(kind: str, how: How, *, compile: Compile) -> Variant:
    """Return AdamW with a rule of a kind."""
    of = KINDS[kind]
    return Variant(
        f"{kind}, {METRICS.get(how, how)}{'' if compile else ', eager'}",
        lambda work, strength: target(work, work.adamw(), of.penalty(strength), how, compile),
        bytes_per_weight=of.plain_bytes if how == "decoupled" else of.metric_bytes,
        compiled=bool(compile),
    )


def sgd_rule(kind: str, *, compile: Compile) -> Variant:
    """Return SGD with momentum, whose metric is plain, with a rule of a kind."""
    of = KINDS[kind]
    return Variant(
        f"{kind}, SGD{'' if compile else ', eager'}",
        lambda work, strength: target(work, work.sgd(), of.penalty(strength), "proximal", compile),
        baseline=SGD,
        bytes_per_weight=of.plain_bytes,
        compiled=bool(compile),
    )


def channels(parameters: Sequence[Tensor]) -> Coupled:
    """Return a group for each output of a matrix: its row, and its numbers in the vectors that follow.

    A matrix that is followed by a vector as long as its rows, as `Conv1D` of transformers and its bias, has outputs in
    columns.
    """
    members: list[Member] = []
    count, outputs = 0, range(0)
    for index, parameter in enumerate(parameters):
        if parameter.dim() > 1:
            after = parameters[index + 1] if index + 1 < len(parameters) else parameter
            columns = after.dim() == 1 and len(after) == parameter.shape[1] != parameter.shape[0]
            outputs = range(count, count + parameter.shape[int(columns)])
            count = outputs.stop
            members.append(Member(str(index), int(columns), outputs))
        elif len(parameter) == len(outputs):
            members.append(Member(str(index), 0, outputs))
    return Coupled(members)


def coupled_rule(how: How, *, compile: bool) -> Variant:
    """Return AdamW with a rule on matrices and the vectors that go with them."""

    def make(work: Work, strength: Strength) -> Trial:
        optimizer = work.adamw()
        groups = channels(list(work.parameters))
        Regularizer(work.parameters, GroupLasso(strength, groups), how=how, compile=compile).attach(optimizer)
        return Trial(optimizer.step, optimizer)

    name = f"channels, {METRICS[how]}{'' if compile else ', eager'}"
    return Variant(name, make, bytes_per_weight=12 if how == "decoupled" else 20, compiled=compile)


ADAMW_ALONE = Variant(ADAMW, alone(Work.adamw))
SGD_ALONE = Variant(SGD, alone(Work.sgd), baseline=SGD)


def rules(kinds: tuple[str, ...] = tuple(KINDS), *, compile: bool = True, both: bool = True) -> list[Variant]:
    """Return rules under AdamW in both metrics: compiled, and two of them eager too if `both`; or all eager."""
    compiled = [rule(kind, how, compile=True) for kind in kinds for how in METRICS] if compile else []
    uncompiled = kinds if not compile else QUICK if both else ()
    return [*compiled, *(rule(kind, how, compile=False) for kind in uncompiled for how in METRICS)]


def own(kinds: tuple[str, ...] = tuple(KINDS), *, compile: bool = True) -> list[Variant]:
    """Return the optimizers alone, and all rules."""
    gradient = replace(rule("L1", "gradient", compile=False), name="L1, gradient")  # there is no other form of it
    under_sgd = [sgd_rule(kind, compile=compile) for kind in QUICK]
    across = [coupled_rule(how, compile=compile) for how in METRICS]
    return [ADAMW_ALONE, *rules(kinds, compile=compile), *across, gradient, SGD_ALONE, *under_sgd]
