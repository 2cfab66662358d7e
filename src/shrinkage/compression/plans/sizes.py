"""Calls that ask for sizes, and tables of those that are right."""

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shrinkage.compression.plans.index_text import tuples

VIEW, RESHAPE, EXPAND, REPEAT, UNFLATTEN = "view", "reshape", "expand", "repeat", "unflatten"
SPLIT, SPLIT_WITH_SIZES = "split", "split_with_sizes"
NEW = "new"  # which takes sizes one by one: a tuple of numbers is what it puts into a tensor
SLICE = "slice"
TO_THE_END = sys.maxsize  # what an export gives for the end of a slice that has none
FILL = "fill"  # what all calls of `FILLING` come to
FILLED: dict[Callable[..., Any], str] = {
    torch.zeros: "zeros",
    torch.ones: "ones",
    torch.full: "full",
    torch.empty: "empty",
    Tensor.new_zeros: "new_zeros",
    Tensor.new_ones: "new_ones",
    Tensor.new_full: "new_full",
    Tensor.new_empty: "new_empty",
    Tensor.new: NEW,
}
FILLING = frozenset(FILLED.values())  # calls that make a tensor of the sizes that they ask for, and read none
CALLS: dict[Callable[..., Any], str] = {
    **FILLED,
    Tensor.view: VIEW,
    Tensor.reshape: RESHAPE,
    torch.reshape: RESHAPE,
    Tensor.expand: EXPAND,
    Tensor.repeat: REPEAT,
    Tensor.unflatten: UNFLATTEN,
    torch.unflatten: UNFLATTEN,
    Tensor.split: SPLIT,
    torch.split: SPLIT,
    Tensor.split_with_sizes: SPLIT,
    torch.split_with_sizes: SPLIT,
    Tensor.__getitem__: SLICE,
}


class Asked(NamedTuple):
    """What a call asks for: its name, the axis that is split, unflattened or sliced (-1: all of them), and the sizes.

    Those of `repeat` are numbers of copies, which are sizes along axes of length 1, and those of a slice its two ends.
    """

    call: str
    axis: int
    sizes: tuple[int, ...]


class Correction(NamedTuple):
    """Sizes that code asks for, and those that are right.

    It holds for a `call` on a tensor with `rank` axes, none if it is one of `FILLING`. Those in `inputs`, pairs of axis
    and size, hold its channels. `asked` and `given` have one size per axis of the result, or per part of a split; None
    stands for any size, which stays. Along the axes `products`, which hold samples times channels, only the ratio of
    the two is right. Without `inputs`, the right sizes have to fit the axes of the tensor better than those that are
    asked, unless they tell of copies. `in_text` tells whether the call is in the text of the module's own `forward`.
    """

    call: str
    axis: int
    rank: int
    inputs: tuple[tuple[int, int], ...]
    asked: tuple[int | None, ...]
    given: tuple[int | None, ...]
    products: tuple[int, ...] = ()
    in_text: bool = False

    def fits(self, shape: Sequence[int], asked: Asked) -> bool:
        """Return whether it holds for a call on a tensor of that shape."""
        if asked.axis != self.axis:
            return False
        for axis, size in self.inputs:
            if shape[axis] != size:
                return False
        for place, (size, known) in enumerate(zip(asked.sizes, self.asked, strict=True)):
            if known is None or size == known:
                continue
            if place not in self.products or size < 1 or size % known != 0:
                return False
        if self.inputs or self.call in FILLING or self.call == REPEAT:
            return True
        return _borders_kept(shape, asked, self.sizes(asked)) > _borders_kept(shape, asked, asked.sizes)

    def sizes(self, asked: Asked) -> list[int]:
        """Return the right sizes in place of those that are asked."""
        if self.call in (SPLIT, SPLIT_WITH_SIZES):
            return [size for size in self.given if size is not None]
        result = list(asked.sizes)
        for place, (known, right) in enumerate(zip(self.asked, self.given, strict=True)):
            if known is not None and right is not None:
                result[place] = result[place] // known * right if place in self.products else right
        return result


Corrections = tuple[Correction, ...]
Tables = tuple[Corrections, ...]  # each corrects what those before it leave
Table = Mapping[tuple[str, int, int], Corrections]


def _borders_kept(shape: Sequence[int], asked: Asked, sizes: Sequence[int]) -> int:
    """Return how many borders between axes of a tensor are borders of the result too, counted from both ends."""
    axes = [shape[asked.axis]] if asked.call == UNFLATTEN else list(shape)
    pairs = (axes, sizes), (axes[::-1], sizes[::-1])
    return sum(border in _borders(before) for before, after in pairs for border in _borders(after))


def _borders(sizes: Sequence[int]) -> list[int]:
    """Return the numbers of elements in the first axes, up to one whose size is not given."""
    known = sizes[: list(sizes).index(-1)] if -1 in sizes else sizes
    return list(accumulate(known, operator.mul))


