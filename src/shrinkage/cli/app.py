"""The `shrinkage` command: the report of a saved model."""

from pathlib import Path
from typing import Annotated

from shrinkage import __version__, report
from shrinkage.cli.read_file import extras, fail, weights_in
from shrinkage.diagnostics.checkpoint_files import TOP
from shrinkage.errors import ParameterError, listed

with extras():
    import typer

app = typer.Typer(
    help="Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros.",
    no_args_is_help=True,
    add_completion=False,
)


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
        Path, typer.Argument(help="A state_dict, or a checkpoint that holds one: a file of torch.save or safetensors.")
    ],
    below: Annotated[float, typer.Option(min=0.0, help="Weights of smaller size count as small.")] = 1e-3,
    key: Annotated[
        str | None,
        typer.Option(help="The entry of a checkpoint that is the state_dict, such as model or ema.state_dict."),
    ] = None,
) -> None:
    """Count the zeros of a saved model: exact ones, small weights, and whole rows and columns."""
    entry, weights, others = weights_in(file, key)
    if not any(tensor.is_floating_point() for tensor in weights.values()):
        types = listed(sorted({str(tensor.dtype) for tensor in weights.values()}), most=3)
        fail(f"{str(file)!r} holds no floating-point weights, only {types}: of others no zeros are counted")
    if entry != TOP:
        rest = f"; others are {listed(others)}, with --key" if others else ""
        typer.echo(f"The entry {entry!r} of {str(file)!r}{rest}:")
    try:
        typer.echo(report(weights, below=below))
    except ParameterError as error:
        fail(f"{str(file)!r}: {error}")
