"""Declarations that live on the layer: `regularize(layer, penalty)`, and no other line in the training loop.

The layer keeps its declarations among its attributes, so that they travel with `deepcopy`, `pickle` and `model.to`, and
stand in neither `state_dict` nor `parameters()`. All declarations that are alive are in a weak set; hooks that torch
runs around the steps of every optimizer look there for the parameters that an optimizer holds.
"""

import glob
import weakref
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from shrinkage.attachment import Arguments, Attachment, Keywords, explicit_attachments
from shrinkage.charge import Charge, Place, check_gradients, places_of
from shrinkage.errors import GroupError, SelectionError
from shrinkage.flattened import check_stepped, is_flat
from shrinkage.optimizers import group_indices, parameters_of, uncompiled
from shrinkage.penalties import Penalty, Toward
from shrinkage.plan import How, Rule, resolve
from shrinkage.select import named_parameters, nearest

LayerType = TypeVar("LayerType", bound=nn.Module)
ATTRIBUTE = "_shrinkage_declarations"


def regularize(
    layer: LayerType, penalty: Penalty | None, *, parameter: str = "weight", how: How = "proximal"
) -> LayerType:
    """Charge a layer's weight from now on, in whichever optimizer steps it, and return the layer.

    minimizes loss + penalty(layer.weight), with nothing to add to the training loop. The layer stays what it was: its
    type, its `state_dict` keys, and its behaviour under `deepcopy`, `pickle`, `to` and `torch.compile`.

    Args:
        layer: any module.
        penalty: what is charged; None takes the declaration for `parameter` back.
        parameter: name of the parameter in the layer; a glob such as "weight_*" or, for a whole block, "*.weight".
        how: "proximal" (exact zeros), "gradient" or "decoupled"; see `Rule`.

    Raises:
        SelectionError: the layer has no such parameter, or charges it already.
        GroupError: the parameter does not fall into the groups of the penalty.
        ParameterError: the parameter is not floating point, or is computed by a parametrization.
        ValueError: the strength is a schedule, which needs an update count that is saved, or a reference is to be
            taken from the model, which has to be saved too: use `Regularizer`.
        MetricError: at the first step, if `how="proximal"` and the optimizer's metric is not known.

    A `Regularizer` that charges the same parameter takes the declaration's place while it is attached; one that leaves
    the parameter alone leaves the declaration in force.

    >>> import shrinkage, torch
    >>> layer = regularize(torch.nn.Linear(4, 2), shrinkage.L1(0.1))
    >>> layer
    Linear(in_features=4, out_features=2, bias=True)
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"expected a module such as nn.Linear(64, 10), got {type(layer).__name__}")
    owner: nn.Module = getattr(layer, "_orig_mod", layer)  # what torch.compile wraps; its wrapper passes attributes on
    known = vars(owner).get(ATTRIBUTE)
    rules: tuple[Rule, ...] = () if known is None else known.rules
    if penalty is None:
        rules = without(rules, parameter, owner)
    else:
        if isinstance(penalty, Penalty) and penalty.scheduled:
            raise ValueError(
                f"{penalty}: a schedule counts updates, and the count has to be saved with a checkpoint; "
                f"use Regularizer(model, {{...}}), whose state_dict() holds it"
            )
        if isinstance(penalty, Toward) and penalty.reference is None:
            raise ValueError(
                f"{penalty}: a reference that is taken from the model has to be saved with a checkpoint; use "
                "Regularizer(model, {...}), whose state_dict() holds it, or give a tensor or a state_dict as reference"
            )
        if isinstance(penalty, Toward) and isinstance(penalty.reference, Mapping):
            fixed = {name: value.detach().clone() for name, value in penalty.reference.items()}
            penalty = replace(penalty, reference=fixed)  # a state_dict holds the very parameters that are going to move
        rule = Rule(penalty, parameter, how)
        check_matches(owner, rule)
        check_declarations(owner, rule)
        rules = (*rules, rule)
    vars(owner)[ATTRIBUTE] = Declarations(owner, rules)
    return layer


def without(rules: Sequence[Rule], parameter: str, layer: nn.Module) -> tuple[Rule, ...]:
    """Return `rules` without the one for `parameter`."""
    kept = tuple(rule for rule in rules if rule.parameters != parameter)
    if len(kept) == len(rules):
        declared = ", ".join(repr(rule.parameters) for rule in rules) or "nothing"
        raise SelectionError(
            f"{type(layer).__name__} declares no penalty for {parameter!r} to take back (it declares {declared})"
        )
    return kept


def check_matches(layer: nn.Module, rule: Rule) -> None:
    """Raise `SelectionError` if `layer` has no parameter that `rule` selects."""
    names = [candidate.name for candidate in named_parameters(layer)]
    if not any(fnmatchcase(name, str(rule.parameters)) for name in names):
        raise SelectionError(
            f"this {type(layer).__name__} has no parameter {rule.parameters!r}; nearest names: "
            f"{nearest(str(rule.parameters), names)}; regularize a layer inside of it, or name parameters with a glob "
            'such as parameter="*.weight"'
        )


def check_declarations(layer: nn.Module, rule: Rule) -> None:
    """Raise if `rule` can not be applied, or charges what `layer` or a layer inside of it charges already."""
    declared = declared_rules(layer)
    for entry in resolve(layer, rule):
        other = declared.get(entry.name)
        if other is not None:
            raise SelectionError(
                f"{entry.name!r} of this {type(layer).__name__} is charged {other.penalty} ({other.how}) already; take "
                f"that back with regularize(layer, None, parameter={other.parameters!r}) first"
                f"{together(other.penalty, rule.penalty)}"
            )


def together(one: Penalty | None, other: Penalty | None) -> str:
    """Return the end of a message about two penalties on one parameter: how to charge both, if that can be done."""
    try:
        return f", or charge both at once with {one + other}" if one and other else ""
    except (TypeError, GroupError) as reason:
        return f". {reason}"


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
        self.attachments: weakref.WeakKeyDictionary[Optimizer, tuple[Attachment, object]] = weakref.WeakKeyDictionary()
        self.additions = 0

    def add(self, declarations: Declarations) -> None:
        """Take in `declarations`; the first one installs the hooks."""
        if not self.additions:
            register_optimizer_step_pre_hook(uncompiled(self.before_step))
            register_optimizer_step_post_hook(uncompiled(self.after_step))
        self.additions += 1
        self.declarations.add(declarations)

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords] | None:
        """Run before every step of every optimizer."""
        if not self.declarations:
            return None
        state = (self.additions, list(explicit_attachments.get(optimizer, ())))
        attachment, seen = self.attachments.get(optimizer, (None, None))
        if attachment is None:
            attachment = Attachment(self.resolve)
        elif seen != state:
            attachment.forget()
        self.attachments[optimizer] = (attachment, state)
        if attachment.charges(optimizer):
            for explicit in explicit_attachments.get(optimizer, ()):  # nothing is changed if they refuse this step
                check_gradients(explicit.charges(optimizer))
        return attachment.before_step(optimizer, args, kwargs)

    def after_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        """Run after every step of every optimizer."""
        attachment, _ = self.attachments.get(optimizer, (None, None))
        if attachment is not None and self.declarations:
            attachment.after_step(optimizer, args, kwargs)

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
        for attachment in explicit_attachments.get(optimizer, ()):
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


def declared_rules(model: nn.Module) -> dict[str, Rule]:
    """Return what the layers of `model` declare, by the name of the parameter."""
    names = {id(c.parameter): c.name for c in reversed(list(named_parameters(model))) if c.parameter is not None}
    found: dict[str, Rule] = {}
    for module in model.modules():
        declarations = vars(module).get(ATTRIBUTE)
        for parameter, rule, _, _ in () if declarations is None else declarations.charges():
            name = names[id(parameter)]
            check_same_charge(name, found.setdefault(name, rule), rule.penalty, rule.how)
    return found


def rules_of(declared: Mapping[str, Rule]) -> list[Rule]:
    """Return the declarations of a model's layers as rules for the model."""
    if not declared:
        raise SelectionError(
            "there are no rules, and no layer of the model declares any with regularize(); "
            "give at least one, such as {nn.Linear: L1(1e-4)}"
        )
    return [replace(rule, parameters=glob.escape(name)) for name, rule in declared.items()]


_registry = Registry()
