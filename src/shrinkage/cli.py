"""The `shrinkage` command: a demo, and the report of a saved model."""

import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import torch
from torch import Tensor

from shrinkage import __version__, report
from shrinkage.errors import first_line

EXTRAS = {"jinja2", "matplotlib", "rich", "safetensors", "sklearn", "typer"}


@contextmanager
def extras() -> Iterator[None]:
    """Say what to install if an optional package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        sys.exit(f"shrinkage: the command line needs {package}; install it with: pip install 'shrinkage[cli]'")


with extras():
    import typer
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

app = typer.Typer(
    help="Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros.",
    no_args_is_help=True,
    add_completion=False,
)


def fail(message: str) -> NoReturn:
    """Print one line and end with exit code 1."""
    typer.echo(f"shrinkage: {message}", err=True)
    raise typer.Exit(1)


def show_version(wanted: bool) -> None:
    """Print the version and end, if `wanted`."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the report, the numbers and the pictures.")] = Path(
        "runs/demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How many networks to train per variant.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 50,
) -> None:
    """Train a small network on handwritten digits in five ways, and compare accuracy, zeros and time."""
    with extras():
        from shrinkage.demo import data
        from shrinkage.demo.publish import publish
        from shrinkage.demo.results import SMALLER_HEADER, TABLE_HEADER, findings, smaller_rows, table_rows
        from shrinkage.demo.run import Settings, run
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"can not write to {str(output)!r}: {error.strerror}")
    settings = Settings(seeds=seeds, epochs=epochs)
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
        fail(f"can not write to {str(output)!r}: {error.strerror}")
    typer.echo(f"Wrote {', '.join(path.name for path in written)} to {output}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return rows of text under `header`, the first column flush left."""
    printed = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, title in enumerate(header):
        printed.add_column(title, justify="left" if index == 0 else "right", vertical="bottom")
    for row in rows:
        printed.add_row(*row)
    return printed


@app.command("report")
def report_file(
    file: Annotated[Path, typer.Argument(help="A state_dict: a .pt or .pth file of torch.save, or .safetensors.")],
    below: Annotated[float, typer.Option(min=0.0, help="Weights of smaller size count as small.")] = 1e-3,
) -> None:
    """Count the zeros of a saved model: exact ones, small weights, and whole rows and columns."""
    typer.echo(report(read_state_dict(file), below=below))


def read_state_dict(file: Path) -> Mapping[str, Tensor]:
    """Return the state_dict in `file`, or say in one line what is wrong and end."""
    if not file.is_file():
        fail(f"there is no file {str(file)!r}")
    content = read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        fail(f"{str(file)!r} does not hold a state_dict (names with tensors), but {described(content)}")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def read_safetensors(file: Path) -> object:
    """Return the tensors of a .safetensors file."""
    with extras():
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        fail(f"{str(file)!r} can not be read as safetensors: {first_line(error)}")


def read_torch(file: Path) -> object:
    """Return the content of a file of `torch.save`; nothing in it is executed."""
    try:
        content: object = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        fail(
            f"{str(file)!r} holds no state_dict: it is not a file of torch.save, or it has Python objects in it, which "
            "are not loaded because they can run code; save model.state_dict() instead"
        )
    except Exception as error:  # a damaged file raises whatever torch and pickle stumble over
        fail(f"{str(file)!r} can not be read by torch.load: {first_line(error)}")
    return content


def described(content: object) -> str:
    """Return what `content` is, for an error message; of a checkpoint, the entries that may be state_dicts."""
    if not isinstance(content, Mapping):
        return f"an object of type {type(content).__name__}"
    entries = ", ".join(repr(str(name)) for name in list(content)[:5])
    return f"a {type(content).__name__} with the entries {entries}" if entries else f"an empty {type(content).__name__}"
