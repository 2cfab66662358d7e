"""Means over channels that only divide: which numbers take up that they are means of fewer, without zeros."""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from shrinkage.compression.dataflow.dependence import MOVEMENTS, packet_of
from shrinkage.compression.dataflow.gates import arguments_of
from shrinkage.compression.plans.tensors import joined
from shrinkage.compression.tracing.disjoint_sets import DisjointSets
from shrinkage.compression.tracing.export import Subgraph
from shrinkage.compression.tracing.marks import Mark, Marks
from shrinkage.compression.tracing.operators import aten
from shrinkage.compression.tracing.trace import MEAN, Absorber, Divisor, Trace, mutates, path_of

Traces = Sequence[tuple[Subgraph, Trace]]

# Whose output is multiplied by a positive number where the first argument is.
LINEAR = MOVEMENTS | {
    aten.to, aten._to_copy, aten.type_as, aten.dropout, aten.neg, aten.abs, aten.relu, aten.mean, aten.sum, aten.amax,
    aten.amin, aten.lift_fresh_copy,
}  # fmt: skip
SEVERAL = (aten.cat, aten.concat, aten.stack)
POWERS = {aten.rsqrt: -0.5, aten.sqrt: 0.5, aten.reciprocal: -1.0, aten.square: 2.0}
PRODUCTS = {aten.mul: 1, aten.multiply: 1, aten.div: -1, aten.divide: -1, aten.true_divide: -1}
SUMS = (aten.add, aten.sub)
# Which arguments are multiplied with a weight, and the weight.
WEIGHED = {
    aten.linear: ("input", "weight"),
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), ("input", "weight")),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), ("input", "weight")),
    aten.matmul: ("self", "other"),
    aten.mm: ("self", "mat2"),
}
NORMS = (aten.rms_norm, aten.layer_norm, aten.group_norm)  # that divide by the root of a mean of squares, and of eps


class Refused(Exception):
    """Nothing takes up the factor, for the reason that is the message."""


def absorbers_in(
    model: nn.Module, subgraph: Subgraph, tensors: Mapping[str, Tensor], marks: Marks
) -> dict[fx.Node, tuple[Absorber, ...] | str]:
    """Return what takes up the factor of each mean in a graph of `model`, or in words why nothing does."""
    known = Factors(model, subgraph, tensors, marks)
    means = (node for node in subgraph.program.graph.nodes if packet_of(node) in (aten.mean, aten.rms_norm))
    return {node: known.absorbers(node) for node in means}


