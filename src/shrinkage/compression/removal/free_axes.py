"""Along which axes parameters are in groups: one axis of each, where it makes channels that can go."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from shrinkage.compression.plans.normed_weights import divided_axes
from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.compression.tracing.disjoint_sets import distinct
from shrinkage.compression.tracing.parameter_axes import Axis


def free_axes(coupling: Coupling, model: nn.Module) -> dict[Axis, Tensor]:
    """Return the channels along one axis of each trainable parameter that makes any, tied ones once.

    A weight that is summed by itself, as under a spectral norm, holds the channels along its other axes, which go only
    where it is zero. So it is taken along the axis whose channels weights before it make and none of these holds; along
    the first one, where there is none such. In a chain, that is every second kind of channels.
    """
    found: dict[Axis, Tensor] = {}
    made, lost = (torch.zeros(coupling.labels.count, dtype=torch.bool) for _ in range(2))
    tensors = tensors_of(model)
    for name, dims in _options(coupling, tensors).items():
        several = [coupling.axes[name, dim] for dim in dims]
        choices = [(bool((made & ~lost)[own].any()), bool((~lost)[own].any())) for own in several]
        alone = [(name, dim) in coupling.summed for dim in dims]
        place = choices.index(max(choices)) if any(alone) else 0
        found[name, dims[place]] = several[place]
        if tensors[name].dim() > 1:
            made[several[place]] = True
        for other, own in enumerate(several):
            if alone[other] and other != place:
                lost[own] = True
    return found


def _options(coupling: Coupling, tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the axes along which trainable parameters make channels that nothing pins, tied ones once."""
    found: dict[str, list[int]] = {}
    names: dict[int, str] = {}
    for (name, dim), channels in coupling.axes.items():
        tensor, axis = tensors[name], (name, dim)
        makes = isinstance(tensor, nn.Parameter) and tensor.requires_grad
        if not makes or axis in coupling.consumed or axis in coupling.measured:
            continue
        if any(root not in coupling.pinned for root in distinct(channels).tolist()):
            if names.setdefault(id(tensor), name) == name:
                found.setdefault(name, []).append(dim)
    return found


def spared(
    coupling: Coupling, model: nn.Module, axes: Iterable[Axis], numbers: Callable[[Axis], Sequence[int]]
) -> set[int]:
    """Return channels that stay out of groups, so that no norm divides a weight that is zero as a whole: that is 0 / 0.

    The last channel along each axis of such a weight where all are in groups: none of their `numbers` is negative.
    """
    found: set[int] = set()
    divided = divided_axes(model, tensors_of(model))
    for axis in (axis for axis in axes if axis in divided):
        own = distinct(coupling.axes[axis]).tolist()
        if min(numbers(axis)) >= 0 and found.isdisjoint(own):
            found.add(own[-1])
    return found
