"""What is chosen once for all rules of a regularizer."""

from shrinkage.errors import shown
from shrinkage.execution.task import Compile
from shrinkage.penalties.value_objects import ByFields, value_class


@value_class
class Options(ByFields):
    """How a regularizer acts, whatever its rules are; its arguments are explained in `Regularizer`.

    Raises:
        ValueError: `hold_zeros` is not between 0 and 1, or `compile` is not one of its three values.

    >>> Options(hold_zeros=0.99)
    Options(hold_zeros=0.99, stochastic_rounding=False, compile='auto')
    """

    hold_zeros: float | None = None
    stochastic_rounding: bool = False
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        decay = self.hold_zeros
        if decay is not None and not (isinstance(decay, float) and 0 < decay < 1):
            raise ValueError(f"hold_zeros must be a decay between 0 and 1 such as 0.99, or None, got {shown(decay)}")
        if self.compile is not True and self.compile is not False and self.compile != "auto":
            raise ValueError(f'compile must be True, False or "auto", got {shown(self.compile)}')
