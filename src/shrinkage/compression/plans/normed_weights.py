"""Weights that weight norm or spectral norm computes: they are cut like others, and keep the entries that stay."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from shrinkage.compression.plans.tensors import Keep, copied, cut, joined, shape_of_cut
from shrinkage.errors import PlanError
from shrinkage.selection.parametrized import Computed, Divisor, computed_weights


class Lengths(NamedTuple):
    """The dotted names of what gives the lengths of a weight norm and of what gives the directions, and the latter."""

    name: str
    directions: str
    divisor: Divisor


def is_normed(module: nn.Module, computed: Computed) -> bool:
    """Return whether a weight that `module` computes can be cut: by a norm alone, in a linear layer or convolution."""
    return computed.divisor is not None and computed.attribute == "weight" and isinstance(module, nn.Linear | _ConvNd)


def normed_weights(model: nn.Module) -> Iterator[tuple[str, Computed, Divisor]]:
    """Yield the weights in `model` that can be cut though a norm computes them, each with the path of its layer."""
    for path, module in model.named_modules(remove_duplicate=False):
        for computed in computed_weights(module):
            if computed.divisor is not None and is_normed(module, computed):
                yield path, computed, computed.divisor


def divided_axes(model: nn.Module, tensors: Mapping[str, Tensor]) -> set[tuple[str, int]]:
    """Return the axes along which weights in `model` cannot be zero as a whole, since their norm divides."""
    return {
        (joined(path, divisor.source), dim)
        for path, _, divisor in normed_weights(model)
        for dim in range(tensors[joined(path, divisor.source)].dim())
        if dim != divisor.dim
    }


def lengths_of(model: nn.Module) -> Iterator[Lengths]:
    """Yield what gives the lengths of all weights under a weight norm in `model` that can be cut."""
    for path, computed, divisor in normed_weights(model):
        if computed.lengths is not None:
            yield Lengths(joined(path, computed.lengths), joined(path, divisor.source), divisor)


def cut_along(model: nn.Module, tensors: Mapping[str, Tensor], keep: Keep) -> Keep:
    """Return `keep` with what has to be cut along with the weights in it that a norm computes.

    These are the lengths of a weight norm, and the vectors by which a spectral norm measures.

    Raises:
        PlanError: `keep` cuts some of it in another way.
    """
    found = dict(keep)
    for path, computed, divisor in normed_weights(model):
        name = joined(path, divisor.source)
        dims, shape = keep.get(name, {}), tuple(tensors[name].shape)
        along: dict[str, Mapping[int, tuple[int, ...]]] = {}
        if computed.lengths is not None:
            own = {divisor.dim: dims[divisor.dim]} if divisor.dim is not None and divisor.dim in dims else {}
            along[joined(path, computed.lengths)] = own
        if computed.vectors is not None:
            left, right, rows = computed.vectors
            along[joined(path, left)] = {0: dims[rows]} if rows in dims else {}
            along[joined(path, right)] = _flat(shape, dims, rows)
        for other, wanted in along.items():
            if other in keep and keep[other] != wanted:
                raise PlanError(
                    f"{name!r} and {other!r} belong together, by {computed.by}, and would be cut in two ways: leave "
                    "out the latter, which follows"
                )
            if wanted:
                found[other] = wanted
    return found


def _flat(shape: Sequence[int], dims: Mapping[int, Sequence[int]], rows: int) -> dict[int, tuple[int, ...]]:
    """Return what stays of a vector with one entry for each of a slice of a tensor of `shape`, of which `dims` stay.

    >>> _flat((4, 2, 3), {0: (1,), 1: (1,)}, 0)
    {0: (3, 4, 5)}
    """
    others = [dim for dim in range(len(shape)) if dim != rows]
    places = torch.arange(prod(shape[dim] for dim in others)).reshape([shape[dim] for dim in others])
    kept = cut(places, {others.index(dim): kept for dim, kept in dims.items() if dim != rows})
    return {} if kept.numel() == places.numel() else {0: tuple(kept.flatten().tolist())}


def factors_of_lengths(model: nn.Module, tensors: Mapping[str, Tensor], keep: Keep) -> dict[str, Tensor]:
    """Return by which factors lengths are multiplied where their directions are cut, in the shape that these then have.

    A slice of g v / ||v|| keeps the entries that stay if g is multiplied by the norm of what is left of v over that of
    v. The factor is 1, and no other number by rounding, where all that goes is zero.

    Raises:
        PlanError: one parameter gives the lengths of several weights, which lose unlike entries.
    """
    found: dict[str, Tensor] = {}
    known: dict[Tensor, tuple[int, Mapping[int, Sequence[int]]]] = {}
    for name, directions, divisor in lengths_of(model):
        dims = keep.get(directions, {})
        lengths, source = tensors[name], tensors[directions]
        if known.setdefault(lengths, (id(source), dims)) != (id(source), dims):
            raise PlanError(f"{name!r} gives the lengths of several weights, which are cut in unlike ways")
        if dims.keys() - {divisor.dim}:
            whole = cut(source, {dim: kept for dim, kept in dims.items() if dim == divisor.dim})
            shape = shape_of_cut(tuple(lengths.shape), keep.get(name, {}))
            found[name] = ratio(divisor, whole, cut(source, dims)).reshape(shape)
    return found


def ratio(divisor: Divisor, whole: Tensor, left: Tensor) -> Tensor:
    """Return the norms of what is `left` of a tensor over those of the `whole`; 1 where no entry is missing.

    >>> ratio(Divisor("v", 0), torch.tensor([[3.0, 4.0], [2.0, 0.0]]), torch.tensor([[3.0], [2.0]]))
    tensor([0.6000, 1.0000], dtype=torch.float64)
    """
    whole, left = divisor.slices(whole.detach()), divisor.slices(left.detach())
    same = whole.count_nonzero(1) == left.count_nonzero(1)
    return torch.where(same, 1.0, left.double().norm(dim=1) / whole.double().norm(dim=1))


@torch.no_grad()
def multiply_lengths_(lengths: Tensor, directions: Tensor, factor: Tensor) -> None:
    """Multiply `lengths` by a factor; where that is 0, all `directions` are, whose weight would be 0 / 0: they turn 1.

    Any other direction would do, as the weight is zero.
    """
    lengths.copy_(lengths.double() * factor)
    nothing = (factor == 0).reshape(factor.shape if factor.dim() else (1,) * directions.dim())
    directions.copy_(torch.where(nothing, 1.0, directions))


def keep_weights_(model: nn.Module, tensors: Mapping[str, Tensor], cuts: dict[Tensor, Tensor], keep: Keep) -> None:
    """Change lengths and directions in `cuts`, by tensors of `model`, so that what is left of weights is as before."""
    done: set[Tensor] = set()
    factors = factors_of_lengths(model, tensors, keep)
    for name, directions, _ in lengths_of(model) if factors else ():
        lengths, source = tensors[name], tensors[directions]
        if name in factors and lengths not in done:
            done.add(lengths)
            for each in (lengths, source):
                if each not in cuts:
                    cuts[each] = copied(each, {})
            multiply_lengths_(cuts[lengths], cuts[source], factors[name])


@torch.no_grad()
def compute_weights_(model: nn.Module) -> None:
    """Compute the weights anew that hooks keep as attributes, and give layers with parametrizations their own class.

    A copy of such a layer has the very class of the original, from which removing a parametrization takes the weight.
    """
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                setattr(module, hook.name, hook.compute_weight(module))
            elif isinstance(hook, SpectralNorm):
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
        if "parametrizations" in module._modules and is_parametrized(module):
            cls = type(module)
            inside = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(cls.__name__, cls.__bases__, inside)
