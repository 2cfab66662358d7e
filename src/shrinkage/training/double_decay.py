"""Weights that decay twice: by a penalty, and by the optimizer's own weight decay."""

import inspect
from collections.abc import Iterator, Sequence

from torch.optim import ASGD, Optimizer

from shrinkage.errors import listed, warn_user
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L2, ElasticNet, Huber
from shrinkage.penalties.ridged import Ridged
from shrinkage.penalties.toward import Toward
from shrinkage.training.penalized import PenalizedParameter

Targets = Sequence[PenalizedParameter]
Option = tuple[str, float]  # the name of an option of a parameter group, and its value


def warn_of_double_decay(targets: Targets, optimizer: Optimizer) -> None:
    """Warn of parameters that a penalty draws to 0 as weight decay does, and that `optimizer` decays itself."""
    twice = [
        (target, decay_of(optimizer, target.group)) for target in targets if any(map(decays, penalties_of(target)))
    ]
    found = [(target, option) for target, option in twice if option is not None]
    if not found:
        return
    names, (first, (name, decay)) = [target.name for target, _ in found], found[0]
    default = " (its default)" if is_default(optimizer, name, decay) else ""
    penalty = next(filter(decays, penalties_of(first)))
    several = len(names) > 1
    warn_user(
        f"{listed(names, most=3)} {'are' if several else 'is'} penalized by {penalty}, and {type(optimizer).__name__} "
        f"decays {'them' if several else 'it'} by {name}={decay:g} as well{default}; set {name}=0 in the optimizer, or "
        "leave the rule out"
    )


def decayed_beside(targets: Targets, optimizer: Optimizer) -> Iterator[tuple[str, str]]:
    """Yield the names of other parameters that `optimizer` decays too, each with the option that says so, as text."""
    for target in targets:
        option = decay_of(optimizer, target.group)
        if option is not None and not any(map(decays, penalties_of(target))):
            yield target.name, f"{option[0]} {option[1]:g}"


def decays(penalty: Penalty) -> bool:
    """Return whether `penalty` draws small weights to 0 in proportion to their size.

    >>> from shrinkage import L1, L2
    >>> decays(L1(0.1)), decays(L1(0.1) + L2(0.1))
    (False, True)
    """
    if isinstance(penalty, L2 | Huber):
        return penalty.strength != 0
    if isinstance(penalty, ElasticNet | Ridged) and penalty.l2 != 0:
        return True
    inner = () if isinstance(penalty, Toward) else penalty.arguments().values()  # it draws to another place
    return any(decays(each) for each in inner if isinstance(each, Penalty))


def penalties_of(target: PenalizedParameter) -> list[Penalty]:
    """Return what one parameter is penalized by, at first and later."""
    return [stage.penalty for stage in target.stages]


def decay_of(optimizer: Optimizer, index: int) -> Option | None:
    """Return the weight decay in a group of `optimizer`, with the name of the option; None if there is none."""
    group = optimizer.param_groups[index]
    options = ("weight_decay", "lambd") if isinstance(optimizer, ASGD) else ("weight_decay",)
    given = [(name, group.get(name, 0.0)) for name in options]
    return next(((name, float(value)) for name, value in given if isinstance(value, int | float) and value > 0), None)


def is_default(optimizer: Optimizer, name: str, value: float) -> bool:
    """Return whether the class of `optimizer` decays by this much if nobody says otherwise."""
    known = inspect.signature(type(optimizer)).parameters.get(name)
    return known is not None and known.default == value
