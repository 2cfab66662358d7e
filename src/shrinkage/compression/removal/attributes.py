"""Numbers that a model's own code computes with, such as a count of heads, and what they become."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.plans.layers import rule_of_layer
from shrinkage.compression.plans.tensors import joined, own_tensors
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.compression.tracing.export import lines


class Change(NamedTuple):
    """The attribute of the dotted `name` becomes `length` when those of the channels with `labels` go that go."""

    name: str
    length: int | tuple[int]
    labels: Tensor


def changed_attributes(coupling: Coupling, model: nn.Module, gone: Tensor) -> dict[str, object]:
    """Return the attributes of modules that give a length which changes when the channels `gone` go.

    An export keeps the numbers of a model's code but not where they come from. An attribute of the module whose code it
    is that has the old length is taken for its source; where several have it, those that are named after heads. The
    comparison of the outputs has the last word.
    """
    return {change.name: change.length for change in _changes(coupling, model, gone)}


def _changes(coupling: Coupling, model: nn.Module, gone: Tensor) -> Iterator[Change]:
    for subgraph, trace in coupling.traces:
        for literal in trace.literals:
            labels = coupling.labels.find(literal.factor)
            going = lines(gone[labels], literal.axis).all(1)
            length = int((~going).sum())
            if length == literal.length:
                continue
            path = joined(subgraph.path, literal.path) if literal.path else subgraph.path
            module = model.get_submodule(path)
            if rule_of_layer(module) is not None and own_tensors(module):
                continue  # whose shapes tell
            for name in _named(module, literal.length):
                yield Change(joined(path, name), length, labels.reshape(-1))
            for name, value in vars(module).items():
                if type(value) is tuple and value == (literal.length,):  # the shape that a norm without scale has
                    yield Change(joined(path, name), (length,), labels.reshape(-1))


def _named(module: nn.Module, length: int) -> Iterator[str]:
    """Yield the names of the attributes of `module` that are the number `length` and may give it."""
    names = [name for name, value in vars(module).items() if type(value) is int and value == length]
    heads = [name for name in names if "head" in name and "dim" not in name and "size" not in name]
    yield from heads if len(names) > 1 and heads else names


def alike(attributes: Iterable[str], model: nn.Module) -> list[frozenset[str]]:
    """Return the dotted names of attributes, those of the same name and class together: one code reads them.

    Ordinary layers, which know their widths, are left out.
    """
    groups: dict[tuple[type[nn.Module], str], set[str]] = {}
    for name in attributes:
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if rule_of_layer(module) is None:
            groups.setdefault((type(module), attribute), set()).add(name)
    return [frozenset(names) for names in groups.values()]


def equal_by_chance(
    coupling: Coupling, model: nn.Module, gone: Tensor, fits: Callable[[Tensor, frozenset[str]], bool]
) -> frozenset[str]:
    """Return the attributes that keep their number: they have that of a length which changes, and are not its source.

    The size of a head, say, where there are as many heads. Attributes that one code reads are tried by themselves:
    `fits(held, names)` tells whether the model computes the same without the channels that are not `held`, while the
    attributes `names` stay as they are.
    """
    changes = list(_changes(coupling, model, gone))
    kept: set[str] = set()
    for names in alike({change.name for change in changes}, model):
        alone = torch.ones_like(gone)
        for change in changes:
            if change.name in names:
                alone[change.labels] = False
        if fits(alone, names):
            kept |= names
    return frozenset(kept)
