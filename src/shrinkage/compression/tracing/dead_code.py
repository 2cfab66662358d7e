"""Operators of a graph whose results nobody uses."""

from collections.abc import Container

import torch
from torch import fx

from shrinkage.compression.tracing.trace import mutates


def without_dead_code(graph: fx.Graph, owned: Container[fx.Node]) -> None:
    """Erase what outputs do not depend on and no weight takes part in: an average that is left aside, say.

    What weights of such code read has to fit them still, so that their operators stay, with what these read.

    Args:
        graph: is changed.
        owned: its placeholders of parameters and buffers.
    """
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in live or node.op != "call_function" or mutates(node):
            live.update((node, *node.all_input_nodes))
    weighs: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in live and any(each in owned or each in weighs for each in node.all_input_nodes):
            weighs.add(node)
    for node in reversed(graph.nodes):
        if node not in live | weighs and not node.users and not _is_a_part(node, live | weighs):
            graph.erase_node(node)


def _is_a_part(node: fx.Node, live: Container[fx.Node]) -> bool:
    """Return whether `node` is a slice of what is `live`: it tells that the code takes this apart, whoever reads it."""
    return node.target is torch.ops.aten.slice.Tensor and node.args[0] in live
