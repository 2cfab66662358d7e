"""The command line of the demo: `make demo`, or `python -m digits` with `examples` in PYTHONPATH."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from digits import data
from digits.publish import publish
from digits.results import SMALLER_HEADER, TABLE_HEADER, findings, smaller_rows, table_rows
from digits.run import Settings, run

OUTPUT = Path("runs/demo")
DEFAULTS = Settings()


def main(arguments: Sequence[str] | None = None, settings: Settings = DEFAULTS) -> None:
    """Run the demo, print its tables and findings, and write its folder.

    Args:
        arguments: of the command line; those of the process if there are none.
        settings: what the command line may change.
    """
    options = parser(settings).parse_args(arguments)
    output = options.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(output, error)
    settings = replace(settings, seeds=options.seeds, epochs=options.epochs)
    digits = data.load()
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=settings.ticks)
        done = run(digits, settings, lambda doing: progress.update(task, advance=1, description=doing))
    console = Console()
    console.print(table(TABLE_HEADER, table_rows(done.results)), "")
    console.print(table(SMALLER_HEADER, smaller_rows(done.results)), "")
    for sentence in findings(done.results):
        console.print(sentence, highlight=False, markup=False)
    try:
        written = publish(done, digits, output)
    except OSError as error:
        fail(output, error)
    print(f"Wrote {', '.join(path.name for path in written)} to {output}")


def parser(defaults: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    about = "Train a small network on handwritten digits in five ways, and compare accuracy, zeros and time."
    result = argparse.ArgumentParser(prog="digits", description=about)
    result.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder for the report, the numbers and the pictures (%(default)s)"
    )
    result.add_argument(
        "--seeds", type=count, default=defaults.seeds, help="how many networks to train per variant (%(default)s)"
    )
    result.add_argument(
        "--epochs", type=count, default=defaults.epochs, help="passes over the training images (%(default)s)"
    )
    return result


def count(text: str) -> int:
    """Return a whole number that is 1 or more.

    >>> count("3")
    3
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def fail(output: Path, error: OSError) -> NoReturn:
    """Say in one line that nothing can be written there, and end with exit code 1."""
    sys.exit(f"digits: cannot write to {str(output)!r}: {error.strerror}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return rows of text under `header`, the first column flush left."""
    printed = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, title in enumerate(header):
        printed.add_column(title, justify="left" if index == 0 else "right", vertical="bottom")
    for row in rows:
        printed.add_row(*row)
    return printed
