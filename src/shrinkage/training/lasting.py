"""What lasts from one update of an optimizer to the next."""

from collections.abc import Container, Sequence
from typing import NamedTuple

from shrinkage.execution.task import Compile
from shrinkage.optimizers.registry import Metric
from shrinkage.penalties.base import Penalty
from shrinkage.training.gradient_averages import Averages
from shrinkage.training.gradients import Gradients
from shrinkage.training.half_precision import Rounding
from shrinkage.training.intervals import Intervals
from shrinkage.training.options import Options
from shrinkage.training.penalized import PenalizedParameter, Place
from shrinkage.training.update_count import Updates


class Lasting:
    """What lasts from one update of an optimizer to the next.

    Args:
        options: how penalties are applied.
    """

    def __init__(self, options: Options) -> None:
        self.compile: Compile = options.compile
        self.updates = Updates()
        self.gradients = Gradients()
        self.averages = None if options.hold_zeros is None else Averages(options.hold_zeros)
        self.rounding = Rounding(options.stochastic_rounding)
        self.intervals = Intervals()
        self.metric: Metric | None = None  # how the optimizer steps; None if that is not known, and not asked


class Looked(NamedTuple):
    """What was found when an optimizer's parameters were looked up last.

    Args:
        targets: what is penalized.
        penalties: of each, in the step that was made.
        elsewhere: places in the model that rules penalize, and that hold nothing the optimizer steps.
        held: the ids of the parameters that it steps.
        number: how many times they were looked up.
    """

    targets: Sequence[PenalizedParameter]
    penalties: Sequence[Penalty]
    elsewhere: Sequence[Place]
    held: Container[int]
    number: int
