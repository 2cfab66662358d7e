"""What controls measure before an update: the penalty at strength 1, and by how much one update lowers it.

Shards of one parameter are added up over processes. All that one optimizer measures is one message for each dimension
of a mesh along which parameters are cut.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.diagnostics.evaluation import all_of, sum_of, value_of
from shrinkage.distributed.all_reduce import added_up
from shrinkage.distributed.dtensor import process_groups_of, spread, whole
from shrinkage.distributed.group_sharding import blocks_of, full_penalty
from shrinkage.execution.single_tensor import chunks
from shrinkage.optimizers.adaptive_step import number
from shrinkage.optimizers.registry import Metric
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.controlled import Controlled, unit
from shrinkage.penalties.membership import coupled_of
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import alone
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.step_sizes import Steps, shard_of

Targets = Sequence[PenalizedParameter]


class Measurement(NamedTuple):
    """What one control measures at one parameter, or at all that share its groups.

    Args:
        control: what measures.
        name: of the first parameter.
        numbers: R and the gain of this process's shard, shape `(2,)`; a gain of 0 is not known.
        process_groups: over which they are added up.
    """

    control: Controlled
    name: str
    numbers: Tensor
    process_groups: tuple[Any, ...]


def measured(control: Controlled, targets: Targets, optimizer: Optimizer, metric: Metric | None) -> list[Measurement]:
    """Return what `control` measures at `targets` on this process."""
    steps = Steps(optimizer, metric) if control.control.asks_gain(control.state) else None
    found = []
    for block in blocks_of(targets, lambda target: target.block):
        first = block[0]
        penalty = unit(first.penalty, control)
        if first.group_sharding is None:
            numbers, groups = of_shard(penalty, first, steps), process_groups_of(first.parameter)
        else:
            numbers, groups = of_whole(penalty, block, steps), ()
        if first.every > 1:  # from one look to the next there are so many steps
            numbers = torch.stack([numbers[0], numbers[1] * first.every])
        found.append(Measurement(control, first.name, numbers, groups))
    return found


def of_shard(penalty: Penalty, target: PenalizedParameter, steps: Steps | None) -> Tensor:
    """Return R and the gain of this process's shard, in chunks that stay in a processor's cache."""
    own, w = shard_of(penalty, target.parameter)
    step = None
    with suppress(KeyError):  # it never had a gradient
        step = None if steps is None else steps.task(target, penalty, steps.before(target)).step
    values, gains = [], []
    for part, chunk, size in chunks(own, w, 0.0 if step is None else step) if w.numel() else ():
        point = part.unrounded(chunk)
        values.append(part.value(point))
        if step is not None:
            gains.append((part.gradient(point).square() * number(size)).sum())
    return row(values, gains, w)


def of_whole(penalty: Penalty, block: Targets, steps: Steps | None) -> Tensor:
    """Return R and the gain of parameters that share groups, or of one whose groups cross processes, as a whole."""
    parameters = {target.name: target.parameter for target in block}
    value, gains = value_of(penalty, parameters), []
    if steps is not None:
        points = {name: upcast(whole(parameter.detach())) for name, parameter in parameters.items()}
        if coupled_of(penalty) is None:
            slopes = [full_penalty(penalty).gradient(each) for each in points.values()]
        else:
            slopes = alone(coupled_norms.gradient(*all_of(penalty, points), list(points.values())))
        with suppress(KeyError):  # one never had a gradient
            for target, slope in zip(block, slopes, strict=True):
                size = steps.now(target)
                if isinstance(size, Tensor) and size.dim():
                    size = whole(spread(size, target.parameter))
                gains.append((slope.square() * size).sum())
    return row([value], gains, value)


def row(values: Sequence[Tensor], gains: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the sums of values and of gains, in double precision where the device has it."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    zero = torch.zeros((), dtype=dtype, device=like.device)
    return torch.stack([sum_of([zero, *(each.to(dtype) for each in part)]) for part in (values, gains)])


def summed(measurements: Sequence[Measurement]) -> Tensor:
    """Return what is measured over all processes, a row for each measurement, on the device of the first."""
    groups = [each.process_groups for each in measurements]
    asked = {index: each.numbers for index, each in enumerate(measurements)}
    sums = added_up(asked, groups) if any(groups) else asked
    device = measurements[0].numbers.device
    return torch.stack([sums[index].to(device, non_blocking=True) for index in range(len(measurements))])
