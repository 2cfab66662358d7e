"""Layers by the names of the bare model, and the rules that select them.

A selector of layers is a glob on the dotted name ("encoder.*.relu"), a module class, a layer of the model, or a
function of (name, module).
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from shrinkage.errors import SelectionError, shown
from shrinkage.penalties.base import Penalty
from shrinkage.private import wrapped
from shrinkage.selection.named_parameters import WRAPPING_CLASSES, bare_path
from shrinkage.selection.selectors import is_function, is_of, selector_text

LayerSelector = str | type[nn.Module] | nn.Module | Callable[[str, nn.Module], bool]


class NamedLayer(NamedTuple):
    """A layer, its name in the bare model, and all modules by that name: an adapter, and the layer inside of it."""

    name: str
    module: nn.Module
    modules: tuple[nn.Module, ...]

    def matches(self, selector: LayerSelector) -> bool:
        """Return whether `selector` selects this layer."""
        if isinstance(selector, str):
            return fnmatchcase(self.name, selector)
        if isinstance(selector, type | nn.Module):
            return any(is_of(module, selector) for module in self.modules)
        return bool(selector(self.name, self.module))


def named_layers(model: nn.Module) -> list[NamedLayer]:
    """Return the layers of `model`, `model` itself first under the name ""; wrappers of torch are left out."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, list[nn.Module]] = {}
    for path, module in modules.items():
        if wrapped(module) is None and not isinstance(module, WRAPPING_CLASSES):
            found.setdefault(bare_path(path, modules).removesuffix("."), []).append(module)
    return [NamedLayer(name, own[0], tuple(own)) for name, own in found.items()]


def selected_layers(
    model: nn.Module, rules: Mapping[LayerSelector, Penalty | None]
) -> list[tuple[NamedLayer, Penalty]]:
    """Return each layer that a rule selects, once, with the penalty of the first that does.

    Raises:
        TypeError: a selector is none.
        SelectionError: a rule matches nothing or never applies, or two rules clash on a layer with two names.
    """
    layers, selectors = named_layers(model), list(rules)
    for selector in selectors:
        check_layer_selector(selector)
    winners = [next((each for each in selectors if layer.matches(each)), None) for layer in layers]
    for selector in selectors:
        check_applies(selector, layers, winners)
    found: dict[int, tuple[NamedLayer, Penalty | None]] = {}
    for layer, winner in zip(layers, winners, strict=True):
        penalty = None if winner is None else rules[winner]
        first, known = found.setdefault(id(layer.module), (layer, penalty))
        if known != penalty:
            raise SelectionError(
                f"{first.name!r} and {layer.name!r} are one layer, but the rules differ on it: {known} and {penalty}; "
                "give both names one rule"
            )
    return [(layer, penalty) for layer, penalty in found.values() if penalty is not None]


def check_layer_selector(selector: object) -> None:
    """Raise `TypeError` unless `selector` can select layers."""
    is_class = isinstance(selector, type) and issubclass(selector, nn.Module)
    if not (is_class or isinstance(selector, nn.Module | str) or is_function(selector)):
        raise TypeError(
            "layers are selected by a glob on their name, a module class, a layer, or a function of (name, module), "
            f"got {shown(selector)}"
        )


def check_applies(
    selector: LayerSelector, layers: Sequence[NamedLayer], winners: Sequence[LayerSelector | None]
) -> None:
    """Raise `SelectionError` unless `selector` is the first that matches one of the layers."""
    if any(winner is selector for winner in winners):
        return
    text = selector_text(selector)
    taken = next(
        (w for layer, w in zip(layers, winners, strict=True) if w is not None and layer.matches(selector)), None
    )
    if taken is not None:
        raise SelectionError(
            f"the rule {text} never applies: every layer it matches is taken by an earlier rule such as "
            f"{selector_text(taken)}; the first match wins, so put it before that one"
        )
    sought = selector if isinstance(selector, str) else text
    close = difflib.get_close_matches(sought, [layer.name for layer in layers], n=3, cutoff=0.0)
    raise SelectionError(f"the rule {text} matches no layer of the model; nearest names: {', '.join(map(repr, close))}")
