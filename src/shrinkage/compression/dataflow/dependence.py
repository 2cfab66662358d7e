"""Which elements of what an operator gives depend on the inputs of a model, as its operands tell by themselves."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from shrinkage.compression.dataflow.constancy import differing
from shrinkage.compression.tracing.operators import RULES, aten, like_the_first, pointwise
from shrinkage.compression.tracing.without_rule import rule_of

Operand = tuple[Any, Any]  # a value, and a truth value for each element: whether it depends on the inputs

FILLED = {aten.full: 1, aten.full_like: 1, aten.new_full: 2, aten.fill: 1}  # which argument gives the number
FRESH = frozenset({
    aten.zeros_like, aten.ones_like, aten.empty_like, aten.new_zeros, aten.new_ones, aten.new_empty, aten.zeros,
    aten.ones, aten.empty, aten.zero, *FILLED,
})  # fmt: skip
MOVEMENTS = frozenset({
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.view_as, aten.reshape_as, aten.unflatten,
    aten.unsqueeze, aten.squeeze, aten.permute, aten.transpose, aten.swapaxes, aten.movedim, aten.t, aten.numpy_T,
    aten.mT, aten.expand, aten.expand_as, aten.broadcast_to, aten.repeat, aten.tile, aten.select, aten.unbind,
    aten.slice, aten.narrow, aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unsafe_chunk,
    aten.unsafe_split, aten.cat, aten.concat, aten.stack, aten.pixel_shuffle, aten.pixel_unshuffle,
    aten.channel_shuffle, aten.pad, aten.constant_pad_nd, aten.flip, aten.roll, aten.unfold, aten.diagonal, aten.tril,
    aten.triu, aten.contiguous, aten.clone, aten.alias, aten.detach, aten.meshgrid,
})  # fmt: skip
IDLE = frozenset({aten.dropout, aten.feature_dropout, aten.alpha_dropout})  # in evaluation mode
ABSORBED = frozenset({aten.mul, aten.multiply, aten.logical_and, aten.bitwise_and, aten.__and__})
QUOTIENTS = frozenset({aten.div, aten.divide, aten.true_divide})
CHOICES = frozenset({aten.where, aten.masked_fill})
LOOKUPS = frozenset({aten.index, aten.index_select, aten.gather, aten.take_along_dim})
MASKS = (torch.bool, torch.uint8)
SCATTERS = frozenset({
    aten.index_add, aten.index_copy, aten.index_reduce, aten.scatter, aten.scatter_add, aten.scatter_reduce,
})  # fmt: skip
UNPOOLED = {aten.max_unpool2d: (-2, -1), aten.max_unpool3d: (-3, -2, -1)}  # along which axes values are put back


def packet_of(node: fx.Node) -> Any:
    """Return the operator of `node`, without its overload and out of place; None if it is none of torch's."""
    packet = getattr(node.target, "overloadpacket", None)
    name = str(packet).removeprefix("aten.")
    if name.endswith("_") and not name.startswith("_"):
        return getattr(aten, name.rstrip("_"), packet)
    return packet


def moves(node: fx.Node) -> bool:
    """Return whether `node` gives elements of its operands at other places, and does nothing else."""
    return packet_of(node) in MOVEMENTS


def is_structural(node: fx.Node) -> bool:
    """Return whether `dependent` can tell what `node` does, without a call of it."""
    packet = packet_of(node)
    if packet is aten.where and len(node.args) < 3:  # which gives indices
        return False
    if packet in FRESH | MOVEMENTS | LOOKUPS | SCATTERS | UNPOOLED.keys() or packet in (aten.copy, aten.index_put):
        return True
    return rule_of(RULES, node.target) in (pointwise, like_the_first)


def dependent(node: fx.Node, operands: Mapping[fx.Node, Operand]) -> Any:
    """Return which elements of what `node` gives depend on the inputs.

    What is multiplied by a zero that does not depend on them does not either. The result broadcasts to the output: it
    is None if nothing depends on them, a sequence where there are several outputs, and True, for all, where the truth
    values cannot be treated as the numbers are.
    """
    try:
        return _dependent(node, operands)
    except Exception:  # Whatever operators do with truth values.
        return True


def _dependent(node: fx.Node, operands: Mapping[fx.Node, Operand]) -> Any:
    packet = packet_of(node)
    given: list[Operand] = [operands[each] if isinstance(each, fx.Node) else (each, None) for each in node.args]
    if packet in FRESH:
        return next((mask for _, mask in given[FILLED.get(packet, len(given)) :] if mask is not None), None)
    if packet in MOVEMENTS:
        return _moved(node, operands)
    if packet in LOOKUPS:
        return _looked_up(node, operands)
    if packet in SCATTERS:
        return _scattered(*given)
    if packet in UNPOOLED:
        moved = _from_anywhere(*given[:2])
        return None if moved is None else moved.expand(given[0][0].shape).any(UNPOOLED[packet], keepdim=True)
    if packet is aten.index_put:
        return _put(node, operands)
    if packet in CHOICES:
        x, choice, other = given if packet is aten.masked_fill else (given[2], given[0], given[1])
        return _chosen(choice, other, x)
    if packet in ABSORBED:
        return _either(_unless_zero(given[0], given[1]), _unless_zero(given[1], given[0]))
    if packet in QUOTIENTS:
        return _either(given[0][1], _unless_zero(given[1], given[0]))
    if packet is aten.copy:
        return given[1][1]
    if rule_of(RULES, node.target) is like_the_first:
        return given[0][1]
    return _either(*(operands[each][1] for each in node.all_input_nodes))


