"""Follow channels through an exported graph, operator by operator."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from shrinkage.compression.tracing.channels import Channels, axes_of, combined, fixed, made, reshaped
from shrinkage.compression.tracing.disjoint_sets import DisjointSets

Rule = Callable[..., Any]


class Contraction(NamedTuple):
    """A sum over channels: the place where the values of channels are used up.

    `labels` are those of the channels that are summed over, one per index along `axis` of the node `data`; they meet
    the indices along `weight_axis` of the node `weight`, which have `weight_labels`. `rows` is the axis of `weight`
    that makes the channels of the output, which lie along the axis `out`. Where zeros at the border are summed, it is
    `padded`.
    """

    node: fx.Node
    data: fx.Node
    axis: int
    weight: fx.Node
    weight_axis: int
    labels: Tensor
    weight_labels: Tensor
    rows: int
    out: int
    bias: fx.Node | None = None
    padded: bool = False


class Literal(NamedTuple):
    """A length that a model's code gives as a number, in the module at `path`, for the axis that `factor` labels."""

    path: str
    length: int
    factor: Tensor
    axis: int


@dataclass(eq=False)
class Trace:
    """What is known of the channels of a graph, while and after it is followed.

    A rule is called as `rule(trace, *arguments, **keywords)` with the operator's own arguments, in which each tensor is
    its `Channels`; it returns the `Channels` of the output, or a tuple of them.
    """

    labels: DisjointSets
    rules: dict[Any, Rule]
    node: fx.Node = field(init=False)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    products: list[Contraction] = field(default_factory=list)
    lookups: list[fx.Node] = field(default_factory=list)
    splits: list[tuple[Tensor, tuple[int, ...]]] = field(default_factory=list)
    literals: list[Literal] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    from_data: set[fx.Node] = field(default_factory=set)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output; of the first one, where there are several."""
        return shapes_of(self.node)[0]

    @property
    def operator(self) -> Any:
        """The operator that is called, one overload of it."""
        return self.node.target

    @property
    def path(self) -> str:
        """The dotted name of the module whose code calls the operator."""
        return path_of(self.node)

    @property
    def place(self) -> str:
        """The operator and the module whose code calls it, in words."""
        return self.because(f" at `{getattr(self.operator, 'overloadpacket', self.operator)}`")

    def because(self, text: str) -> str:
        """Return `text` with the name of the module."""
        return f"{text}, in `{self.path or 'the model'}`"

    def fix(self, channels: Channels, axes: Iterable[int], text: str) -> Channels:
        """Return `channels` when none of `axes` may change its length, and note `text` as the reason."""
        return fixed(self.labels, channels, axes, self.because(text))

    def pin(self, value: Any, text: str) -> None:
        """Note that nothing that `value`, or a tuple or list of values, holds can go."""
        for factor in _factors(value):
            self.labels.pin(factor, self.because(text))

    def combine(self, operands: Sequence[Any], shape: Sequence[int] | None = None) -> Channels:
        """Return the channels of a pointwise function of those of the `operands` that are tensors."""
        tensors = [operand for operand in operands if isinstance(operand, Channels)]
        return combined(self.labels, tensors, self.shape if shape is None else shape, self.because(FIXED), self.place)

    def make(self, factors: Iterable[Tensor], shape: Sequence[int] | None = None) -> Channels:
        """Return the channels of the output with `factors`."""
        return made(self.labels, self.shape if shape is None else shape, factors, self.place)

    def reshape(self, channels: Channels, shape: Sequence[int], sizes: Sequence[int]) -> Channels:
        """Return `channels` in `shape`, where the model's code says `sizes`: -1 for a length that follows by itself."""
        result = reshaped(self.labels, channels, shape, self.place)
        for factor in result.factors:
            axes = axes_of(factor)
            if len(axes) > 1:
                follows = tuple(axis for axis in axes if sizes[axis] == -1)
                self.splits.append((factor, follows))
            for axis in axes:
                if sizes[axis] != -1:
                    self.literals.append(Literal(self.path, shape[axis], factor, axis))
        return result

    def contract(
        self, left: Channels, axis: int, right: Channels, other: int, text: str
    ) -> tuple[Tensor, Tensor] | None:
        """Make the channels along `axis` of `left` one with those along `other` of `right`; return both, flat.

        None, and what there is stays, where one of the two has a fixed length.
        """
        mine, theirs = flat(self, left, axis, text), flat(self, right, other, text)
        if mine is None or theirs is None:
            for labels in (mine, theirs):
                if labels is not None:
                    self.labels.pin(labels, self.because(f"{FIXED} where it is summed over"))
            return None
        self.labels.unite(mine, theirs)
        return mine, theirs


