"""The strengths of a path: checked, or found from the least at which nothing is left."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from shrinkage.diagnostics.evaluation import penalized_parameters, residual_of, slope_of
from shrinkage.diagnostics.loss_gradients import Closure, check_not_sharded, mean_gradients
from shrinkage.errors import shown
from shrinkage.execution.at_origin import at_origin
from shrinkage.penalties.base import Penalty
from shrinkage.proximal.precision import upcast
from shrinkage.selection.how import How
from shrinkage.selection.plan import resolve
from shrinkage.selection.rules import Rules

RulesAt = Callable[[float], Rules]
Block = tuple[list[str], Penalty]  # names of what is penalized together, and by which penalty
SHORTEST = 1e-3  # of the greatest strength
DOUBLINGS = 200
BISECTIONS = 60


def checked_strengths(strengths: Iterable[float]) -> list[float]:
    """Return strengths as numbers; raise `ValueError` or `TypeError` if they are none."""
    found = strengths.tolist() if isinstance(strengths, Tensor) else list(strengths)
    if not found:
        raise ValueError("strengths are empty: give at least one, such as [1e-4, 1e-3, 1e-2]")
    for each in found:
        if not isinstance(each, Real) or isinstance(each, bool):
            raise TypeError(f"strengths must be numbers, got {shown(each)}")
    numbers = [float(each) for each in found]
    for number in numbers:
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"strengths must be finite and >= 0, got {number:g}")
    return numbers


def geometric(count: int, greatest: float) -> list[float]:
    """Return strengths from a thousandth of the greatest up to it, each larger than the last by the same factor.

    >>> [round(each, 6) for each in geometric(4, 1.0)]
    [0.001, 0.01, 0.1, 1.0]
    """
    if count < 2:
        raise ValueError(f"a number of strengths must be >= 2, got {count}; give one strength as a list: [1e-3]")
    return [greatest * SHORTEST ** (1 - index / (count - 1)) for index in range(count)]


def greatest_strength(
    model: nn.Module, rules: RulesAt, how: How, closure: Closure, data: Iterable[Any] | None
) -> float:
    """Return the least strength at which zero is stationary for all parameters whose penalty grows with it.

    The greatest answer of several questions: with all of them zero, which is right for a linear model, and with one at
    a time, the others as they are, since zero layers of a network block the gradients of the others.

    Raises:
        ValueError: no penalty that makes zeros grows with the strength, or no strength is enough.
    """
    plan = resolve(model, rules(1.0), how)
    found = penalized_parameters(model, plan)
    check_not_sharded(found)
    held = {entry.name: parameter for entry, parameter in found if parameter.requires_grad}

    def blocks(strength: float) -> list[Block]:
        made = resolve(model, rules(strength), how).blocks(held)
        return [(names, penalty.at(0)) for names, penalty in made]

    growing = [
        names
        for (names, one), (_, two) in zip(blocks(1.0), blocks(2.0), strict=True)
        if grows(one, two, held[names[0]])
    ]
    if not growing:
        raise ValueError("no penalty that makes zeros grows with the strength: give strengths as a list")
    questions = [growing, *([names] for names in growing if len(growing) > 1)]
    return max(least_strength(model, blocks, held, asked, closure, data) for asked in questions)


def grows(one: Penalty, other: Penalty, parameter: nn.Parameter) -> bool:
    """Return whether zero withstands a larger gradient by the `other` penalty."""
    return slope_of(other, parameter.shape) > slope_of(one, parameter.shape)


def least_strength(
    model: nn.Module,
    blocks: Callable[[float], list[Block]],
    held: Mapping[str, nn.Parameter],
    asked: Sequence[list[str]],
    closure: Closure,
    data: Iterable[Any] | None,
) -> float:
    """Return the least strength at which zero is stationary for the parameters `asked`, with the others as they are."""
    names = [name for block in asked for name in block]
    penalties = {name: penalty for block, penalty in blocks(1.0) for name in block}
    with at_origin([(penalties[name], held[name]) for name in names]):
        grads = dict(zip(names, mean_gradients(model, [held[name] for name in names], closure, data), strict=True))
    ws = {name: penalties[name].origin(upcast(held[name].detach())) for name in names}

    def stationary(strength: float) -> bool:
        chosen = [(block, penalty) for block, penalty in blocks(strength) if block in asked]
        parts = [({n: ws[n] for n in block}, {n: grads[n] for n in block}, penalty) for block, penalty in chosen]
        return all(float(residual_of(penalty, own, slopes, {})[1].max()) == 0 for own, slopes, penalty in parts)

    return first_true(stationary)


def first_true(holds: Callable[[float], bool]) -> float:
    """Return the least number > 0 from which on `holds` is true, by doubling and bisection."""
    high = 1.0
    for _ in range(DOUBLINGS):
        if holds(high):
            break
        high *= 2
    else:
        raise ValueError(f"zero is stationary at no strength up to {high:.0e}: give strengths as a list")
    low = high / 2
    while holds(low) and low > 2.0**-DOUBLINGS:
        low, high = low / 2, low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
