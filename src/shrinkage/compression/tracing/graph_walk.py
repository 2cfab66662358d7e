"""Channels followed through an exported graph, operator by operator."""

from collections.abc import Iterable
from typing import Any

from torch import fx

from shrinkage.compression.tracing.channels import Channels
from shrinkage.compression.tracing.copied_axes import MAKING
from shrinkage.compression.tracing.trace import Trace, labels_in, mutates, shapes_of
from shrinkage.compression.tracing.without_rule import apply_rule, without_channels


def follow(
    trace: Trace, graph: fx.Graph, given: dict[fx.Node, Channels], data: Iterable[fx.Node], owner: str = ""
) -> None:
    """Follow the channels through `graph`, that of the module called `owner`, or of the whole model.

    Args:
        trace: where what is found is noted.
        graph: as `torch.export` gives it.
        given: the channels of the placeholders.
        data: the placeholders of the inputs.
        owner: the dotted name of the module.
    """
    put_out = f"put out by `{owner}`, which was exported by itself" if owner else "an output of the model"
    trace.from_data.update(data)
    trace.values.update(given)
    for node in graph.nodes:
        trace.node = node
        if any(argument in trace.from_data for argument in node.all_input_nodes):
            trace.from_data.add(node)
            if mutates(node):
                trace.from_data.update(_views(node.args[0]))
        if node.op == "output":
            for factor in labels_in(fx.map_arg(node.args, trace.values.get)):
                trace.labels.pin(factor, put_out)
        elif node.op != "placeholder" and (shapes_of(node) or node.users):
            trace.values[node] = _result(trace, node)


def _result(trace: Trace, node: fx.Node) -> Any:
    """Return the channels of the output of `node`."""
    if getattr(node.target, "__name__", "") == "getitem" and node.op == "call_function":
        several, place = fx.map_arg(node.args, trace.values.get)
        return several[place] if isinstance(several, tuple | list) and isinstance(place, int) else None
    if labels_in([trace.values.get(argument) for argument in node.all_input_nodes]) or _makes_channels(node):
        return apply_rule(trace, node)
    return without_channels(node)


def _makes_channels(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in MAKING


def _views(node: Any) -> set[fx.Node]:
    """Return `node` and the first arguments that it is a view of, if it is one: all may see what is written to it."""
    views: set[fx.Node] = set()
    while isinstance(node, fx.Node) and node.op == "call_function":
        views.add(node)
        node = node.args[0] if node.args else None
    return views
