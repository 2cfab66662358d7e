"""Conditions that are checked before a model is cut, so that an error changes nothing."""

from collections.abc import Container, Mapping
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.compression.plans.layers import outputs_of
from shrinkage.compression.plans.normed_weights import is_normed
from shrinkage.compression.plans.tensors import Keep, Scale, Shape, joined, own_tensors, saved_shapes
from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.errors import PlanError, ShrinkError
from shrinkage.selection.first_match import nearest
from shrinkage.selection.parametrized import computed_weights

LISTED = 3  # differences that a message names


def check_keep(shapes: Mapping[str, Shape], keep: Keep) -> None:
    """Raise `PlanError` unless the indices of `keep` rise, and are some of those that tensors of `shapes` have."""
    for name, dims in keep.items():
        if name not in shapes:
            raise PlanError(f"there is no {name!r} to cut; nearest names: {nearest(name, shapes)}")
        if not dims:
            raise PlanError(f"{name!r} would be cut along no dimension: leave it out")
        for dim, kept in dims.items():
            what = f"dimension {dim} of {name!r} of shape {shapes[name]}"
            if not 0 <= dim < len(shapes[name]):
                raise PlanError(f"{what}: there is no such dimension")
            if not kept:
                raise PlanError(f"{what} would keep nothing: keep one index at least")
            if any(later <= earlier for earlier, later in pairwise(kept)):
                raise PlanError(f"{what}: the indices to keep have to rise, each of them once")
            if not (0 <= kept[0] and kept[-1] < shapes[name][dim]):
                raise PlanError(f"{what} has no index {kept[0] if kept[0] < 0 else kept[-1]}, which should stay")


def check_values(attributes: Mapping[str, Any]) -> None:
    """Raise `PlanError` unless JSON can bring all values of attributes back as they are."""
    for name, value in attributes.items():
        if not is_plain(value):
            raise PlanError(f"attribute {name!r} would be {value!r}: a plan holds numbers, strings, and tuples of them")


def check_scales(shapes: Mapping[str, Shape], scales: Mapping[str, Scale]) -> None:
    """Raise `PlanError` unless `scales` are of tensors with `shapes`, by positive factors."""
    for name, (factor, offset) in scales.items():
        if name not in shapes:
            raise PlanError(f"there is no {name!r} to multiply; nearest names: {nearest(name, shapes)}")
        if not (0 < factor < inf and abs(offset) < inf):
            raise PlanError(f"{name!r} would be multiplied by {factor}: expected a positive number and a finite offset")


def is_plain(value: object) -> bool:
    """Return whether `value` is a number, a string, a truth value, None, or a tuple of such."""
    return all(map(is_plain, value)) if isinstance(value, tuple) else isinstance(value, int | float | str | None)


def check_is_dense(
    model: nn.Module, before: Mapping[str, Shape], after: Mapping[str, Shape], keep: Mapping[str, object]
) -> None:
    """Raise `PlanError` unless the tensors of `model` have the names and shapes of `before`; those of a plan."""
    found = saved_shapes(model, keep)
    if found == before:
        return
    if all(found.get(name) == shape for name, shape in after.items()):
        raise PlanError("the model is the smaller one already: apply the plan to a dense model of the same class")
    first = next(iter(before), "")
    inside = (name.removesuffix(f".{first}") for name in found if name.endswith(f".{first}"))
    for path in inside:
        if saved_shapes(model.get_submodule(path), keep) == before:
            raise PlanError(f"the plan is one of the module called {path!r} in the model: apply it to that one")
    names = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    pairs = ((name, before.get(name, "absent"), found.get(name, "absent")) for name in names[:LISTED])
    listed = "; ".join(f"{name!r} should be {expected}, is {actual}" for name, expected, actual in pairs)
    rest = f"; and {len(names) - LISTED} others" if len(names) > LISTED else ""
    raise PlanError(
        f"the model is not like the dense one that the plan was made from, in {len(names)} tensors: {listed}{rest}. "
        "Build it with the arguments of the dense one"
    )


