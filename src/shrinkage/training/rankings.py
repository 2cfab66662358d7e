"""What ranks the parameters of a budget in an optimizer."""

from shrinkage.selection.planned_budgets import PlannedBudget
from shrinkage.training.asides import Asides
from shrinkage.training.budgets import Ranking
from shrinkage.training.channel_ranking import ChannelRanking


def ranking_of(planned: PlannedBudget, *, kernels: bool) -> Ranking:
    """Return what lets a budget of a plan act in one optimizer, by native kernels if `kernels`."""
    channels = planned.channels()
    return Asides(planned.budget, kernels=kernels) if channels is None else ChannelRanking(planned.budget, channels)
