"""Models of other packages that keep the plan of a smaller model themselves, so that they can save it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    Note = Callable[[nn.Module, Any], None]

# Imported when a model of the class is made smaller: its package is there then.
MODULES = {("transformers.modeling_utils", "PreTrainedModel"): "shrinkage.integrations.kept_plans"}
_notes: dict[type[nn.Module], "Note"] = {}


def note_plans(model_class: type[nn.Module], note: "Note") -> None:
    """Call `note(small, plan)` with each smaller model of `model_class` that `shrink` or `apply_plan` makes.

    Where one is a part of the smaller model, as inside of adapters, `plan` is the part that is of it.
    """
    _notes[model_class] = note


def noted(small: nn.Module, plan: Any) -> nn.Module:
    """Return `small`, of which the parts know their plan now whose class keeps plans."""
    for path, module, note in list(_keepers(small)):
        note(module, part_of(plan, path))
    return small


def part_of(plan: Any, path: str) -> Any:
    """Return what `plan` says of the module called `path`, by names as they are in that module."""
    if not path:
        return plan

    def of(names: Iterable[str]) -> dict[str, str]:
        return {name: name[len(path) + 1 :] for name in names if f"{name}.".startswith(f"{path}.")}

    mine = {field: {short: part[name] for name, short in of(part).items()} for field, part in by_name(plan).items()}
    return replace(plan, biases=tuple(of(plan.biases).values()), **mine)


def by_name(plan: Any) -> dict[str, Mapping[str, Any]]:
    """Return the fields of a plan whose keys are dotted names: all but the biases and the versions."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {field: value for field, value in values.items() if isinstance(value, Mapping)}


def _keepers(model: nn.Module) -> Iterator[tuple[str, nn.Module, "Note"]]:
    """Yield the outermost modules whose class keeps plans, each with its name."""
    found: list[str] = []
    for path, module in model.named_modules():
        if any(not outer or path.startswith(f"{outer}.") for outer in found):
            continue
        for cls in type(module).__mro__:
            if (cls.__module__, cls.__name__) in MODULES:
                import_module(MODULES[cls.__module__, cls.__name__])
            if cls in _notes:
                found.append(path)
                yield path, module, _notes[cls]