def _either(*masks: Any) -> Any:
    """Return where any of `masks` is true."""
    found = None
    for mask in masks:
        if mask is not None:
            found = mask if found is None else found | mask
    return found


def _unless_zero(operand: Operand, factor: Operand) -> Any:
    """Return which elements of `operand` depend on the inputs, but where `factor` is zero whatever these are."""
    mask, (value, unsure) = operand[1], factor
    if mask is None:
        return None
    zero = torch.as_tensor(value == 0)
    return mask & ~(zero if unsure is None else zero & ~torch.as_tensor(unsure))


def _chosen(choice: Operand, first: Operand, second: Operand) -> Any:
    """Return which elements depend on the inputs of what is `first` where the `choice` is true, `second` elsewhere."""
    chosen, unsure = choice[0].bool(), choice[1]
    none = torch.zeros_like(chosen)
    mine, theirs = (none if mask is None else torch.as_tensor(mask, device=none.device) for _, mask in (first, second))
    sure = torch.where(chosen, mine, theirs)
    if unsure is None:
        return sure
    differ = torch.as_tensor(first[0] != second[0], device=none.device)
    return torch.where(torch.as_tensor(unsure, device=none.device), mine | theirs | differ, sure)


def _moved(node: fx.Node, operands: Mapping[fx.Node, Operand]) -> Any:
    """Return where the truth values of the operands come to."""
    if all(operands[operand][1] is None for operand in node.all_input_nodes):
        return None

    def moved(kind: torch.dtype) -> Any:
        def truths(operand: fx.Node) -> Any:
            value, mask = operands[operand]
            if not isinstance(value, Tensor):
                return value
            return torch.zeros_like(value, dtype=kind) if mask is None else torch.as_tensor(mask).to(kind)

        return called(node, truths)

    try:
        return moved(torch.bool)
    except RuntimeError:  # of operators that take numbers alone, such as those that mirror what is at the border
        return moved(torch.float32).bool()


def _looked_up(node: fx.Node, operands: Mapping[fx.Node, Operand]) -> Any:
    """Return which elements of what is looked up depend on the inputs: where the index does, all that differ."""
    table, *indices = node.all_input_nodes
    value, mask = operands[table]
    mask = torch.zeros_like(value, dtype=torch.bool) if mask is None else mask
    if any(operands[index][1] is not None for index in indices) and value.numel():
        axes = _axes_looked_up(node, operands, value.dim())
        mask = mask | differing(value, axes)
        for axis in axes:
            mask = mask.any(axis, keepdim=True).expand_as(value)
    return called(node, lambda operand: mask if operand is table else operands[operand][0])


def _scattered(x: Operand, axis: Operand, index: Operand, source: Operand, *_: Operand) -> Any:
    """Return which elements depend on the inputs where `source` is written or added at an `index` along the axis.

    Any element of it may land anywhere along the axis. Where the index depends on the inputs, so does all but zeros.
    """
    found = x[1]
    for value, mask in (x, source):
        moved = _from_anywhere((value, mask), index)
        if moved is not None:
            beside = moved.expand(torch.as_tensor(value).shape)
            found = _either(found, beside.any(axis[0], keepdim=True) if beside.dim() else beside)
    return found


def _from_anywhere(source: Operand, index: Operand) -> Tensor | None:
    """Return which elements of `source` make what depends on the inputs, where these go that an `index` tells."""
    value, mask = source
    moved = mask if index[1] is None else _either(mask, torch.as_tensor(value != 0))
    return None if moved is None else torch.as_tensor(moved)


def _put(node: fx.Node, operands: Mapping[fx.Node, Operand]) -> Any:
    """Return which elements depend on the inputs where some are written or added at several indices.

    Any element that is written may land anywhere along the axes of the indices, as in `_scattered`.
    """
    arguments: Any = node.args
    x, where, source = arguments[:3]
    (old, mine), (new, theirs) = (operands[each] if isinstance(each, fx.Node) else (each, None) for each in (x, source))
    indices = [operands[each] for each in where if each is not None]
    axes = _axes_looked_up(node, operands, old.dim())
    first, inserted = axes[0], max(1 if index.dtype in MASKS else index.dim() for index, _ in indices)
    if axes != list(range(first, first + len(axes))):
        return True
    found = mine
    if any(mask is not None for _, mask in indices):
        mine, theirs = _either(mine, old != 0), _either(theirs, new != 0)
        found = _either(found, mine.expand(old.shape).any(axes, keepdim=True))
    if theirs is not None:
        written = theirs.expand(new.shape)
        written = written[(None,) * (old.dim() - len(axes) + inserted - new.dim())]
        written = written.any(list(range(first, first + inserted)), keepdim=True) if inserted else written
        shape = (*written.shape[:first], *(1,) * len(axes), *written.shape[first + inserted :])
        found = _either(found, written.reshape(shape))
    return found


def _axes_looked_up(node: fx.Node, operands: Mapping[fx.Node, Operand], rank: int) -> list[int]:
    """Return the axes of a table along which `node` looks up."""
    where: Any = [*node.args, *node.kwargs.values()]
    if packet_of(node) not in (aten.index, aten.index_put):
        return next(([each % rank] for each in where if isinstance(each, int)), list(range(rank)))
    axes: list[int] = []
    place = 0
    for index in where[1]:
        mask = index is not None and operands[index][0].dtype in MASKS
        width = operands[index][0].dim() if mask else 1
        axes += range(place, place + width) if index is not None else []
        place += width
    return axes


def called(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """Return what `node` gives when its operands have other values."""
    arguments: Any
    keywords: Any
    arguments, keywords = fx.map_arg((node.args, node.kwargs), value_of)
    function: Any = node.target
    return function(*arguments, **keywords)
