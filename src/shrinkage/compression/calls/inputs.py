"""Calls of a model like the one that is given: with other numbers, another number of samples, other lengths."""

import copy
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Call = tuple[tuple[Any, ...], dict[str, Any]]
VARIANTS = 4  # of the numbers of a call: as they are, in another order, and drawn anew twice
WIDE = (1, 9, 999)  # the largest whole numbers that are drawn, in turn, where those of the example are all the same


def positional(example_inputs: Any) -> tuple[Any, ...]:
    """Return the positional arguments of a call, given as a tuple or as the only one."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def cloned(call: Call) -> Call:
    """Return a call with copies of its tensors, which a model may write into."""
    leaves, rebuilt = taken_apart(call)
    args, kwargs = rebuilt([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves])
    return args, kwargs


def taken_apart(value: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Return what is in nested structures, and the function that makes the same structure of other contents.

    Dataclasses, and dictionaries of a class of their own, such as batches of tokens, are taken apart too.

    >>> leaves, rebuilt = taken_apart({"a": 1, "b": (2, UserDict(c=3))})
    >>> leaves, rebuilt([5, 6, 7])
    ([1, 2, 3], {'a': 5, 'b': (6, {'c': 7})})
    """
    outer, structure = tree_flatten(value)
    parts = [taken_apart(vars(leaf)) if _is_record(leaf) else ([leaf], None) for leaf in outer]

    def rebuilt(leaves: Sequence[Any]) -> Any:
        given, whole = iter(leaves), []
        for leaf, (inner, rebuild) in zip(outer, parts, strict=True):
            contents = [next(given) for _ in inner]
            if rebuild is None:
                whole.extend(contents)
            else:
                whole.append(record := copy.copy(leaf))
                vars(record).update(rebuild(contents))
        return tree_unflatten(whole, structure)

    return [leaf for inner, _ in parts for leaf in inner], rebuilt


def _is_record(value: Any) -> bool:
    known = is_dataclass(value) or isinstance(value, UserDict)
    return known and not isinstance(value, type) and hasattr(value, "__dict__")


