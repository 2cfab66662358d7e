"""Regularizers that a script leaves behind: it makes its optimizer anew, or copies it, and nothing penalizes any more.

An optimizer is looked at around its first step. A warning comes, once for each regularizer, if the step moves a
parameter that a regularizer penalizes through another optimizer, which is gone or has not stepped since it was attached
to. Optimizers inside of that one, around it, or in turn with it are left alone, and so is a method of another kind in
which the rules cannot act, such as LBFGS after Adam. A copy of an optimizer knows that it is one.
"""

import gc
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Protocol
from weakref import ref

from torch import nn
from torch.optim import Optimizer

from shrinkage.errors import ShrinkageError, listed, warn_user
from shrinkage.optimizers.hooks import first_steps, keep_last_everywhere, uncompiled
from shrinkage.optimizers.introspection import kept_optimizers, parameters_of
from shrinkage.optimizers.registry import known_metric
from shrinkage.penalties.pickling import Saved
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.training.attachment import Attachment, explicit_attachments
from shrinkage.training.global_hook import declared_attachments
from shrinkage.training.penalized import PenalizedParameter, RankedParameter
from shrinkage.training.regularize import declared_rules


class Copied(Saved):
    """Makes the empty states of an optimizer that a regularizer is attached to, as `dict` does of all others.

    Copies and pickles of the optimizer take it along, and lose the regularizer.
    """

    def __new__(cls) -> "Copied":
        keep_last_everywhere()  # in a process that only loads such an optimizer, too
        return super().__new__(cls)

    def __call__(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}


class Removable(Protocol):
    """A handle."""

    def remove(self) -> None:
        """Undo what the handle is for."""


class Told:
    """Whether the loss of one regularizer was told."""

    already = False


class Link:
    """A regularizer that is attached to an optimizer; keeps nothing of both alive. To be removed when it detaches."""

    def __init__(self, regularizer: object, model: nn.Module, optimizer: Optimizer, attachment: Attachment) -> None:
        self.regularizer, self.model, self.told = ref(regularizer), ref(model), Told()
        self.optimizer, self.attachment, self.kind = ref(optimizer), ref(attachment), type(optimizer)
        self.names = frozenset(each.name for each in attachment.concerned(optimizer))
        self.began = attachment.updates.steps

    def remove(self) -> None:
        """Forget it: the regularizer was detached on purpose."""
        if self in _links:
            _links.remove(self)
        optimizer = self.optimizer()
        if optimizer is not None and not explicit_attachments.get(optimizer, []) and is_marked(optimizer):
            vars(optimizer)["state"].default_factory = dict

    def works_beside(self, optimizer: Optimizer) -> bool:
        """Return whether the regularizer's own optimizer has stepped, or steps now, or works inside `optimizer`."""
        own, attachment = self.optimizer(), self.attachment()
        if own is None or attachment is None:
            return False
        stepped = attachment.under_way or attachment.updates.steps != self.began
        return stepped or own in parts_of(optimizer) or optimizer in parts_of(own)

    def penalized(self) -> set[int]:
        """Return the ids of what is penalized through the regularizer's own optimizer."""
        own, attachment = self.optimizer(), self.attachment()
        if own is None or attachment is None:
            return set()
        try:
            return {id(each.parameter) for each in attachment.concerned_left(own)}
        except ShrinkageError:  # Its own step tells why it cannot be asked.
            return set()

    def shared_with(self, optimizer: Optimizer) -> dict[int, str]:
        """Return the names of what is penalized in another optimizer and held by this one, by id of the parameter."""
        model = self.model()
        if model is None or self.told.already or self.optimizer() is optimizer:
            return {}
        held = {id(parameter) for parameter in parameters_of(optimizer) if parameter.requires_grad}
        named = ((id(each.parameter), each.name) for each in named_parameters(model) if each.name in self.names)
        return {identity: name for identity, name in named if identity in held}

    def lost_in(self, optimizer: Optimizer) -> dict[int, str]:
        """Return what of that is penalized no more when `optimizer` steps."""
        other_kind = type(optimizer) is not self.kind and known_metric(optimizer) is None
        if self.works_beside(optimizer) or (self.optimizer() is None and other_kind):
            return {}
        return self.shared_with(optimizer)


