"""Which nodes of a graph write into memory that others see, and how long what they give is needed."""

from operator import getitem

import torch
from torch import fx

from shrinkage.compression.dataflow.dependence import IDLE, packet_of


def is_random(node: fx.Node) -> bool:
    """Return whether `node` draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def in_shared_memory(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose memory is written to, by themselves or through another one that is a view of it."""
    views: dict[fx.Node, set[fx.Node]] = {}
    written: set[fx.Node] = set()
    for node in graph.nodes:
        views[node] = {node}
        schema = getattr(node.target, "_schema", None)
        kinds = [argument.alias_info for argument in schema.arguments] if schema else []
        alike = {argument for kind, argument in zip(kinds, node.args, strict=False) if kind is not None}
        written |= {argument for kind, argument in zip(kinds, node.args, strict=False) if kind and kind.is_write}
        if node.target is getitem or packet_of(node) in IDLE:
            alike.add(node.args[0])
        for argument in alike & views.keys():
            merged = views[node] | views[argument]
            views |= dict.fromkeys(merged, merged)
    return set().union(*(views[node] for node in written & views.keys()))


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Return for each node those that no later one uses, itself if none does."""
    last = {operand: node for node in graph.nodes for operand in (node, *node.all_input_nodes)}
    finished: dict[fx.Node, list[fx.Node]] = {}
    for operand, node in last.items():
        finished.setdefault(node, []).append(operand)
    return finished
