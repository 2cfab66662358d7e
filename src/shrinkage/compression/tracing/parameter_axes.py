"""What parameters do along their axes: they make channels, sum over them, or are only added."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from shrinkage.compression.dataflow.dependence import packet_of
from shrinkage.compression.plans.normed_weights import lengths_of
from shrinkage.compression.tracing.channels import Channels
from shrinkage.compression.tracing.disjoint_sets import DisjointSets
from shrinkage.compression.tracing.export import Subgraph, sources
from shrinkage.compression.tracing.trace import Sum, Trace

Axis = tuple[str, int]
Traces = Sequence[tuple[Subgraph, Trace]]


def by_axis(labels: DisjointSets, own: Mapping[str, Channels]) -> dict[Axis, Tensor]:
    """Return the channel of each index along each dimension of each tensor."""
    return {
        (name, dim): labels.find(channels.factors[dim].reshape(-1))
        for name, channels in own.items()
        for dim in range(len(channels.shape))
    }


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
            read = labels.find(each.labels)
            if trace.from_data.isdisjoint(node for node, _ in each.sides):
                for name in _summed_by_itself(labels, each, owned, own):
                    for dim, factor in enumerate(own[name].factors):
                        if bool(torch.isin(labels.find(factor), read).all()):
                            found.add((name, dim))
    return frozenset(found)


def _summed_by_itself(
    labels: DisjointSets, of: Sum, owned: Mapping[fx.Node, str], own: Mapping[str, Channels]
) -> set[str]:
    """Return the names of what is summed by itself, or in products with buffers, such as those of a spectral norm."""
    sides = [{owned[one] for one in sources(node) if one in owned} for node, _ in of.sides]
    if len(sides) == 1:
        return sides[0]
    if not all(sides):  # a first state of zeros, which a weight reads as it reads all later ones
        return set()
    starts = {name: min((int(each.min()) for each in own[name].factors), default=0) for name in set().union(*sides)}
    parameters = [{name for name in names if starts[name] < labels.of_parameters} for names in sides]
    several = [names for names in parameters if names]
    return several[0] if len(several) == 1 else set()


def measured_axes(traces: Traces) -> frozenset[Axis]:
    """Return the axes of parameters along which each slice is divided by its own norm, so that none may be zero."""
    found: set[Axis] = set()
    for subgraph, _ in traces:
        for node in subgraph.program.graph.nodes:
            if packet_of(node) is torch.ops.aten._weight_norm and node.args[0] in subgraph.owned:
                dim = node.args[2] if len(node.args) > 2 else 0
                found |= {(subgraph.owned[node.args[0]], dim)} if dim != -1 else set()
    return frozenset(found)


def under_all_names(axes: Iterable[Axis], own: Mapping[str, Channels]) -> frozenset[Axis]:
    """Return `axes` under all names of their parameters: an export knows one of those that are tied."""
    names: dict[int, list[str]] = {}
    for name, channels in own.items():
        names.setdefault(id(channels), []).append(name)
    return frozenset((other, dim) for name, dim in axes for other in names[id(own[name])])


def norms_with_lengths(model: nn.Module, subgraph: Subgraph) -> set[fx.Node]:
    """Return the weight norms in a graph whose lengths take up what goes of their directions."""
    known = {(each.directions, each.name) for each in lengths_of(model)}
    norms = [node for node in subgraph.program.graph.nodes if packet_of(node) is torch.ops.aten._weight_norm]
    return {node for node in norms if tuple(subgraph.owned.get(each, "") for each in node.args[:2]) in known}


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
