"""Where a zero multiplies a value, whatever that is: scales of branches and channels, and the weights of norms."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from shrinkage.compression.dataflow.dependence import packet_of
from shrinkage.compression.tracing.operators import aten, pointwise
from shrinkage.compression.tracing.trace import Trace, shapes_of
from shrinkage.compression.tracing.without_rule import rule_of

# By the names of arguments: where the second one of a pair is zero, the first plays no part.
PRODUCTS: dict[Any, tuple[tuple[str, str], ...]] = {
    aten.mul: (("self", "other"), ("other", "self")),
    aten.multiply: (("self", "other"), ("other", "self")),
    aten.addcmul: (("tensor1", "tensor2"), ("tensor2", "tensor1")),
    aten.lerp: (("end", "weight"),),
    aten.where: (("self", "condition"),),
}
# The same, but only where all of the second one is zero, or all that belongs to the same places.
WHOLE: dict[Any, tuple[tuple[str, str], ...]] = {
    aten.matmul: (("self", "other"), ("other", "self")),
    aten.mm: (("self", "mat2"), ("mat2", "self")),
    aten.bmm: (("self", "mat2"), ("mat2", "self")),
    aten.scaled_dot_product_attention: (("query", "value"), ("key", "value"), ("query", "key")),
    aten.linear: (("input", "weight"), ("weight", "input")),
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), (("input", "weight"), ("weight", "input"))),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), (("input", "weight"),)),
    aten.embedding: (("indices", "weight"),),
    aten.index: (("indices", "self"),),
    aten.index_select: (("index", "self"),),
    **dict.fromkeys(
        (aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only),
        (("indices", "weight"), ("offsets", "weight"), ("per_sample_weights", "weight")),
    ),
    aten.bilinear: (("input1", "weight"), ("input2", "weight")),
}
PER_CHANNEL = (aten.batch_norm, aten.instance_norm, aten.group_norm)  # with weights along axis 1
NORMS = (*PER_CHANNEL, aten.layer_norm, aten.rms_norm)
WEIGHED = (aten.linear, aten.conv1d, aten.conv2d, aten.conv3d)
ODD = (aten.tanh, aten.neg, aten.relu, aten.gelu, aten.silu, aten.dropout, aten.clone, aten.contiguous, aten.to)
WHOLE_OR_NOTHING = (*ODD, aten.view, aten.reshape, aten.unsqueeze, aten.expand, aten.permute, aten.transpose)
AVERAGES = (aten.matmul, aten.mm, aten.bmm)
SOFTMAX = (aten.softmax, aten._softmax)
SAME_ROWS = (aten.dropout, aten.view, aten.reshape, aten.expand, aten.contiguous, aten.clone, aten.to, aten.unsqueeze)
KnownZeros = dict[tuple[fx.Node, fx.Node], Tensor]  # masks of values, by the node that takes them and their own
NONE = torch.tensor(False)
ALL = torch.tensor(True)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of the operator of `node` by their names."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def averaged(node: fx.Node) -> Any:
    """Return of which values `node` gives averages along axis -2, with weights that sum to 1; None if it does not."""
    given = arguments_of(node)
    if packet_of(node) is aten.scaled_dot_product_attention:
        return None if given.get("dropout_p") else given["value"]
    values = given.get("other", given.get("mat2"))
    if packet_of(node) not in AVERAGES or not isinstance(values, fx.Node) or len(shapes_of(values)[0]) < 2:
        return None
    length, weights = shapes_of(values)[0][-2], given["self"]
    while packet_of(weights) in SAME_ROWS and not arguments_of(weights).get("train"):
        if shapes_of(weights)[0][-1] != length:
            return None
        weights = weights.all_input_nodes[0]
    if packet_of(weights) not in SOFTMAX:
        return None
    (shape,) = shapes_of(weights)
    return values if shape[-1] == length and arguments_of(weights)["dim"] in (-1, len(shape) - 1) else None


def compact(mask: Tensor) -> Tensor:
    """Return `mask` with length 1 along the axes along which it does not change."""
    for axis, size in enumerate(mask.shape):
        if size > 1 and bool((mask == mask.narrow(axis, 0, 1)).all()):
            mask = mask.narrow(axis, 0, 1)
    return mask


def noted(trace: Trace, node: fx.Node) -> list[fx.Node]:
    """Return those arguments of `node` whose zeros tell what its output depends on: none is computed from the data."""
    if node not in trace.from_data:
        return []
    packet = packet_of(node)
    names = {by for _, by in (*PRODUCTS.get(packet, ()), *WHOLE.get(packet, ()))}
    names |= {"weight", "bias"} if packet in (*NORMS, *WEIGHED) else set()
    given = [argument for name, argument in arguments_of(node).items() if name in names]
    given += list(node.all_input_nodes) if packet is aten.einsum else []
    return [one for one in given if isinstance(one, fx.Node) and one not in trace.from_data]


class Zeros:
    """Which elements of the values in a graph are zero for every input, as far as products tell.

    `known` has those of values that are not computed from the data; `uniform` are the attentions whose values are the
    same at all positions, each an operator or a softmax times values.
    """

    def __init__(self, trace: Trace, known: KnownZeros, uniform: Collection[fx.Node] = ()) -> None:
        self.trace = trace
        self.known = known
        self.uniform = uniform
        self._found: dict[fx.Node, Tensor] = {}

    def of(self, user: fx.Node, value: Any) -> Tensor:
        """Return which elements of `value`, an argument of `user`, are zero: a mask that broadcasts to its shape."""
        if not isinstance(value, fx.Node):
            return ALL if isinstance(value, int | float) and value == 0 else NONE
        if value not in self.trace.from_data:
            return self.known.get((user, value), NONE)
        if value not in self._found:
            self._found[value] = NONE  # a chain that is too deep to follow is one of which nothing is known
            self._found[value] = self._computed(value)
        return self._found[value]

    def along_channels(self, user: fx.Node, value: Any) -> Tensor:
        """Return the mask of the scale or shift of a norm, along its channels; ALL if there is none."""
        if value is None:
            return ALL
        mask, rank = self.of(user, value), len(shapes_of(user)[0])
        return mask.reshape(-1, *(1,) * (rank - 2)) if packet_of(user) in PER_CHANNEL and mask.dim() == 1 else mask

    def _computed(self, node: fx.Node) -> Tensor:
        packet, given = packet_of(node), arguments_of(node)
        if packet in (aten.mul, aten.multiply):
            return self.of(node, given["self"]) | self.of(node, given["other"])
        if packet in NORMS:
            if given.get("weight") is None:
                return NONE
            shift = self.along_channels(node, given.get("bias"))
            return self.along_channels(node, given["weight"]) & shift
        if packet in WEIGHED:
            zero = (self.of(node, given["weight"]).all() | self.of(node, given["input"]).all()) if given else NONE
            return zero & (given.get("bias") is None or self.of(node, given["bias"]).all())
        if packet in WHOLE_OR_NOTHING and node.args:
            return self.of(node, node.args[0]).all()
        return NONE


def is_pointwise(trace: Trace, node: fx.Node) -> bool:
    """Return whether each element of the output depends on the elements alone that it meets."""
    return rule_of(trace.rules, node.target) is pointwise


def reduced_to(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Return which elements of an operand of `shape` meet an element of `mask`, shapes being broadcast."""
    while mask.dim() > len(shape):
        mask = mask.any(0)
    for axis in range(-mask.dim(), 0):
        if mask.shape[axis] > 1 and isinstance(shape[axis], int) and shape[axis] == 1:
            mask = mask.any(axis, keepdim=True)
    return mask


def along(mask: Tensor, axis: int, count: int) -> Tensor:
    """Return for each of `count` indices along `axis`, counted from the end, whether `mask` has an element there."""
    if mask.dim() < -axis or mask.shape[axis] == 1:
        return mask.any().expand(count)
    return mask.movedim(axis, 0).flatten(1).any(1) if mask.dim() > 1 else mask


def spread(mask: Tensor, axes: Iterable[int]) -> Tensor:
    """Return `mask` where an element along `axes` stands for all along them."""
    for axis in axes:
        mask = mask.any(axis, keepdim=True)
    return mask
