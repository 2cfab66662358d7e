"""Calls of a model like the one that is given: with other numbers, another number of samples, other lengths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

Call = tuple[tuple[Any, ...], dict[str, Any]]
VARIANTS = 4  # of the numbers of a call: as they are, in another order, and drawn anew twice


def positional(example_inputs: Any) -> tuple[Any, ...]:
    """Return the positional arguments of a call, given as a tuple or as the only one."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def cloned(call: Call) -> Call:
    """Return a call with copies of its tensors, which a model may write into."""
    args, kwargs = tree_map_only(Tensor, torch.clone, call)
    return args, kwargs


def calls(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the example call, then others, which a model may refuse: longer ones first, since they tell most."""
    leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
    for number in range(VARIANTS):
        yield tree_unflatten(varied(leaves, number), structure)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if tensors and len({len(leaf) for leaf in tensors}) == 1:
        longer = [torch.cat([leaf, leaf[:1]]) if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]
        yield tree_unflatten(longer, structure)
    for size in sorted({size for leaf in tensors for size in leaf.shape[1:] if size > 1}):
        for shorter in sorted({size - 1, size // 2}, reverse=True):
            yield tree_unflatten([_shortened(leaf, size, shorter) for leaf in leaves], structure)


def _shortened(leaf: Any, size: int, shorter: int) -> Any:
    """Return `leaf` with `shorter` entries along each dimension that has `size` of them; the first counts samples."""
    if isinstance(leaf, Tensor):
        for dim in range(1, leaf.dim()):
            leaf = leaf.narrow(dim, 0, shorter) if leaf.shape[dim] == size else leaf
    return leaf


def varied(leaves: Sequence[Any], number: int) -> list[Any]:
    """Return the inputs of a call with other numbers of the same kind, in the range of those that are given.

    0 leaves them as they are. Otherwise floating-point numbers are drawn anew; whole numbers and truth values are put
    into another order by 1, and drawn anew too by what is larger: no larger index than the example has is drawn.
    """
    generator = torch.Generator().manual_seed(number)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel():
            return leaf
        known = leaf.detach()
        if number == 0:
            return known.clone()
        if known.is_floating_point() and known.isfinite().all():
            return _drawn(known, generator)
        if number == 1 or known.is_floating_point() or known.is_complex():
            order = torch.randperm(known.numel(), generator=generator).to(known.device)
            return known.reshape(-1)[order].reshape(known.shape).clone()
        return _mask(known, generator) if known.dtype == torch.bool else _indices(known, generator)

    return [one(leaf) for leaf in leaves]


def _drawn(known: Tensor, generator: torch.Generator) -> Tensor:
    """Return numbers between the least and the largest of `known`; where these are the same, between 0 and it."""
    low, high = float(known.amin()), float(known.amax())
    if low == high:
        low, high = (min(low, 0.0), max(high, 0.0)) if low else (-1.0, 1.0)
    share = torch.rand(known.shape, generator=generator, dtype=torch.double)
    return (low + (high - low) * share).to(known)


def _indices(known: Tensor, generator: torch.Generator) -> Tensor:
    low, high = min(int(known.min()), 0), int(known.max())
    return torch.randint(low, max(high, low) + 1, known.shape, generator=generator).to(known)


def _mask(known: Tensor, generator: torch.Generator) -> Tensor:
    """Return truth values, both of which each row has, so that no row is masked as a whole."""
    drawn = torch.rand(known.shape, generator=generator) < 0.5
    if drawn.dim() and drawn.shape[-1] > 1:
        drawn[..., 0], drawn[..., -1] = True, False
    return drawn.to(known.device)
