"""Operators of a graph whose results nobody uses."""

from collections.abc import Collection, Container
from operator import getitem

import torch
from torch import fx

from shrinkage.compression.tracing import shapes
from shrinkage.compression.tracing.copied_axes import expand, expand_as
from shrinkage.compression.tracing.operators import RULES, like_the_first, pointwise
from shrinkage.compression.tracing.parts import slice_, split
from shrinkage.compression.tracing.trace import mutates
from shrinkage.compression.tracing.without_rule import rule_of

SHAPED = frozenset({  # rules of what gives the numbers that it takes in another shape
    shapes.view, shapes.flatten, shapes.unflatten, shapes.squeeze, shapes.permute, shapes.transpose, shapes.movedim,
    shapes.t, expand, expand_as, like_the_first, slice_, split,
})  # fmt: skip


def without_dead_code(graph: fx.Graph, owned: Container[fx.Node]) -> None:
    """Erase what outputs do not depend on, no weight takes part in, and does not join what stays: an average, say.

    What weights of such code read has to fit them still, so that their operators stay, with what these read. So do
    sums and products of tensors, since a model computes them all the same: the last residual of a chain of which only
    the other outputs count.

    Args:
        graph: is changed.
        owned: its placeholders of parameters and buffers.
    """
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in live or node.op != "call_function" or mutates(node):
            live.update((node, *node.all_input_nodes))
    stays: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in live and any(each in owned or each in stays for each in node.all_input_nodes):
            stays.add(node)
    stays |= live
    stays |= _joining(graph, stays)
    for node in reversed(graph.nodes):
        if node not in stays and not node.users and not _is_a_part(node, stays):
            graph.erase_node(node)


def _joining(graph: fx.Graph, stays: Collection[fx.Node]) -> set[fx.Node]:
    """Return the pointwise functions of several tensors that `stay`, or are such in another shape."""
    shaped: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for node in graph.nodes:
        given = node.all_input_nodes
        if node in stays or not given or not all(each in stays or each in shaped for each in given):
            continue
        rule = rule_of(RULES, node.target)
        if rule is pointwise or rule in SHAPED or node.target is getitem:
            shaped.add(node)
            if rule is pointwise and len(given) > 1:
                found.add(node)
    return found


def _is_a_part(node: fx.Node, live: Container[fx.Node]) -> bool:
    """Return whether `node` is a slice of what is `live`: it tells that the code takes this apart, whoever reads it."""
    return node.target is torch.ops.aten.slice.Tensor and node.args[0] in live
