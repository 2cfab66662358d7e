"""The channels of a model as groups to be charged: what makes a channel goes to zero as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from shrinkage.coupled import Coupled, Member
from shrinkage.errors import GroupError
from shrinkage.shrink.graph import Coupling, couple
from shrinkage.shrink.labels import distinct
from shrinkage.shrink.tensors import tensors_of


def CoupledChannels(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    pin: Sequence[str] = (),
) -> Coupled:
    """Return the groups of all that makes a channel: rows of weights, their biases, the scale and shift of a norm.

    Args:
        model: its operators are followed as in `shrink`.
        example_inputs: a tuple of the positional arguments of a call of `model`, or the only one.
        example_kwargs: the keyword arguments of that call.
        pin: dotted names of modules or parameters that are not charged.

    A group that is zero makes its channel zero, so that `shrink` takes it out exactly. Heads of attention are groups
    too: the rows of queries, keys and values that belong to one. Groups are disjoint; channels that can not go (inputs,
    outputs, the width of a residual stream under a norm) are in none.

    Raises GroupError if no channel of the model can go.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    >>> channels = CoupledChannels(model, torch.randn(5, 4))
    >>> channels.count, channels.names
    (3, ('0.weight', '0.bias', '1.weight', '1.bias'))
    """
    coupling = couple(model, example_inputs, example_kwargs=example_kwargs, pin=pin)
    free = _made_by(coupling, model)
    roots = sorted({root for channels in free.values() for root in distinct(channels).tolist()} - set(coupling.pinned))
    if not roots:
        raise GroupError(
            "expected a model of which some channel can go, found none: the report of `shrink` names the reasons"
        )
    number = {root: place for place, root in enumerate(roots)}
    members = [
        Member(name, dim, [number.get(root, -1) for root in channels.tolist()])
        for (name, dim), channels in free.items()
    ]
    return Coupled([member for member in members if max(member.groups) >= 0])


def _made_by(coupling: Coupling, model: nn.Module) -> dict[tuple[str, int], Tensor]:
    """Return the channels along the first axis of each trainable parameter that makes any, tied ones once."""
    found: dict[tuple[str, int], Tensor] = {}
    tensors, seen = tensors_of(model), set()
    for (name, dim), channels in coupling.axes.items():
        tensor = tensors[name]
        if (name, dim) in coupling.consumed or not isinstance(tensor, nn.Parameter) or not tensor.requires_grad:
            continue
        if id(tensor) not in seen and any(root not in coupling.pinned for root in distinct(channels).tolist()):
            seen.add(id(tensor))
            found[name, dim] = channels
    return found
