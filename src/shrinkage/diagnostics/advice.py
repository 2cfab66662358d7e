"""What to do about weights that are not stationary yet: nothing that is done already, and nothing that cannot help."""

import math
from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from shrinkage.errors import shown
from shrinkage.selection.how import decides
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan

LONG_RUN = 10_000  # updates from which on a longer average pays


class Training(NamedTuple):
    """How the weights were trained that residuals judge.

    Args:
        updates: how many were made.
        rates: the learning rate of each parameter that a penalizing optimizer steps, by name; None if there is none.
        kept: the parameters whose zeros averages could keep, each with the decay of those that do; None if none do.
        derived: the parameters whose penalty has kinks and acts through its derivative.
        decoupled: the parameters whose strength is in units of weight decay.
        declared: whether layers declare the rules, so that they act in every optimizer, without one that is attached.
    """

    updates: int = 0
    rates: Mapping[str, float] | None = None
    kept: Mapping[str, float | None] = MappingProxyType({})
    derived: frozenset[str] = frozenset()
    decoupled: frozenset[str] = frozenset()
    declared: bool = False


def training_of(
    model: nn.Module,
    plan: Plan,
    decays: Mapping[str, float | None],
    optimizers: Iterable[Optimizer],
    updates: int,
    declared: Set[str],
) -> Training:
    """Return what is known of the training of `model` by optimizers in which a plan's rules act.

    Args:
        model: that is trained.
        plan: what is penalized.
        decays: of the averages that keep the zeros of a parameter, by its name.
        optimizers: those in which the rules act.
        updates: how many they made.
        declared: names of the parameters whose layers declare the penalty.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    of = {id(parameter): group.get("lr", math.nan) for group in groups for parameter in group["params"]}
    held = {candidate.name: id(candidate.parameter) for candidate in named_parameters(model)}
    return Training(
        updates,
        {name: float(of[own]) for name, own in held.items() if own in of} if groups else None,
        {each.name: decays.get(each.name) for each in plan if decides(each.penalty, each.how)},
        frozenset(each.name for each in plan if each.how == "gradient" and not each.penalty.smooth),
        frozenset(each.name for each in plan if each.how == "decoupled"),
        {each.name for each in plan} <= declared,
    )


def advice(names: Iterable[str], residual: float, training: Training) -> str:
    """Return what to do about parameters whose residual is too large: one or two sentences."""
    first, *_ = names
    if not math.isfinite(residual):
        return "A weight or a gradient is NaN or infinite: go back to before that, with a lower learning rate."
    if training.declared and first not in (training.rates or {}):
        return f"No optimizer steps {first!r} now: train, by one that holds it."
    if training.rates is None:
        return (
            "The regularizer is attached to no optimizer any more: attach it again before training on."
            if training.updates
            else "The regularizer is attached to no optimizer yet: attach(optimizer), then train."
        )
    if first not in training.rates:
        return f"No attached optimizer steps {first!r}: give it to one, or freeze it with requires_grad_(False)."
    if training.rates[first] == 0:
        return f"The learning rate of {first!r} is 0, so that nothing moves it: train on with one that is not."
    if not training.updates:
        return "No step has been made yet: train."
    if first in training.derived:
        return 'A derivative leads to no exact zeros, and the weights swing about them: choose how="proximal".'
    if first in training.decoupled:
        return (
            f'The strength of {first!r} is in units of weight decay (how="decoupled"), which is another problem for '
            'every optimizer but SGD without momentum: choose how="proximal".'
        )
    return f"Train longer{slower(training.rates[first])}. {about_minibatches(first, training)}"


def slower(rate: float) -> str:
    """Return the advice on a learning rate that is known."""
    return "" if math.isnan(rate) else f", or lower the learning rate, which is {shown(float(f'{rate:.3g}'))}"


def about_minibatches(name: str, training: Training) -> str:
    """Return what minibatches leave, and what helps against it that is not on already."""
    levels = (
        "On minibatches at a constant learning rate a residual levels off at the size of their noise, above a small "
        "tolerance: that is good enough once training on changes neither it nor the zeros."
    )
    if name not in training.kept:
        return levels
    decay = training.kept[name]
    if decay is None:
        return f"On minibatches keep zeros at zero with hold_zeros=0.99. {levels}"
    if longer := longer_decay(decay, training.updates):
        return f"Averages that are longer, with hold_zeros={longer:g}, keep more zeros at zero. {levels}"
    return f"Averaged gradients keep zeros at zero already. {levels}"


def longer_decay(decay: float, updates: int) -> float | None:
    """Return the decay of longer averages that suit a run of so many updates; None if they are long enough."""
    suited = [0.99, 0.999] if updates >= LONG_RUN else [0.99]
    return next((each for each in suited if each > decay), None)
