"""Who looks for what layers declare: a hook before the steps of every optimizer.

An optimizer asks all layers that declare something when it steps first, and again when its own parameters or its
regularizers have changed. In between it asks those that were declared or copied since, and whether one
of its parameters was put into some module or left behind by a layer; so a step costs what its own layers cost.

A layer that goes leaves its declarations to its parameters, which live on where another module holds them: a stage of a
pipeline, a traced copy, a new container.
"""

import weakref
from collections import deque
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from shrinkage.distributed.flat_parameters import is_flat
from shrinkage.errors import SelectionError, ShrinkageError
from shrinkage.optimizers.hooks import hook_around, meet, uncompiled
from shrinkage.optimizers.introspection import group_indices, parameters_of
from shrinkage.optimizers.per_optimizer import PerOptimizer
from shrinkage.penalties.base import Penalty
from shrinkage.selection.declaration import Declaration, living
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import check_shape, resolve
from shrinkage.selection.rules import Penalizes, Rule
from shrinkage.selection.supported_parameters import check_parameter
from shrinkage.training.attachment import Attachment, explicit_attachments
from shrinkage.training.budgets import Arguments, Keywords
from shrinkage.training.checks_before_step import check_gradients
from shrinkage.training.declared import (
    AllDeclared,
    Decay,
    Declared,
    DeclaredAttachment,
    check_same_decay,
    with_own_names,
)
from shrinkage.training.penalized import NO_GROUP, Found, PenalizedParameter, Place, is_sharded_parameter, places_of

RECENT = 1000  # so many registrations are told apart; after more of them between two steps, all layers are asked


@dataclass(eq=False)
class Known:
    """What is known of one optimizer since the last look: its attachments, and how far other things had come then."""

    attachments: dict[Decay, DeclaredAttachment] = field(default_factory=dict)
    lookups: int = 0
    held: Set[int] = frozenset()
    added: int = 0
    gone: int = 0
    registered: int = 0
    explicit: list[tuple[Attachment, int]] = field(default_factory=list)


