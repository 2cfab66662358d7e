"""Which columns of a table matter: SparseMLPClassifier beside LassoNet, both with their defaults: `make columns`.

Each finished run is a line of a file, and runs that are in the file are not made again: an interrupted comparison goes
on where it was. Tables are made of the file.

A run follows one whole path and is timed: of ours with the refits by which it chooses, of theirs without any. Then it
takes each number of columns, by its own order and with its own refit, and tells the accuracy on other rows.
"""

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import mean, median, stdev
from time import process_time
from typing import Any

import numpy as np
import torch

from benchmarks.experiments.training import spread
from benchmarks.lines import append, read_lines
from benchmarks.skipping import SkippedError, needs

OURS, THEIRS = "shrinkage", "lassonet"


@dataclass(frozen=True, slots=True)
class Split:
    """A table in two parts, each column with mean 0 and standard deviation 1 in the first."""

    x: Any
    y: Any
    test_x: Any
    test_y: Any

    def only(self, columns: Any) -> "Split":
        """Return the table with some columns alone."""
        return Split(self.x[:, columns], self.y, self.test_x[:, columns], self.test_y)


@dataclass(frozen=True, slots=True)
class Task:
    """A table of scikit-learn, and how many of its columns are kept."""

    load: str
    kept: tuple[int, ...]

    def split(self, seed: int) -> Split:
        """Return four fifths of the rows to train on, and the others."""
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
        from sklearn.preprocessing import StandardScaler

        x, y = getattr(datasets, self.load)(return_X_y=True)
        x, test_x, y, test_y = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
        scaler = StandardScaler().fit(x)
        return Split(scaler.transform(x), y, scaler.transform(test_x), test_y)


TASKS = {"digits": Task("load_digits", (10, 20, 30)), "cancer": Task("load_breast_cancer", (5, 10, 20))}
Found = tuple[float, dict[int, float]]


def ours(split: Split, kept: Sequence[int], seed: int, quick: bool) -> Found:
    """Return the seconds of a path, and the accuracy with each number of columns."""
    from shrinkage.integrations.sklearn import SparseMLPClassifier

    short: dict[str, Any] = {"strengths": 3, "max_iter": 10, "iter_per_strength": 5} if quick else {}
    start = process_time()
    SparseMLPClassifier(random_state=seed, **short).fit(split.x, split.y)
    seconds = process_time() - start
    estimators = {count: SparseMLPClassifier(n_features_to_select=count, random_state=seed, **short) for count in kept}
    return seconds, {
        count: float(each.fit(split.x, split.y).score(split.test_x, split.test_y)) for count, each in estimators.items()
    }


def theirs(split: Split, kept: Sequence[int], seed: int, quick: bool) -> Found:
    """Return the same of LassoNet: its columns by `feature_importances_`, its refit by `dense_only`."""
    with needs("lassonet"):
        from lassonet import LassoNetClassifier

    short: dict[str, Any] = {"lambda_start": 1e3, "path_multiplier": 10.0, "n_iters": (10, 5)} if quick else {}

    def made() -> Any:
        return LassoNetClassifier(random_state=seed, torch_seed=seed, verbose=0, device="cpu", **short)

    start = process_time()
    follows = made()
    follows.path(split.x, split.y, return_state_dicts=False)
    seconds = process_time() - start
    order = np.argsort(-follows.feature_importances_.numpy(), kind="stable")
    found = {}
    for count in kept:
        part = split.only(np.sort(order[:count]))
        refitted = made().fit(part.x, part.y, dense_only=True)
        found[count] = float(refitted.score(part.test_x, part.test_y))
    return seconds, found