FIXED = "meets a tensor of fixed length"


def flat(trace: Trace, channels: Channels, axis: int, text: str) -> Tensor | None:
    """Return the labels along `axis` alone; where they extend along other axes too, those along `axis` are one."""
    axis %= len(channels.shape)
    factor = channels.along(axis)
    if factor is None:
        return None
    if len(axes_of(factor)) > 1:
        fixed(trace.labels, channels, [axis], trace.because(text))
        return None
    return factor.reshape(-1)


def shapes_of(node: fx.Node) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors that `node` puts out."""
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else [value]
    return [tuple(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor)]


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
            for factor in _factors(fx.map_arg(node.args, lambda argument: trace.values.get(argument))):
                trace.labels.pin(factor, put_out)
        elif node.op != "placeholder" and (shapes_of(node) or node.users):
            trace.values[node] = _result(trace, node)


def _result(trace: Trace, node: fx.Node) -> Any:
    """Return the channels of the output of `node`."""
    arguments: Any
    keywords: Any
    arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda argument: trace.values.get(argument))
    if getattr(node.target, "__name__", "") == "getitem" and node.op == "call_function":
        several, place = arguments
        return several[place] if isinstance(several, tuple | list) and isinstance(place, int) else None
    touched = [trace.values.get(argument) for argument in node.all_input_nodes]
    if not _factors(touched) and not _makes_channels(node):
        return _without_channels(node)
    rule = rule_of(trace.rules, node.target)
    name = str(node.target)
    if rule is not None:
        try:
            return rule(trace, *arguments, **keywords)
        except Exception as error:  # A form of the operator that its rule does not know is as good as no rule.
            name = f"{name} in this form ({type(error).__name__})"
    if not all(trace.labels.are_loose(factor) for factor in _factors(touched)):
        trace.unknown[name] = trace.unknown.get(name, 0) + 1
    trace.pin(touched, f"used by `{name}`, an operator without a rule")
    return _without_channels(node)


def mutates(node: fx.Node) -> bool:
    """Return whether `node` writes into one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _views(node: Any) -> set[fx.Node]:
    """Return `node` and the first arguments that it is a view of, if it is one: all may see what is written to it."""
    views: set[fx.Node] = set()
    while isinstance(node, fx.Node) and node.op == "call_function":
        views.add(node)
        node = node.args[0] if node.args else None
    return views


def path_of(node: fx.Node) -> str:
    """Return the dotted name of the module whose code calls `node`."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def rule_of(rules: dict[Any, Rule], target: Any) -> Rule | None:
    """Return the rule of an operator: its own, that of its form out of place, or the pointwise one by its tag."""
    packet = getattr(target, "overloadpacket", None)
    if packet in rules:
        return rules[packet]
    name = str(packet).removeprefix("aten.")
    if name.endswith("_") and not name.startswith("_"):
        plain = getattr(torch.ops.aten, name.rstrip("_"), None)
        if plain in rules:
            return rules[plain]
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return rules[torch.Tag.pointwise]
    return None


def _makes_channels(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) is torch.ops.aten.expand


def _factors(value: Any) -> list[Tensor]:
    """Return all labels that `value`, or a tuple or list of values, holds."""
    if isinstance(value, tuple | list):
        return [factor for item in value for factor in _factors(item)]
    return list(value.factors) if isinstance(value, Channels) else []


def _without_channels(node: fx.Node) -> Any:
    """Return the outputs of `node`, all of fixed length."""
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        return tuple(Channels(tuple(item.shape)) if isinstance(item, Tensor) else None for item in value)
    return Channels(tuple(value.shape)) if isinstance(value, Tensor) else None
