"""`shrinkage shrink`: a smaller model from a checkpoint, in files."""

import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from shrinkage.cli.read_file import extras, fail, weights_in
from shrinkage.compression.shrink import Shrunk, shrink
from shrinkage.compression.smaller_files import save_smaller
from shrinkage.errors import ShrinkageError, first_line

with extras():
    import typer

INPUT = re.compile(r"(\d+(?:x\d+)*)(?::(\w+))?")
ONE_FILE = 1 << 30  # bytes of weights; a file of ONNX holds twice as much, and its own text
TYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "int32": torch.int32}


def shrink_file(
    build: Annotated[
        str, typer.Argument(help="What makes the model, package.module:function, called without arguments.")
    ],
    checkpoint: Annotated[Path, typer.Argument(help="The trained weights: as for `shrinkage report`.")],
    inputs: Annotated[
        list[str],
        typer.Option("--input", help="The shape of an input, such as 1x3x224x224, or 1x128:int64; one for each input."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file of the smaller model; small.safetensors beside the checkpoint.")
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="Write the smaller model as ONNX to this file too.")] = None,
    key: Annotated[str | None, typer.Option(help="The entry of the checkpoint that is the state_dict.")] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Keep a multiple of this number of channels.")] = 1,
) -> None:
    """Remove the channels of a trained model that are zero, and write the smaller model with the same outputs."""
    example = tuple(map(example_input, inputs))
    model = built(build)
    load_weights(model, checkpoint, key)
    try:
        small = shrink(model, example, round_to=round_to)
    except (ShrinkageError, RuntimeError, TypeError, ValueError) as error:
        fail(f"a model of {build!r} with inputs {', '.join(inputs)} cannot be made smaller: {first_line(error)}")
    typer.echo(small.report)
    path = checkpoint.with_name("small.safetensors") if out is None else out
    with extras():
        import safetensors  # noqa: F401  # says what to install before the work is done
    try:
        save_smaller(path, small)
    except (OSError, ShrinkageError) as error:
        fail(f"{str(path)!r} cannot be written: {first_line(error)}")
    typer.echo(f"\nwritten: {path}, to be read by load_smaller(path, {build.rpartition(':')[2]})")
    if onnx is not None:
        write_onnx(small, example, onnx)


def example_input(text: str) -> Tensor:
    """Return random numbers of a shape and type; whole numbers are 0 or 1, which are indices of any table.

    >>> example_input("1x3x8").shape, example_input("2x5:int64").dtype
    (torch.Size([1, 3, 8]), torch.int64)
    """
    found = INPUT.fullmatch(text)
    if found is None or (found[2] or "float32") not in TYPES:
        fail(f"--input must be a shape such as 1x3x224x224 or 1x128:int64 (types: {', '.join(TYPES)}), got {text!r}")
    shape, type = [int(size) for size in found[1].split("x")], TYPES[found[2] or "float32"]
    return torch.randn(shape, dtype=type) if type.is_floating_point else torch.randint(0, 2, shape, dtype=type)


def built(build: str) -> nn.Module:
    """Return the model that the function called `build` makes; or say what is wrong and end."""
    module, colon, name = build.partition(":")
    if not (module and colon and name):
        fail(f"{build!r} names no function: write package.module:function")
    sys.path.insert(0, os.getcwd())
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        fail(f"{build!r} cannot be imported: {first_line(error)}")
    finally:
        sys.path.remove(os.getcwd())
    model = function() if callable(function) and not isinstance(function, nn.Module) else function
    if not isinstance(model, nn.Module):
        fail(f"{build!r} gives a {type(model).__name__}; expected a function that returns a torch.nn.Module")
    return model


def load_weights(model: nn.Module, checkpoint: Path, key: str | None) -> None:
    """Load the weights of a checkpoint into `model`; or say what is wrong and end."""
    _, weights, _ = weights_in(checkpoint, key)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        fail(f"the weights of {str(checkpoint)!r} are not those of this model: {told[:300]}")


def write_onnx(small: Shrunk, example: Sequence[Tensor], file: Path) -> None:
    """Write the smaller model as ONNX, for batches of any size; or say what is wrong and end."""
    with extras():
        import onnxscript  # noqa: F401  # torch.onnx needs it, and says so late
    batch, large = torch.export.Dim("batch"), small.report.after.size > ONE_FILE
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that are not there and not needed
    try:
        torch.onnx.export(
            small.model.eval(),  # in training mode, dropout would be exported as it is in training
            tuple(example),
            str(file),
            dynamo=True,
            verbose=False,
            external_data=large,
            dynamic_shapes=tuple({0: batch} for _ in example) if all(len(each) > 1 for each in example) else None,
        )
    except Exception as error:  # the exporter raises of many kinds
        fail(f"{str(file)!r} is not written, since torch.onnx cannot export the model: {first_line(error)}")
    typer.echo(f"written: {file}" + (f", which needs {file.name}.data beside it" if large else ""))
