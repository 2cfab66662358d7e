"""Numbers that a model's own code computes with, such as a count of heads, and what they become."""

from collections.abc import Iterator

import torch
from torch import nn

from shrinkage.shrink.export import lines
from shrinkage.shrink.graph import Coupling
from shrinkage.shrink.layers import rule_of_layer
from shrinkage.shrink.tensors import joined, own_tensors


def changed_attributes(coupling: Coupling, model: nn.Module, gone: torch.Tensor) -> dict[str, object]:
    """Return the attributes of modules that give a length which changes when the channels `gone` go.

    An export keeps the numbers of a model's code but not where they come from. An attribute of the module whose code it
    is that has the old length is taken for its source; where several have it, those that are named after heads. The
    comparison of the outputs has the last word.
    """
    changes: dict[str, object] = {}
    for piece, trace in coupling.traces:
        for literal in trace.literals:
            going = lines(gone[coupling.labels.find(literal.factor)], literal.axis).all(1)
            length = int((~going).sum())
            if length == literal.length:
                continue
            path = joined(piece.path, literal.path) if literal.path else piece.path
            module = model.get_submodule(path)
            if rule_of_layer(module) is not None and own_tensors(module):
                continue  # whose shapes tell
            for name in _named(module, literal.length):
                changes[joined(path, name)] = length
    return changes


def _named(module: nn.Module, length: int) -> Iterator[str]:
    """Yield the names of the attributes of `module` that are the number `length` and may give it."""
    names = [name for name, value in vars(module).items() if type(value) is int and value == length]
    heads = [name for name in names if "head" in name and "dim" not in name and "size" not in name]
    yield from heads if len(names) > 1 and heads else names
