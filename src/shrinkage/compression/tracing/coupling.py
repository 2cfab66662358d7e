"""Which channels of a model are one and the same: a graph of its operators, from `torch.export`."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.inputs import positional
from shrinkage.compression.copying.caches import emptied, global_caches_left_out
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.compression.dataflow.divisors import absorbers_in, hold_unlike
from shrinkage.compression.plans.attention import with_prunable_heads
from shrinkage.compression.plans.tensors import joined, kind_of_layer, own_tensors, tensors_of
from shrinkage.compression.tracing import (  # noqa: F401  they register their rules
    contractions,
    copied_axes,
    indexing,
    parts,
    shapes,
    windows,
)
from shrinkage.compression.tracing.channels import Channels, axes_of, reduced
from shrinkage.compression.tracing.disjoint_sets import DisjointSets, distinct
from shrinkage.compression.tracing.export import Subgraph, subgraphs
from shrinkage.compression.tracing.graph_walk import follow
from shrinkage.compression.tracing.held import held
from shrinkage.compression.tracing.marks import Marks, marked_
from shrinkage.compression.tracing.operators import RULES
from shrinkage.compression.tracing.parameter_axes import (
    Axis,
    Traces,
    added_parameters,
    axes_in_multiples,
    by_axis,
    consumed_axes,
    measured_axes,
    norms_with_lengths,
    producing_axes,
    summed_axes,
    under_all_names,
)
from shrinkage.compression.tracing.recurrent_units import candidates, even
from shrinkage.compression.tracing.trace import MEAN, Trace, path_of
from shrinkage.errors import ShrinkError, first_line


class Coupling(NamedTuple):
    """The channels of a model.

    `axes` gives, for each dimension of each parameter and buffer by name, the channel of each index along it: the least
    label of its set, the same wherever two indices can only go together. `pinned` gives the reason for each channel
    that cannot go. `consumed` are the axes along which weights are summed over and do nothing else: the columns that
    read channels, where all others make them; along those that are `producing` lie the rows of weights. Along those in
    `summed`, weights are looked up, or summed by themselves: a channel goes only if it is zero there. Those that are
    `measured` are of directions whose slices are divided by their norm: they make no channel zero. `biases` are the
    parameters that are only added; `uncalled` are the modules whose parameters no graph uses. `candidates` gives the
    rows of parameters of recurrent layers that alone tell whether a unit is silent, and `even` the parameters along
    whose rows as many channels have to stay: one number counts the units of all layers and directions. `multiples`
    gives the axes along which a multiple of so many channels has to stay.
    """

    axes: Mapping[Axis, Tensor]
    pinned: Mapping[int, str]
    consumed: frozenset[Axis]
    producing: frozenset[Axis]
    summed: frozenset[Axis]
    measured: frozenset[Axis]
    biases: frozenset[str]
    labels: DisjointSets
    traces: Traces
    unknown: Mapping[str, int]
    unexported: Mapping[str, str]
    uncalled: tuple[str, ...]
    candidates: Mapping[str, range]
    even: tuple[tuple[str, ...], ...]
    multiples: Mapping[Axis, int]

    @property
    def averaged(self) -> dict[int, str]:
        """The channels over which means are taken that only divide, by label, each with the reason to leave it."""
        found: dict[int, str] = {}
        for _, trace in self.traces:
            for divisor in trace.divisors:
                for root in distinct(self.labels.find(torch.cat(divisor.labels))).tolist():
                    found.setdefault(root, f"{MEAN} that only divides, in `{path_of(divisor.node) or 'the model'}`")
        return found

    def making_axis(self, name: str) -> int | None:
        """Return the axis of a parameter along which it makes channels; None where it only reads some.

        One of length 1, which is there to broadcast, is taken only where there is no other.
        """
        axes = [dim for own, dim in self.axes if own == name]
        makes = [dim for dim in axes if (name, dim) in self.producing]
        makes = makes or [dim for dim in axes if (name, dim) not in self.consumed]
        return next((dim for dim in makes if len(self.axes[name, dim]) > 1), makes[0] if makes else None)

    def of_a_kind(self) -> list[list[Axis]]:
        """Return the axes of layers of one kind: of one length, with names that differ by numbers alone."""
        kinds: dict[tuple[str, int, int], list[Axis]] = {}
        for (name, dim), channels in self.axes.items():
            kinds.setdefault((kind_of_layer(name), dim, len(channels)), []).append((name, dim))
        return [axes for axes in kinds.values() if len(axes) > 1]

    def telling(self, name: str, dim: int) -> range:
        """Return the indices along an axis of a parameter that tell by themselves whether their channels are zero."""
        every = range(len(self.axes[name, dim]))
        return self.candidates.get(name, every) if dim == 0 else every


def couple(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    pin: Sequence[str] = (),
) -> Coupling:
    """Return the channels of `model` for the call `model(*example_inputs, **example_kwargs)`.

    A copy of the model is called. Raises ShrinkError if that cannot be, or `pin` names nothing.
    """
    args, kwargs = positional(example_inputs), example_kwargs or {}
    found, unexported, marks = _exported(model, args, kwargs)
    labels, tensors = DisjointSets(), tensors_of(model)
    own = _labels_of(labels, model)
    for name, reason in held(model, pin).items():
        for factor in own[name].factors:
            labels.pin(factor, reason)
    trained, marks_in_training = _exported_in_training(model, args, kwargs, found)
    every = tuple(
        (each, _traced(labels, each, own, absorbers_in(model, each, tensors, its), model))
        for graphs, its in ((found, marks), (trained, marks_in_training))
        for each in graphs
    )
    traces = every[: len(found)]
    for _, trace in every:
        for factor, follows in trace.splits:
            _settle(labels, factor, follows)
    hold_unlike(labels, traces, tensors, marks)
    unseen = _pin_unseen(labels, own, [*found, *trained])
    unknown = _without_rule(trace for _, trace in traces)
    uncalled = tuple(
        path for path, module in model.named_modules() if (names := _own(path, module)) and unseen.issuperset(names)
    )
    producing = under_all_names(producing_axes(every, own), own)
    summed = under_all_names(summed_axes(labels, every, own), own)
    consumed = under_all_names(consumed_axes(labels, every, own), own) - producing - summed
    measured = under_all_names(measured_axes(every), own)
    biases = added_parameters(every) - {name for name, _ in producing}  # a weight may be standardized: w - w.mean()
    return Coupling(
        by_axis(labels, own), labels.reasons(), consumed, producing, summed, measured, biases, labels, traces, unknown,
        unexported, uncalled, candidates(found, own), even(found), axes_in_multiples(traces, own),
    )  # fmt: skip


def _without_rule(traces: Iterable[Trace]) -> dict[str, int]:
    """Return how often operators without a rule are called."""
    found: dict[str, int] = {}
    for trace in traces:
        for operator, count in trace.unknown.items():
            found[operator] = found.get(operator, 0) + count
    return found


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool = False
) -> tuple[list[Subgraph], dict[str, str], Marks]:
    """Return the graphs of `model`, whose own state is left alone, and the marks of attributes in them."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ShrinkError(f"{type(model).__name__} has no operators to export: give the module before torch.jit")
    try:
        probe = with_prunable_heads(emptied(with_own_state(model)))
        marks = marked_(probe)
        with global_caches_left_out(model):
            return *subgraphs(probe, args, kwargs, training=training), marks
    except ShrinkError:
        raise
    except Exception as error:
        raise call_failed(model, error) from error


