"""Recurrent operators: the weights of their layers and directions, and whether their outputs hear their inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx

from shrinkage.compression.dataflow.dependence import packet_of
from shrinkage.compression.tracing.operators import aten

LAYERS = (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
CELLS = (aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
RECURRENT = (*LAYERS, *CELLS)


class Direction(NamedTuple):
    """The weights of one layer in one direction: of what enters, and of the projection, which few have."""

    entering: Any
    projection: Any


def directions(node: fx.Node, given: Mapping[str, Any]) -> list[list[Direction]]:
    """Return the weights of a recurrent operator, whose arguments are `given`, by layer and direction."""
    if packet_of(node) in CELLS:
        return [[Direction(given["w_ih"], None)]]
    params, count = given["params"], given["num_layers"] * (1 + given["bidirectional"])
    each = len(params) // count
    projected = each == (5 if given["has_biases"] else 3)
    flat = [Direction(params[at], params[at + each - 1] if projected else None) for at in range(0, len(params), each)]
    per_layer = count // given["num_layers"]
    return [flat[at : at + per_layer] for at in range(0, count, per_layer)]


def weights_in(node: fx.Node, given: Mapping[str, Any]) -> Iterator[fx.Node]:
    """Yield the weights whose zeros tell whether the outputs of a recurrent operator hear what enters it."""
    for layer in directions(node, given):
        for direction in layer:
            yield from (weight for weight in direction if isinstance(weight, fx.Node))


def hears(layers: Sequence[Sequence[Direction]], parts: Mapping[int, Tensor], zeros: Callable[[Any], Tensor]) -> bool:
    """Return whether what is needed of a recurrent operator depends on what enters it.

    Args:
        layers: the weights by layer and direction.
        parts: which elements are needed: of the outputs at 0, of the last hidden and cell states behind.
        zeros: tells which elements of a weight are zero.
    """
    inside = _live(layers, zeros)
    outputs = _put_out(layers[-1], inside[-1], zeros)
    hidden = [one for layer, live in zip(layers, inside, strict=True) for one in _put_out(layer, live, zeros)]
    cells = [one for live in inside for one in live]
    found = False
    for place, mask in parts.items():
        states = hidden if place == 1 else cells
        if place == 0:
            found |= any(outputs)
        elif mask.dim() == 3 and len(mask) == len(states):
            found |= any(live and bool(one.any()) for live, one in zip(states, mask, strict=True))
        else:
            found |= any(states)
    return found


def _live(layers: Sequence[Sequence[Direction]], zeros: Callable[[Any], Tensor]) -> list[list[bool]]:
    """Return whether the state of each layer and direction depends on what enters the first layer."""
    result: list[list[bool]] = []
    before = [True]
    for layer in layers:
        live = [_reads(zeros(direction.entering), before) for direction in layer]
        result.append(live)
        before = _put_out(layer, live, zeros)
    return result


def _put_out(layer: Sequence[Direction], live: Sequence[bool], zeros: Callable[[Any], Tensor]) -> list[bool]:
    """Return whether each direction puts out something that depends on what enters the first layer."""
    return [
        each and (direction.projection is None or not bool(zeros(direction.projection).all()))
        for direction, each in zip(layer, live, strict=True)
    ]


def _reads(zero: Tensor, before: Sequence[bool]) -> bool:
    """Return whether a weight has an entry for what one of the directions before it puts out, if that is live."""
    if zero.dim() < 2 or zero.shape[-1] == 1:
        return any(before) and not bool(zero.all())
    blocks = zero.chunk(len(before), dim=-1)
    return any(live and not bool(block.all()) for block, live in zip(blocks, before, strict=True))