def check_tied(keep: Keep, under_all_names: Keep) -> None:
    """Raise `PlanError` unless a plan cuts all tensors under all of the names that a model has for them."""
    for name in under_all_names.keys() - keep.keys():
        raise PlanError(
            f"{name!r} is tied to a tensor that is cut, and is not cut by the plan: tie the model as the dense one was"
        )


def check_can_be_cut(model: nn.Module, tensors: Mapping[str, Tensor], keep: Keep) -> None:
    """Raise `PlanError` if a tensor that is to be cut is computed, sharded over processes, or not dense."""
    for path, module in model.named_modules(remove_duplicate=False):
        for computed in (each for each in computed_weights(module) if not is_normed(module, each)):
            names = [joined(path, name) for name in (*own_tensors(module), *computed.sources)]
            if any(name in keep for name in names):
                raise PlanError(
                    f"{joined(path, computed.attribute)!r} is computed by {computed.by}: make it a parameter first, "
                    "with torch.nn.utils.parametrize.remove_parametrizations or its own function for that"
                )
    for name in keep:
        if is_dtensor(tensors[name]):
            raise PlanError(f"{name!r} is sharded over processes: apply the plan to the model before it is distributed")
        if tensors[name].layout != torch.strided or tensors[name].is_quantized:
            raise PlanError(f"{name!r} is stored as {tensors[name].layout}, {tensors[name].dtype}: make it dense first")


def check_biases(model: nn.Module, paths: tuple[str, ...]) -> None:
    """Raise `PlanError` unless all layers at `paths` can have a bias and have none."""
    for path in paths:
        layer = submodule(model, path)
        if layer is None or outputs_of(layer) is None or layer.bias is not None:
            raise PlanError(
                f"{path!r} should get a bias: expected a linear layer or a convolution without one, found {layer}"
            )


def check_attributes(model: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Raise `PlanError` unless `model` has all `attributes`, and they are neither modules nor tensors."""
    for name in attributes:
        path, _, attribute = name.rpartition(".")
        layer = submodule(model, path)
        absent = layer is None or not hasattr(layer, attribute)
        if absent or isinstance(getattr(layer, attribute), nn.Module | Tensor):
            raise PlanError(
                f"the plan sets {name!r}, which is {'absent' if absent else 'no plain attribute'} in the model: build "
                "that as the dense one was"
            )


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module of `model` at `path`, None if there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def check_follows(shapes: Mapping[str, Shape], keep: Keep, after: Mapping[str, Shape], new: Container[str]) -> None:
    """Raise `PlanError` unless a plan is of a model that an earlier one makes.

    Args:
        shapes: of the model that the second plan is of.
        keep: what it keeps of them, buffers that are not saved among them, which the first one may not know.
        after: the shapes of the model that the first one makes, without new biases.
        new: the names of those.
    """
    names = [
        name
        for name, shape in shapes.items()
        if name not in new and (after[name] != shape if name in after else name not in keep)
    ]
    if names:
        name = names[0]
        raise PlanError(
            f"the second plan is not of the model that the first one makes: {name!r} is {after.get(name, 'absent')} "
            f"there, and {shapes[name]} for the second: give plans in their order"
        )


def check_not_packed(model: nn.Module) -> None:
    """Raise `ShrinkError` if `model` has no parameters because its layers are quantized, which packs their weights."""
    packed = [
        f"{name or 'the model'!r} of class {type(module).__name__}"
        for name, module in model.named_modules()
        if "quantized" in type(module).__module__.split(".") and not list(module.parameters())
    ]
    if packed and not list(model.parameters()):
        rest = f" and {len(packed) - 1} more modules" if len(packed) > 1 else ""
        raise ShrinkError(
            f"the model is quantized, {packed[0]}{rest}: expected parameters, got packed weights, of which no channel "
            "can be removed; call shrink before quantizing, and quantize the smaller model"
        )
