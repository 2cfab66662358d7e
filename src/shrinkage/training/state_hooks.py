"""How progress is stored with an optimizer: in its `state_dict`, in its first parameter group, and beside it.

There a plain `load_state_dict` keeps it, so that it is still found by a regularizer that is attached after the
optimizer was loaded.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import ref

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from shrinkage.errors import ShrinkageError
from shrinkage.optimizers.parameter_state import Passenger, passengers, put_states, states_in
from shrinkage.selection.plan import Plan
from shrinkage.training.attachment import Attachment
from shrinkage.training.matching_state import is_of_same, names_in, nothing, pop_state, positions_in
from shrinkage.training.saved_state import (
    PARTS,
    Progress,
    Restore,
    State,
    checked_progress,
    membership_of,
    references_of,
    replaced,
    state_of,
    warn_of_older,
    with_references,
)


class Planned(Protocol):
    """What has a plan: a `Regularizer`."""

    plan: Plan


class Kept(NamedTuple):
    """Progress that waits for an optimizer: for the one that it was made with, or for any if that is not known."""

    progress: Progress
    made_with: ref[Optimizer] | None = None
    names: frozenset[str] | None = None  # of the parameters that it is about; None if that is not known
    added: tuple[str, ...] = ()  # names of parameters that are new, of which nothing is known


def waiting_for(optimizer: Optimizer, names: Sequence[str], kept: Sequence[Kept]) -> int | None:
    """Return the index of what waits for `optimizer`, for its parameters, or for any; None if nothing does."""
    own = [index for index, each in enumerate(kept) if each.made_with is not None and each.made_with() is optimizer]
    alike = [index for index, each in enumerate(kept) if each.names is not None and not each.names.isdisjoint(names)]
    open_to_all = [index for index, each in enumerate(kept) if each.names is None]
    return next(iter([*own, *alike, *open_to_all]), None)


def resume(optimizer: Optimizer, attachment: Attachment, regularizer: Planned, kept: list[Kept]) -> None:
    """Let `attachment` go on from what its regularizer `kept`, or else from what `optimizer` was loaded with."""
    waiting = waiting_for(optimizer, names_in(optimizer, attachment), kept)
    if waiting is not None:
        found = kept[waiting]
        progress = found.progress.completed(attachment, found.added)
        progress.check(attachment)
    checked = partial(checked_restore, regularizer, attachment)
    restore = pop_state(optimizer.param_groups[0], optimizer, attachment, checked)
    if waiting is None:
        restore()
    else:
        kept.pop(waiting)
        reached = attachment.updates.count()
        if found.names is not None and reached > progress.updates:  # another optimizer went on meanwhile
            averages = {} if attachment.averages is None else attachment.averages.state_dict()
            progress = progress._replace(updates=reached, averages=averages)
        progress.restore(attachment)


def resume_all(
    pairs: Sequence[tuple[Optimizer, Attachment]], plan: Plan, state: State, added: tuple[str, ...]
) -> tuple[Plan, list[Kept]]:
    """Let attachments go on from a state of `Regularizer.state_dict`; raise `ValueError` if it does not fit.

    Returns:
        The plan with the state's references, and what waits for optimizers that are attached to later.
    """
    progress = checked_progress(state, plan)
    if pairs and len(progress) != len(pairs):
        raise ValueError(
            f"the state counts updates of {len(progress)} optimizers, this regularizer is attached to {len(pairs)}; "
            "attach to the same optimizers in the same order"
        )
    for index, (optimizer, attachment) in enumerate(pairs):
        attachment.targets_left(optimizer)  # the model may have changed since the last step
        progress[index] = progress[index].completed(attachment, added)
        progress[index].check(attachment)
    newer = with_references(plan, state.get("references", {}))
    for (_, attachment), each in zip(pairs, progress, strict=False):
        each.restore(attachment)
    return newer, [Kept(each, None, None, added) for each in progress[len(pairs) :]]


def register_state_hooks(optimizer: Optimizer, attachment: Attachment, regularizer: Planned) -> list[RemovableHandle]:
    """Store the state of `attachment` in the `state_dict` of `optimizer`, beside those of other regularizers."""
    checked = partial(checked_restore, regularizer, attachment)
    restore = nothing

    def after_save(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        first, *_ = state_dict["param_groups"]
        state = stored_state(regularizer, attachment, optimizer)
        put_states(first, [*states_in(first), state])

    def before_load(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        nonlocal restore
        first, *others = state_dict["param_groups"]
        first = dict(first)
        restore = pop_state(first, optimizer, attachment, checked)
        return {**state_dict, "param_groups": [first, *others]}

    def after_load(optimizer: Optimizer) -> None:  # only now: the optimizer might have refused its part
        restore()

    names = set(names_in(optimizer, attachment))
    others = [each for each in passengers.get(optimizer, []) if not is_of_same(each, optimizer, names)]
    passengers[optimizer] = [*others, Passenger(attachment, partial(stored_state, regularizer, attachment))]
    return [
        optimizer.register_state_dict_post_hook(after_save),
        optimizer.register_load_state_dict_pre_hook(before_load),
        optimizer.register_load_state_dict_post_hook(after_load),
    ]


def stored_state(regularizer: Planned, attachment: Attachment, optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of `attachment` as it is stored in that of `optimizer`."""
    names = attachment.names(optimizer)
    state = state_of([Progress.of(attachment)], membership_of(regularizer.plan, names))
    return state | {"parameters": names, "positions": positions_in(optimizer, attachment) if names else []}


def leave(optimizer: Optimizer, attachment: Attachment, regularizer: Planned) -> Kept:
    """Return what `attachment` has come to, and leave it beside `optimizer` for parameters that replace these."""
    try:
        state = stored_state(regularizer, attachment, optimizer)
        state.pop("budgets", None)  # what is aside is of these very parameters
    except ShrinkageError:  # The parameters have become such as cannot be penalized: nothing is left for others.
        state = {"parameters": []}
    others = [each for each in passengers.get(optimizer, []) if each.attachment is not attachment]
    passengers[optimizer] = [*others, Passenger(None, lambda optimizer: state)] if state["parameters"] else others
    kept = Kept(Progress.of(attachment), ref(optimizer), frozenset(state["parameters"]))
    attachment.looks.forget()
    return kept


def with_others(state: State, part: Plan) -> State:
    """Return `state` for the parameters of `part` alone; references that it lacks are those taken just now."""
    names = {name for entry in part for name in (entry.name, *entry.aliases)}
    kept = {key: [{n: v for n, v in own.items() if n in names} for own in state[key]] for key in PARTS if key in state}
    found = {name: each for name, each in state.get("references", {}).items() if name in names}
    references = {**references_of(part), **found}
    missing = names - set(state["parameters"])
    if not state.get("shrunk") and not any(state.get("averages", [])):
        warn_of_older(missing)
    return {**state, **kept, **({"references": references} if references else {})}


def checked_restore(regularizer: Planned, attachment: Attachment, optimizer: Optimizer, state: State) -> Restore:
    """Return what lets `attachment` resume from a state in its optimizer's `state_dict`; raise if it does not fit."""
    names = attachment.names(optimizer)
    part = membership_of(regularizer.plan, names)
    if state["parameters"] != names:
        state = with_others(state, part)
    (progress,) = checked_progress(state, regularizer.plan)
    progress = progress.completed(attachment, names if state.get("shrunk") else ())
    progress.check(attachment)
    part = with_references(part, state.get("references", {}))

    def restore() -> None:
        regularizer.plan = replaced(regularizer.plan, part)
        progress.restore(attachment)

    return restore
