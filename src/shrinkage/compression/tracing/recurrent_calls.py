"""Calls of recurrent layers while a model is exported: one operator each, however many steps there are.

torch itself follows a layer step by step, and no sequences that are packed, since their sizes depend on the data. Here
they are followed as if all were of full length, and where the padding is depends on the call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shrinkage.compression.tracing.recurrent_cells import GRU, LIBRARY, LSTM, RNN_RELU, RNN_TANH, Cell

ARGUMENTS = "(Tensor x, Tensor[] states, Tensor[] weights, bool biased, int layers, bool both, bool batch_first)"


def shapes_alone(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], biased: bool, layers: int, both: bool,
    batch_first: bool,
) -> list[Tensor]:  # fmt: skip
    """Return tensors of the shapes of what recurrent layers put out, and of their last states."""
    put_out = x.new_empty((*x.shape[:2], states[0].shape[-1] * (1 + both)))
    return [put_out, *(state.new_empty(state.shape) for state in states)]


def _layers(name: str) -> Any:
    """Return a new operator that stands for recurrent layers."""
    LIBRARY.define(f"{name}{ARGUMENTS} -> Tensor[]")
    LIBRARY.impl(name, shapes_alone, "CompositeExplicitAutograd")
    return getattr(torch.ops.shrinkage_recurrent, name).default


CALLS: dict[Callable[..., Any], Any] = {
    torch.lstm: _layers("lstm_layers"), torch.gru: _layers("gru_layers"),
    torch.rnn_tanh: _layers("rnn_tanh_layers"), torch.rnn_relu: _layers("rnn_relu_layers"),
}  # fmt: skip
LAYERS: dict[Any, Cell] = dict(zip(CALLS.values(), (LSTM, GRU, RNN_TANH, RNN_RELU), strict=True))


class FullLength:
    """The numbers of sequences in each step of a pack in which all have `steps` steps, in the place of a tensor."""

    device = torch.device("cpu")

    def __init__(self, steps: int, samples: int) -> None:
        self.steps, self.samples = steps, samples

    def __getitem__(self, step: int) -> int:
        """Return the number of sequences in a step."""
        return self.samples

    def size(self, _: int = 0) -> int:
        """Return the number of steps."""
        return self.steps

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        """Be taken for a tensor by the functions of torch, all of which but those of `Following` refuse it."""
        return NotImplemented


class Following(TorchFunctionMode):
    """Let recurrent layers be one operator each, and packed sequences be of full length."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        """Call `function`, or what is followed in its place."""
        name = getattr(function, "__name__", "")
        if function in CALLS and not kwargs:
            return _packed_layers(function, *args) if isinstance(args[1], FullLength) else _called(function, *args)
        if name == "_pack_padded_sequence":
            return _packed(*args)
        if name == "_pad_packed_sequence" and isinstance(args[1], FullLength):
            return _padded(*args)
        return function(*args, **(kwargs or {}))


def _called(
    function: Callable[..., Any], x: Tensor, given: Any, weights: Any, biased: bool, layers: int, dropout: float,
    training: bool, both: bool, batch_first: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    states = [given] if isinstance(given, Tensor) else list(given)
    return tuple(CALLS[function](x, states, list(weights), biased, layers, both, batch_first))


def _packed(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Any]:
    """Return the steps of all sequences one after the other."""
    x = x.transpose(0, 1) if batch_first else x
    return x.flatten(0, 1), FullLength(*x.shape[:2])


def _packed_layers(
    function: Callable[..., Any], data: Tensor, sizes: FullLength, given: Any, weights: Any, *options: Any
) -> tuple[Tensor, ...]:
    """Return what recurrent layers make of a pack."""
    x = data.reshape(sizes.steps, sizes.samples, *data.shape[1:])
    put_out, *states = _called(function, x, given, weights, *options)
    return put_out.flatten(0, 1), *states


def _padded(
    data: Tensor, sizes: FullLength, batch_first: bool, padding: float, steps: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the sequences of a pack side by side, padded at places that depend on the call, and their lengths."""
    x = data.reshape(sizes.steps, sizes.samples, *data.shape[1:])
    known = torch.randn_like(data.new_zeros((sizes.steps, sizes.samples, *(1,) * (x.dim() - 2)))) > 0
    x = torch.where(known, x, padding)
    if steps > sizes.steps:
        x = torch.cat([x, torch.full_like(x[-1:], padding).expand(steps - sizes.steps, *x.shape[1:])])
    lengths = torch.full((sizes.samples,), sizes.steps)
    return (x.transpose(0, 1) if batch_first else x), lengths