def _exported_in_training(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Sequence[Subgraph]
) -> tuple[list[Subgraph], Marks]:
    """Return the graphs of `model` in training mode, and the marks in them, if they read what those `found` do not.

    Noise that is added to weights is read there, and so are averages of rows of a codebook. What is read by training
    alone goes with what it meets there. No graphs where none can be made.
    """
    seen = _read_by(found)
    if any(_reads_a_part(module, path, seen) for path, module in model.named_modules()):
        with suppress(ShrinkError):
            graphs, failed, marks = _exported(model, args, kwargs, training=True)
            if not failed and _read_by(graphs) - seen:
                return graphs, marks
    return [], {}


def _read_by(graphs: Sequence[Subgraph]) -> set[str]:
    """Return the names of the parameters and buffers that graphs read."""
    return {name for subgraph in graphs for node, name in subgraph.owned.items() if node.users}


def _reads_a_part(module: nn.Module, path: str, seen: set[str]) -> bool:
    """Return whether a tensor of `module` itself is not `seen`, of the shape of one in it that is."""
    unseen = [each for name, each in own_tensors(module).items() if each.numel() > 1 and joined(path, name) not in seen]
    read = (
        {tuple(each.shape) for name, each in tensors_of(module).items() if joined(path, name) in seen} if unseen else ()
    )
    return any(tuple(each.shape) in read for each in unseen)


