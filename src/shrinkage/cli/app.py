"""The `shrinkage` command: the report of a saved model, and a smaller model."""

import json
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, NamedTuple

from shrinkage import Report, __version__, report
from shrinkage.cli.read_file import extras, fail, weights_in
from shrinkage.cli.shrink_command import shrink_file
from shrinkage.cli.two_reports import compared, to_dict
from shrinkage.diagnostics.checkpoint_files import TOP
from shrinkage.errors import ParameterError, listed
from shrinkage.selection.first_match import nearest

with extras():
    import typer
    from torch import Tensor

app = typer.Typer(
    help="Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("shrink")(shrink_file)


class Counted(NamedTuple):
    """Which tensors of a file are counted: those that have a name of these patterns, if any, and matrices alone."""

    patterns: Sequence[str]
    matrices: bool

    def of(self, weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
        """Return those of `weights`; or say that there are none and end."""
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in weights):
                fail(f"--select {pattern!r} has no tensor in {str(file)!r}; nearest names: {nearest(pattern, weights)}")
        found = {
            name: tensor
            for name, tensor in weights.items()
            if (tensor.dim() > 1 or not self.matrices)
            and (not self.patterns or any(fnmatchcase(name, pattern) for pattern in self.patterns))
        }
        if not found:
            fail(f"{str(file)!r} holds no tensor of two dimensions or more that is asked for")
        return found


def share(text: str) -> float:
    """Return a share from 0 to 1 that is written as a number or in percent; or say what is wrong and end.

    >>> share("0.9"), share("90%")
    (0.9, 0.9)
    """
    with suppress(ValueError):
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 <= found <= 1:
            return found
    raise typer.BadParameter(f"expected a share from 0 to 1 such as 0.9 or 90%, got {text!r}")


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


FailUnder = Annotated[
    float | None,
    typer.Option(
        parser=share,
        metavar="SHARE",
        help="End with exit code 1 if a smaller share of what is counted is exactly zero: 0.9 or 90%.",
    ),
]
Select = Annotated[
    list[str] | None,
    typer.Option(help='Count tensors alone whose name has this pattern, such as "encoder.*.weight"; repeatable.'),
]
Matrices = Annotated[
    bool,
    typer.Option("--matrices", help="Count tensors of two dimensions or more alone: no biases, no norms."),
]


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
    fail_under: FailUnder = None,
    select: Select = None,
    matrices: Matrices = False,
) -> None:
    """Count the zeros of a saved model: exact ones, small weights, and whole rows and columns."""
    found = [read(each, key, below, Counted(select or (), matrices)) for each in (file, other) if each is not None]
    reports = [each for _, _, each in found]
    if as_json:
        typer.echo(json.dumps(reports[0].to_dict() if other is None else to_dict(*reports), indent=2))
    else:
        typer.echo(
            "\n".join([*(head for head, _, _ in found if head), str(compared(*reports) if other else reports[0])])
        )
    _, weights, last = found[-1]
    if html is not None:
        write_page(html, weights, below, title=f"Zeros of {(other or file).name}")
        typer.echo(f"written: {html}", err=as_json)
    if fail_under is not None and last.sparsity < fail_under:
        hint = "" if select or matrices else "; biases and norms count too, but with --matrices or --select"
        fail(f"{zeros_in_words(last, other or file)}, fewer than {fail_under:.1%}{hint}")


def zeros_in_words(found: Report, file: Path) -> str:
    """Return how many weights of a file are zero."""
    return f"{found.sparsity:.1%} of the {found.size:,} weights of {str(file)!r} are zero"


def read(file: Path, key: str | None, below: float, counted: Counted) -> tuple[str, dict[str, Tensor], Report]:
    """Return which entry of a file was read, in words, its weights, and their report; or say what is wrong and end."""
    entry, weights, others = weights_in(file, key)
    if not any(tensor.is_floating_point() for tensor in weights.values()):
        types = listed(sorted({str(tensor.dtype) for tensor in weights.values()}), most=3)
        fail(f"{str(file)!r} holds no floating-point weights, only {types}: of others no zeros are counted")
    weights = counted.of(weights, file)
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
