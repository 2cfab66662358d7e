"""Small tensors joined to one, so that many of them cost one call."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from shrinkage.execution.task import Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, MetricStep, Number
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.proximal.precision import at_least_float32

Dims = dict[tuple[int, torch.Size], int | None]  # along which tensors can be joined, by id of their penalty and shape
LARGEST = 1 << 15  # weights in one batch, whose copy and temporaries share 1 MiB
LARGEST_COMPILED = 1 << 17  # a kernel needs no temporaries, and each call counts


def batched(tasks: Sequence[Task], largest: int = LARGEST) -> Iterator[list[Task]]:
    """Yield `tasks` in lists that can be joined: of one penalty and step, and of shapes that fit; others alone.

    A list has at most `largest` weights.
    """
    alike: dict[object, list[Task]] = {}
    dims: Dims = {}
    for task in tasks:
        if task.w.numel() > largest // 2:
            yield [task]
        else:
            alike.setdefault(key(task, dims), []).append(task)
    for members in alike.values():
        yield from (members[start : start + count] for start, count in portions(members, largest))


def portions(members: Sequence[Task], largest: int) -> Iterator[tuple[int, int]]:
    """Yield where portions of at most `largest` weights start, and how many members they have."""
    start, weights = 0, 0
    for index, member in enumerate(members):
        size = member.w.numel()
        if weights + size > largest and index > start:
            yield start, index - start
            start, weights = index, 0
        weights += size
    yield start, len(members) - start


def key(task: Task, dims: Dims) -> object:
    """Return a key that is equal for tensors that can be joined."""
    penalty, w, step = task
    if penalty.with_tensors(Tensor.detach) is not penalty:
        return id(w)
    shape = w.shape
    rest: object = None
    if not isinstance(penalty, Elementwise):
        known = id(penalty), shape  # the hash of a penalty takes longer than all else here
        dim = dims[known] if known in dims else dims.setdefault(known, dim_between(penalty, shape))
        if dim is None:
            return id(w)
        rest = (dim, shape[:dim], shape[dim + 1 :])
    if isinstance(step, AdaptiveStep):
        lr, moment, eps, correction = step
        numbers = (comparable(lr), comparable(eps), comparable(correction))
        return id(penalty), w.dtype, moment.dtype, w.device, rest, numbers
    if isinstance(step, Tensor):
        return (id(penalty), w.dtype, w.device, rest, id(step)) if step.dim() == 0 else id(w)
    return id(w) if isinstance(step, MetricStep) else (id(penalty), w.dtype, w.device, rest, step)


def comparable(number: Number) -> object:
    """Return a number, or the type of a tensor: comparing its value would wait for the device."""
    return Tensor if isinstance(number, Tensor) else number


@lru_cache(maxsize=4096)
def dim_between(penalty: Penalty, shape: torch.Size) -> int | None:
    """Return the first dimension along which tensors can be joined as they can be cut, so that no group changes."""
    return next(iter(penalty.cuts(shape)), None)


class Joined:
    """Tensors of a batch as one; `write_back` gives each its part of the result."""

    def __init__(self, members: Sequence[Task]) -> None:
        penalty, first, step = members[0]
        self._dim = None if isinstance(penalty, Elementwise) else dim_between(penalty, first.shape)
        flat = self._dim is None
        self._targets = [w.view(-1) if flat and w.is_contiguous() else w for _, w, _ in members]
        w = self._join(self._targets)
        if isinstance(step, AdaptiveStep):
            step = self._join_steps([member.step for member in members if isinstance(member.step, AdaptiveStep)])
        self.task = Task(penalty, w, step)

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors one after the other: flat, or along the dimension that tells groups apart."""
        if self._dim is None:
            return torch.cat([tensor if tensor.dim() == 1 else tensor.reshape(-1) for tensor in tensors])
        return torch.cat(list(tensors), self._dim)

    def _join_steps(self, steps: Sequence[AdaptiveStep]) -> AdaptiveStep:
        def joined(numbers: Sequence[Number]) -> Number:
            """Return equal numbers as one; tensors are expanded."""
            if not isinstance(numbers[0], Tensor):
                return numbers[0]
            pairs = zip(numbers, self._targets, strict=True)
            return self._join([number.to(dtype).expand(w.shape) for number, w in pairs if isinstance(number, Tensor)])

        dtype = at_least_float32(steps[0].moment.dtype)
        lrs, moments, epsilons, corrections = zip(*steps, strict=True)
        return AdaptiveStep(joined(lrs), self._join(moments), joined(epsilons), joined(corrections))

    def write_back(self) -> None:
        """Give each tensor its part."""
        w, dim = self.task.w, self._dim
        if dim is None:
            parts = torch.split(w, [target.numel() for target in self._targets])
            pairs = zip(parts, self._targets, strict=True)
            shaped = [part if target.dim() == 1 else part.view(target.shape) for part, target in pairs]
            torch._foreach_copy_(self._targets, shaped)
        else:
            torch._foreach_copy_(self._targets, torch.split(w, [target.shape[dim] for target in self._targets], dim))