def follow(regularizer: object, model: nn.Module, optimizer: Optimizer, attachment: Attachment) -> list[Removable]:
    """Note that `regularizer` is attached to `optimizer`, and return what has to be removed when it detaches."""
    new = Link(regularizer, model, optimizer, attachment)
    for link in list(_links):
        same = link.regularizer() is regularizer
        link.told = new.told if same else link.told
        if link.model() is None or (link.optimizer() is None and link.model() is model and link.names <= new.names):
            _links.remove(link)
    _links.append(new)
    if any(link.shared_with(optimizer) for link in _links):  # by another regularizer, which may be left behind
        look_at(optimizer)
    if new.names <= declared_rules(model).keys():  # copies of the layers declare it themselves
        return [new]
    mark(optimizer)
    return [new, optimizer.register_load_state_dict_post_hook(mark)]


def mark(optimizer: Optimizer) -> None:
    """Let copies of `optimizer` know that they are copies of one that a regularizer is attached to."""
    state = vars(optimizer).get("state")
    if isinstance(state, defaultdict) and state.default_factory is dict:
        state.default_factory = Copied()


def is_marked(optimizer: Optimizer) -> bool:
    """Return whether `optimizer`, or what it is a copy of, has a regularizer attached to it."""
    state = vars(optimizer).get("state")
    return isinstance(state, defaultdict) and isinstance(state.default_factory, Copied)


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """Return `optimizer` and all optimizers that it keeps."""
    return [optimizer, *(part for kept in kept_optimizers(optimizer) for part in parts_of(kept))]


def look_at(optimizer: Optimizer) -> None:
    """Look at `optimizer` behind its first two steps, if it may have lost a regularizer."""
    if not (is_marked(optimizer) or any(link.shared_with(optimizer) for link in _links)):
        return
    looks = iter((False, True))

    def look(optimizer: Optimizer, args: object, kwargs: object) -> None:
        last = next(looks, None)  # a hook cannot take itself off while it runs
        if last is not None:
            judge(optimizer, last=last)

    optimizer.register_step_post_hook(uncompiled(look))


def judge(optimizer: Optimizer, *, last: bool) -> None:
    """Warn if `optimizer` has lost a regularizer; of one that may still step in turn, at the `last` look alone."""
    attached = any(explicit_attachments.get(part, []) for part in parts_of(optimizer))
    if is_marked(optimizer) and not attached:
        if not last:
            warn(f"this {kind_of(optimizer)} is a copy of one that a Regularizer was attached to")
        return
    own = {id(target.parameter) for target in targets_in(optimizer)}
    if not last and any(link.shared_with(optimizer).keys() - own for link in _links):
        gc.collect()  # an optimizer may be in a cycle; the first one is, with torch's import of its compiler
    in_turn = {identity for link in _links if link.works_beside(optimizer) for identity in link.penalized()}
    for link in list(_links):
        if attached and link.regularizer() is None:  # others took its place
            continue
        lost = [name for identity, name in link.lost_in(optimizer).items() if identity not in own | in_turn]
        gone = link.optimizer() is None
        if lost and (gone or last or type(optimizer) is link.kind):
            link.told.already = True
            other = "another optimizer, which " + ("is gone" if gone else "has not stepped")
            warn(f"this {kind_of(optimizer)} steps {listed(lost, most=3)}, which a Regularizer penalizes in {other}")


def targets_in(optimizer: Optimizer) -> Iterator[PenalizedParameter | RankedParameter]:
    """Yield what regularizers and layers penalize when `optimizer` steps."""
    for attachment in [*explicit_attachments.get(optimizer, []), *declared_attachments(optimizer)]:
        yield from attachment.concerned_left(optimizer)


def kind_of(optimizer: Optimizer) -> str:
    """Return the name of an optimizer's class."""
    return type(optimizer).__name__


def warn(what: str) -> None:
    """Say that `what` happened, and what to do."""
    warn_user(
        f"{what}: nothing penalizes it here. Call attach(optimizer) of a Regularizer for every new or copied optimizer "
        "before its first step; detach() ends it on purpose"
    )


_links: list[Link] = []
first_steps.append(look_at)
