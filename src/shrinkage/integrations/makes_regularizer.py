"""What the callbacks of all trainers share: a regularizer that is made when training begins."""

from dataclasses import asdict

from torch import nn

from shrinkage.execution.compiled import Compile
from shrinkage.selection.how import How
from shrinkage.selection.rules import Rules, as_rules
from shrinkage.training.options import Options
from shrinkage.training.regularizer import Regularizer


class MakesRegularizer:
    """Takes the arguments of a `Regularizer` but for the model, and checks them at once.

    Args:
        rules: as in `Regularizer`.
        how: as in `Regularizer`.
        hold_zeros: as in `Regularizer`.
        stochastic_rounding: as in `Regularizer`.
        compile: as in `Regularizer`.
    """

    regularizer: Regularizer | None = None

    def __init__(
        self,
        rules: Rules | None = None,
        *,
        how: How = "proximal",
        hold_zeros: float | None = None,
        stochastic_rounding: bool = False,
        compile: Compile = "auto",
    ) -> None:
        self._options = Options(hold_zeros, stochastic_rounding, compile)
        self._rules = None if rules is None else as_rules(rules, how)

    def _make(self, model: nn.Module) -> Regularizer:
        """Return a regularizer of `model`, which is not attached yet."""
        return Regularizer(model, self._rules, **asdict(self._options))

    def _detach(self) -> None:
        """Remove all hooks from the optimizers, if there are any."""
        if self.regularizer is not None:
            self.regularizer.detach()


def numbers_of(regularizer: Regularizer) -> dict[str, float]:
    """Return what is logged of budgets, as of their last ranking: what was wanted, and what is reached."""
    found: dict[str, float] = {}
    several = len(regularizer.progress()) > 1
    for index, each in enumerate(regularizer.progress()):
        if each.reached is not None and each.wanted is not None:
            name = f"budget{index}" if several else "budget"
            found |= {f"{name}/wanted": float(each.wanted), f"{name}/reached": float(each.reached)}
    return found
