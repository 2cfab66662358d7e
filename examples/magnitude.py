"""Pruning to a size: the channels with the lowest scores become zero, until few enough parameters are left."""

import copy

import torch
from torch import Tensor, nn

from shrinkage import Coupled, Shrunk, shrink
from shrinkage.compression.calls.cost import parameter_count

TOLERANCE = 0.02  # how far, relative to the size that is wanted, the size of the pruned model may be off


def magnitudes(model: nn.Module, channels: Coupled) -> Tensor:
    """Return how large each channel is: its norm over the square root of its size, relative to the mean of its layer.

    Without the mean the widest layers, whose weights start smallest, would lose all channels but one.
    """
    squares, sizes = torch.zeros(channels.count), torch.zeros(channels.count)
    for name in channels.names:
        member = channels.slices(name)
        slices = model.get_parameter(name).detach().movedim(member.dim, 0).reshape(len(member.groups), -1)
        groups = torch.tensor(member.groups)
        inside = groups >= 0
        squares.index_add_(0, groups[inside], slices.square().sum(1)[inside])
        sizes.index_add_(0, groups[inside], torch.full_like(slices[:, 0], slices.shape[1])[inside])
    found = (squares / sizes).sqrt()
    for layer in layers_of(channels):
        found[layer] = found[layer] / found[layer].mean()
    return found


def layers_of(channels: Coupled) -> list[list[int]]:
    """Return the numbers of the channels of each layer, or of layers that have their channels in common."""
    families = ({group for name in names for group in channels.slices(name).groups} for names in channels.families())
    return [sorted(groups - {-1}) for groups in families]


def places(channels: Coupled) -> Tensor:
    """Return the place of each channel in its layer, from 1 down to nearly 0: by it, layers keep equal shares."""
    found = torch.zeros(channels.count)
    for layer in layers_of(channels):
        found[layer] = torch.linspace(1, 0, len(layer) + 1)[:-1]
    return found


def removal_order(sizes: Tensor, channels: Coupled) -> list[int]:
    """Return the channels from the smallest on, without the largest of each layer: no layer loses its last one."""
    stay = {max(layer, key=lambda channel: float(sizes[channel])) for layer in layers_of(channels)}
    return [channel for channel in sizes.argsort().tolist() if channel not in stay]


@torch.no_grad()
def without(model: nn.Module, channels: Coupled, removed: list[int]) -> nn.Module:
    """Return a copy of `model` in which all that makes the channels `removed` is zero."""
    result = copy.deepcopy(model)
    for name in channels.names:
        member = channels.slices(name)
        gone = torch.isin(torch.tensor(member.groups), torch.tensor(removed, dtype=torch.long))
        result.get_parameter(name).index_fill_(member.dim, gone.nonzero().flatten(), 0.0)
    return result


def pruned_to(model: nn.Module, channels: Coupled, scores: Tensor, inputs: Tensor, parameters: int) -> Shrunk:
    """Return `model` without the channels of the lowest scores, so that about as many parameters as asked for are left.

    How many is found by interpolation and by halving in turns, which ends within half of `TOLERANCE` or with the
    closest there is. The square root of a size is nearly linear in the number of channels, as weights have two sides.
    """
    order = removal_order(scores, channels)

    def miss(small: Shrunk) -> int:
        return abs(small.report.after.parameters - parameters)

    fewest, most = 0, len(order) + 1
    largest, smallest = parameter_count(model), 0
    attempts: list[Shrunk] = []
    while most - fewest > 1 and not any(miss(small) <= TOLERANCE / 2 * parameters for small in attempts):
        share = (largest**0.5 - parameters**0.5) / (largest**0.5 - smallest**0.5) if len(attempts) % 2 == 0 else 0.5
        count = min(max(fewest + round(share * (most - fewest)), fewest + 1), most - 1)
        small = shrink(without(model, channels, order[:count]), inputs)
        attempts.append(small)
        if small.report.after.parameters > parameters:
            fewest, largest = count, small.report.after.parameters
        else:
            most, smallest = count, small.report.after.parameters
    return min(attempts, key=miss)
