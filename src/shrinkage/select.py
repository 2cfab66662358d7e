"""Selectors: which parameters of a model a rule is about.

A selector is a glob on the dotted name ("blocks.*.weight"), a module class (its `weight`), a pair of a module class and
a parameter's own name, or a function of (name, module, parameter). Names are those of the bare model: the prefixes
that `torch.compile`, data parallel and checkpointing wrappers put in front are left out.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from shrinkage.errors import ParameterError, SelectionError
from shrinkage.flattened import is_piece

Selector = str | type[nn.Module] | tuple[type[nn.Module], str] | Callable[[str, nn.Module, nn.Parameter], bool]

WRAPPING_NAMES = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
WRAPPING_CLASSES = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # they call the model "module"
LEFT_ALONE = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """One name under which a model holds a parameter, or would if no parametrization stood in front of it.

    `parameter` is None where the weight is computed from others; `behind` then says by what.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter | None
    behind: str = ""


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


def named_parameters(model: nn.Module) -> Iterator[NamedParameter]:
    """Yield every name of every parameter of `model`, tied ones under each of their names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        prefix = bare_path(path, modules)
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield NamedParameter(prefix + attribute, module, attribute, parameter)
        for attribute, behind in computed_weights(module):
            yield NamedParameter(prefix + attribute, module, attribute, None, behind)


def bare_path(path: str, modules: dict[str, nn.Module]) -> str:
    """Return the dotted prefix of a module's parameters, without the components that wrappers add."""
    kept, parent = [], ""
    for component in path.split(".") if path else []:
        wrapped = component == "module" and isinstance(modules[parent], WRAPPING_CLASSES)
        if component not in WRAPPING_NAMES and not wrapped:
            kept.append(component)
        parent = f"{parent}.{component}" if parent else component
    return "".join(f"{component}." for component in kept)


def computed_weights(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the weights that `module` computes from other parameters, each with what computes it."""
    if parametrize.is_parametrized(module):
        parametrizations = module.get_submodule("parametrizations")
        for attribute, chain in parametrizations.named_children():
            yield attribute, " and ".join(type(link).__name__ for link in chain.children())
    own = dict(module.named_parameters(recurse=False))
    for name in own:
        if name.endswith("_orig") and name.removesuffix("_orig") not in own:
            yield name.removesuffix("_orig"), "torch.nn.utils.prune or spectral_norm"
        if name.endswith("_g") and f"{name.removesuffix('_g')}_v" in own:
            yield name.removesuffix("_g"), "torch.nn.utils.weight_norm"


def matches(selector: Selector | Weights, candidate: NamedParameter) -> bool:
    """Return whether `selector` selects `candidate`."""
    if isinstance(selector, Weights):
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
    if isinstance(selector, tuple):
        return f"({', '.join(map(selector_text, selector))})"
    return repr(selector) if isinstance(selector, str) else str(getattr(selector, "__name__", repr(selector)))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the three of `names` nearest to `name`, as text for an error message."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.0)
    return ", ".join(map(repr, close)) or "none, there are no parameters"


def unmatched(selector: Selector | Weights, candidates: Sequence[NamedParameter]) -> SelectionError:
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


def check_parameter(name: str, tensor: Tensor) -> None:
    """Raise `ParameterError` unless `tensor` is real floating point, so that it can be charged."""
    if not tensor.is_floating_point():
        shape = "lazy" if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)
        raise ParameterError(
            f"{name!r} of shape {shape} has type {tensor.dtype}; only real floating-point parameters can be charged: "
            f"put {{{name!r}: None}} before the rule that selects it"
        )


def check_not_computed(candidate: NamedParameter) -> None:
    """Raise `ParameterError` if a parametrization stands in front of the weight."""
    if candidate.parameter is None:
        own = ", ".join(repr(name) for name, _ in candidate.module.named_parameters())
        raise ParameterError(
            f"{candidate.name!r} is not a parameter: {candidate.behind} computes it, so writing zeros into it would be "
            f"lost; charge one of the parameters of its {type(candidate.module).__name__} instead ({own}), or put "
            f"{{{candidate.name!r}: None}} before the rule that selects it"
        )
