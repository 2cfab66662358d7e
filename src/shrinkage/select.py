"""Selectors: which parameters of a model a rule is about.

A selector is a glob on the dotted name ("blocks.*.weight"), a module class (its `weight`), a pair of a module class and
a parameter's own name, or a function of (name, module, parameter). Names are those of the bare model: what
`torch.compile`, data parallel and checkpointing wrappers, Lightning Fabric and PEFT add to them is left out.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from shrinkage.errors import ParameterError, SelectionError
from shrinkage.flattened import is_piece
from shrinkage.parametrized import Computed, computed_weights
from shrinkage.private import check_marks

Selector = str | type[nn.Module] | tuple[type[nn.Module], str] | Callable[[str, nn.Module, nn.Parameter], bool]

WRAPPING_NAMES = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
}
WRAPPING_CLASSES = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # they call the model "module"
WRAPPING_NAMES_OF_PEFT = {"base_model", "model", "base_layer", "modules_to_save"}
COMPLEX = (
    "keep it as torch.view_as_real(...) in a parameter of its own with one dimension more, in which "
    "GroupLasso(strength, Kernels(), weigh_by_size=False) charges the modulus of each number of a matrix, or "
)
REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
LEFT_ALONE = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """One name under which a model holds a parameter, or would if no parametrization stood in front of it.

    `parameter` is None where the weight is computed from others; `computed` then says how.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter | None
    computed: Computed | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The default selector: every `weight` with two dimensions or more outside of norm and embedding layers.

    A weight that is tied to an embedding is left alone too.
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
        if candidate.attribute != "weight" or isinstance(candidate.module, LEFT_ALONE):
            return False
        if is_piece(parameter):
            raise ParameterError(
                f"FullyShardedDataParallel has flattened {candidate.name!r}, so that matrices can not be told from "
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
        prefix = bare_path(path, modules)
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        found = [NamedParameter(prefix + attribute, module, attribute, parameter) for attribute, parameter in own]
        for computed in computed_weights(module):
            found.append(NamedParameter(prefix + computed.attribute, module, computed.attribute, None, computed))
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
    if isinstance(selector, type):
        selector = (selector, "weight")
    if isinstance(selector, tuple):
        module_class, attribute = selector
        return isinstance(candidate.module, module_class) and candidate.attribute == attribute
    parameter = candidate.parameter
    return parameter is not None and bool(selector(candidate.name, candidate.module, parameter))


def check_selector(selector: object) -> None:
    """Raise `TypeError` unless `selector` is one of the four kinds."""
    is_class = isinstance(selector, type) and issubclass(selector, nn.Module)
    is_pair = (
        isinstance(selector, tuple)
        and len(selector) == 2
        and isinstance(selector[0], type)
        and isinstance(selector[1], str)
    )
    is_function = callable(selector) and not isinstance(selector, type)
    if not (isinstance(selector, str) or is_class or is_pair or is_function):
        raise TypeError(
            "a selector is a glob on the parameter's name, a module class, a (module class, parameter name) pair or a "
            f"function of (name, module, parameter), got {selector!r}"
        )


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
    return repr(selector) if isinstance(selector, str) else str(getattr(selector, "__name__", repr(selector)))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the three of `names` nearest to `name`, as text for an error message."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.0)
    return ", ".join(map(repr, close)) or "none, there are no parameters"


def unmatched(selector: AnySelector, candidates: Sequence[NamedParameter]) -> SelectionError:
    """Return the error for a selector that selects nothing."""
    if isinstance(selector, tuple | type):
        module_class, attribute = selector if isinstance(selector, tuple) else (selector, "weight")
        sought = f"{module_class.__name__}.{attribute}"
    else:
        sought = selector if isinstance(selector, str) else "weight"
    inside = [c.name for c in candidates if isinstance(selector, str) and c.name.startswith(f"{selector}.")]
    hint = f"; {selector!r} is a module: write '{selector}.*' for its parameters" if inside else ""
    return SelectionError(
        f"the rule {selector_text(selector)} matches no parameter of the model{hint}; "
        f"nearest names: {nearest(sought, (c.name for c in candidates))}"
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


def check_parameter(name: str, tensor: Tensor) -> None:
    """Raise `ParameterError` unless `tensor` is real floating point with an element for each of its places."""
    lazy = nn.parameter.is_lazy(tensor)
    what = f"{name!r} of shape {'lazy' if lazy else tuple(tensor.shape)}"
    if tensor.dtype not in REAL:
        ways = "" if not tensor.is_complex() else COMPLEX
        raise ParameterError(
            f"{what} has type {tensor.dtype}; only real floating-point parameters of 16 bits or more can be charged: "
            f"{ways}put {{{name!r}: None}} before the rule that selects it"
        )
    if not lazy and tensor.layout == torch.strided and 0 in strides_of_several(tensor):
        raise ParameterError(
            f"{what} is expanded: several of its places share one element, which can not be written one by one; "
            f"keep the tensor from before expand() as the parameter, or put {{{name!r}: None}} before the rule"
        )


def is_frozen(parameter: nn.Parameter | None) -> bool:
    """Return whether there is a parameter that takes no gradient."""
    return parameter is not None and not parameter.requires_grad


def strides_of_several(tensor: Tensor) -> list[int]:
    """Return the strides of the dimensions along which `tensor` has several elements."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def check_not_computed(candidate: NamedParameter) -> None:
    """Raise `ParameterError` if `candidate` is a weight that its module computes from other parameters."""
    computed = candidate.computed
    if computed is not None:
        prefix = candidate.name.removesuffix(candidate.attribute)
        own = [prefix + source for source in computed.sources]
        raise ParameterError(
            f"{candidate.name!r} is not a parameter: {computed.by} computes it from {' and '.join(map(repr, own))}, so "
            f"writing zeros into it would be lost; charge that instead ({computed.meaning.format(*own)}), or put "
            f"{{{candidate.name!r}: None}} before the rule that selects it"
        )
