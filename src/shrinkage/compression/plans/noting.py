"""Models of other packages that keep the plan of a smaller model themselves, so that they can save it."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    Note = Callable[[nn.Module, Any], None]

# Imported when a model of the class is made smaller: its package is there then.
MODULES = {("transformers.modeling_utils", "PreTrainedModel"): "shrinkage.integrations.kept_plans"}
_notes: dict[type[nn.Module], "Note"] = {}


def note_plans(model_class: type[nn.Module], note: "Note") -> None:
    """Call `note(small, plan)` with each smaller model of `model_class` that `shrink` or `apply_plan` makes."""
    _notes[model_class] = note


def noted(small: nn.Module, plan: Any) -> nn.Module:
    """Return `small`, which knows its plan now where its class keeps plans."""
    for cls in type(small).__mro__:
        if (cls.__module__, cls.__name__) in MODULES:
            import_module(MODULES[cls.__module__, cls.__name__])
        if cls in _notes:
            _notes[cls](small, plan)
    return small
