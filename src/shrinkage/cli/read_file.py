"""Files of weights, read by their format."""

import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from shrinkage.cli.file_formats import Format, format_of
from shrinkage.diagnostics.checkpoint_files import chosen
from shrinkage.errors import first_line

# The extra of this package with which each optional package is installed.
EXTRAS = {"jinja2": "cli", "matplotlib": "cli", "onnxscript": "export", "safetensors": "cli", "typer": "cli"}


@contextmanager
def extras() -> Iterator[None]:
    """Say what to install if an optional package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        sys.exit(f"shrinkage: the command line needs {package}; in a checkout of it: pip install '.[{extra}]'")


with extras():
    import typer


def fail(message: str) -> NoReturn:
    """Print one line and end with exit code 1."""
    typer.echo(f"shrinkage: {message}", err=True)
    raise typer.Exit(1)


def weights_in(file: Path, key: str | None) -> tuple[str, dict[str, Tensor], list[str]]:
    """Return the key of the state_dict in `file`, the state_dict, and other keys; or say what is wrong and end."""
    try:
        return chosen(content_of(file), key)
    except ValueError as error:
        hint = "; choose one with --key" if "say which" in str(error) else ""
        fail(f"{str(file)!r} {error}{hint}")


def content_of(file: Path) -> object:
    """Return what is in `file`, or say in one line what is wrong and end."""
    if not file.exists():
        fail(f"there is no file {str(file)!r}")
    try:
        found = format_of(file)
    except OSError as error:
        fail(f"{str(file)!r} cannot be read: {error.strerror}")
    if found is Format.SAFETENSORS:
        return read_safetensors(file)
    if found is Format.TORCH:
        return read_torch(file)
    if found is Format.INDEX:
        from shrinkage.cli.several_files import read_index  # imports much of torch.distributed

        return read_index(file, content_of)
    if found is Format.DISTRIBUTED:
        return read_folder(file)
    fail(f"{str(file)!r} is {found}; expected a state_dict, or a checkpoint with one, of torch.save or safetensors")


def read_safetensors(file: Path) -> object:
    """Return the tensors of a safetensors file."""
    with extras():
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        fail(f"{str(file)!r} is cut off or damaged: safetensors says {first_line(error)!r}; copy or save it again")


def read_folder(folder: Path) -> object:
    """Return the tensors of a distributed checkpoint; nothing in it is executed."""
    from shrinkage.cli.several_files import read_distributed  # imports much of torch.distributed

    try:
        return read_distributed(folder)
    except Exception as error:  # a damaged one raises whatever torch and pickle stumble over
        fail(
            f"{str(folder)!r} is a folder of torch.distributed.checkpoint that is damaged or of another version: "
            f"{first_line(error)}; copy or save it again"
        )


def read_torch(file: Path) -> object:
    """Return the content of a file of `torch.save`; nothing in it is executed."""
    try:
        with file.open("rb") as stream:  # by its name torch.load takes some files for ones of safetensors
            content: object = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        fail(
            f"{str(file)!r} holds Python objects{f' ({found[1]})' if found else ''} and not tensors alone; those are "
            "not loaded, because they can run code. If you trust the file, load it with torch.load(..., "
            "weights_only=False) and save the weights alone, with torch.save(model.state_dict(), ...)"
        )
    except Exception as error:  # a damaged file raises whatever torch and pickle stumble over
        fail(
            f"{str(file)!r} is cut off or damaged: it begins as a file of torch.save does, and torch.load stops in it "
            f"({type(error).__name__}); copy or save it again"
        )
    return content
