"""What ranks the parameters of a budget in an optimizer."""

from collections.abc import Sequence

from shrinkage.selection.planned_budgets import PlannedBudget
from shrinkage.training.budgets import Ranking


def rankings_of(budgets: Sequence[PlannedBudget], *, kernels: bool) -> list[Ranking]:
    """Return what lets the budgets of a plan act in one optimizer, by native kernels if `kernels`."""
    from shrinkage.training.asides import Asides
    from shrinkage.training.channel_ranking import ChannelRanking

    planned = [(each.budget, each.channels()) for each in budgets]
    return [
        Asides(budget, kernels=kernels) if channels is None else ChannelRanking(budget, channels)
        for budget, channels in planned
    ]
