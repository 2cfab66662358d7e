"""What the outputs of a graph depend on, followed back from them: nothing that meets an exact zero on all its ways."""

from collections.abc import Iterable, Mapping
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from shrinkage.compression.dataflow.dependence import MOVEMENTS, packet_of
from shrinkage.compression.dataflow.gates import (
    ALL,
    NONE,
    NORMS,
    PRODUCTS,
    WHOLE,
    Zeros,
    along,
    arguments_of,
    compact,
    is_pointwise,
    reduced_to,
    spread,
)
from shrinkage.compression.plans.tensors import selected, zero_slices
from shrinkage.compression.tracing.operators import aten, pooling
from shrinkage.compression.tracing.trace import Contraction, Trace, mutates, shapes_of
from shrinkage.compression.tracing.without_rule import rule_of

FIRST_ALONE = (aten.type_as, aten.to, aten.expand_as, aten.lift_fresh_copy, aten.detach)
SHAPE_ALONE = (aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like)
# Each element of the output is one of the input's, or a sum of some with positive weights.
MOVES = MOVEMENTS | {aten.mean, aten.sum}
HALVES = (aten.slice, aten.select, aten.narrow)
FRESH = (*NORMS, *WHOLE)
SAME_MEMORY = (aten.dropout, aten.contiguous, aten.to, aten.type_as, aten.alias, aten.detach)


