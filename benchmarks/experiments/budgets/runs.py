"""Runs and their results, a line of JSON each, so that an interrupted comparison goes on where it was."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from time import process_time

import torch

from benchmarks.experiments.budgets.methods import METHODS
from benchmarks.experiments.budgets.tasks import TASKS
from benchmarks.experiments.budgets.training import Run, quality
from benchmarks.experiments.budgets.units import UNITS, matrices
from benchmarks.lines import append, read_lines
from benchmarks.skipping import SkippedError
from shrinkage.compression.calls.cost import parameter_count


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. The dense model is the same for all units and shares: it has none."""

    task: str
    unit: str | None
    method: str
    share: float | None
    seed: int
    updates: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gives.

    Args:
        cell: the run.
        error: of held-out data, in percent.
        nll: mean cross-entropy of held-out data, in nats.
        zeros: weights that are zero, of `weights`; 0 of models that are dense, and small by themselves.
        weights: of all layers but norms and embeddings.
        left: parameters of the model without these zeros.
        seconds: of processor time.
        torch: its version.
    """

    cell: Cell
    error: float
    nll: float
    zeros: int
    weights: int
    left: int
    seconds: float
    torch: str


def cells(
    tasks: Iterable[str],
    units: Sequence[str],
    methods: Sequence[str],
    seeds: Iterable[int],
    shares: Sequence[float] = (),
    updates: int | None = None,
) -> Iterator[Cell]:
    """Yield the runs that are asked for, one seed after the other, so that an interrupted table has all methods."""
    for seed, name in product(seeds, tasks):
        task = TASKS[name]
        count = updates or task.updates
        if "dense" in methods:
            yield Cell(name, None, "dense", None, seed, count)
        for unit in units:
            for share, method in product(shares or task.shares(unit), methods):
                if method != "dense" and unit in METHODS[method].units:
                    yield Cell(name, unit, method, share, seed, count)


def result_of(cell: Cell) -> Result:
    """Train and measure one run.

    Raises:
        SkippedError: a package is missing or refuses the model, or the method does not reach the share.
    """
    start = process_time()
    task, method = replace(TASKS[cell.task], updates=cell.updates), METHODS[cell.method]
    run = Run(task, cell.seed)
    unit = None if cell.unit is None or cell.share is None else UNITS[cell.unit](run, cell.share)
    method.train(run, unit)
    model = run.model if method.whole or unit is None else unit.finished()
    error, nll = quality(model, run.data)
    weights = matrices(model).values()
    sparse = cell.unit == "weights" and not method.whole
    zeros = sum(int((each == 0).sum()) for each in weights) if sparse else 0
    return Result(
        cell,
        error,
        nll,
        zeros=zeros,
        weights=sum(each.numel() for each in weights),
        left=parameter_count(model) - zeros,
        seconds=process_time() - start,
        torch=torch.__version__,
    )


def read(path: Path) -> list[Result]:
    """Return the results in a file, none if there is no file."""
    return [Result(**{**line, "cell": Cell(**line["cell"])}) for line in read_lines(path)]


def carry_out(wanted: Iterable[Cell], path: Path, say: Callable[[str], object] = print) -> None:
    """Make the runs that the file does not have, and append each as soon as it is finished."""
    finished = {result.cell for result in read(path)}
    for cell in wanted:
        if cell in finished:
            continue
        name = " ".join(str(each) for each in (cell.task, cell.unit, cell.method, cell.share) if each is not None)
        try:
            result = result_of(cell)
        except SkippedError as reason:
            say(f"{name}, seed {cell.seed}: skipped, {reason}")
            continue
        append(path, asdict(result))
        say(f"{name}, seed {cell.seed}: error {result.error:.2f}%, nll {result.nll:.3f}, {result.seconds:.0f} s")
