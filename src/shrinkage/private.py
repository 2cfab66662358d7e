"""Private names of torch. Each is looked for when it is needed: a torch without it is an error, not a wrong number."""

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import nn

from shrinkage.errors import ShrinkageError

COMPILED = ("torch._dynamo", "OptimizedModule")
FSDP = ("torch.distributed.fsdp", "FullyShardedDataParallel")
FLAT = ("torch.distributed.fsdp", "FlatParameter")
# Modules of torch that hold another one: where the class is, what it is called, and by which name it holds the other.
WRAPPERS = (
    (*COMPILED, "_orig_mod"),
    (*FSDP, "_fsdp_wrapped_module"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "CheckpointWrapper", "_checkpoint_wrapped_module"),
)
FLATTENED = "_fsdp_flattened"  # FSDP1's mark on a parameter of which each process has a flat shard


def private(owner: Any, name: str, use: str) -> Any:
    """Return the attribute `name` of a module, class or object of torch.

    Args:
        owner: what has it.
        name: of the attribute.
        use: what it is needed for, in words.

    Raises:
        ShrinkageError: this version of torch has no such name.
    """
    found = getattr(owner, name, None)
    if found is None:
        raise missing(f"{getattr(owner, '__name__', type(owner).__name__)}.{name}", use)
    return found


def code_inside(function: Callable[..., Any], name: str, use: str) -> CodeType:
    """Return the code of the function called `name` that a function of torch defines inside.

    Raises:
        ShrinkageError: it defines none in this version.
    """
    codes = (each for each in function.__code__.co_consts if isinstance(each, CodeType))
    found = next((code for code in codes if code.co_name == name), None)
    if found is None:
        raise missing(f"{function.__qualname__}.<locals>.{name}", use)
    return found


def missing(name: str, use: str) -> ShrinkageError:
    """Return the error for a name that this version of torch does not have."""
    return ShrinkageError(
        f"torch {torch.__version__} has no {name}, which is needed to {use}; install a later release of shrinkage, or "
        "a version of torch that its README says this one was tested with"
    )


def wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper of torch holds; None if `module` is none of them."""
    for file, kind, name in WRAPPERS:
        if is_a(module, file, kind):
            inner: nn.Module = private(module, name, f"find the module inside of {kind}")
            return inner
    return None


def compiled_from(module: nn.Module) -> nn.Module | None:
    """Return the module that `torch.compile` made `module` from; None if it did not."""
    return wrapped(module) if is_a(module, *COMPILED) else None


def check_marks(module: nn.Module) -> None:
    """Raise `ShrinkageError` if `module` is a wrapper of torch that does not leave the marks by which it is known."""
    wrapped(module)
    if is_a(module, *FSDP):
        use = "tell the flat shards of parameters that FullyShardedDataParallel leaves to processes"
        common = sys.modules["torch.distributed.fsdp._common_utils"]
        if private(common, "FSDP_FLATTENED", use) != FLATTENED:
            raise missing(f"mark {FLATTENED!r} on parameters", use)


def is_a(thing: object, file: str, kind: str) -> bool:
    """Return whether `thing` is of the class `kind` in a file of torch; there are none where nobody imported it."""
    module = sys.modules.get(file)
    return module is not None and isinstance(thing, private(module, kind, f"tell what is a {kind}"))
