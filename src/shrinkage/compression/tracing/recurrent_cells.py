"""What a recurrent cell does in one step, as two operators whose channels are its hidden units.

A unit puts out zero for all time if it starts at zero and its candidate, the new value that its gates let in, is zero:
    LSTM  c = f c + i tanh(candidate),  h = o tanh(c);    GRU  h = z h + (1 - z) tanh(candidate)
Whether it is does not follow from a few steps, in which not every unit may have been heard by all others. So one step
is followed that starts at any states, of which no more is known than that units without a candidate are as at first.

Reference: S. Hochreiter and J. Schmidhuber (1997), Long short-term memory; K. Cho et al. (2014), Learning phrase
representations using RNN encoder-decoder for statistical machine translation; both with the gates of PyTorch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from shrinkage.compression.tracing.channels import Channels, axes_of
from shrinkage.compression.tracing.operators import aten, coupling_rule, placed
from shrinkage.compression.tracing.trace import Trace

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
DRAWS = 64  # states that each unit is tried with at least


class Cell(NamedTuple):
    """A kind of recurrent cell.

    `before` are the states that a step may start at, `step` is the step, and of the `gates` blocks of rows of its
    weights that of the number `candidate` makes what is new.
    """

    before: Any
    step: Any
    gates: int
    candidate: int


def lstm(entering: Tensor, fed_back: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the state after a step of an LSTM."""
    keep_in, forget, candidate, out = (entering + fed_back).chunk(4, -1)
    state = forget.sigmoid() * state + keep_in.sigmoid() * candidate.tanh()
    return out.sigmoid() * state.tanh(), state


def gru(entering: Tensor, fed_back: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of a step of a GRU, twice: it is the state, too."""
    reset, keep, candidate = entering.chunk(3, -1)
    reset_back, keep_back, candidate_back = fed_back.chunk(3, -1)
    candidate = (candidate + (reset + reset_back).sigmoid() * candidate_back).tanh()
    keep = (keep + keep_back).sigmoid()
    state = (1 - keep) * candidate + keep * state
    return state, state


def rnn_tanh(entering: Tensor, fed_back: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of a step of an Elman network, twice."""
    state = (entering + fed_back).tanh()
    return state, state


def rnn_relu(entering: Tensor, fed_back: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of a step of an Elman network with rectified units, twice."""
    state = (entering + fed_back).relu()
    return state, state


def states_before(
    step: Step, entering: Tensor, weight: Tensor, bias: Tensor | None, projection: Tensor | None, first: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what may be fed back to a step, and the state that it may start at, with noise for what is not known.

    Args:
        step: of the cell.
        entering: what the gates get of the input, as `(..., gates * units)`.
        weight, bias: of what is fed back.
        projection: of what is put out, if there is one.
        first: what is fed back to the first step.
        state: that the first step starts at.
    """
    positions = entering.shape[:-1]
    times = -(-DRAWS // max(positions.numel(), 1))
    fed_back = entering.new_empty((times, *positions, weight.shape[1])).normal_().mul_(3).clamp_(-8, 8).sinh_()
    put_out, after = step(entering, linear(fed_back, weight, bias), state)
    put_out = put_out if projection is None else linear(put_out, projection)
    return _unless_as(first, put_out), _unless_as(state, after)


def _unless_as(first: Tensor, later: Tensor) -> Tensor:
    """Return `first` where it is the same in all `later` ones, and noise elsewhere."""
    return torch.where((later == first).all(0), first, torch.empty_like(later[0]).normal_())


LIBRARY: Any = torch.library.Library("shrinkage_recurrent", "DEF")  # type: ignore[no-untyped-call]
BEFORE = "(Tensor entering, Tensor weight, Tensor? bias, Tensor? projection, Tensor first, Tensor state)"
STEP = "(Tensor entering, Tensor fed_back, Tensor state)"


def _defined(name: str, arguments: str, function: Callable[..., Any]) -> Any:
    """Return a new operator of torch that calls `function`."""
    LIBRARY.define(f"{name}{arguments} -> (Tensor, Tensor)")
    LIBRARY.impl(name, function, "CompositeImplicitAutograd")
    return getattr(torch.ops.shrinkage_recurrent, name).default


def _cell(step: Step, gates: int, candidate: int) -> Cell:
    before = _defined(f"before_{step.__name__}", BEFORE, partial(states_before, step))
    return Cell(before, _defined(step.__name__, STEP, step), gates, candidate)


LSTM, GRU = _cell(lstm, 4, 2), _cell(gru, 3, 2)
RNN_TANH, RNN_RELU = _cell(rnn_tanh, 1, 0), _cell(rnn_relu, 1, 0)
CELLS = {
    aten.lstm_cell.default: LSTM, aten.gru_cell.default: GRU,
    aten.rnn_tanh_cell.default: RNN_TANH, aten.rnn_relu_cell.default: RNN_RELU,
}  # fmt: skip
KINDS = (LSTM, GRU, RNN_TANH, RNN_RELU)
GATES = {each.overloadpacket: kind.gates for kind in KINDS for each in (kind.before, kind.step)}


@coupling_rule(*(kind.before.overloadpacket for kind in KINDS))
def before_rule(
    trace: Trace, entering: Channels, weight: Channels, bias: Channels | None, projection: Channels | None,
    first: Channels, state: Channels,
) -> tuple[Channels, Channels]:  # fmt: skip
    """A unit has a row in each block of gates, a state, and what it puts out, which a projection makes new ones of."""
    rank = len(entering.shape)
    entering = trace.fix(entering, range(rank - 2), "a step in time")
    rows = Channels((*(1,) * (rank - 1), weight.shape[0]), placed(weight, 0, rank, -1))
    units = trace.combine([*_blocks(trace, entering), *_blocks(trace, rows), state], shape_of(trace, 1))
    if projection is None:
        units = trace.combine([units, first], shape_of(trace, 1))
        return units, units
    put_out = Channels((*(1,) * (rank - 1), projection.shape[0]), placed(projection, 0, rank, -1))
    return trace.combine([put_out, first], shape_of(trace, 0)), units


@coupling_rule(*(kind.step.overloadpacket for kind in KINDS))
def step_rule(trace: Trace, entering: Channels, fed_back: Channels, state: Channels) -> tuple[Channels, Channels]:
    """All that a unit has is one channel."""
    units = trace.combine([*_blocks(trace, entering), *_blocks(trace, fed_back), state], shape_of(trace, 1))
    return units, units


def shape_of(trace: Trace, place: int) -> tuple[int, ...]:
    """Return the shape of one of the outputs."""
    return tuple(trace.node.meta["val"][place].shape)


def _blocks(trace: Trace, x: Channels) -> list[Channels]:
    """Return `x`, whose last axis has the rows of all gates, taken apart into one for each gate."""
    count = GATES[trace.operator.overloadpacket]
    if any(len(axes_of(factor)) > 1 and factor.shape[-1] > 1 for factor in x.factors):
        x = trace.fix(x, [-1], "taken apart into gates")
    blocks = [factor.chunk(count, -1) if factor.shape[-1] > 1 else (factor,) * count for factor in x.factors]
    shape = (*x.shape[:-1], x.shape[-1] // count)
    return [trace.make([block[gate] for block in blocks], shape) for gate in range(count)]