class Needs:
    """What is needed of each value in a graph so that its outputs stay.

    Args:
        trace: of the graph, whose contractions are known by it.
        zeros: what is zero in the graph.
        weights: the values of what contractions multiply with, by their nodes; where one is missing, it counts as free
            of zeros.
        start: what is needed in the first place; the outputs of the graph, if None.

    `of` has a mask for each value that is needed, which broadcasts to its shape, `cuts` the operators that are needed
    although nothing of what they are given is. What writes into a tensor that others may see needs all it is given.
    """

    def __init__(
        self,
        graph: fx.Graph,
        trace: Trace,
        zeros: Zeros,
        weights: Mapping[fx.Node, Tensor],
        start: Iterable[fx.Node] | None = None,
    ) -> None:
        self.trace, self.zeros, self.weights = trace, zeros, weights
        self.contractions = {contraction.node: contraction for contraction in trace.contractions}
        self.lookups = set(trace.lookups)
        self.place = {node: number for number, node in enumerate(graph.nodes)}
        self.of: dict[fx.Node, Tensor] = {}
        self.parts: dict[fx.Node, dict[int, Tensor]] = {}
        self.rows: dict[fx.Node, Tensor] = {}
        self.cuts: list[fx.Node] = []
        self.fed = False
        for node in start or ():
            self._need(node, ALL)
        for node in reversed(graph.nodes):
            if node.op == "output":
                for argument in node.all_input_nodes if start is None else ():
                    self._need(argument, ALL)
            elif node.op not in ("placeholder", "get_attr"):
                self._back(node)

    def include(self, node: fx.Node) -> bool:
        """Return whether anything that `node` gives is needed."""
        return node in self.of or node in self.parts

    def rows_of(self, contraction: Contraction) -> Tensor | None:
        """Return which rows of the weight of a contraction are needed; None where that is not known."""
        node, weight = contraction.node, self.weights.get(contraction.node)
        if node not in self.of and weight is not None:
            return torch.zeros(weight.shape[contraction.rows], dtype=torch.bool)
        return self.rows.get(node)

    def _need(self, node: Any, mask: Tensor) -> None:
        if isinstance(node, fx.Node) and bool(mask.any()):
            self.fed |= node in self.trace.from_data
            self.of[node] = compact(self.of[node] | mask if node in self.of else mask)

    def _all(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            self._need(node, ALL)

    def _back(self, node: fx.Node) -> None:
        """Note what `node` needs of its inputs, so that what is needed of its outputs stays."""
        if node.target is getitem:
            several, place = node.args
            if node in self.of and isinstance(several, fx.Node) and isinstance(place, int):
                self.parts.setdefault(several, {})[place] = self.of[node]
            return
        if mutates(node) and not self._alone(node):
            self._all(node.all_input_nodes)
        mask = self.of.get(node)
        if mask is None and node not in self.parts:
            return
        self.fed = packet_of(node) in SHAPE_ALONE or node not in self.trace.from_data
        if node in self.parts:
            self._several(node, self.parts[node])
        if mask is not None:
            self._one(node, mask)
        if not self.fed:
            self.cuts.append(node)

    def _several(self, node: fx.Node, masks: dict[int, Tensor]) -> None:
        """Note what an operator with several outputs needs of its inputs."""
        packet, given = packet_of(node), arguments_of(node)
        if packet in WHOLE and set(masks) == {0}:
            self._gated(node, given, masks[0])
        else:
            self._moved(node, masks)

    def _one(self, node: fx.Node, mask: Tensor) -> None:
        packet, given = packet_of(node), arguments_of(node)
        if node in self.contractions and packet is not aten.scaled_dot_product_attention:
            self._weighed(node, self.contractions[node], mask)
        elif packet in PRODUCTS:
            self._multiplied(node, given, mask)
        elif packet in NORMS:
            self._normalized(node, given, mask)
        elif packet is aten.einsum:
            self._met_by_all(node, node.args[1])
        elif packet in WHOLE:
            self._gated(node, given, mask)
        elif packet in FIRST_ALONE:
            self._met(node.all_input_nodes[:1], mask)
        elif packet in SHAPE_ALONE:
            return
        elif packet in MOVES:
            self._moved(node, {0: mask})
        elif is_pointwise(self.trace, node):
            self._met(node.all_input_nodes, mask)
        elif rule_of(self.trace.rules, node.target) is pooling:
            space = next(number for number in (1, 2, 3) if f"{number}d" in str(packet))
            self._met(node.all_input_nodes, spread(mask, range(-min(space, mask.dim()), 0)))
        else:
            self._all(node.all_input_nodes)

    def _met(self, operands: Iterable[fx.Node], mask: Tensor) -> None:
        """Need of each of `operands` what meets `mask`."""
        for operand in operands:
            shapes = shapes_of(operand)
            self._need(operand, reduced_to(mask, shapes[0]) if shapes else mask.any())

    def _multiplied(self, node: fx.Node, given: Mapping[str, Any], mask: Tensor) -> None:
        """Need of each factor what no zero of the others meets, and of what is added all."""
        masks: dict[str, Tensor] = {}
        for name, by in PRODUCTS[packet_of(node)]:
            masks[name] = mask & ~self.zeros.of(node, given.get(by))
        for name, value in given.items():
            if isinstance(value, fx.Node):
                self._met([value], masks.get(name, mask))

    def _normalized(self, node: fx.Node, given: Mapping[str, Any], mask: Tensor) -> None:
        """Need what a norm's weight lets through: all of it, where elements are measured together."""
        weight = given.get("weight")
        through = mask if weight is None else mask & ~self.zeros.along_channels(node, weight)
        if packet_of(node) is not aten.batch_norm:
            through = through.any()
        self._need(given["input"], through)
        self._all(value for name, value in given.items() if name != "input" and isinstance(value, fx.Node))

    def _gated(self, node: fx.Node, given: Mapping[str, Any], mask: Tensor) -> None:
        """Need all of what is multiplied and summed, unless all that it meets is zero; of a table what `mask` needs."""
        unread = NONE
        if node in self.lookups:
            (*_, columns) = shapes_of(node.all_input_nodes[0])[0]
            unread = ~along(mask, -1, columns)
        idle = {
            name for name, by in WHOLE[packet_of(node)] if bool((self.zeros.of(node, given.get(by)) | unread).all())
        }
        if node in self.zeros.uniform:  # any weights average the values to the same
            idle |= {"query", "key", "self"}
        self._all(tree_leaves([value for name, value in given.items() if name not in idle]))

    def _met_by_all(self, node: fx.Node, factors: Any) -> None:
        """Need all of each of `factors`, unless another one is zero as a whole."""
        for factor in factors:
            others = (other for other in factors if other is not factor)
            if not any(bool(self.zeros.of(node, other).all()) for other in others):
                self._need(factor, ALL)

    def _weighed(self, node: fx.Node, contraction: Contraction, mask: Tensor) -> None:
        """Need of the channels that a weight reads those that its needed rows have an entry for."""
        weight, columns = self.weights.get(node), ALL
        if weight is not None:
            rank = len(shapes_of(node)[0])
            wanted = along(mask, contraction.out % rank - rank, weight.shape[contraction.rows])
            self.rows[node] = wanted
            columns = ~zero_slices(selected(weight, contraction.rows, wanted), contraction.weight_axis).cpu()
            rank = len(shapes_of(contraction.data)[0])
            columns = columns.reshape([-1 if axis == contraction.axis % rank else 1 for axis in range(rank)])
        self._need(contraction.data, columns)
        self._all(argument for argument in node.all_input_nodes if argument is not contraction.data)

    def _moved(self, node: fx.Node, masks: Mapping[int, Tensor]) -> None:
        """Need of the inputs the elements that are moved to, or summed into, what is needed."""
        whole = set(range(len(shapes_of(node)))) == set(masks) and all(bool(mask.all()) for mask in masks.values())
        known = all(isinstance(size, int) for one in node.all_input_nodes for shape in shapes_of(one) for size in shape)
        if not known or packet_of(node) not in MOVES or (whole and packet_of(node) not in HALVES):
            self._all(node.all_input_nodes)
            return
        leaves = {
            one: torch.zeros(shapes_of(one)[0], requires_grad=True) for one in node.all_input_nodes if shapes_of(one)
        }
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: leaves.get(one, one.meta.get("val")))
        target: Any = node.target
        with torch.enable_grad():
            result = target(*args, **{name: value for name, value in kwargs.items() if name != "dtype"})
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        chosen = [outputs[place] for place in masks]
        if not any(out.requires_grad for out in chosen):  # bits that are taken for other numbers
            self._all(node.all_input_nodes)
            return
        cotangents = [mask.expand(out.shape).to(out.dtype) for mask, out in zip(masks.values(), chosen, strict=True)]
        found = torch.autograd.grad(chosen, list(leaves.values()), cotangents, allow_unused=True)
        for one, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                self._need(one, gradient != 0)

    def _alone(self, writer: fx.Node) -> bool:
        """Return whether nothing but the output of `writer` shows what it writes into its first argument."""
        came: fx.Node = writer
        node: Any = writer.args[0]
        while isinstance(node, fx.Node) and node.op == "call_function":
            if any(user is not came and not self._reads_before(user, writer) for user in node.users):
                return False
            packet, changed = packet_of(node), mutates(node)
            if not changed and (packet in FRESH or torch.Tag.pointwise in getattr(node.target, "tags", ())):
                return True
            if not changed and packet not in SAME_MEMORY:
                return False
            came, node = node, node.args[0]
        return False

    def _reads_before(self, user: fx.Node, writer: fx.Node) -> bool:
        """Return whether `user` has read its input, and kept nothing of it, when `writer` writes."""
        keeps_nothing = packet_of(user) in FRESH or torch.Tag.pointwise in getattr(user.target, "tags", ())
        return self.place[user] < self.place[writer] and keeps_nothing and not mutates(user)