class Factors:
    """By which powers of a factor the values in a graph are multiplied, if a mean in it is multiplied by the factor."""

    def __init__(self, model: nn.Module, subgraph: Subgraph, tensors: Mapping[str, Tensor], marks: Marks) -> None:
        self.model, self.subgraph, self.marks = model, subgraph, marks
        self.place = {node: number for number, node in enumerate(subgraph.program.graph.nodes)}
        self.parameters = {
            node: name
            for node, name in subgraph.owned.items()
            if isinstance(tensors[name], nn.Parameter) and tensors[name].is_floating_point()
        }
        self.power: dict[fx.Node, float] = {}
        self.found: list[Absorber] = []

    def absorbers(self, mean: fx.Node) -> tuple[Absorber, ...] | str:
        """Return the numbers that take up the factor of `mean`, so that nothing else changes; or why none does."""
        self.power, self.found = {}, []
        try:
            self.power[mean] = 1.0 if packet_of(mean) is aten.mean else self._normalized(mean, 0.0, 1.0)
            waiting = self._users(mean)
            while waiting:
                _, node = heapq.heappop(waiting)
                if node not in self.power:
                    self.power[node] = self._after(node)
                    for user in self._users(node):
                        heapq.heappush(waiting, user)
        except Refused as refusal:
            return str(refusal)
        return tuple(self.found)

    def _users(self, node: fx.Node) -> list[tuple[int, fx.Node]]:
        return sorted((self.place[user], user) for user in _users(node)) if self.power[node] else []

    def _of(self, value: Any) -> float:
        return self.power.get(value, 0.0) if isinstance(value, fx.Node) else 0.0

    def _after(self, node: fx.Node) -> float:
        """Return the power of the factor in what `node` puts out; note what takes up that of its arguments."""
        packet, given = packet_of(node), arguments_of(node)
        if node.op == "output":
            raise Refused(f"{MEAN} that is put out")
        if mutates(node) or node.op != "call_function":
            raise self._taken(node)
        first = node.args[0] if node.args else None
        others = [each for each in node.all_input_nodes if each is not first]
        if packet in SEVERAL:
            return self._all_alike(node, list(node.all_input_nodes))
        if packet in PRODUCTS and not given.get("rounding_mode"):
            return self._multiplied(node, given["self"], given["other"], PRODUCTS[packet])
        if packet is aten.addcmul:
            power = self._multiplied(node, given["tensor1"], given["tensor2"])
            return power if power == self._of(given["self"]) else self._refuse_sum()
        if packet in SUMS:
            return self._summed(node, given)
        if packet in WEIGHED:
            data, weight = WEIGHED[packet]
            return self._weighed(node, given[data], given[weight], given.get("bias"))
        if any(map(self._of, others)):
            raise self._taken(node)
        if packet in LINEAR:
            return self._of(first)
        if packet in POWERS:
            return self._of(first) * POWERS[packet]
        if packet is aten.pow and isinstance(given["exponent"], int | float):
            return self._of(first) * given["exponent"]
        bounded = packet in (aten.clamp_min, aten.clamp) and given.get("max") is None
        if bounded and isinstance(given["min"], int | float):
            self._shift(node, given["min"], self._of(first))
            return self._of(first)
        if packet in NORMS:
            return self._normalized(node, self._of(first), 0.0)
        raise self._taken(node)

    def _multiplied(self, node: fx.Node, one: Any, other: Any, sign: int = 1) -> float:
        """Return the power in a product, or in a quotient where `sign` is -1, that no parameter takes up."""
        power = self._of(one) + sign * self._of(other)
        if power and (self._absorbed(node, other, -sign * power) or self._absorbed(node, one, -power)):
            return 0.0
        return power

    def _weighed(self, node: fx.Node, data: Any, weight: Any, bias: Any) -> float:
        power = self._of(data) + self._of(weight)
        if self._of(bias):
            raise self._taken(node)
        if power and (self._absorbed(node, weight, -power) or self._absorbed(node, data, -power)):
            return 0.0
        return power if bias is None else self._refuse_sum()

    def _summed(self, node: fx.Node, given: Mapping[str, Any]) -> float:
        """Return the power of a sum, of which a number takes up that of the other summand."""
        one, other = given["self"], given["other"]
        if given.get("alpha", 1) != 1:
            raise self._taken(node)
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            return self._all_alike(node, [one, other])
        value, summand = (other, one) if isinstance(one, fx.Node) else (one, other)
        self._shift(node, value, self._of(summand))
        return self._of(summand)

    def _all_alike(self, node: fx.Node, nodes: Sequence[fx.Node]) -> float:
        powers = {self._of(each) for each in nodes}
        return powers.pop() if len(powers) == 1 else self._refuse_sum()

    @staticmethod
    def _refuse_sum() -> float:
        raise Refused(f"{MEAN} that is added or subtracted")

    def _normalized(self, node: fx.Node, power: float, counted: float) -> float:
        """Return the power in what a norm gives of a value with `power`, whose mean of squares has `counted` more."""
        given = arguments_of(node)
        self._shift(node, given.get("eps"), 2 * power + counted)
        left = power - (2 * power + counted) / 2
        weight = given.get("weight")
        return 0.0 if left and isinstance(weight, fx.Node) and self._absorbed(node, weight, -left) else left

    def _shift(self, node: fx.Node, value: Any, power: float) -> None:
        """Note that a number that is added, or is a bound, is multiplied by a `power` of the factor."""
        if power == 0 or (isinstance(value, int | float) and value == 0):
            return
        if value is None:
            computed_in = torch.promote_types(node.meta["val"].dtype, torch.float32)
            mark = Mark(self._of_machine(node), torch.finfo(computed_in).eps)
        elif isinstance(value, float) and value in self.marks:
            mark = self.marks[value]
        else:
            shown = f"{value:g}" if isinstance(value, int | float) else "a tensor"
            raise Refused(f"{MEAN} to which the code adds {shown}, no attribute of the module or number in its methods")
        self.found.append(Absorber(mark.name, (node, value), power, mark.value, in_code=mark.in_code))

    def _of_machine(self, node: fx.Node) -> str:
        """Return the name of the attribute that gives an `eps` to a norm that has none."""
        path = joined(self.subgraph.path, path_of(node).partition("@")[0]).rstrip(".")
        if not isinstance(self.model.get_submodule(path), nn.RMSNorm):
            raise Refused(f"{MEAN} to which the code adds the precision of the machine, no attribute of the module")
        return joined(path, "eps")

    def _absorbed(self, user: fx.Node, node: Any, power: float) -> bool:
        """Note that the parameter that `node` is, or is computed from, takes up the factor; return whether one is."""
        offset = 0.0
        while isinstance(node, fx.Node) and node not in self.parameters:
            packet, given = packet_of(node), arguments_of(node)
            if node.op != "call_function" or len(_users(node)) > 1 or mutates(node):
                return False
            if packet is aten.add and isinstance(given["other"], int | float) and given.get("alpha", 1) == 1:
                offset += given["other"]
            elif packet not in LINEAR or len(node.all_input_nodes) > 1:
                return False
            node, user = node.args[0], node
        if node not in self.parameters:
            return False
        self.found.append(Absorber(self.parameters[node], (node, user), power, None, offset))
        return True

    @staticmethod
    def _taken(node: fx.Node) -> Refused:
        return Refused(f"{MEAN} that `{packet_of(node) or node.target}` takes")


