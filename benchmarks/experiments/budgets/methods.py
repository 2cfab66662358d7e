"""Ways to a smaller model. Each makes all updates of a run, and leaves the trained model in it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from benchmarks.experiments.budgets.rivals import pat, torch_pruning
from benchmarks.experiments.budgets.training import Run
from benchmarks.experiments.budgets.units import UNITS, Channels, Unit
from benchmarks.skipping import SkippedError
from shrinkage import Regularizer, shrink
from shrinkage.errors import SelectionError

EVERY = 10  # updates from one ranking of gradual pruning to the next
ONCE = 0.3  # of all updates: where pruning in one shot happens
WINDOW = 0.1, 0.6  # where a penalty acts
STRENGTHS = (1e-4, 3e-4, 1e-3)


def dense(run: Run, unit: Unit) -> None:
    """Nothing goes."""
    run.until(1.0)


def budget(run: Run, unit: Unit, **options: Any) -> None:
    """A `Budget`, at its defaults but for `options`."""
    regularizer = Regularizer(run.model, unit.budget(**options)).attach(run.optimizer)
    run.until(1.0)
    regularizer.detach()


def gradual(run: Run, unit: Unit, begin: float, end: float, scores: Callable[[Run, Unit], Tensor]) -> None:
    """What scores least becomes zero for good: every 10 updates along a cubic ramp, or at once if it has no length."""
    first, last = run.at(begin), run.at(end)

    def cut() -> None:
        if run.update <= last and ((run.update - first) % EVERY == 0 or run.update == last):
            left = 1 - (run.update - first) / (last - first) if last > first else 0.0
            unit.cut(scores(run, unit), 1 - left**3)

    run.until(begin)
    cut()
    regularizer = unit.hold().attach(run.optimizer)
    run.until(1.0, cut)
    regularizer.detach()


def by_size(run: Run, unit: Unit) -> Tensor:
    """Score by magnitude."""
    return unit.sizes()


def by_chance(run: Run, unit: Unit) -> Tensor:
    """Score at random."""
    return torch.rand(len(unit.sizes()), generator=Generator().manual_seed(run.seed))


def penalized(run: Run, unit: Unit, strength: float) -> None:
    """A lasso of one strength for half of the training; what is missing then goes by size, and the rest is refitted."""
    begin, end = WINDOW
    run.until(begin)
    regularizer = Regularizer(run.model, unit.penalty(strength)).attach(run.optimizer)
    run.until(end)
    regularizer.detach()
    gradual(run, unit, end, end, by_size)


def scratch(run: Run, unit: Unit) -> None:
    """A dense model of as many parameters, in which each layer is smaller by the same share, from the start.

    Raises:
        SkippedError: layers of one channel each have more.
    """
    share = 1 - unit.parameters() / sum(each.numel() for each in run.model.parameters())
    try:
        channels = Channels(run, share)
    except SelectionError as error:
        raise SkippedError(f"no model of even shape is as small: {error}") from error
    kinds = channels.target.stock.kinds
    places = torch.zeros(len(kinds))
    for kind in kinds.unique():
        places[kinds == kind] = torch.linspace(1, 0, int((kinds == kind).sum()) + 1)[:-1]
    channels.cut(places, 1.0)
    small = shrink(run.model, run.data.inputs).model
    torch.manual_seed(run.seed)
    for module in small.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.reset_parameters()
    run.use(small)
    run.until(1.0)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to a smaller model.

    Args:
        train: trains a run to its end.
        units: of what it can make zeros.
        whole: whether the trained model is small by itself: nothing of it is zero.
    """

    train: Callable[[Run, Any], None]
    units: tuple[str, ...] = tuple(UNITS)
    whole: bool = False


WINDOWS = ((2, 40), (10, 40), (10, 60))  # of pruning, in percent of the updates
METHODS: dict[str, Method] = {
    "dense": Method(dense, whole=True),
    "budget": Method(budget),
    "budget-10-60-60": Method(partial(budget, begin=0.1, end=0.6, freeze=0.6), ("weights",)),
    "budget-20-50-65": Method(partial(budget, begin=0.2, end=0.5, freeze=0.65), ("weights",)),
    "budget-size": Method(partial(budget, score="size"), ("channels",)),
    **{
        f"gmp-{begin}-{end}": Method(partial(gradual, begin=begin / 100, end=end / 100, scores=by_size))
        for begin, end in WINDOWS
    },
    "one-shot": Method(partial(gradual, begin=ONCE, end=ONCE, scores=by_size)),
    **{f"lasso-{strength:g}": Method(partial(penalized, strength=strength)) for strength in STRENGTHS},
    **{
        f"pat-{begin}-{end}": Method(partial(pat, begin=begin / 100, end=end / 100), ("weights",))
        for begin, end in WINDOWS
    },
    "torch-pruning-magnitude": Method(partial(torch_pruning, once=ONCE, taylor=False), ("channels",), whole=True),
    "torch-pruning-taylor": Method(partial(torch_pruning, once=ONCE, taylor=True), ("channels",), whole=True),
    "random": Method(partial(gradual, begin=ONCE, end=ONCE, scores=by_chance)),
    "scratch": Method(scratch, whole=True),
}
