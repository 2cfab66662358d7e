"""`path`: a model fitted at one strength after another, each fit beginning where the last one ended."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from shrinkage.diagnostics.loss_gradients import Closure
from shrinkage.execution.task import Compile
from shrinkage.paths.fits import Fit, Fits, Score
from shrinkage.paths.path import Path
from shrinkage.paths.progress_bar import Tell, progress_bar
from shrinkage.paths.saved_points import Carried, SavedPoints, check_carried
from shrinkage.paths.states import load_state
from shrinkage.paths.strengths import RulesAt, checked_strengths, geometric, greatest_strength
from shrinkage.selection.how import How
from shrinkage.training.options import Options

Stop = bool | Callable[[Path], bool]


def path(
    model: nn.Module,
    rules: RulesAt,
    fit: Fit,
    *,
    strengths: Sequence[float] | int,
    closure: Closure | None = None,
    data: Iterable[Any] | None = None,
    score: Score | None = None,
    maximize: bool = False,
    refit: Fit | None = None,
    stop: Stop = True,
    how: How = "proximal",
    hold_zeros: float | None = None,
    stochastic_rounding: bool = False,
    compile: Compile = "auto",
    folder: str | os.PathLike[str] | None = None,
    carried: Sequence[Carried] = (),
    progress: bool = True,
) -> Path:
    """Fit a model at one strength after another, each time from where the last fit ended, and return all of them.

    w(s) = argmin over w of  L(w) + R_s(w),  from the weights w(s') of the strength before

    Args:
        model: any module. It is fitted in place, and has the weights of the last fit in the end.
        rules: a function of the strength that returns what `Regularizer` takes: `L1` itself, or
            `lambda strength: {"head.*": None, nn.Conv2d: GroupLasso(strength, Rows())}`.
        fit: trains the model, in your own loop: it is called with a `Regularizer`, makes an optimizer,
            calls `regularizer.attach(optimizer)` and makes updates. Each call begins in the modes (`model.training`) in
            which the model was given.
        strengths: numbers >= 0, in the order of the fits; upwards (dense to sparse) for networks, whose layers are
            hard to leave once they are zero. Or how many: spread evenly in the logarithm, from a thousandth of the
            least strength at which nothing is left up to it, which needs `closure`. For a network that end is a guess.
        closure: returns the loss of all training data, or of one batch of `data`, as in `strength_max`.
        data: batches, for `closure`.
        score: of a model: a number, or a tensor with a loss per example or batch, whose standard error is
            std / sqrt(n). It is called in evaluation mode and without gradients, and leaves the model and random states
            as they were.
        maximize: whether a higher score is better. False, the default, is for losses.
        refit: trains the model after each fit with its zeros frozen and without the penalty (`freeze_zeros`; smooth
            penalties and constraints stay). What comes of it is `Point.refit` and `Path.refits`; the next fit begins
            where the last fit ended, as if there had been no refit.
        stop: end where all is zero and strengths only grow, or, a function of the `Path` so far, where that is true.
        how: as in `Regularizer`.
        hold_zeros: as in `Regularizer`; 0.99 for fits by minibatches.
        stochastic_rounding: as in `Regularizer`.
        compile: as in `Regularizer`.
        folder: where each point is saved. A call with the same folder goes on after the last, with the same
            weights, buffers and random states. Strengths can be added at the end. Weights stay in the files until used.
        carried: what `fit` uses again at the next strength, saved in `folder` too: generators of torch, and objects
            with a `state_dict`, such as an optimizer that is made outside of `fit`.
        progress: show a progress bar if `rich` is installed and there is a terminal or a notebook.

    Raises:
        ValueError: there are no strengths, or negative ones; `folder` has a path that was asked for something else.
        TypeError: a strength is no number, `score` returns none, or something carried has no state.
        AttachmentError: `fit` attached no optimizer.
        SelectionError: the rules select other parameters at another strength.

    Reference: Friedman, Hastie, Tibshirani (2010), "Regularization paths for generalized linear models via coordinate
    descent", section 2.5, for warm starts; Lemhadri et al. (2021), "LassoNet", section 3.3, for the way from dense to
    sparse.

    In several processes, each needs a folder of its own.

    >>> import shrinkage, torch
    >>> x, y = torch.eye(3), torch.tensor([[3.0], [2.0], [0.1]])
    >>> layer = torch.nn.Linear(3, 1, bias=False)
    >>> def fit(regularizer):
    ...     optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    ...     regularizer.attach(optimizer)
    ...     for _ in range(50):
    ...         optimizer.zero_grad()
    ...         (0.5 * (layer(x) - y).square().sum()).backward()
    ...         optimizer.step()
    >>> found = path(layer, shrinkage.L1, fit, strengths=[0.5, 1.0, 2.5, 4.0])
    >>> print(found)
    strength  zeros           updates
    --------  -----  -------  -------
         0.5      1   33.33%       50
           1      1   33.33%       50
         2.5      2   66.67%       50
           4      3  100.00%       50
    >>> _ = found.load(layer, 2.5)
    """
    check_carried(carried)
    options, saved = Options(hold_zeros, stochastic_rounding, compile), SavedPoints(folder, tuple(carried))
    modes = {module: module.training for module in model.modules()}
    fits = Fits(model, rules, fit, score, refit, how, options, modes)
    if isinstance(strengths, int):
        wanted = saved.strengths(strengths) or spread(fits, strengths, closure, data)
    else:
        wanted = checked_strengths(strengths)
    fits.check(wanted)
    with progress_bar(len(wanted), shown=progress) as tell:
        return followed(fits, saved, wanted, Path((), maximize), stop, tell)


def followed(fits: Fits, saved: SavedPoints, strengths: Sequence[float], found: Path, stop: Stop, tell: Tell) -> Path:
    """Return the path along `strengths`: `found`, which is empty, with the points that are saved, and those after."""
    before = saved.read(lambda index: fits.asked(strengths[: index + 1]), len(strengths))
    if before:
        load_state(fits.model, before[-1].state)
    for index, strength in enumerate(strengths):
        if index < len(before):
            point = before[index]
        else:
            point = saved.save(fits.point(strength), fits.asked(strengths[: index + 1]), strengths, index)
        found = replace(found, points=(*found, point))
        tell(point)
        if ends(found, strengths[index:], stop):
            break
    return found


def spread(fits: Fits, count: int, closure: Closure | None, data: Iterable[Any] | None) -> list[float]:
    """Return `count` strengths up to the least at which nothing is left."""
    if closure is None:
        raise ValueError(f"strengths={count} needs closure=, which returns the loss: see path()")
    return geometric(count, greatest_strength(fits.model, fits.rules, fits.how, closure, data))


def ends(so_far: Path, left: Sequence[float], stop: Stop) -> bool:
    """Return whether a path ends here, with the strengths `left`, the first of which is that of the last point."""
    if not isinstance(stop, bool):
        return bool(stop(so_far))
    return stop and so_far[-1].empty and min(left) >= left[0]
