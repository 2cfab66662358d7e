"""Selectors: which parameters of a model a rule is about.

A selector is a glob on the dotted name ("blocks.*.weight"), a module class or a layer (its weights), a pair of one of
these and a glob on a parameter's own name, or a function of (name, module, parameter). Names are those of the bare
model, without what `torch.compile`, data parallel and checkpointing wrappers, Lightning Fabric and PEFT add to them.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType

from torch import Tensor, nn

from shrinkage.errors import SelectionError, shown
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.value_objects import ByFields, value_class
from shrinkage.private import compiled_from
from shrinkage.selection.default_selector import Weights
from shrinkage.selection.matrices import is_weight
from shrinkage.selection.named_parameters import NamedParameter

Layers = type[nn.Module] | nn.Module
Selector = str | Layers | tuple[Layers, str] | Callable[[str, nn.Module, nn.Parameter], bool]

FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


@value_class
class Named(ByFields):
    """The selector of a rule whose groups name their parameters."""

    names: tuple[str, ...]

    def matches(self, candidate: NamedParameter) -> bool:
        """Return whether `candidate` has one of the names."""
        return candidate.name in self.names


AnySelector = Selector | Weights | Named


def matches(selector: AnySelector, candidate: NamedParameter) -> bool:
    """Return whether `selector` selects `candidate`."""
    if isinstance(selector, Weights | Named):
        return selector.matches(candidate)
    if isinstance(selector, str):
        return fnmatchcase(candidate.name, selector)
    if isinstance(selector, type | nn.Module):
        return any(is_of(module, selector) and is_weight(own) for module, own in candidate.owners())
    if isinstance(selector, tuple):
        layers, glob = selector
        return any(is_of(module, layers) and fnmatchcase(own, glob) for module, own in candidate.owners())
    parameter = candidate.parameter
    return parameter is not None and bool(selector(candidate.name, candidate.module, parameter))


def is_of(module: nn.Module, layers: Layers) -> bool:
    """Return whether `module` is of a class, or is the very layer, compiled or not."""
    if isinstance(layers, type):
        return isinstance(module, layers)
    inside = compiled_from(layers)
    return module is (layers if inside is None else inside)


def groups_hint(found: object) -> str:
    """Return the end of a message about groups that stand where they do not belong; nothing of anything else."""
    if not isinstance(found, Groups):
        return ""
    return "; groups are an argument of a penalty: GroupLasso(1e-3, groups)"


def check_selector(selector: object) -> None:
    """Raise `TypeError` unless `selector` is one of the kinds, `SelectionError` if it might be called by mistake."""
    is_pair = isinstance(selector, tuple) and len(selector) == 2 and isinstance(selector[1], str)
    layers = selector[0] if isinstance(selector, tuple) and is_pair else selector
    is_class = isinstance(layers, type) and issubclass(layers, nn.Module)
    if is_class or isinstance(layers, nn.Module) or isinstance(selector, str) or is_function(selector):
        return
    found = f"a tensor of shape {tuple(selector.shape)}: write its name" if isinstance(selector, Tensor) else ""
    message = (
        "a selector is a glob on the parameter's name, a module class, a layer, a pair of one of these and a parameter "
        f"name, or a function of (name, module, parameter), got {found or shown(selector)}"
    )
    message += groups_hint(selector)
    if callable(selector) and not isinstance(selector, type):
        raise SelectionError(f"{message}, which is no plain function: write lambda name, module, parameter: ...")
    raise TypeError(message)


def is_function(selector: object) -> bool:
    """Return whether `selector` is a plain function, a method or a lambda, or a partial of one."""
    while isinstance(selector, partial):
        selector = selector.func
    return isinstance(selector, FUNCTIONS)


def selector_text(selector: object) -> str:
    """Return `selector` as a user would write it.

    >>> selector_text((nn.Linear, "bias"))
    "(Linear, 'bias')"
    """
    if isinstance(selector, Weights):
        return "every weight"
    if isinstance(selector, Named):
        return f"of groups that span {', '.join(map(repr, selector.names[:3]))}{' ...' * (len(selector.names) > 3)}"
    if isinstance(selector, tuple):
        return f"({', '.join(map(selector_text, selector))})"
    if isinstance(selector, nn.Module):
        return f"{type(selector).__name__}(...)"
    return shown(selector) if isinstance(selector, str) else str(getattr(selector, "__name__", shown(selector)))