def call_failed(model: nn.Module, error: Exception) -> ShrinkError:
    """Return the error that tells that `model` cannot be called."""
    return ShrinkError(
        f"calling the {type(model).__name__} with the example inputs failed: {first_line(error)}. Positional arguments"
        " are given as a tuple, or as the only one, and keyword arguments as example_kwargs"
    )


def _own(path: str, module: nn.Module) -> set[str]:
    return {joined(path, name) for name, _ in module.named_parameters(recurse=False)}


def _labels_of(labels: DisjointSets, model: nn.Module) -> dict[str, Channels]:
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


def _traced(
    labels: DisjointSets, subgraph: Subgraph, own: Mapping[str, Channels], absorbers: Mapping[Any, Any],
    model: nn.Module,
) -> Trace:  # fmt: skip
    trace = Trace(labels, RULES, absorbers=absorbers, lengths=norms_with_lengths(model, subgraph))
    owned = subgraph.owned
    given = {
        node: own[owned[node]] if node in owned else Channels(tuple(node.meta["val"].shape))
        for node in subgraph.program.graph.nodes
        if node.op == "placeholder" and (node in owned or isinstance(node.meta.get("val"), Tensor))
    }
    given = {node: Channels(c.shape, tuple(f for f in c.factors if f.numel() > 1)) for node, c in given.items()}
    follow(trace, subgraph.program.graph, given, subgraph.inputs(), subgraph.path)
    return trace


def _settle(labels: DisjointSets, factor: Tensor, follows: Sequence[int]) -> None:
    """Make channels that lie in a grid go by whole lines of it, across the axis that leaves the most of them."""
    factor = reduced(labels, factor)
    axes = axes_of(factor)
    if len(axes) < 2:
        return
    kept = max(axes, key=lambda axis: (axis in follows, _lines(labels, factor, axis)))
    for axis in axes:
        if axis != kept:
            labels.unite(factor, factor.narrow(axis, 0, 1))


def _lines(labels: DisjointSets, factor: Tensor, axis: int) -> int:
    """Return how many channels are left where each index along `axis` is one."""
    roots, places = torch.unique(labels.find(factor), return_inverse=True)
    trial = DisjointSets()
    trial.new(len(roots))
    lines = places.movedim(axis, 0).flatten(1)
    trial.unite(lines, lines[:, :1])
    return len(distinct(trial.find(torch.arange(len(roots)))))


def _pin_unseen(labels: DisjointSets, own: Mapping[str, Channels], found: Sequence[Subgraph]) -> set[str]:
    """Hold what no graph shows, and axes of one channel or of such as go together; return the names of the former."""
    seen = {id(own[name]) for subgraph in found for node, name in subgraph.owned.items() if node.users}
    for channels in own.values():
        for factor in channels.factors:
            if id(channels) not in seen:
                labels.pin(factor, "not used by any operator of the exported graph")
            elif factor.numel() == 1:
                labels.pin(factor, "the only channel")
            elif (roots := labels.find(factor.reshape(-1))).eq(roots[0]).all():
                labels.pin(factor, "all channels along an axis of a tensor are coupled, so that none would be left")
    return {name for name, channels in own.items() if id(channels) not in seen}
