"""Layers and parameters that a model holds in plain lists and dictionaries, where torch does not find them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from shrinkage.distributed.flat_parameters import is_flat
from shrinkage.errors import SelectionError, warn_user


def unregistered(model: nn.Module) -> dict[str, int]:
    """Return how many trainable parameters each attribute hides in a plain list, tuple, set or dictionary, by name.

    >>> model = nn.Module()
    >>> model.layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    >>> unregistered(model)
    {'layers': 4}
    """
    registered = {id(parameter) for parameter in model.parameters()}
    found = {}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in OWN and isinstance(value, CONTAINERS):
                held = {id(p): p for p in _parameters(value, set()) if p.requires_grad and id(p) not in registered}
                if held:
                    found[f"{path}.{attribute}" if path else attribute] = len(held)
    return found


OWN = frozenset(vars(nn.Module()))
CONTAINERS = (list, tuple, set, frozenset, Mapping)


def _parameters(value: Any, seen: set[int]) -> Iterator[nn.Parameter]:
    """Yield the parameters in nested containers, and those of modules in them."""
    if is_flat(value):  # which FSDP1 keeps beside the parameters that are views of it
        return
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, CONTAINERS) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _parameters(item, seen)


def told(hidden: Mapping[str, int]) -> str:
    """Return in words where layers are not found, and what to do; empty if there are none."""
    if not hidden:
        return ""
    names = ", ".join(f"{name!r} ({count} parameters)" for name, count in hidden.items())
    return f"layers in a plain list or dictionary are not found, here in {names}: use nn.ModuleList or nn.ModuleDict"


@contextmanager
def told_with_errors(model: nn.Module) -> Iterator[None]:
    """Add to the error of a rule that selects nothing which layers `model` hides."""
    try:
        yield
    except SelectionError as error:
        hidden = told(unregistered(model))
        raise SelectionError(f"{error}; {hidden}") if hidden else error from error.__cause__


def warn_of_unregistered(model: nn.Module) -> None:
    """Warn of the layers that `model` hides, which neither rules nor optimizers that are given it find."""
    if hidden := unregistered(model):
        warn_user(told(hidden))