def other_lengths(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Call]:
    """Yield calls of other lengths, which a model may refuse: longer ones first, since they tell most."""
    leaves, rebuilt = taken_apart((tuple(args), dict(kwargs)))
    tensors = [leaf for leaf in leaves if _has_rows(leaf)]
    if tensors and len({len(leaf) for leaf in tensors}) == 1:
        yield rebuilt([torch.cat([leaf, leaf[:1]]) if _has_rows(leaf) else leaf for leaf in leaves])
    for size in sorted({size for leaf in tensors for size in leaf.shape[1:] if size > 1}):
        for shorter in sorted({size - 1, size // 2}, reverse=True):
            yield rebuilt([_shortened(leaf, size, shorter) for leaf in leaves])


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.layout == torch.strided


def _shortened(leaf: Any, size: int, shorter: int) -> Any:
    """Return `leaf` with `shorter` entries along each dimension that has `size` of them; the first counts samples."""
    if _has_rows(leaf):
        for dim in range(1, leaf.dim()):
            leaf = leaf.narrow(dim, 0, shorter) if leaf.shape[dim] == size else leaf
    return leaf


def varied(leaves: Sequence[Any], number: int, *, upcast: bool = False) -> list[Any]:
    """Return the inputs of a call with other numbers of the same kind, in the range of those that are given.

    0 leaves them as they are. Otherwise floating-point numbers are drawn anew; whole numbers and truth values are put
    into another order by 1, and drawn anew by what is larger: no larger index than the example has is drawn. What is
    the same in all places would then stay as it is: `upcast` draws it from more, 0 and 1 first.
    """
    generator = torch.Generator().manual_seed(number)
    return [_other(leaf, number, generator, upcast) if number else _detached(leaf) for leaf in leaves]


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _other(leaf: Any, number: int, generator: torch.Generator, upcast: bool) -> Any:
    """Return other numbers than those of `leaf`, if it is a tensor that has any."""
    if not isinstance(leaf, Tensor) or not leaf.numel():
        return leaf
    known = leaf.detach()
    if known.layout != torch.strided:
        return _with_other_values(known, number, generator, upcast)
    if known.is_complex():
        parts = torch.view_as_real(known.resolve_conj())
        return torch.view_as_complex(_other(parts, number, generator, upcast).contiguous())
    if known.is_floating_point():
        return _drawn(known, number, generator, upcast)
    single = bool((known == known.reshape(-1)[0]).all())
    if number == 1 and not single:
        order = torch.randperm(known.numel(), generator=generator).to(known.device)
        return known.reshape(-1)[order].reshape(known.shape).clone()
    if known.dtype == torch.bool:
        return truths(known, number)
    return _whole(known, number, generator, upcast and single)


def _with_other_values(known: Tensor, number: int, generator: torch.Generator, upcast: bool) -> Tensor:
    """Return a sparse tensor with other numbers at the same places."""
    if known.layout == torch.sparse_coo:
        known = known.coalesce()
        values = _other(known.values(), number, generator, upcast)
        return torch.sparse_coo_tensor(known.indices(), values, known.shape, is_coalesced=True, check_invariants=False)
    if known.layout in (torch.sparse_csr, torch.sparse_bsr):
        places = known.crow_indices(), known.col_indices()
    elif known.layout in (torch.sparse_csc, torch.sparse_bsc):
        places = known.ccol_indices(), known.row_indices()
    else:
        return known
    values = _other(known.values(), number, generator, upcast)
    return torch.sparse_compressed_tensor(*places, values, known.shape, layout=known.layout, check_invariants=False)


def _drawn(known: Tensor, number: int, generator: torch.Generator, upcast: bool) -> Tensor:
    """Return numbers between the least and the largest of `known`; where these are the same, between 0 and it.

    What is not finite, as in masks that are added, comes to other places, but never to all of a row.
    """
    finite = known.isfinite()
    some = known[finite] if finite.any() else known.new_zeros(1)
    low, high = float(some.amin()), float(some.amax())
    if not finite.all():
        drawn = _between(low, high, known, generator)
        return torch.where(truths(known, number), drawn, known[~finite][0])
    if low == high:
        if upcast and number == 1:  # which code may take for indices
            return torch.randint(2, known.shape, generator=generator).to(known)
        low, high = (min(low, 0.0), max(high, 0.0)) if low else (-1.0, 1.0)
        high = max(high, float(_widest(number))) if upcast else high
    return _between(low, high, known, generator)


def _between(low: float, high: float, known: Tensor, generator: torch.Generator) -> Tensor:
    share = torch.rand(known.shape, generator=generator, dtype=torch.double)
    return (low + (high - low) * share).to(known)


def _widest(number: int) -> int:
    return WIDE[min(number, len(WIDE)) - 1]


def _whole(known: Tensor, number: int, generator: torch.Generator, upcast: bool) -> Tensor:
    """Return whole numbers from 0, or the least, to the largest of `known`, and others than these if there are any."""
    low, high = min(int(known.min()), 0), int(known.max())
    if upcast:
        high = max(high, min(_widest(number), torch.iinfo(known.dtype).max))
    drawn = torch.randint(low, max(high, low) + 1, known.shape, generator=generator).to(known)
    return low + high - known if torch.equal(drawn, known) else drawn


def truths(known: Tensor, number: int) -> Tensor:
    """Return truth values in the shape of `known`, both of which each row has: no row is masked as a whole.

    Those of an odd number are the opposite of those of the even one before it.
    """
    drawn = torch.rand(known.shape, generator=torch.Generator().manual_seed(number // 2)) < 0.5
    if drawn.dim() and drawn.shape[-1] > 1:
        drawn[..., 0], drawn[..., -1] = True, False
    return (drawn if number % 2 == 0 else ~drawn).to(known.device)
