"""The command line of the examples that compare ways to a smaller model."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from comparison import CHANNELS, Methods, Settings, Task, compare
from results import as_dict, measure, table_of, write

OUTPUT = Path("runs/examples")


def run(
    name: str,
    about: str,
    make: Callable[[bool], Task],
    full: Settings,
    quick: Settings,
    arguments: Sequence[str] | None,
    methods: Methods = CHANNELS,
) -> dict[str, Any]:
    """Do what the command line says: compare, print the table and what it shows, write the numbers.

    Args:
        name: of the file of numbers.
        about: what the example shows, for `--help`.
        make: makes the task, a tiny one if its argument is True.
        full: the settings that the command line may change.
        quick: those of `--quick`.
        arguments: of the command line; those of the process if there are none.
        methods: by which models are trained.
    """
    options = parser(name, about, full).parse_args(arguments)
    names = ("updates", "seeds", "target", "strength")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = replace(quick if options.quick else full, **asked)
    task = make(options.quick)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=settings.seeds * len(methods) * settings.updates)
        outcomes = compare(task, settings, methods, lambda doing: progress.update(bar, advance=1, description=doing))
    rows = measure(task, outcomes)
    numbers = as_dict(task, settings, outcomes, rows)
    threads = torch.get_num_threads()
    print(f"{task.name}: {settings.updates} updates, seeds: {settings.seeds}")
    print(f"target of the budget: {settings.target:,}, strength of the penalty: {settings.strength:g}")
    print(f"threads in training: {threads}, for latency: 1\n")
    print(table_of(task, rows), "", *numbers["findings"], sep="\n")
    write(options.output, numbers)
    print(f"\nWrote {options.output}")
    return numbers


def parser(name: str, about: str, full: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    result = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--updates", type=int, help=f"updates of each model ({full.updates})")
    result.add_argument("--seeds", type=int, help=f"models of each variant ({full.seeds})")
    result.add_argument("--target", type=type(full.target), help=f"of the budget ({full.target:,})")
    result.add_argument("--strength", type=float, help=f"of the penalty, in units of the loss ({full.strength:g})")
    result.add_argument("--output", type=Path, default=OUTPUT / f"{name}.json", help="file for the numbers")
    result.add_argument("--quick", action="store_true", help="a tiny network and few updates, to see that all works")
    return result
