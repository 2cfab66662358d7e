"""Which values of a graph are never negative, whatever the inputs and weights are."""

from operator import getitem
from typing import Any

from torch import fx

from shrinkage.compression.tracing.trace import mutates, name_of

ALWAYS = frozenset({
    "relu", "relu6", "abs", "square", "exp", "exp2", "sqrt", "sigmoid", "hardsigmoid", "softplus", "softmax", "cosh",
    "norm", "linalg_vector_norm", "frobenius_norm", "count_nonzero", "var", "std",
})  # fmt: skip
# What moves elements of the first operand, picks some, or weighs them with numbers that are not negative.
AS_THE_FIRST = frozenset({
    "view", "reshape", "unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "permute", "transpose",
    "swapaxes", "movedim", "t", "mT", "numpy_T", "expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave",
    "select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "contiguous", "clone", "to", "to_copy",
    "type_as", "detach", "alias", "dropout", "feature_dropout", "index", "index_select", "gather", "flip", "roll",
    "pixel_shuffle", "channel_shuffle", "sum", "mean", "amax", "amin", "cumsum", "prod", "topk", "sort",
    *(f"{kind}_pool{space}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for space in (1, 2, 3)),
    *(f"max_pool{space}d_with_indices" for space in (1, 2, 3)),
})  # fmt: skip
OF_ALL = frozenset({"add", "mul", "div", "maximum", "minimum", "max", "min", "cat", "concat", "stack"})


def never_negative(node: Any) -> bool:
    """Return whether no element of what `node` gives is below 0, as its operators tell; a number stands for itself."""
    if not isinstance(node, fx.Node):
        return isinstance(node, int | float) and node >= 0
    if node.op != "call_function" or _is_written(node):
        return False
    if node.target is getitem:
        return never_negative(node.args[0])
    name, given = name_of(node), node.args
    if name in ALWAYS:
        return True
    if name in AS_THE_FIRST:
        return never_negative(given[0])
    if name == "mul" and given[0] is given[1]:
        return True
    if name == "pow":
        power = given[1]
        return (isinstance(power, int | float) and power % 2 == 0) or never_negative(given[0])
    if name in ("clamp", "clamp_min", "hardtanh"):
        low = given[1] if len(given) > 1 else node.kwargs.get("min", node.kwargs.get("min_val"))
        return isinstance(low, int | float) and low >= 0
    if name in OF_ALL and node.kwargs.get("alpha", 1) == 1:
        operands: Any = given[0] if isinstance(given[0], tuple | list) else given
        return all(map(never_negative, operands if name in ("cat", "concat", "stack") else given[:2]))
    return False


def _is_written(node: fx.Node) -> bool:
    """Return whether another operator may write into what `node` gives: into it, or into what is computed from it."""
    return any(
        node in _first_operands(writer)
        for writer in node.graph.nodes
        if writer.op == "call_function" and mutates(writer)
    )


def _first_operands(writer: fx.Node) -> set[Any]:
    """Return what `writer` writes into, and all that this may be a view of."""
    found: set[Any] = set()
    node: Any = writer.args[0]
    while isinstance(node, fx.Node) and node.op == "call_function":
        found.add(node)
        node = node.args[0] if node.args else None
    return found
