"""What layers declare, and who looks for it: a hook before the steps of every optimizer.

All declarations that are alive are in a weak set. Before an optimizer steps, the hook looks there for the parameters
that it holds.
"""

import weakref
from collections.abc import Set
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from shrinkage.attachment import Arguments, Attachment, Keywords, explicit_attachments
from shrinkage.charge import Charge, Place, check_gradients, places_of
from shrinkage.errors import SelectionError
from shrinkage.flattened import check_stepped, is_flat
from shrinkage.hooks import hook_around
from shrinkage.optimizers import Beside, group_indices, parameters_of, uncompiled
from shrinkage.penalties import Penalty
from shrinkage.plan import How, Rule, resolve
from shrinkage.select import named_parameters

ATTRIBUTE = "_shrinkage_declarations"


class Declarations:
    """The rules that one layer declares. Knows its layer by weak reference, so that it does not keep it alive."""

    def __init__(self, layer: nn.Module, rules: tuple[Rule, ...]) -> None:
        self._bind(layer, rules)

    def _bind(self, layer: nn.Module, rules: tuple[Rule, ...]) -> None:
        self._layer = weakref.ref(layer)
        self._parameters = vars(layer).get("_parameters", {})  # empty in a deep copy, which gets them in a moment
        self.rules = rules
        _registry.add(self)

    def concern(self, held: Set[int]) -> bool:
        """Return whether the layer has one of the parameters whose ids are `held`.

        A declaration outlives its layer only in a copy by copy.copy(), which has the layer's own dict of parameters.
        """
        layer = self._layer()
        if layer is not None:
            self._parameters = layer._parameters
            return not held.isdisjoint(id(parameter) for parameter in layer.parameters())
        if self.rules and not held.isdisjoint(id(parameter) for parameter in self._parameters.values()):
            present(layer)
        return False

    def check_stepped(self, flat: Tensor | None) -> None:
        """Raise `ParameterError` if no optimizer steps a charged parameter, as it went into a `flat` one."""
        layer = self._layer()
        if layer is None:
            return
        names = []
        for name, parameter in layer.named_parameters():
            check_stepped(f"{name} of {type(layer).__name__}", parameter)
            names.append(name)
        for rule in self.rules:
            if not any(fnmatchcase(name, str(rule.parameters)) for name in names):
                check_stepped(f"{rule.parameters} of {type(layer).__name__}", flat)

    def charges(self) -> list[tuple[nn.Parameter, Rule, str, tuple[Place, ...]]]:
        """Return every charged parameter as it is now, with its rule, its name in messages, and its places."""
        layer = self._layer()
        if layer is None or vars(layer).get(ATTRIBUTE) is not self:
            return []
        held = {candidate.name: candidate for candidate in named_parameters(layer)}
        found = []
        for rule in self.rules:
            for entry in resolve(layer, rule):
                parameter = held[entry.name].parameter
                if parameter is not None:
                    bound = replace(rule, penalty=entry.penalty)
                    places = places_of([held[name] for name in (entry.name, *entry.aliases)], parameter)
                    found.append((parameter, bound, f"{entry.name} of {type(layer).__name__}", places))
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Declarations":
        """Return the declarations of the layer's copy, which is in `memo` before its attributes are copied."""
        return Declarations(present(memo.get(id(self._layer()))), self.rules)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the layer beside its rules: it is being pickled already, so only a reference is written."""
        return Declarations.__new__, (Declarations,), (present(self._layer()), self.rules)

    def __setstate__(self, state: tuple[nn.Module, tuple[Rule, ...]]) -> None:
        self._bind(*state)


def present(layer: nn.Module | None) -> nn.Module:
    """Return `layer`; raise if a declaration is copied, or charged, without the layer that it is about."""
    if layer is None:
        raise SelectionError(
            "this layer shares the declaration of another one that is gone, as copy.copy() makes it, and can neither "
            "be charged nor copied; declare it anew: regularize(layer, None), then regularize(layer, penalty)"
        )
    return layer


class Registry:
    """All declarations that are alive, and the attachments that apply them."""

    def __init__(self) -> None:
        self.declarations: weakref.WeakSet[Declarations] = weakref.WeakSet()
        self.attachments: Beside[tuple[Attachment | None, object, bool]] = Beside("declared")
        self.additions = 0

    def add(self, declarations: Declarations) -> None:
        """Take in `declarations`; the first one installs the hook."""
        if not self.additions:
            register_optimizer_step_pre_hook(uncompiled(self.before_step))
        self.additions += 1
        self.declarations.add(declarations)

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        """Run before every step of every optimizer: attach to those that hold a declared parameter."""
        if not self.declarations:
            return
        attachment, seen, attached = self.attachments.get(optimizer, (None, None, False))
        explicit = explicit_attachments.get(optimizer, [])
        state = (self.additions, explicit.copy())
        if attachment is None:
            attachment = Attachment(self.resolve)
        elif seen != state:
            attachment.forget()
        if attachment.charges(optimizer):
            for each in (attachment, *explicit):  # nothing is changed if one of them refuses this step
                check_gradients(each.charges(optimizer))
            if not attached:
                hook_around(optimizer, attachment.before_step, attachment.after_step)
                attached = True
        self.attachments[optimizer] = (attachment, state, attached)

    def resolve(self, optimizer: Optimizer) -> list[Charge]:
        """Return what declarations charge in `optimizer`, less what a `Regularizer` charges there already."""
        groups = group_indices(optimizer)
        flat = next(filter(is_flat, parameters_of(optimizer)), None)
        for declarations in list(self.declarations):
            declarations.check_stepped(flat)
        declared: dict[int, tuple[Rule, str, tuple[Place, ...]]] = {}
        for declarations in [each for each in list(self.declarations) if each.concern(groups.keys())]:
            for parameter, rule, name, places in declarations.charges():
                other, _, others = declared.get(id(parameter), (rule, name, ()))
                check_same_charge(name, other, rule.penalty, rule.how)
                declared[id(parameter)] = (rule, name, (*others, *places))
        for attachment in explicit_attachments.get(optimizer, []):
            for charge in attachment.charges(optimizer):
                if id(charge.parameter) in declared:
                    rule, _, _ = declared.pop(id(charge.parameter))
                    check_same_charge(charge.name, rule, charge.penalty, charge.how)
        return [
            Charge(name, rule.penalty, rule.how, parameter, groups[id(parameter)], places, is_lazy(parameter))
            for parameter in dict.fromkeys(parameters_of(optimizer))
            for rule, name, places in [declared.get(id(parameter), (None, "", ()))]
            if rule is not None and rule.penalty is not None and isinstance(parameter, nn.Parameter)
        ]


def check_same_charge(name: str, declared: Rule, penalty: Penalty | None, how: How) -> None:
    """Raise `SelectionError` unless a parameter that is charged in two places is charged the same in both."""
    if (declared.penalty, declared.how) != (penalty, how):
        raise SelectionError(
            f"two rules clash on {name!r}: its layer declares {declared.penalty} ({declared.how}) with regularize(), "
            f"another rule charges {penalty} ({how}); keep one of them"
        )


_registry = Registry()
