"""Compare budgets with penalties, pruning and small models, on the same updates. Interrupted, it goes on where it was.

Each finished run is a line of a file; runs that are in the file are not made again. Tables are made of the file.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.experiments.budgets.methods import METHODS
from benchmarks.experiments.budgets.runs import carry_out, cells, read
from benchmarks.experiments.budgets.table import tables
from benchmarks.experiments.budgets.tasks import TASKS
from benchmarks.experiments.budgets.units import UNITS

EXPECTED = (
    "of its kind",
    "than it may",
    "what the floor",
    "no longer depends on the inputs",
)  # warnings of small models cut down far


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are asked for and missing, and print the tables of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--unit", nargs="+", choices=UNITS, default=list(UNITS), help="what becomes zero")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--share", nargs="+", type=float, default=(), help="that goes; else those of the task")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, help="of all methods; else those of the task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lines", type=Path, default=Path("runs/budgets.jsonl"), help="the file of finished runs")
    parser.add_argument("--only-table", action="store_true", help="print tables of the file, and run nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    wanted = cells(options.task, options.unit, options.method, options.seed, options.share, options.updates)
    with warnings.catch_warnings():
        for text in EXPECTED:
            warnings.filterwarnings("ignore", f".*{text}", UserWarning)
        if not options.only_table:
            carry_out(wanted, options.lines, lambda line: print(line, flush=True))
    print(tables(read(options.lines)))


if __name__ == "__main__":
    main()
