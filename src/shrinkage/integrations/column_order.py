"""Columns of a first layer in the order in which they leave a path."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from shrinkage.penalties.groups import Columns


def column_norms(states: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """Return the norm of each column of one weight in several states, shape `(states, columns)`."""
    return torch.stack([Columns().norms(state[name]) for state in states])


def last_states(norms: Tensor) -> Tensor:
    """Return in which state each column is last not zero, -1 if in none.

    >>> last_states(torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])).tolist()
    [0, 1, -1]
    """
    states = torch.arange(len(norms))[:, None]
    return torch.where(norms != 0, states, -1).amax(0)


def columns_in_order(norms: Tensor) -> Tensor:
    """Return the columns, first those that stay longest; of those that leave in one step, first that of larger norm.

    >>> columns_in_order(torch.tensor([[1.0, 2.0, 3.0, 1.0], [0.0, 3.0, 0.0, 1.0]])).tolist()
    [1, 3, 2, 0]
    """
    last = last_states(norms)
    by_norm = norms.gather(0, last.clamp_min(0)[None])[0].argsort(descending=True, stable=True)
    return by_norm[last[by_norm].argsort(descending=True, stable=True)]


def importances(norms: Tensor, strengths: Sequence[float]) -> Tensor:
    """Return the strength at which each column leaves; those that leave in one step are spread over it by their norms.

    Args:
        norms: of each column at each strength, shape `(strengths, columns)`.
        strengths: growing, the first at least 0.

    A column that stays to the end has more than the last strength, and one that was never there has 0.

    >>> importances(torch.tensor([[1.0, 2.0, 3.0, 0.0], [0.0, 3.0, 0.0, 0.0]]), [1.0, 4.0]).tolist()
    [2.0, 6.0, 3.0, 0.0]
    """
    found = torch.zeros(norms.shape[1], dtype=torch.float64)
    order, last = columns_in_order(norms), last_states(norms)
    for state, (low, high) in enumerate(pairwise([*strengths, 2 * strengths[-1] or 1.0])):
        leaving = order[last[order] == state].flip(0)
        share = torch.arange(1, len(leaving) + 1, dtype=torch.float64) / (len(leaving) + 1)
        found[leaving] = low + (high - low) * share
    return found


def last_state_with(norms: Tensor, columns: Tensor) -> int:
    """Return the last of the states in which none of the columns is zero, the first state if there is none."""
    complete = (norms[:, columns] != 0).all(1).nonzero()
    return int(complete[-1]) if len(complete) else 0