def _users(node: fx.Node) -> list[fx.Node]:
    """Return who takes what `node` puts out, without assertions of its type."""
    return [user for user in node.users if packet_of(user) is not aten._assert_tensor_metadata]


def hold_unlike(labels: DisjointSets, traces: Traces, tensors: Mapping[str, Tensor], marks: Marks) -> None:
    """Hold channels of means whose factors would meet in one number, at several places, and are not the same there."""
    uses = _uses(traces, tensors, marks)
    wanted: dict[Any, dict[Any, list[tuple[float, float, list[Any]]]]] = {}
    held: dict[Any, list[Divisor]] = {}
    for _, trace in traces:
        for divisor in trace.divisors:
            roots = sorted(labels.find(own).tolist() for own in divisor.labels)
            for each in divisor.absorbers:
                key = _key(each, tensors)
                wanted.setdefault(key, {}).setdefault(each.use, []).append((each.power, each.offset, roots))
                held.setdefault(key, []).append(divisor)
    for key, by_use in wanted.items():
        first, *others = (sorted(by_use.get(use, [])) for use in uses[key])
        if any(other != first for other in others):
            for divisor in held[key]:
                reason = f"{MEAN} whose factor a number would take up that serves other places too"
                for own in divisor.labels:
                    labels.pin(own, f"{reason}, in `{path_of(divisor.node) or 'the model'}`")


def _key(absorber: Absorber, tensors: Mapping[str, Tensor]) -> Any:
    """Return what a number is known by: tied parameters are one."""
    return (absorber.name, absorber.value) if absorber.value is not None else id(tensors[absorber.name])


def _uses(traces: Traces, tensors: Mapping[str, Tensor], marks: Marks) -> dict[Any, dict[Any, None]]:
    """Return where parameters, and numbers of attributes, enter the graphs."""
    found: dict[Any, dict[Any, None]] = {}
    for subgraph, trace in traces:
        for node, name in subgraph.owned.items():
            found.setdefault(id(tensors[name]), {}).update(dict.fromkeys((node, user) for user in _users(node)))
        for node in subgraph.program.graph.nodes:
            for value in tree_leaves((node.args, node.kwargs)):
                if isinstance(value, float) and value in marks:
                    found.setdefault(marks[value][:2], {})[node, value] = None
        for each in (each for divisor in trace.divisors for each in divisor.absorbers):
            found.setdefault(_key(each, tensors), {})[each.use] = None
    return found
