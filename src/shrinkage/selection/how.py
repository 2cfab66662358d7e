"""How a penalty enters the optimizer's step: four ways, and what each of them asks."""

from typing import Literal, get_args

from shrinkage.errors import shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.controls import Bound
from shrinkage.penalties.convex import L2

How = Literal["proximal", "gradient", "decoupled", "cautious"]


def check_explicit(penalty: Penalty | None, how: str) -> None:
    """Raise `ValueError` if `penalty` is to act through a derivative that it does not have, or as decay."""
    if penalty is not None and how == "gradient" and not penalty.explicit:
        raise ValueError(
            f'{penalty} cannot be applied with how="gradient": it has no derivative that leads where its prox leads; '
            'choose how="proximal" or how="decoupled"'
        )
    if penalty is not None and how == "cautious" and type(penalty) is not L2:
        raise ValueError(
            f'{penalty} cannot be applied with how="cautious": that is weight decay, of L2 alone, where the optimizer '
            'moves a weight towards 0 anyway; choose how="proximal" or how="decoupled"'
        )
    if isinstance(penalty, L2) and how == "cautious" and isinstance(penalty.strength, Bound):
        raise ValueError(
            f'{penalty} cannot be applied with how="cautious", which minimizes no sum of the loss and a penalty: there '
            'is no multiplier to find; choose how="proximal" or how="decoupled"'
        )


def check_how(how: str) -> None:
    """Raise `ValueError` unless `how` is one of the four ways."""
    if how not in get_args(How):
        raise ValueError(f"how must be one of {', '.join(map(repr, get_args(How)))}, got {shown(how)}")


def check_every(every: object, how: str, smooth: bool) -> None:
    """Raise `ValueError` unless a rule can act at `every`-th step."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {shown(every)}")
    if every > 1 and (how in ("gradient", "cautious") or (how == "decoupled" and smooth)):
        raise ValueError(
            f'every={every} goes with proximal operators: a rule with how="{how}" acts through its derivative, which '
            'belongs to each step; choose how="proximal"'
        )


def decides(penalty: Penalty, how: str) -> bool:
    """Return whether averaged gradients decide about the zeros of `penalty`.

    It has to give exact zeros that withstand some gradients and not all, in units of the loss.
    """
    return how == "proximal" and penalty.holds_zeros
