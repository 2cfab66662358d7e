"""What a node of a graph gives in several runs, and which elements of it depend on the inputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Value:
    """What a node gives for the example, then in each of the runs with noise.

    `depends` has a truth value for each element: whether it depends on the inputs of the model. It is None if none
    does, a list for several outputs, and True for what is no tensor in rows and columns.
    """

    runs: list[Any]
    depends: Any = None

    @property
    def is_free(self) -> bool:
        """Whether nothing of it depends on the inputs."""
        return all(mask is None for mask in (self.depends if isinstance(self.depends, list) else [self.depends]))


def is_dense(value: Any) -> bool:
    """Return whether `value` is no tensor of a sparse kind."""
    return not isinstance(value, Tensor) or value.layout == torch.strided


def is_stirrable(value: Any) -> bool:
    """Return whether `value` may be noise: whole numbers may not, which could be indices."""
    if not isinstance(value, Tensor):
        return False
    return value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
