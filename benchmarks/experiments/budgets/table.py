"""Tables of the results, as markdown."""

from collections.abc import Sequence

from benchmarks.experiments.budgets.methods import METHODS
from benchmarks.experiments.budgets.runs import Result
from benchmarks.experiments.training import spread

HEADER = ("method", "n", "error %", "nll", "zeros", "parameters left")


def tables(results: Sequence[Result]) -> str:
    """Return a table for each task, unit and share: mean ± standard deviation over seeds, the dense model in each."""
    pruned = [result for result in results if result.cell.unit is not None]
    keys = dict.fromkeys((each.cell.task, each.cell.updates, each.cell.unit, each.cell.share) for each in pruned)
    return "\n\n".join(section(results, *key) for key in keys)


def section(results: Sequence[Result], task: str, updates: int, unit: str | None, share: float | None) -> str:
    """Return one table under its title; a row for each method, in the order of the command."""
    here = [each for each in results if (each.cell.task, each.cell.updates) == (task, updates)]
    rows = []
    for method in METHODS:
        place = (None, None) if method == "dense" else (unit, share)
        own = [each for each in here if (each.cell.method, each.cell.unit, each.cell.share) == (method, *place)]
        if own:
            rows.append(row(method, own, unit))
    goes = "of all parameters, as channels" if unit == "channels" else "of the weights"
    title = f"**{task}, {100 * (share or 0):g}% {goes}** ({updates} updates)"
    return "\n".join([title, "", markdown(HEADER), "|---|" + "---:|" * (len(HEADER) - 1), *map(markdown, rows)])


def row(method: str, own: Sequence[Result], unit: str | None) -> list[str]:
    """Return the cells of a row."""
    whole = METHODS[method].whole or unit == "channels"
    return [
        method,
        str(len(own)),
        spread((each.error for each in own), ".2f"),
        spread((each.nll for each in own), ".3f"),
        "-" if whole else span([each.zeros for each in own]),
        span([each.left for each in own]),
    ]


def span(counts: Sequence[int]) -> str:
    """Return the least and the largest count, or the one that all have.

    >>> span([1200, 1200]), span([1200, 1150])
    ('1,200', '1,150 to 1,200')
    """
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def markdown(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"
