"""Selectors: which parameters of a model a rule is about.

A selector is a glob on the dotted name ("blocks.*.weight"), a module class or a layer (its weights), a pair of one of
these and a glob on a parameter's own name, or a function of (name, module, parameter). Names are those of the bare
model, without what `torch.compile`, data parallel and checkpointing wrappers, Lightning Fabric and PEFT add to them.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import NamedTuple

from torch import Tensor, nn

from shrinkage.distributed.flattened import is_piece
from shrinkage.errors import ParameterError, SelectionError, shown
from shrinkage.private import check_marks, compiled_from
from shrinkage.selection.matrices import OUTPUT, is_matrix, is_weight
from shrinkage.selection.parametrized import Computed, computed_weights

Layers = type[nn.Module] | nn.Module
Selector = str | Layers | tuple[Layers, str] | Callable[[str, nn.Module, nn.Parameter], bool]

WRAPPING_NAMES = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
}
WRAPPING_CLASSES = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # they call the model "module"
WRAPPING_NAMES_OF_PEFT = {"base_model", "model", "base_layer", "modules_to_save"}
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
LEFT_ALONE = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)


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


@dataclass(frozen=True, slots=True)
class Weights:
    """The default selector: weights with two dimensions or more outside of norm and embedding layers.

    That is every `weight`, and the matrices of recurrent and attention layers. One that is tied to an embedding is left
    alone too.
    """

    left_alone: frozenset[int]

    @classmethod
    def of(cls, model: nn.Module) -> "Weights":
        """Return the default selector for `model`."""
        held = (p for m in model.modules() if isinstance(m, LEFT_ALONE) for p in m.parameters(recurse=False))
        return cls(frozenset(map(id, held)))

    def matches(self, candidate: NamedParameter) -> bool:
        """Return whether `candidate` is such a weight."""
        parameter = candidate.parameter
        named = candidate.attribute == "weight" or is_matrix(candidate.attribute)
        if not named or isinstance(candidate.module, LEFT_ALONE):
            return False
        if is_piece(parameter):
            raise ParameterError(
                f"FullyShardedDataParallel has flattened {candidate.name!r}, so that matrices cannot be told from "
                "vectors any more; make the Regularizer before it wraps the model, or name parameters with a glob such "
                'as "*.weight"'
            )
        if parameter is None or nn.parameter.is_lazy(parameter):
            return True
        return parameter.dim() >= 2 and id(parameter) not in self.left_alone


@dataclass(frozen=True, slots=True)
class Named:
    """The selector of a rule whose groups name their parameters."""

    names: tuple[str, ...]

    def matches(self, candidate: NamedParameter) -> bool:
        """Return whether `candidate` has one of the names."""
        return candidate.name in self.names


AnySelector = Selector | Weights | Named


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


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the three of `names` nearest to `name`, as text for an error message."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.0)
    return ", ".join(map(repr, close)) or "none, there are no parameters"


def unmatched(selector: AnySelector, candidates: Sequence[NamedParameter]) -> SelectionError:
    """Return the error for a selector that selects nothing."""
    hint = ""
    if isinstance(selector, str):
        inside = any(each.name.startswith(f"{selector}.") for each in candidates)
        hint = f"; {selector!r} is a module: write '{selector}.*' for its parameters" if inside else ""
        sought = selector
    else:
        layers, own = selector if isinstance(selector, tuple) else (selector, "weight")
        sought = f"{layers.__name__}.{own}" if isinstance(layers, type) else own
        hint = hint_for(selector, candidates) if isinstance(selector, type | nn.Module) else ""
        hint = outside(candidates) if isinstance(selector, Weights) and candidates else hint
    return SelectionError(
        f"the rule {selector_text(selector)} matches no parameter of the model{hint}; "
        f"nearest names: {nearest(sought, (c.name for c in candidates))}"
    )


def hint_for(layers: Layers, candidates: Sequence[NamedParameter]) -> str:
    """Return what a model has of `layers`, of which it has no weight."""
    inside = {id(each) for each in layers.modules()} if isinstance(layers, nn.Module) else set()
    held = [c for c in candidates if id(c.module) in inside or any(is_of(module, layers) for module, _ in c.owners())]
    if not held:
        return ": this layer is no part of it" if isinstance(layers, nn.Module) else ""
    names = f"{', '.join(repr(each.name) for each in held[:3])}{' ...' * (len(held) > 3)}"
    return f": no 'weight' of its own is there, but {names}, which a glob or a pair can name"


def outside(candidates: Sequence[NamedParameter]) -> str:
    """Return why a penalty without a selector finds nothing, and what to write."""
    held = [f"{each.name!r} of {type(each.module).__name__}" for each in candidates]
    others = f" and {len(held) - 3} others" if len(held) > 3 else ""
    first = next((c for c in candidates if c.parameter is not None and c.parameter.dim() > 1), candidates[0])
    return (
        ": a penalty without a selector is for weights with two dimensions or more outside of norms and embeddings, "
        f"and it has {', '.join(held[:3])}{others}; name what is meant, such as {{{first.name!r}: L1(1e-3)}}"
    )


def first_matches(selectors: Sequence[AnySelector], candidates: Sequence[NamedParameter]) -> list[int | None]:
    """Return for each candidate the index of the first selector that matches it; raise for one that never wins."""
    hits = [[matches(selector, candidate) for candidate in candidates] for selector in selectors]
    columns = range(len(candidates))
    winners = [next((i for i, row in enumerate(hits) if row[column]), None) for column in columns]
    for i, selector in enumerate(selectors):
        if not any(hits[i]):
            raise unmatched(selector, candidates)
        if i not in winners:
            taken = next(j for j in range(i) if hits[j][hits[i].index(True)])
            raise SelectionError(
                f"the rule {selector_text(selector)} never applies: every parameter it matches is taken by an earlier "
                f"rule such as {selector_text(selectors[taken])}; the first match wins, so put it before that one"
            )
    return winners
