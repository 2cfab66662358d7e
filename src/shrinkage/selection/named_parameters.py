"""Parameters by the names of the bare model, without what wrappers add to them."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from shrinkage.errors import SelectionError
from shrinkage.private import check_marks
from shrinkage.selection.matrices import OUTPUT
from shrinkage.selection.parametrized import Computed, computed_weights

WRAPPING_NAMES = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
}


WRAPPING_CLASSES = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # they call the model "module"


WRAPPING_NAMES_OF_PEFT = {"base_model", "model", "base_layer", "modules_to_save"}


class NamedParameter(NamedTuple):
    """One name under which a model holds a parameter, or would if no parametrization stood in front of it.

    `parameter` is None where the weight is computed from others; `computed` then says how. Where `module` is the output
    projection of a `MultiheadAttention`, `attention` is that.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter | None
    computed: Computed | None = None
    attention: nn.Module | None = None

    def owners(self) -> list[tuple[nn.Module, str]]:
        """Return the layers that the parameter belongs to, and what it is called in each."""
        own = [(self.module, self.attribute)]
        return own if self.attention is None else [*own, (self.attention, f"{OUTPUT}.{self.attribute}")]


def named_parameters(model: nn.Module) -> Iterator[NamedParameter]:
    """Yield every name of every parameter of `model`, tied ones under each of their names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: dict[str, Tensor | None] = {}
    for path, module in modules.items():
        check_marks(module)
        prefix, attention = bare_path(path, modules), attention_of(path, modules)
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        found = [NamedParameter(prefix + name, module, name, each, None, attention) for name, each in own]
        for each in computed_weights(module):
            found.append(NamedParameter(prefix + each.attribute, module, each.attribute, None, each, attention))
        for candidate in found:
            if candidate.name not in seen:
                seen[candidate.name] = candidate.parameter
                yield candidate
            elif seen[candidate.name] is not candidate.parameter:
                raise SelectionError(
                    f"two parameters of the model are called {candidate.name!r} once the names that wrappers add are "
                    "left out; make the regularizer from the module inside of the wrapper"
                )


def bare_path(path: str, modules: dict[str, nn.Module]) -> str:
    """Return the dotted prefix of a module's parameters, without the components that wrappers add."""
    kept, parent = [], ""
    for component in path.split(".") if path else []:
        if not added_by_a_wrapper(parent, component, modules):
            kept.append(component)
        parent = f"{parent}.{component}" if parent else component
    return "".join(f"{component}." for component in kept)


def attention_of(path: str, modules: dict[str, nn.Module]) -> nn.Module | None:
    """Return the `MultiheadAttention` whose output projection is at `path`, in wrappers or not; None if it is none."""
    parent, _, last = path.rpartition(".")
    while last and added_by_a_wrapper(parent, last, modules):
        parent, _, last = parent.rpartition(".")
    return modules[parent] if last == OUTPUT and isinstance(modules[parent], nn.MultiheadAttention) else None


def added_by_a_wrapper(parent: str, component: str, modules: dict[str, nn.Module]) -> bool:
    """Return whether the module at `parent` is a wrapper, and `component` its name for what it wraps."""
    if component in WRAPPING_NAMES or (component == "module" and isinstance(modules[parent], WRAPPING_CLASSES)):
        return True
    if component in WRAPPING_NAMES_OF_PEFT and is_of_peft(modules[parent]):
        return component != "modules_to_save" or len(list(modules[f"{parent}.{component}"].children())) == 1
    holder, _, last = parent.rpartition(".")  # a trained copy lies under the name of its adapter, mostly "default"
    only = last == "modules_to_save" and len(list(modules[parent].children())) == 1
    return only and is_of_peft(modules[holder])


def is_of_peft(module: nn.Module) -> bool:
    """Return whether `module` is of a class of PEFT, which is not imported here."""
    return any(cls.__module__.partition(".")[0] == "peft" for cls in type(module).__mro__)
