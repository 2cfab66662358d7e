"""What the callbacks of all trainers share: a regularizer that is made when training begins."""

from dataclasses import asdict

from torch import nn

from shrinkage.diagnostics.stats import in_logs
from shrinkage.execution.task import Compile
from shrinkage.selection.how import How
from shrinkage.selection.rules import Rules, as_rules
from shrinkage.selection.rules_from_data import Data, is_data, rules_from
from shrinkage.training.options import Options
from shrinkage.training.progress import numbers_of
from shrinkage.training.regularizer import Regularizer


class MakesRegularizer:
    """Takes the arguments of a `Regularizer` but for the model, and checks them at once.

    Args:
        rules: as in `Regularizer`, or plain data as in `rules_from`.
        how: as in `Regularizer`.
        hold_zeros: as in `Regularizer`.
        stochastic_rounding: as in `Regularizer`.
        compile: as in `Regularizer`.
    """

    regularizer: Regularizer | None = None

    def __init__(
        self,
        rules: Data | Rules | None = None,
        *,
        how: How = "proximal",
        hold_zeros: float | None = None,
        stochastic_rounding: bool = False,
        compile: Compile = "auto",
    ) -> None:
        self._options = Options(hold_zeros, stochastic_rounding, compile)
        found = rules_from(rules, how=how) if is_data(rules) else rules
        self._rules = None if found is None else as_rules(found, how)  # type: ignore[arg-type]  # data is gone by now

    def _make(self, model: nn.Module) -> Regularizer:
        """Return a regularizer of `model`, which is not attached yet."""
        return Regularizer(model, self._rules, **asdict(self._options))

    def _detach(self) -> None:
        """Remove all hooks from the optimizers, if there are any."""
        if self.regularizer is not None:
            self.regularizer.detach()

    def _budgets(self) -> dict[str, float]:
        """Return what is logged of budgets, which takes no look at the weights."""
        return {} if self.regularizer is None else in_logs(numbers_of(self.regularizer.progress()))
