"""The part of a plan that speaks of a model: another class of its family, another head, or without adapters."""

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from shrinkage.compression.plans.noting import by_name
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.tensors import Shape, joined, saved_shapes
from shrinkage.compression.removal.adapters import ANY_ADAPTER, WRAPPER, is_of
from shrinkage.errors import PlanError


def fitted(plan: ShrinkPlan, model: nn.Module, made_with: str) -> ShrinkPlan:
    """Return the part of `plan` that is of `model`, under the names that it has there.

    Args:
        plan: of a dense model of the same family.
        model: a dense one. It may have another head, other lengths where nothing is cut, and be the body of the plan's
            model, or that with a head: its `base_model_prefix` tells.
        made_with: what the plan was made with, for errors.

    Raises:
        PlanError: the model has another length where the plan cuts, or lacks tensors of its body that are cut.
    """
    found = saved_shapes(model, plan.keep)
    layers = dict(model.named_modules(remove_duplicate=False))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {name: _here(name, prefix, found) for name in plan.keep}
    of_head = any(name.startswith(prefix) for name in plan.shapes)  # then names without the prefix are a head's
    lost = [name for name, mine in names.items() if mine is None and (name.startswith(prefix) or not of_head)]
    if lost:
        raise PlanError(
            f"{len(lost)} of {len(plan.keep)} tensors that the plan cuts are not in {type(model).__name__}, first "
            f"{lost[0]!r}: load it as the class that it was saved as, with {made_with}"
        )
    keep = {mine: plan.keep[name] for name, mine in names.items() if mine is not None}
    for name, mine in names.items():
        if mine is not None:
            _check_lengths(mine, found[mine], plan.shapes[name], plan.keep[name])
    biases = tuple(mine for mine in (_here(path, prefix, layers) for path in plan.biases) if mine is not None)
    attributes = {}
    for name, value in plan.attributes.items():
        path, _, attribute = name.rpartition(".")
        mine = _here(path, prefix, layers) if path else ""
        if mine is not None and hasattr(layers[mine], attribute):
            attributes[joined(mine, attribute)] = value
    sizes = {mine: plan.sizes[path] for path in plan.sizes if (mine := _here(path, prefix, layers)) is not None}
    scales = {mine: plan.scales[name] for name in plan.scales if (mine := _here(name, prefix, found)) is not None}
    numbers = {mine: plan.numbers[path] for path in plan.numbers if (mine := _here(path, prefix, layers)) is not None}
    version = plan.torch_version
    return ShrinkPlan(found, keep, biases, attributes, version, sizes=sizes, scales=scales, numbers=numbers)


def without_adapters(plan: ShrinkPlan, model: nn.Module) -> ShrinkPlan:
    """Return the part of `plan` that is of `model` without the adapters of peft in it, by the names there are then."""
    rename = bare_names(model)

    def renamed(part: Mapping[str, Any]) -> dict[str, Any]:
        return {bare: value for name, value in part.items() if (bare := rename(name)) is not None}

    biases = tuple(renamed(dict.fromkeys(plan.biases)))
    parts: dict[str, Any] = {field: renamed(part) for field, part in by_name(plan).items()}
    return replace(plan, biases=biases, **parts)


def bare_names(model: nn.Module) -> Callable[[str], str | None]:
    """Return a function that returns how something in `model` is called without adapters; None for what is theirs."""
    inside: dict[str, str] = {}
    modules: dict[str, Any] = dict(model.named_modules())
    for path, module in modules.items():
        if is_of(module, ANY_ADAPTER):
            inside[path] = "base_layer"
        elif is_of(module, WRAPPER):  # when it is merged, a copy that was trained takes the place of the original
            trained = hasattr(module, "modules_to_save")
            inside[path] = f"modules_to_save.{module.active_adapters[0]}" if trained else "original_module"
    innermost_first = sorted(inside, key=len, reverse=True)

    def bare(name: str) -> str | None:
        for path in innermost_first:
            if f"{name}.".startswith(f"{path}."):
                rest, kept = f"{name}."[len(path) + 1 :], f"{inside[path]}."
                if not rest.startswith(kept):
                    return None
                name = f"{path}.{rest[len(kept) :]}".rstrip(".")
        return name

    return bare


def _here(name: str, prefix: str, known: Container[str]) -> str | None:
    """Return which of `known` is called `name` in a plan; None if none is."""
    return next((each for each in (name, name.removeprefix(prefix), prefix + name) if each in known), None)


def _check_lengths(name: str, found: Shape, expected: Shape, cut: Mapping[int, object]) -> None:
    for dim in cut:
        if len(found) != len(expected) or found[dim] != expected[dim]:
            raise PlanError(
                f"{name!r} should have {expected[dim]} entries along dimension {dim}, as the dense model had, and has "
                f"shape {found}: load the model with the configuration that it was saved with"
            )