class Registry:
    """The attachments that apply what layers declare."""

    def __init__(self) -> None:
        self.known: PerOptimizer[Known | None] = PerOptimizer("declared")
        self.asked: dict[int, weakref.ref[Optimizer]] = {}  # the optimizers of which something is known, by id
        self.registered = 0
        self.recent: deque[int] = deque(maxlen=RECENT)  # ids: what is referred to weakly cannot be swapped

    def install(self) -> None:
        """Hook in before the steps of all optimizers, and where modules take in parameters."""
        register_optimizer_step_pre_hook(uncompiled(self.before_step))
        register_module_parameter_registration_hook(self.note)

    def note(self, module: nn.Module, name: str, parameter: Tensor | None) -> None:
        """Note that a module takes in `parameter`, which another layer may hold too, and an optimizer may step."""
        if parameter is not None:
            self.registered += 1
            self.recent.append(id(parameter))

    def before_step(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        """Run before every step of every optimizer: attach to those that hold a declared parameter."""
        living.steps += 1
        known = self.known.get(optimizer, None)
        if known is None:
            if not (living.numbered or living.left):
                return
            meet(optimizer)
            known = self.known[optimizer] = Known()
            asked, number = self.asked, id(optimizer)
            asked[number] = weakref.ref(optimizer, lambda _: asked.pop(number, None))
            self.complete(known, AllDeclared([], []))
        explicit = explicit_attachments.get(optimizer, [])
        taken = [each.targets(optimizer) for each in explicit]
        lookups = [(each, each.lookups) for each in explicit]
        if known.explicit != lookups or self.changed(known, optimizer):
            for each in known.attachments.values():
                each.attachment.forget()
        targets = [each.attachment.targets(optimizer) for each in known.attachments.values()]
        if sum(each.attachment.lookups for each in known.attachments.values()) != known.lookups:
            found = self.resolve(optimizer)
            self.complete(known, found)
            for each in known.attachments.values():
                each.remember(optimizer, found)
            targets = [each.attachment.targets(optimizer) for each in known.attachments.values()]
            known.lookups = sum(each.attachment.lookups for each in known.attachments.values())
        if any(targets):
            for own in (*targets, *taken):  # nothing is changed if one refuses this step
                check_gradients(own)
            for each in known.attachments.values():
                if not each.attached and each.attachment.targets(optimizer):
                    hook_around(optimizer, each.attachment.before_step, each.attachment.after_step)
                    each.attached = True
        known.explicit = lookups
        known.added, known.gone, known.registered = living.added, living.gone, self.registered

    def complete(self, known: Known, found: AllDeclared) -> None:
        """Let there be an attachment for each way in which zeros are held."""
        for decay in dict.fromkeys((None, *(each.decay for each in found.own))):
            if decay not in known.attachments:
                resolve = partial(self.held_by, decay)
                attachment = Attachment(resolve, DeclaredAttachment.options(decay))
                known.attachments[decay] = DeclaredAttachment(attachment, decay)

    def held_by(self, decay: Decay, optimizer: Optimizer) -> Found:
        """Return what declarations penalize in `optimizer` whose zeros are held by averages of this decay."""
        return self.resolve(optimizer).held_by(decay)

    def changed(self, known: Known, optimizer: Optimizer) -> bool:
        """Return whether something happened since the last look that may concern `optimizer`."""
        if living.added != known.added and any(each.concerns(known.held) for each in living.after(known.added)):
            return True
        if living.gone != known.gone and living.left:
            left = (living.left.get(parameter) for parameter in parameters_of(optimizer))
            if any(each is not None and each.number > known.gone for each in left):
                return True
        count = self.registered - known.registered
        return count > RECENT or not known.held.isdisjoint(islice(reversed(self.recent), count))

    def resolve(self, optimizer: Optimizer) -> AllDeclared:
        """Return what declarations penalize in `optimizer`, less what a `Regularizer` penalizes there already."""
        groups = group_indices(optimizer)
        known = self.known[optimizer]
        if known is not None:
            known.held = groups.keys()
        flat = next(filter(is_flat, parameters_of(optimizer)), None)
        declarations = living.all()
        for declaration in declarations:
            declaration.check_stepped(flat)
        concerned = [each for each in declarations if each.concerns(groups.keys())]
        declared: dict[int, Declared] = {}
        for declaration in concerned:
            for rule, target in targets_of(declaration, groups):
                each = Declared(target, declaration.decays.get(str(rule.parameters)), declaration)
                other = declared.get(id(target.parameter), each)
                check_same_declaration(target.name, other.target, target)
                check_same_decay(other, each)
                declared[id(target.parameter)] = each._replace(target=target.also_at(other.target.places))
        known_of = {**inheritance(optimizer, groups), **declared}
        held = dict.fromkeys(map(id, parameters_of(optimizer)))
        found = with_own_names({identity: known_of[identity] for identity in held if identity in known_of})
        for attachment in explicit_attachments.get(optimizer, []):
            for taken in attachment.concerned(optimizer):
                replaced = found.pop(id(taken.parameter), None)
                if replaced is not None and replaced.declaration and isinstance(taken, PenalizedParameter):
                    check_same_declaration(taken.name, replaced.target, taken)
        own = [each for identity, each in found.items() if identity in groups]
        # Sharded parameters are replaced without a registration: there, all layers are asked before each step.
        sharded = any(map(is_sharded_parameter, parameters_of(optimizer)))
        asked = [place for each in (declarations if sharded else ()) for place in places_in(each)]
        return AllDeclared(own, [place for place in asked if not place.holds_any(groups)])


def declared_attachments(optimizer: Optimizer) -> list[Attachment]:
    """Return what applies the declarations of layers in `optimizer`, if anything does."""
    known = _registry.known.get(optimizer, None)
    return [] if known is None else [each.attachment for each in known.attachments.values()]


def optimizers_that_stepped() -> list[Optimizer]:
    """Return the optimizers that asked layers for declarations, and are alive."""
    return [optimizer for each in list(_registry.asked.values()) if (optimizer := each()) is not None]


def targets_of(declaration: Declaration, groups: Mapping[int, int]) -> list[tuple[Rule, PenalizedParameter]]:
    """Return what `declaration` penalizes now, with its rules; note what an optimizer with these `groups` reaches."""
    found = []
    module = declaration.module()
    held = {candidate.name: candidate for candidate in named_parameters(module)}
    for rule in declaration.rules if declaration.in_force() else ():
        for entry in resolve(module, rule):
            parameter = held[entry.name].parameter
            if parameter is None:
                continue
            if id(parameter) in groups:
                declaration.reached.update((entry.name, *entry.aliases))
            name, group = f"{entry.name} of {declaration.kind}", groups.get(id(parameter), NO_GROUP)
            places = places_of([held[name] for name in (entry.name, *entry.aliases)], parameter)
            target = PenalizedParameter(name, entry.penalty, rule.how, parameter, group, places, is_lazy(parameter))
            found.append((rule, target))
    return found


def places_in(declaration: Declaration) -> list[Place]:
    """Return where the layer holds parameters."""
    modules = declaration.module().modules()
    return [Place(weakref.ref(module), attribute) for module in modules for attribute in module._parameters]


def inheritance(optimizer: Optimizer, groups: Mapping[int, int]) -> dict[int, Declared]:
    """Return what layers that are gone declared, of the parameters of `optimizer`."""
    found = {}
    for parameter in parameters_of(optimizer) if living.left else ():
        left = living.left.get(parameter)
        if left is None or not isinstance(left.rule.penalty, Penalty) or not isinstance(parameter, nn.Parameter):
            continue
        with suppress(ShrinkageError):  # it could not be applied while the layer was there, either
            check_parameter(left.name, parameter)
            penalty = left.rule.penalty.bound(left.name, parameter)
            if not is_lazy(parameter):
                check_shape(left.name, parameter.shape, penalty)
            name, group = f"{left.name} of {left.kind}", groups.get(id(parameter), NO_GROUP)
            how, lazy = left.rule.how, is_lazy(parameter)
            target = PenalizedParameter(name, penalty, how, parameter, group, lazy=lazy)
            found[id(parameter)] = Declared(target, left.decay)
    return found


def check_same_declaration(name: str, declared: Penalizes, other: Penalizes) -> None:
    """Raise `SelectionError` unless a layer declares for its parameter `name` what penalizes it elsewhere."""
    if (declared.penalty, declared.how) != (other.penalty, other.how):
        raise SelectionError(
            f"two rules clash on {name!r}: its layer declares {declared.penalty} ({declared.how}) with regularize(), "
            f"another rule penalizes {other.penalty} ({other.how}); keep one of them"
        )


class Declarations(Declaration):
    """A declaration in a file of version 0.1.0, which named this class: layer, rules, and a module with its dicts."""

    def __setstate__(self, state: tuple[nn.Module, tuple[Rule, ...], nn.Module]) -> None:
        layer, rules, shell = state
        self._begin()  # it was made without __new__
        self.dicts = {name: vars(shell)[name] for name in ("_parameters", "_modules") if name in vars(shell)}
        self.kind, self.rules = type(layer).__name__, rules


_registry = Registry()
living.at_first = _registry.install
