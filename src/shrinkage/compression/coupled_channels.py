"""The channels of a model as groups to be penalized: what makes a channel goes to zero as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from shrinkage.compression.calls.inputs import positional
from shrinkage.compression.copying.copies import plain
from shrinkage.penalties.coupled_groups import Coupled


def CoupledChannels(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    pin: Sequence[str] = (),
    uniform: bool = False,
    residual: bool = False,
) -> Coupled:
    """Return one group per channel: rows of weights, their biases, and the scale and shift of a norm.

    Args:
        model: its operators are followed as in `shrink`.
        example_inputs: a tuple of the positional arguments of a call of `model`, or the only one.
        example_kwargs: the keyword arguments of that call.
        pin: dotted names of modules or parameters that are not penalized.
        uniform: one group for the channels with the same number in all layers of a kind, whose names differ by numbers
            alone. Such layers keep one width.
        residual: also the channels over which a mean is taken that only divides, as an RMS norm and global response
            normalization do: one group for a channel of a residual stream is the column of the embedding, the row of
            each projection that adds to the stream, and the scales of all norms.

    A group that is zero makes its channel zero, so that `shrink` removes it exactly. Heads of attention are groups
    too: the rows of queries, keys and values that belong to one. Where a channel whose weights are zero would still be
    a constant that nothing takes up, as a neuron of a Kolmogorov-Arnold network is behind the functions that read it,
    its group is what reads it: the columns of those weights. Under weight norm, a group has the length of a row, and no
    direction; under spectral norm also the columns that read the channel, and one channel stays out of groups, so that
    no norm is zero. Groups are disjoint; channels that cannot go (inputs,
    outputs, the width of a residual stream under a layer norm; what a frozen weight makes) are in none. A copy of the
    model with one channel less of each kind is called once; what makes it fail is in no group, and a warning says so.
    Another one tells where the exporter does not take the model as a whole. The groups know how many parameters and
    multiply-adds are left without some of them, which `Budget` asks for.

    Raises:
        GroupError: no channel of the model can go.
        ShrinkError: the model cannot be called with the example inputs, or `pin` names nothing.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    >>> channels = CoupledChannels(model, torch.randn(5, 4))
    >>> channels.count, channels.names
    (3, ('0.weight', '0.bias', '1.weight', '1.bias'))
    """
    # Not imported before it is needed: analysis is a sixth of what the package would import.
    from shrinkage.compression.removal.channel_groups import channel_groups

    call = positional(example_inputs), dict(example_kwargs or {})
    return channel_groups(plain(model), call, pin, uniform=uniform, residual=residual)
