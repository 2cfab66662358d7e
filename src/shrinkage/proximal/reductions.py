"""Computations that need sums over a full tensor, though they may hold one shard of it.

Such a computation is a generator: it yields the sums over its shard, is sent the sums over the full tensor, and returns
its result. The sums of a plain tensor are its own. Those of shards are added up over processes; the sums of many
computations that run side by side are one message.
"""

from collections.abc import Generator
from typing import TypeVar

from torch import Tensor

Result = TypeVar("Result")
Reduction = Generator[Tensor, Tensor, Result]


def alone(computation: Reduction[Result]) -> Result:
    """Return the result of a computation that holds the full tensor.

    >>> import torch
    >>> def mean(shard):
    ...     total, count = yield torch.stack([shard.sum(), torch.tensor(float(len(shard)))])
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
