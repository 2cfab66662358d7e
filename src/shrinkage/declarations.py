"""What layers declare, and who looks for it: a hook before the steps of every optimizer.

All declarations that are alive are in a weak set. Before an optimizer steps, the hook looks there for the parameters
that it holds. A layer that goes leaves its declarations to its parameters, which live on where another module holds
them: a stage of a pipeline, a traced copy, a new container.
"""

import copy
import weakref
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from shrinkage.attachment import Arguments, Attachment, Keywords, explicit_attachments
from shrinkage.charge import Charge, Found, Place, check_gradients, places_of
from shrinkage.errors import SelectionError, ShrinkageError
from shrinkage.flattened import check_stepped, is_flat
from shrinkage.hooks import hook_around
from shrinkage.optimizers import Beside, group_indices, parameters_of, uncompiled
from shrinkage.penalties import Penalty
from shrinkage.plan import How, Plan, Rule, resolve
from shrinkage.select import named_parameters

ATTRIBUTE = "_shrinkage_declarations"


class Declared(NamedTuple):
    """A parameter that is charged, with its rule, its name in messages, and the places where it has to stay."""

    parameter: nn.Parameter
    rule: Rule
    name: str
    places: tuple[Place, ...] = ()


class Declarations:
    """The rules that one layer declares. Knows its layer by weak reference, so that it does not keep it alive."""

    rules: tuple[Rule, ...] = ()

    def __init__(self, layer: nn.Module, rules: tuple[Rule, ...], shell: nn.Module | None = None) -> None:
        self._bind(layer, rules, shell_of(layer) if shell is None else shell)

    def _bind(self, layer: nn.Module, rules: tuple[Rule, ...], shell: nn.Module) -> None:
        self._layer = weakref.ref(layer)
        self._kind = type(layer).__name__
        self._shell = shell  # it stands for the layer when that is gone
        self.rules = rules
        _registry.add(self)

    def concern(self, held: Set[int]) -> bool:
        """Return whether the layer has one of the parameters whose ids are `held`."""
        return not held.isdisjoint(id(parameter) for parameter in self._module().parameters())

    def check_stepped(self, flat: Tensor | None) -> None:
        """Raise `ParameterError` if no optimizer steps a charged parameter, as it went into a `flat` one."""
        names = []
        for name, parameter in self._module().named_parameters():
            check_stepped(f"{name} of {self._kind}", parameter)
            names.append(name)
        for rule in self.rules:
            if not any(fnmatchcase(name, str(rule.parameters)) for name in names):
                check_stepped(f"{rule.parameters} of {self._kind}", flat)

    def charges(self) -> list[Declared]:
        """Return what is charged, as it is now."""
        return [declared for rule in self.rules for declared in self._charges_of(rule)] if self._in_force() else []

    def _charges_of(self, rule: Rule) -> list[Declared]:
        """Return what one of the rules charges."""
        module = self._module()
        held = {candidate.name: candidate for candidate in named_parameters(module)}
        found = []
        for entry in resolve(module, rule):
            parameter = held[entry.name].parameter
            if parameter is not None:
                bound = replace(rule, penalty=entry.penalty)
                places = places_of([held[name] for name in (entry.name, *entry.aliases)], parameter)
                found.append(Declared(parameter, bound, f"{entry.name} of {self._kind}", places))
        return found

    def places(self) -> list[Place]:
        """Return where the layer holds parameters."""
        modules = self._module().modules()
        return [Place(weakref.ref(module), attribute) for module in modules for attribute in module._parameters]

    def taken_back(self, layer: nn.Module) -> None:
        """Forget the rules, which `layer` declares anew, unless a layer that it is a shallow copy of declares them."""
        if self._layer() in (None, layer):
            self.rules = ()

    def _module(self) -> nn.Module:
        layer = self._layer()
        return self._shell if layer is None else layer

    def _in_force(self) -> bool:
        layer = self._layer()
        return layer is None or vars(layer).get(ATTRIBUTE) is self

    def __del__(self) -> None:
        """Leave the rules to the parameters of a layer that goes: other modules may hold them, and train on."""
        for rule in self.rules if self.rules and self._in_force() else ():
            with suppress(ShrinkageError):  # it could not be applied while the layer was there, either
                _registry.inherit(self._charges_of(rule))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Declarations":
        """Return the declarations of the layer's copy, which is in `memo` before its attributes are copied."""
        layer = present(memo.get(id(self._layer())))
        return Declarations(layer, self.rules, copy.deepcopy(self._shell, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the layer beside its rules: it is being pickled already, so only a reference is written."""
        return Declarations.__new__, (Declarations,), (present(self._layer()), self.rules, self._shell)

    def __setstate__(self, state: tuple[nn.Module, tuple[Rule, ...], nn.Module]) -> None:
        self._bind(*state)


def shell_of(layer: nn.Module) -> nn.Module:
    """Return a bare module that holds what `layer` holds, now and later: they have their dicts in common."""
    shell = nn.Module()
    vars(shell).update({name: vars(layer)[name] for name in ("_parameters", "_modules") if name in vars(layer)})
    return shell


def present(layer: nn.Module | None) -> nn.Module:
    """Return `layer`; raise if a declaration is copied without the layer that it is about."""
    if layer is None:
        raise SelectionError(
            "this layer shares the declaration of another one that is gone, as copy.copy() makes it, and can not be "
            "copied; declare it anew: regularize(layer, None), then regularize(layer, penalty)"
        )
    return layer


class Registry:
    """All declarations that are alive, and the attachments that apply them."""

    def __init__(self) -> None:
        self.declarations: weakref.WeakSet[Declarations] = weakref.WeakSet()
        self.inherited = WeakTensorKeyDictionary()  # rules and names by parameter, of layers that are gone
        self.attachments: Beside[tuple[Attachment | None, object, bool]] = Beside("declared")
        self.additions = 0

    def add(self, declarations: Declarations) -> None:
        """Take in `declarations`; the first one installs the hook."""
        if not self.additions:
            register_optimizer_step_pre_hook(uncompiled(self.before_step))
        self.additions += 1
        self.declarations.add(declarations)

    def inherit(self, declared: Sequence[Declared]) -> None:
        """Go on charging parameters whose layer is gone, as long as they are there."""
        self.additions += 1
        for parameter, rule, name, _ in declared:
            self.inherited[parameter] = (rule, name)

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        """Run before every step of every optimizer: attach to those that hold a declared parameter."""
        attachment, seen, attached = self.attachments.get(optimizer, (None, None, False))
        if not (self.declarations or self.inherited or attached):
            return
        explicit = explicit_attachments.get(optimizer, [])
        taken = [each.charges(optimizer) for each in explicit]
        state = (self.additions, [(each, each.lookups) for each in explicit])
        if attachment is None:
            attachment = Attachment(self.resolve)
        elif seen != state:
            attachment.forget()
        if attachment.charges(optimizer):
            for charges in (attachment.charges(optimizer), *taken):  # nothing is changed if one refuses this step
                check_gradients(charges)
            if not attached:
                hook_around(optimizer, attachment.before_step, attachment.after_step)
                attached = True
        self.attachments[optimizer] = (attachment, state, attached)

    def resolve(self, optimizer: Optimizer) -> Found:
        """Return what declarations charge in `optimizer`, less what a `Regularizer` charges there already."""
        groups = group_indices(optimizer)
        flat = next(filter(is_flat, parameters_of(optimizer)), None)
        for declarations in list(self.declarations):
            declarations.check_stepped(flat)
        declared: dict[int, Declared] = {}
        for declarations in [each for each in list(self.declarations) if each.concern(groups.keys())]:
            for each in declarations.charges():
                other = declared.get(id(each.parameter), each._replace(places=()))
                check_same_charge(each.name, other.rule, each.rule.penalty, each.rule.how)
                declared[id(each.parameter)] = each._replace(places=(*other.places, *each.places))
        inherited = self.inheritance(optimizer)
        for attachment in explicit_attachments.get(optimizer, []):
            for charge in attachment.charges(optimizer):
                inherited.pop(id(charge.parameter), None)
                replaced = declared.pop(id(charge.parameter), None)
                if replaced is not None:
                    check_same_charge(charge.name, replaced.rule, charge.penalty, charge.how)
        found = {**inherited, **declared}
        held = dict.fromkeys(map(id, parameters_of(optimizer)))
        charged = [found[identity] for identity in held if identity in found]
        charges = [
            Charge(name, rule.penalty, rule.how, parameter, groups[id(parameter)], places, is_lazy(parameter))
            for parameter, rule, name, places in charged
            if rule.penalty is not None and id(parameter) in groups
        ]
        everywhere = [place for declarations in list(self.declarations) for place in declarations.places()]
        return Found(charges, [place for place in everywhere if not place.holds_any(groups)])

    def inheritance(self, optimizer: Optimizer) -> dict[int, Declared]:
        """Return what layers that are gone declared, of the parameters of `optimizer`."""
        found = {}
        for parameter in parameters_of(optimizer) if self.inherited else ():
            if parameter in self.inherited and isinstance(parameter, nn.Parameter):
                rule, name = self.inherited[parameter]
                bound = replace(rule, penalty=rule.penalty.bound(name, parameter))  # it may have moved since
                found[id(parameter)] = Declared(parameter, bound, name)
        return found


def check_declared(declared: Mapping[str, Rule], plan: Plan) -> None:
    """Raise `SelectionError` unless `plan` charges what layers declared, by name, in the same way."""
    for entry in plan:
        for name in {entry.name, *entry.aliases} & declared.keys():
            check_same_charge(name, declared[name], entry.penalty, entry.how)


def check_same_charge(name: str, declared: Rule, penalty: Penalty | None, how: How) -> None:
    """Raise `SelectionError` unless a parameter that is charged in two places is charged the same in both."""
    if (declared.penalty, declared.how) != (penalty, how):
        raise SelectionError(
            f"two rules clash on {name!r}: its layer declares {declared.penalty} ({declared.how}) with regularize(), "
            f"another rule charges {penalty} ({how}); keep one of them"
        )


_registry = Registry()
