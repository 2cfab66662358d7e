"""The `shrinkage` command: the report of a saved model, and a smaller model."""

import json
from pathlib import Path
from typing import Annotated

from shrinkage import Report, __version__, report
from shrinkage.cli.read_file import extras, fail, weights_in
from shrinkage.cli.shrink_command import shrink_file
from shrinkage.cli.two_reports import compared, to_dict
from shrinkage.diagnostics.checkpoint_files import TOP
from shrinkage.errors import ParameterError, listed

with extras():
    import typer
    from torch import Tensor

app = typer.Typer(
    help="Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("shrink")(shrink_file)


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


@app.command("report")
def report_file(
    file: Annotated[
        Path,
        typer.Argument(
            help="A state_dict, or a checkpoint that holds one: a file of torch.save or safetensors, the index of one "
            "in several files, or a folder of torch.distributed.checkpoint."
        ),
    ],
    other: Annotated[Path | None, typer.Argument(help="Another one, which is compared with the first.")] = None,
    below: Annotated[float, typer.Option(min=0.0, help="Weights of smaller size count as small.")] = 1e-3,
    key: Annotated[
        str | None,
        typer.Option(help="The entry of a checkpoint that is the state_dict, such as model or ema.state_dict."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and pictures to this file.")] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="End with exit code 1 if a smaller share of the weights is exactly zero."),
    ] = None,
) -> None:
    """Count the zeros of a saved model: exact ones, small weights, and whole rows and columns."""
    found = [read(each, key, below) for each in (file, other) if each is not None]
    if as_json:
        typer.echo(json.dumps(found[0][2].to_dict() if other is None else to_dict(found[0][2], found[1][2]), indent=2))
    else:
        for head, _, _ in found:
            if head:
                typer.echo(head)
        typer.echo(found[0][2] if other is None else compared(found[0][2], found[1][2]))
    _, weights, last = found[-1]
    if html is not None:
        write_page(html, weights, below, title=f"Zeros of {(other or file).name}")
        typer.echo(f"written: {html}", err=as_json)
    if fail_under is not None and last.sparsity < fail_under:
        fail(f"{last.sparsity:.1%} of the weights of {str(other or file)!r} are zero, fewer than {fail_under:.1%}")


def read(file: Path, key: str | None, below: float) -> tuple[str, dict[str, Tensor], Report]:
    """Return which entry of a file was read, in words, its weights, and their report; or say what is wrong and end."""
    entry, weights, others = weights_in(file, key)
    if not any(tensor.is_floating_point() for tensor in weights.values()):
        types = listed(sorted({str(tensor.dtype) for tensor in weights.values()}), most=3)
        fail(f"{str(file)!r} holds no floating-point weights, only {types}: of others no zeros are counted")
    rest = f"; others are {listed(others)}, with --key" if others else ""
    try:
        return (
            f"The entry {entry!r} of {str(file)!r}{rest}:" if entry != TOP else "",
            weights,
            report(weights, below=below),
        )
    except ParameterError as error:
        fail(f"{str(file)!r}: {error}")


def write_page(html: Path, weights: dict[str, Tensor], below: float, title: str) -> None:
    """Write the page about a model; or say what is wrong and end."""
    with extras():
        from shrinkage.pictures.model_page import model_page
    try:
        html.write_text(model_page(weights, below=below, title=title), encoding="utf-8")
    except (OSError, ValueError) as error:
        fail(f"{str(html)!r} cannot be written: {error}")
