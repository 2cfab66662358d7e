"""What a layer declares with `regularize`: data among its attributes, which copies and files of the layer take along.

It holds the dicts in which the layer keeps its parameters and its modules, and so finds those of a copy, or of a layer
that was loaded, without any code that would have to run then. All declarations that are alive are numbered.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Set
from fnmatch import fnmatchcase
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from shrinkage.distributed.flat_parameters import check_stepped
from shrinkage.penalties.pickling import Saved
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.rules import Rule
from shrinkage.selection.supported_parameters import is_frozen

ATTRIBUTE = "_shrinkage_declarations"
PATIENCE = 10  # so many steps without one that reaches a layer are told


class Counted(Protocol):
    """What counts updates."""

    def count(self) -> int:
        """Return the number of updates."""


class Declaration(Saved):
    """The rules that one layer declares. Knows its layer by weak reference, so that it does not keep it alive."""

    rules: tuple[Rule, ...] = ()
    kind = "Module"
    decays: Mapping[str, float] = MappingProxyType({})  # of averages that hold zeros, by what a rule selects
    counts: Mapping[str, Counted | int] = MappingProxyType({})  # of updates, by parameter, where they matter

    def __new__(cls, *args: Any) -> "Declaration":
        self = super().__new__(cls)
        self._begin()
        return self

    def _begin(self) -> None:
        """Be alive, with nothing declared yet."""
        self._layer: Callable[[], nn.Module | None] = nowhere
        self.dicts: dict[str, Any] = {}
        self._shell: nn.Module | None = None
        self.reached: set[str] = set()  # names of parameters in the layer; copies have it in common
        self.since = living.steps
        living.add(self)

    def __init__(self, layer: nn.Module, rules: tuple[Rule, ...], decays: Mapping[str, float] | None = None) -> None:
        self._layer = weakref.ref(layer)
        self.decays = dict(decays or {})
        self.dicts = {name: vars(layer)[name] for name in ("_parameters", "_modules") if name in vars(layer)}
        self.kind = type(layer).__name__
        self.rules = rules

    def _data(self) -> dict[str, Any]:
        counts = {name: each if isinstance(each, int) else each.count() for name, each in self.counts.items()}
        parts = {"decays": dict(self.decays), "counts": counts}
        found = {name: part for name, part in parts.items() if part}
        return {"kind": self.kind, "rules": self.rules, "dicts": self.dicts, **found}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Declaration":
        """Return the declaration of the layer's copy, whose dicts are in `memo` already."""
        copied = Declaration.__new__(type(self))
        layer = memo.get(id(self._layer()))
        copied._layer = nowhere if layer is None else weakref.ref(layer)
        copied.dicts = copy.deepcopy(self.dicts, memo)
        copied.kind, copied.rules, copied.reached = self.kind, self.rules, self.reached
        copied.decays, copied.counts = self.decays, copy.deepcopy(dict(self.counts))
        return copied

    def __del__(self) -> None:
        """Leave the rules to the parameters of a layer that goes: other modules may hold them, and train on."""
        if self.rules and self.in_force():
            living.leave(self)

    def module(self) -> nn.Module:
        """Return the layer, or a module that holds what it holds, now and later, if the layer is gone or not known."""
        layer = self._layer()
        if layer is not None:
            return layer
        if self._shell is None:
            self._shell = nn.Module()
            vars(self._shell).update(self.dicts)
        return self._shell

    def in_force(self) -> bool:
        """Return whether the layer has not declared anything else since."""
        layer = self._layer()
        return layer is None or vars(layer).get(ATTRIBUTE) is self

    def taken_back(self, layer: nn.Module) -> None:
        """Forget the rules, which `layer` declares anew, unless a layer that it is a shallow copy of declares them."""
        if self._layer() in (None, layer):
            self.rules = ()

    def concerns(self, held: Set[int]) -> bool:
        """Return whether the layer has one of the parameters whose ids are `held`."""
        module = self.module()
        if not held.isdisjoint(map(id, module._parameters.values())):
            return True
        return bool(module._modules) and not held.isdisjoint(map(id, module.parameters()))

    def check_stepped(self, flat: Tensor | None) -> None:
        """Raise `ParameterError` if a penalized parameter went into a `flat` one: no optimizer steps it."""
        names = []
        for name, parameter in self.module().named_parameters():
            check_stepped(f"{name} of {self.kind}", parameter)
            names.append(name)
        for rule in self.rules:
            if not any(fnmatchcase(name, str(rule.parameters)) for name in names):
                check_stepped(f"{rule.parameters} of {self.kind}", flat)

    def selected(self, rule: Rule) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that one of the rules names, as they are now."""
        name = str(rule.parameters)
        own = self.dicts.get("_parameters", {}).get(name)
        if own is not None:  # the usual case, in which nothing has to be searched
            yield name, own
            return
        for candidate in named_parameters(self.module()):
            if candidate.parameter is not None and fnmatchcase(candidate.name, name):
                yield candidate.name, candidate.parameter


def nowhere() -> None:
    """Stand for the weak reference to a layer that is not known."""


class Left(NamedTuple):
    """What a layer that is gone declared for one parameter: the rule, the parameter's name there, and when it went."""

    rule: Rule
    name: str
    kind: str
    number: int
    decay: float | None = None


class Living:
    """The declarations that are alive, in the order in which they came; and what those that are gone left behind."""

    def __init__(self) -> None:
        self.numbered: dict[int, weakref.ref[Declaration]] = {}
        self.left: MutableMapping[Tensor, Left] = WeakTensorKeyDictionary()
        self.added = self.gone = 0  # numbers of the last one that came, and that went
        self.steps = 0  # of any optimizer, since there are declarations
        self.at_first: Callable[[], None] = nowhere

    def add(self, declaration: Declaration) -> None:
        """Take in `declaration`."""
        if not self.added:
            self.at_first()
        self.added = number = self.added + 1
        numbered = self.numbered
        numbered[number] = weakref.ref(declaration, lambda _: numbered.pop(number, None))

    def leave(self, declaration: Declaration) -> None:
        """Leave the rules of `declaration`, which goes, to its parameters as long as they are there."""
        self.gone += 1
        for rule in declaration.rules:
            for name, parameter in declaration.selected(rule):
                decay = declaration.decays.get(str(rule.parameters))
                self.left[parameter] = Left(rule, name, declaration.kind, self.gone, decay)

    def all(self) -> list[Declaration]:
        """Return those that are alive, the newest first."""
        return self.after(0)

    def after(self, number: int) -> list[Declaration]:
        """Return those that came after the one with this `number`, the newest first."""
        newer = list(takewhile(number.__lt__, reversed(self.numbered)))
        return [each for each in (self.numbered[n]() for n in newer if n in self.numbered) if each is not None]

    def clear(self) -> None:
        """Forget all of them."""
        self.numbered.clear()
        self.left.clear()


def unreached(model: nn.Module) -> list[str]:
    """Return the names of the parameters that layers of `model` declared and that no step of an optimizer reached.

    Of declarations that are older than ten steps, made by any optimizers of this process.
    """
    names = {id(c.parameter): c.name for c in reversed(list(named_parameters(model))) if c.parameter is not None}
    found: dict[str, None] = {}
    for module in model.modules():
        declaration = vars(module).get(ATTRIBUTE)
        if declaration is None or living.steps - declaration.since < PATIENCE:
            continue
        for rule in declaration.rules:
            for own, parameter in declaration.selected(rule):
                if own not in declaration.reached:
                    frozen = " (frozen)" if is_frozen(parameter) else ""
                    found[names.get(id(parameter), own) + frozen] = None
    return list(found)


living = Living()
