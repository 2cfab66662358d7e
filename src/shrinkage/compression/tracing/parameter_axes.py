"""What parameters do along their axes: they make channels, sum over them, or are only added."""

from collections.abc import Mapping, Sequence

import torch

from shrinkage.compression.tracing.channels import Channels
from shrinkage.compression.tracing.disjoint_sets import DisjointSets
from shrinkage.compression.tracing.export import Subgraph, sources
from shrinkage.compression.tracing.trace import Trace

Axis = tuple[str, int]
Traces = Sequence[tuple[Subgraph, Trace]]


def consumed_axes(labels: DisjointSets, traces: Traces, own: Mapping[str, Channels]) -> frozenset[Axis]:
    """Return the axes of parameters along which they are summed over with the values of channels."""
    consumed: set[Axis] = set()
    for subgraph, trace in traces:
        owned = subgraph.owned
        readers = [(contraction.weight, contraction.weight_labels) for contraction in trace.contractions]
        for each in trace.sums:
            weights = [node for node, _ in each.sides if node not in trace.from_data]
            readers += [(node, each.labels) for node in weights if len(weights) < len(each.sides)]
        for weight, channels in readers:
            read = labels.find(channels)
            for name in {owned[node] for node in sources(weight) if node in owned}:
                for dim, factor in enumerate(own[name].factors):
                    if factor.numel() > 1 and bool(torch.isin(labels.find(factor), read).all()):
                        consumed.add((name, dim))
    return frozenset(consumed)


def summed_axes(labels: DisjointSets, traces: Traces, own: Mapping[str, Channels]) -> frozenset[Axis]:
    """Return the axes of parameters that have to be zero along them so that a channel can go.

    There a table is looked up, or a weight is summed by itself, as where the norm of its rows divides it.
    """
    found: set[Axis] = set()
    for subgraph, trace in traces:
        owned = subgraph.owned
        tables = [node.all_input_nodes[0] for node in trace.lookups]
        found |= {(owned[table], len(own[owned[table]].shape) - 1) for table in tables if table in owned}
        for each in trace.sums:
            (node, _), *others = each.sides
            read = labels.find(each.labels)
            for name in {owned[one] for one in sources(node) if one in owned and not others}:
                for dim, factor in enumerate(own[name].factors):
                    if node not in trace.from_data and bool(torch.isin(labels.find(factor), read).all()):
                        found.add((name, dim))
    return frozenset(found)


def producing_axes(traces: Traces, own: Mapping[str, Channels]) -> frozenset[Axis]:
    """Return the axes of parameters along which their rows lie: what makes channels, though it may also read some."""
    producing: set[Axis] = set()
    for subgraph, trace in traces:
        owned = subgraph.owned
        for contraction in trace.contractions:
            rows = trace.values[contraction.weight].along(contraction.rows)
            if contraction.weight in owned:  # also where there is one row
                name = owned[contraction.weight]
                producing.add((name, contraction.rows % len(own[name].shape)))
            for name in {owned[node] for node in sources(contraction.weight) if node in owned}:
                for dim, factor in enumerate(own[name].factors):
                    if rows is not None and factor.numel() > 1 and bool(torch.isin(factor, rows).all()):
                        producing.add((name, dim))
    return frozenset(producing)


def axes_in_multiples(traces: Traces, own: Mapping[str, Channels]) -> dict[Axis, int]:
    """Return the axes of parameters along which a multiple of so many channels has to stay."""
    found: dict[Axis, int] = {}
    for subgraph, trace in traces:
        for node, count in trace.multiples:
            for name in {subgraph.owned[one] for one in sources(node) if one in subgraph.owned}:
                found |= {(name, dim): count for dim in range(len(own[name].shape))}
    return found


def added_parameters(traces: Traces) -> frozenset[str]:
    """Return the names of the parameters that are added to something or are given as a `bias`."""
    names = set()
    for subgraph, _ in traces:
        for node, name in subgraph.owned.items():
            for user in node.users:
                schema = getattr(user.target, "_schema", None)
                given = zip(schema.arguments if schema else (), user.args, strict=False)
                if user.target in ADDITIONS or any(value is node and kind.name == "bias" for kind, value in given):
                    names.add(name)
    return frozenset(names)


ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, torch.ops.aten.sub.Tensor)