def asked_by(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Asked | None:
    """Return what a call asks for; None if it gives no sizes."""
    call = CALLS.get(function)
    if call in FILLING:
        return _asked_to_fill(call, args, kwargs)
    if call is None or not args or not isinstance(args[0], Tensor):
        return None
    if call == SLICE:
        return _asked_of_slice(args[0].dim(), args[1])
    rest = (*args[1:], *kwargs.values())
    if call in (VIEW, RESHAPE, EXPAND, REPEAT):
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
        return None if any(isinstance(size, torch.dtype) for size in sizes) else Asked(call, -1, tuple(sizes))
    rank = args[0].dim()
    if call == UNFLATTEN:
        axis = args[1] if len(args) > 1 else kwargs["dim"]
        sizes = args[2] if len(args) > 2 else kwargs["sizes"]
        return Asked(call, axis % rank, tuple(sizes)) if isinstance(axis, int) else None  # no name of an axis
    if not rest:
        return None
    sizes = rest[0] if len(args) > 1 else next(value for name, value in kwargs.items() if name != "dim")
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % rank
    return (
        Asked(SPLIT_WITH_SIZES, axis, tuple(sizes)) if isinstance(sizes, tuple | list) else Asked(call, axis, (sizes,))
    )


def _asked_to_fill(call: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Asked | None:
    own = args[1:] if args and isinstance(args[0], Tensor) else args
    if call == NEW and not all(isinstance(each, int | torch.SymInt | torch.Size) for each in own):
        return None  # `new` of a list or a tensor takes the numbers in it
    sizes = kwargs.get("size", own[0] if own and isinstance(own[0], tuple | list) else own)
    return Asked(call, -1, tuple(sizes)) if len(sizes) else None


def _asked_of_slice(rank: int, index: Any) -> Asked | None:
    """Return what an index asks for that is a range along one axis, and all of the others."""
    index = index if isinstance(index, tuple) else (index,)
    place = next((number for number, one in enumerate(index) if one is Ellipsis), len(index))
    given = [*index[:place], *(slice(None),) * (rank - len(index) + 1), *index[place + 1 :]][:rank]
    if any(type(one) is not slice for one in given):
        return None
    (axis, *others) = [axis for axis, one in enumerate(given) if one != slice(None)] or [-1]
    one = given[axis]
    start, stop = one.start or 0, TO_THE_END if one.stop is None else one.stop
    if axis < 0 or others or one.step not in (None, 1) or type(start) is not int or type(stop) is not int:
        return None
    return Asked(SLICE, axis, (start, stop))


def read_by(asked: Asked, args: Sequence[Any]) -> tuple[int, ...]:
    """Return the shape of the tensor that a call reads; that of none has no axes."""
    return () if asked.call in FILLING else tuple(args[0].shape)


def asking(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], asked: Asked, sizes: Sequence[int]
) -> Any:
    """Return what the call gives with other `sizes`."""
    if asked.call in FILLING:
        before = args[:1] if args and isinstance(args[0], Tensor) else args[:0]
        own = args[len(before) :]
        if asked.call == NEW:
            return function(*before, *sizes, **kwargs)
        if "size" in kwargs:
            return function(*args, **{**kwargs, "size": tuple(sizes)})
        after = own[1:] if isinstance(own[0], tuple | list) else ()
        return function(*before, tuple(sizes), *after, **kwargs)
    tensor: Tensor = args[0]
    if asked.call == SLICE:
        return function(tensor, (*(slice(None),) * asked.axis, slice(*sizes)))
    if asked.call == UNFLATTEN:
        return torch.unflatten(tensor, asked.axis, list(sizes))
    if asked.axis >= 0:
        return torch.split_with_sizes(tensor, list(sizes), asked.axis)
    return function(tensor, sizes)


def table_of(corrections: Corrections) -> Table:
    """Return corrections by call, rank, and number of sizes."""
    found: dict[tuple[str, int, int], Corrections] = {}
    for each in corrections:
        key = each.call, each.rank, len(each.asked)
        found[key] = (*found.get(key, ()), each)
    return found


def corrected(table: Table, shape: Sequence[int], asked: Asked) -> list[int] | None:
    """Return the right sizes for a call on a tensor of that shape; None where it is right as it is."""
    for each in table.get((asked.call, len(shape), len(asked.sizes)), ()):
        if each.fits(shape, asked):
            return each.sizes(asked)
    return None


def tables_from(sizes: Mapping[str, Any]) -> dict[str, Tables]:
    """Return the tables by dotted name that JSON brought back as lists."""
    return {
        path: tuple(tuple(Correction(*tuples(each)) for each in table) for table in tables)
        for path, tables in sizes.items()
    }


def tables_in_turn(first: Mapping[str, Tables], second: Mapping[str, Tables]) -> dict[str, Tables]:
    """Return the tables of two plans, of which the second is one of the model that the first makes."""
    return {path: first.get(path, ()) + second.get(path, ()) for path in {**first, **second}}
