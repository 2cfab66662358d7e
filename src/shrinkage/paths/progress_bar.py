"""A progress bar over the strengths of a path, where `rich` is installed and there is a terminal or a notebook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from shrinkage.diagnostics.random_states import random_states_left_out
from shrinkage.paths.point import Point

Tell = Callable[[Point], None]
NESTING = (14, 1)  # from this version on, the user's own bars can run inside of ours


@contextmanager
def progress_bar(total: int, *, shown: bool) -> Iterator[Tell]:
    """Show how many of `total` strengths are done; gives a function that is told each point."""
    if not shown or not rich_is_there():
        yield lambda point: None
        return
    with random_states_left_out():  # rich draws a number when it is imported
        import rich
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = rich.get_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shows = console.is_terminal or console.is_jupyter
    with Progress(*columns, console=console, transient=True, disable=not shows) as bar:
        task = bar.add_task("path", total=total)
        yield lambda point: bar.update(task, advance=1, description=text_of(point))


def rich_is_there() -> bool:
    """Return whether `rich` is installed, in a version in which bars can be nested."""
    try:
        numbers = version("rich").split(".")[:2]
    except PackageNotFoundError:
        return False
    return tuple(int(number) for number in numbers if number.isdigit()) >= NESTING


def text_of(point: Point) -> str:
    """Return a point in few words.

    >>> text_of(Point(0.1, 3, 4, 0, 0, 0.25, 0.1, 100))
    'strength 0.1: 75% zeros, score 0.25'
    """
    score = f", score {point.score:.4g}" if point.score == point.score else ""
    return f"strength {point.strength:.3g}: {100 * point.sparsity:.0f}% zeros{score}"
