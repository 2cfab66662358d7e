"""Computations that need sums over a whole tensor, of which they may hold a piece.

Such a computation is a generator: it yields the sums over its piece, is sent the sums over the whole, and returns its
result. Where the tensor is not spread over processes its own sums are those of the whole. Where it is, whoever runs
many of them in step adds up what all of them yield with one message.
"""

from collections.abc import Generator
from typing import TypeVar

from torch import Tensor

Result = TypeVar("Result")
Reduction = Generator[Tensor, Tensor, Result]


def alone(computation: Reduction[Result]) -> Result:
    """Return the result of a computation whose piece is the whole.

    >>> import torch
    >>> def mean(piece):
    ...     total, count = yield torch.stack([piece.sum(), torch.tensor(float(len(piece)))])
    ...     return total / count
    >>> alone(mean(torch.tensor([1.0, 3.0])))
    tensor(2.)
    """
    try:
        sums = next(computation)
        while True:
            sums = computation.send(sums)
    except StopIteration as end:
        result: Result = end.value
        return result
