"""Which channels of a model are one and the same: a graph of its operators, from `torch.export`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from shrinkage.shrink import contractions, shapes  # noqa: F401  they register their rules
from shrinkage.shrink.channels import Channels, axes_of, reduced
from shrinkage.shrink.export import Piece, pieces
from shrinkage.shrink.labels import Labels, distinct
from shrinkage.shrink.rules import RULES
from shrinkage.shrink.tensors import joined, tensors_of
from shrinkage.shrink.trace import Trace, follow

Axis = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Coupling:
    """The channels of a model.

    `axes` gives, for each dimension of each parameter and buffer by name, the channel of each index along it: the least
    label of its set, the same wherever two indices can only go together. `pinned` gives the reason for each channel
    that can not go. `consumed` are the axes along which weights are summed over: the columns that read channels, where
    all others make them; `biases` are the parameters that are only added.
    """

    axes: Mapping[Axis, Tensor]
    pinned: Mapping[int, str]
    consumed: frozenset[Axis]
    biases: frozenset[str]
    labels: Labels
    traces: tuple[tuple[Piece, Trace], ...]
    unknown: Mapping[str, int]
    unexported: Mapping[str, str]


def couple(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    pin: Sequence[str] = (),
) -> Coupling:
    """Return the channels of `model` for the call `model(*example_inputs, **example_kwargs)`."""
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    found, unexported = pieces(model, args, example_kwargs or {})
    labels = Labels()
    own = _labels_of(labels, model)
    for name, reason in _held(model, pin).items():
        for factor in own[name].factors:
            labels.pin(factor, reason)
    traces = tuple((piece, _traced(labels, piece, own)) for piece in found)
    for _, trace in traces:
        for factor, follows in trace.splits:
            _settle(labels, factor, follows)
    _pin_unseen(labels, own, found)
    axes = {
        (name, dim): labels.find(channels.factors[dim].reshape(-1))
        for name, channels in own.items()
        for dim in range(len(channels.shape))
    }
    unknown: dict[str, int] = {}
    for _, trace in traces:
        for operator, count in trace.unknown.items():
            unknown[operator] = unknown.get(operator, 0) + count
    return Coupling(
        axes, labels.reasons(), _consumed(labels, traces, own), _biases(traces), labels, traces, unknown, unexported
    )


def _labels_of(labels: Labels, model: nn.Module) -> dict[str, Channels]:
    """Return new labels for every dimension of the parameters and buffers of `model`; tied ones have the same."""
    known: dict[int, Channels] = {}
    result = {}
    for name, tensor in tensors_of(model).items():
        if id(tensor) not in known:
            rank = tensor.dim()
            factors = tuple(
                labels.new(size).reshape([-1 if axis == dim else 1 for axis in range(rank)])
                for dim, size in enumerate(tensor.shape)
            )
            known[id(tensor)] = Channels(tuple(tensor.shape), factors)
        if isinstance(tensor, nn.Parameter):
            labels.of_parameters = labels.count
        result[name] = known[id(tensor)]
    return result


def _held(model: nn.Module, pin: Sequence[str]) -> dict[str, str]:
    """Return the parameters and buffers that are never cut, each with its reason."""
    held: dict[str, str] = {}
    for path, module in model.named_modules():
        reason = next((text for kind, text in UNSHRINKABLE.items() if isinstance(module, kind)), None)
        if is_parametrized(module):
            reason = (
                "behind a parametrization: remove it first, with torch.nn.utils.parametrize.remove_parametrizations"
            )
        if reason is not None:
            held |= {joined(path, name): reason for name in tensors_of(module)}
    names = tensors_of(model)
    for pattern in pin:
        held |= {name: "pinned by you" for name in names if name == pattern or name.startswith(f"{pattern}.")}
    return held


UNSHRINKABLE: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "nn.MultiheadAttention takes the size of a head from its width, so that no head can go",
    nn.RNNBase: "a recurrent layer's gates are not taken apart",
}


def _traced(labels: Labels, piece: Piece, own: Mapping[str, Channels]) -> Trace:
    trace = Trace(labels, RULES)
    owned = piece.owned()
    given = {
        node: own[owned[node]] if node in owned else Channels(tuple(node.meta["val"].shape))
        for node in piece.program.graph.nodes
        if node.op == "placeholder" and (node in owned or isinstance(node.meta.get("val"), Tensor))
    }
    given = {node: Channels(c.shape, tuple(f for f in c.factors if f.numel() > 1)) for node, c in given.items()}
    follow(trace, piece.program.graph, given, piece.inputs())
    return trace


def _settle(labels: Labels, factor: Tensor, follows: Sequence[int]) -> None:
    """Make channels that lie in a grid go by whole lines of it, across the axis that leaves the most of them."""
    factor = reduced(labels, factor)
    axes = axes_of(factor)
    if len(axes) < 2:
        return
    kept = max(axes, key=lambda axis: (axis in follows, _lines(labels, factor, axis)))
    for axis in axes:
        if axis != kept:
            labels.unite(factor, factor.narrow(axis, 0, 1))


def _lines(labels: Labels, factor: Tensor, axis: int) -> int:
    """Return how many channels are left where each index along `axis` is one."""
    roots, places = torch.unique(labels.find(factor), return_inverse=True)
    trial = Labels()
    trial.new(len(roots))
    lines = places.movedim(axis, 0).flatten(1)
    trial.unite(lines, lines[:, :1])
    return len(distinct(trial.find(torch.arange(len(roots)))))


def _pin_unseen(labels: Labels, own: Mapping[str, Channels], found: Sequence[Piece]) -> None:
    """Hold what no graph shows, and all of it where a dimension has length 1."""
    seen = {id(own[name]) for piece in found for node, name in piece.owned().items() if node.users}
    for channels in own.values():
        for factor in channels.factors:
            if id(channels) not in seen:
                labels.pin(factor, "not used by any operator of the exported graph")
            elif factor.numel() == 1:
                labels.pin(factor, "the only channel")


def _consumed(labels: Labels, traces: Sequence[tuple[Piece, Trace]], own: Mapping[str, Channels]) -> frozenset[Axis]:
    """Return the axes of parameters along which they are summed over with the values of channels."""
    consumed: set[Axis] = set()
    for piece, trace in traces:
        owned = piece.owned()
        for contraction in trace.contractions:
            for name in {owned[node] for node in _sources(contraction.weight) if node in owned}:
                factors = [
                    (dim, factor.reshape(-1)) for dim, factor in enumerate(own[name].factors) if factor.numel() > 1
                ]
                direct = {
                    (name, dim) for dim, flat in factors if bool(torch.isin(flat, contraction.weight_labels).all())
                }
                read = labels.find(contraction.weight_labels)
                united = {(name, dim) for dim, flat in factors if bool(torch.isin(labels.find(flat), read).all())}
                consumed |= direct or united
    return frozenset(consumed)


def _sources(node: Any) -> set[Any]:
    """Return `node` and all that it is computed from."""
    found, open_ = set(), [node]
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_ += node.all_input_nodes
    return found


def _biases(traces: Sequence[tuple[Piece, Trace]]) -> frozenset[str]:
    """Return the names of the parameters that are added to something or are given as a `bias`."""
    names = set()
    for piece, _ in traces:
        for node, name in piece.owned().items():
            for user in node.users:
                schema = getattr(user.target, "_schema", None)
                given = zip(schema.arguments if schema else (), user.args, strict=False)
                if user.target in ADDITIONS or any(value is node and kind.name == "bias" for kind, value in given):
                    names.add(name)
    return frozenset(names)


ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, torch.ops.aten.sub.Tensor)
