"""What a plan does to tensors, under all of the names that a model has for each: tied ones are one tensor."""

from collections.abc import Mapping, Sequence
from operator import index

from torch import Tensor

from shrinkage.compression.plans.tensors import Keep, Scale
from shrinkage.errors import PlanError


def under_all_names(tensors: Mapping[str, Tensor], keep: Mapping[str, Mapping[int, Sequence[int]]]) -> Keep:
    """Return `keep` as plain numbers, with each tensor that is cut under all of its names."""
    cuts: dict[int, tuple[str, Mapping[int, tuple[int, ...]]]] = {}
    plain = {name: {index(dim): tuple(map(index, kept)) for dim, kept in dims.items()} for name, dims in keep.items()}
    chosen = {name: dims for name, dims in plain.items() if dims}
    for name, dims in chosen.items():
        if name in tensors:
            other, known = cuts.setdefault(id(tensors[name]), (name, dims))
            if known != dims:
                raise PlanError(f"{other!r} and {name!r} are one tensor, tied, and would be cut in two ways")
    tied = {name: dict(cuts[id(tensor)][1]) for name, tensor in tensors.items() if id(tensor) in cuts}
    return {**chosen, **tied}


def all_scales(tensors: Mapping[str, Tensor], scales: Mapping[str, Scale]) -> dict[str, Scale]:
    """Return `scales` with each tensor that is multiplied under all of its names."""
    known: dict[int, tuple[str, Scale]] = {}
    for name, scale in scales.items():
        other, first = known.setdefault(id(tensors.get(name, name)), (name, scale))
        if first != scale:
            raise PlanError(f"{other!r} and {name!r} are one tensor, tied, and would be multiplied by two numbers")
    return {**scales, **{name: known[id(tensor)][1] for name, tensor in tensors.items() if id(tensor) in known}}


def scales_in_turn(first: Mapping[str, Scale], second: Mapping[str, Scale]) -> dict[str, Scale]:
    """Return the scales of two plans, of which the second is one of the model that the first makes.

    >>> scales_in_turn({"weight": (1.5, 1.0)}, {"weight": (2.0, 1.0)})
    {'weight': (3.0, 1.0)}
    """
    both = {name: (first[name][0] * second[name][0], first[name][1]) for name in first if name in second}
    return {**first, **second, **both}