METHODS: Mapping[str, Callable[[Split, Sequence[int], int, bool], Found]] = {OURS: ours, THEIRS: theirs}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    task: str
    method: str
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gives.

    Args:
        cell: the run.
        seconds: of processor time, of the path.
        accuracy: of other rows, in percent, by the number of columns as text.
        torch: its version.
    """

    cell: Cell
    seconds: float
    accuracy: dict[str, float]
    torch: str


def cells(tasks: Iterable[str], methods: Sequence[str], seeds: Iterable[int]) -> Iterator[Cell]:
    """Yield the runs that are asked for: methods take turns, and every other time the last is first."""
    for turn, (seed, task) in enumerate(product(seeds, tasks)):
        for method in methods[::-1] if turn % 2 else methods:
            yield Cell(task, method, seed)


def read(path: Path) -> list[Result]:
    """Return the results in a file, none if there is no file."""
    return [Result(**{**line, "cell": Cell(**line["cell"])}) for line in read_lines(path)]


def carry_out(wanted: Iterable[Cell], path: Path, *, quick: bool, say: Callable[[str], object] = print) -> None:
    """Make the runs that the file does not have, and append each as soon as it is finished."""
    finished = {result.cell for result in read(path)}
    for cell in wanted:
        if cell in finished:
            continue
        task, name = TASKS[cell.task], f"{cell.task} {cell.method}, seed {cell.seed}"
        try:
            seconds, found = METHODS[cell.method](task.split(cell.seed), task.kept, cell.seed, quick)
        except SkippedError as reason:
            say(f"{name}: skipped, {reason}")
            continue
        accuracy = {str(count): 100 * share for count, share in found.items()}
        append(path, asdict(Result(cell, seconds, accuracy, torch.__version__)))
        say(f"{name}: {', '.join(f'{value:.1f}% of {count}' for count, value in accuracy.items())}, {seconds:.1f} s")


def tables(results: Sequence[Result]) -> str:
    """Return a table of accuracies, and one of times: mean ± standard deviation over seeds, and paired differences."""
    accuracies = ["| table | columns | SparseMLPClassifier | LassoNet | difference |", "|---|---:|---:|---:|---:|"]
    times = ["| table | SparseMLPClassifier | LassoNet | ratio |", "|---|---:|---:|---:|"]
    for task in TASKS:
        of = {
            name: {r.cell.seed: r for r in results if (r.cell.task, r.cell.method) == (task, name)} for name in METHODS
        }
        seeds = sorted(of[OURS].keys() & of[THEIRS].keys())
        if not seeds:
            continue
        for count in map(str, TASKS[task].kept):
            own, other = ([of[name][seed].accuracy[count] for seed in seeds] for name in METHODS)
            gap = paired([a - b for a, b in zip(own, other, strict=True)])
            accuracies.append(f"| {task} | {count} | {spread(own, '.1f')} | {spread(other, '.1f')} | {gap} |")
        own, other = ([of[name][seed].seconds for seed in seeds] for name in METHODS)
        ratio = median(b / a for a, b in zip(own, other, strict=True))
        times.append(f"| {task} | {spread(own, '.1f')} s | {spread(other, '.1f')} s | {ratio:.1f} |")
    return "\n".join([*accuracies, "", *times])


def paired(differences: Sequence[float]) -> str:
    """Return the mean of differences, and its standard error.

    >>> paired([1.0, 3.0])
    '+2.0 ± 1.0'
    """
    error = f" ± {stdev(differences) / sqrt(len(differences)):.1f}" if len(differences) > 1 else ""
    return f"{mean(differences):+.1f}{error}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are asked for and missing, and print the tables of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lines", type=Path, default=Path("runs/columns.jsonl"), help="the file of finished runs")
    parser.add_argument("--only-table", action="store_true", help="print tables of the file, and run nothing")
    parser.add_argument("--quick", action="store_true", help="short trainings, to see that all works")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LassoNet uses what torch and scikit-learn deprecate
        if not options.only_table:
            wanted = cells(options.task, options.method, options.seed)
            carry_out(wanted, options.lines, quick=options.quick, say=lambda line: print(line, flush=True))
    print(tables(read(options.lines)))


if __name__ == "__main__":
    main()
