"""The tensors in what a call of a model returns."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dictionaries and dataclasses.

    >>> import torch
    >>> [tensor.item() for tensor in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
    [1, 2]
    """
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, field.name) for field in fields(leaf)])
    return found


def all_tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nested structure, and those that objects in it, such as distributions, hold."""
    return list(_tensors_within(value, set()))


def _tensors_within(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in `value`, outside of what is in `seen` already, which objects in a circle come back to."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, type | nn.Module):
            seen.add(id(leaf))
            yield from _tensors_within(list(getattr(leaf, "__dict__", {}).values()), seen)
