"""What a regularizer saves: how many updates it made, what it averaged, and the references it took from the model.

The same rides in the `state_dict` of every optimizer that is attached to, in its first parameter group. There a plain
`load_state_dict` keeps it, so that it is still found by a regularizer that is attached after the optimizer was loaded.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from shrinkage.attachment import Attachment
from shrinkage.errors import listed
from shrinkage.optimizers import parameters_of
from shrinkage.penalties import Toward
from shrinkage.plan import Plan

State = Mapping[str, Any]
Restore = Callable[[], None]
KEY = "shrinkage"  # in the first parameter group of an optimizer's state_dict


class Progress(NamedTuple):
    """How far one attachment has come."""

    updates: int
    averages: dict[str, dict[str, Tensor]]
    intervals: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, attachment: Attachment) -> "Progress":
        """Return the progress of `attachment`."""
        averages = {} if attachment.averages is None else attachment.averages.state_dict()
        return cls(attachment.updates.count(), averages, attachment.intervals.state_dict())

    def check(self, attachment: Attachment) -> None:
        """Raise `ValueError` if `attachment` can not go on from here."""
        if attachment.averages is not None:
            attachment.averages.check(self.averages)

    def restore(self, attachment: Attachment) -> None:
        """Let `attachment` go on from here."""
        attachment.updates.steps, attachment.updates.skipped = self.updates, None
        if attachment.averages is not None:
            attachment.averages.load_state_dict(self.averages)
        attachment.intervals.load_state_dict(self.intervals)
        attachment.forget()


class Kept(NamedTuple):
    """Progress that waits for an optimizer: for the one that it was made with, or for any if that is not known."""

    progress: Progress
    made_with: ref[Optimizer] | None = None


def waiting_for(optimizer: Optimizer, kept: Sequence[Kept]) -> int | None:
    """Return the index of what waits for `optimizer`, or else of what waits longest; None if nothing waits."""
    own = (index for index, each in enumerate(kept) if each.made_with is not None and each.made_with() is optimizer)
    return next(own, 0) if kept else None


def state_of(progress: Sequence[Progress], plan: Plan) -> dict[str, Any]:
    """Return a state_dict; what was not used is not in it."""
    state: dict[str, Any] = {"version": 1, "updates": [each.updates for each in progress]}
    if any(each.averages for each in progress):
        state["averages"] = [each.averages for each in progress]
    if any(each.intervals for each in progress):
        state["intervals"] = [each.intervals for each in progress]
    references = references_of(plan)
    return {**state, "references": references} if references else state


def checked_progress(state: object, plan: Plan) -> list[Progress]:
    """Return the progress in a state of `Regularizer.state_dict`, or raise `ValueError`."""
    updates = state.get("updates") if isinstance(state, Mapping) and state.get("version") == 1 else None
    if not isinstance(updates, list) or not all(isinstance(count, int) and count >= 0 for count in updates):
        keys = f"a mapping with the keys {listed(map(str, state))}" if isinstance(state, Mapping) else ""
        found = keys or type(state).__name__
        raise ValueError(f"expected {{'version': 1, 'updates': [...]}} of Regularizer.state_dict(), got {found}")
    parts = []
    for part in ("averages", "intervals"):
        each_of = state.get(part, [{}] * len(updates)) if isinstance(state, Mapping) else []
        if len(each_of) != len(updates):
            raise ValueError(f"the state has {part} of {len(each_of)} optimizers and updates of {len(updates)}")
        for each in each_of:
            check_charged(each, plan, part)
        parts.append(each_of)
    return [Progress(count, dict(own), dict(other)) for count, own, other in zip(updates, *parts, strict=True)]


def check_charged(found: Mapping[str, Any], plan: Plan, part: str) -> None:
    """Raise `ValueError` unless what was `found` under `part` of a state is that of parameters in `plan`."""
    names = [name for entry in plan for name in (entry.name, *entry.aliases)]
    for name in found:
        if name not in names:
            raise ValueError(
                f"the state holds {part} of {name!r}, which this regularizer does not charge (it charges "
                f"{listed(names)}); use the rules that it was saved with"
            )


def references_of(plan: Plan) -> dict[str, Any]:
    """Return the references that have to be saved, by the name of the parameter."""
    penalties = {entry.name: entry.penalty for entry in plan}
    return {name: each.reference for name, each in penalties.items() if isinstance(each, Toward) and each.saved}


def with_references(plan: Plan, references: Mapping[str, Tensor]) -> Plan:
    """Return `plan` with the saved references in place of those that were taken from the model as it is now."""
    saved = references_of(plan)
    if saved.keys() != references.keys():
        raise ValueError(
            f"the state holds references of {listed(sorted(references))}, this regularizer of "
            f"{listed(sorted(saved))}; use the rules "
            "that it was saved with"
        )
    entries = []
    for entry in plan:
        if isinstance(entry.penalty, Toward) and entry.name in references:
            reference = references[entry.name]
            if tuple(reference.shape) != entry.shape:
                raise ValueError(
                    f"the reference of {entry.name!r} has shape {tuple(reference.shape)}, the parameter {entry.shape}"
                )
            now = entry.penalty.reference
            moved = reference.to(now.device, now.dtype) if isinstance(now, Tensor) else reference
            entry = replace(entry, penalty=replace(entry.penalty, reference=moved.clone()))
        entries.append(entry)
    return replace(plan, entries=tuple(entries))


def part_of(plan: Plan, names: Sequence[str]) -> Plan:
    """Return the entries of `plan` that have these names."""
    return replace(plan, entries=tuple(entry for entry in plan if entry.name in names))


def replaced(plan: Plan, part: Plan) -> Plan:
    """Return `plan` with the entries of `part` in place of those of the same names."""
    newer = {entry.name: entry for entry in part}
    return replace(plan, entries=tuple(newer.get(entry.name, entry) for entry in plan))


class Planned(Protocol):
    """What has a plan: a `Regularizer`."""

    plan: Plan


def checked_restore(regularizer: Planned, attachment: Attachment, state: State) -> Restore:
    """Return what lets `attachment` go on from a state that rode in its optimizer's; raise if it does not fit."""
    (progress,) = checked_progress(state, regularizer.plan)
    progress.check(attachment)
    part = with_references(part_of(regularizer.plan, state["parameters"]), state.get("references", {}))

    def restore() -> None:
        regularizer.plan = replaced(regularizer.plan, part)
        progress.restore(attachment)

    return restore


def names_in(optimizer: Optimizer, attachment: Attachment) -> list[str]:
    """Return the names of what `attachment` charges in `optimizer`."""
    return [charge.name for charge in attachment.charges(optimizer)]


def positions_in(optimizer: Optimizer, attachment: Attachment) -> list[int]:
    """Return where `optimizer` holds them, which tells two models apart whose parameters have the same names."""
    positions = {id(parameter): index for index, parameter in enumerate(parameters_of(optimizer))}
    return [positions[id(charge.parameter)] for charge in attachment.charges(optimizer)]


def take(
    group: dict[str, Any], optimizer: Optimizer, attachment: Attachment, checked: Callable[[State], Restore]
) -> Restore:
    """Take the state of what charges the same in `optimizer` out of `group`, and return what goes on from it."""
    states, names, positions = group.get(KEY, []), names_in(optimizer, attachment), positions_in(optimizer, attachment)
    alike = [state for state in states if state.get("parameters") == names]
    mine = next((state for state in alike if state.get("positions") == positions), alike[0] if alike else None)
    if mine is None:
        if states:
            saved = " and ".join(charging(state.get("parameters", [])) for state in states)
            warnings.warn(
                f"the optimizer's state comes from {saved}; {charging(names)} finds nothing there and keeps its own "
                "update count: attach it with the rules that were saved, or give it a state with load_state_dict()",
                stacklevel=2,
            )
        return nothing
    restore = checked(mine)
    others = [state for state in states if state is not mine]
    group.pop(KEY)
    group.update({KEY: others} if others else {})
    return restore


def charging(names: Sequence[str]) -> str:
    """Return the regularizer that charges `names` in words."""
    return f"a regularizer of {len(names)} parameters ({', '.join(map(repr, names[:3]))}{' ...' * (len(names) > 3)})"


def nothing() -> None:
    """Go on from where things stand."""


def go_on(optimizer: Optimizer, attachment: Attachment, regularizer: Planned, kept: list[Kept]) -> None:
    """Let `attachment` go on from what its regularizer `kept`, or else from what `optimizer` was loaded with."""
    waiting = waiting_for(optimizer, kept)
    if waiting is not None:
        kept[waiting].progress.check(attachment)
    checked = partial(checked_restore, regularizer, attachment)
    restore = take(optimizer.param_groups[0], optimizer, attachment, checked)
    if waiting is None:
        restore()
    else:
        kept.pop(waiting).progress.restore(attachment)


def ride(optimizer: Optimizer, attachment: Attachment, regularizer: Planned) -> list[RemovableHandle]:
    """Let the state of `attachment` ride in the `state_dict` of `optimizer`, beside those of other regularizers."""
    checked = partial(checked_restore, regularizer, attachment)
    restore = nothing

    def after_save(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        names = names_in(optimizer, attachment)
        first, *_ = state_dict["param_groups"]
        state = state_of([Progress.of(attachment)], part_of(regularizer.plan, names))
        state |= {"parameters": names, "positions": positions_in(optimizer, attachment)}
        first[KEY] = [*first.get(KEY, []), state]

    def before_load(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        nonlocal restore
        first, *others = state_dict["param_groups"]
        first = dict(first)
        restore = take(first, optimizer, attachment, checked)
        return {**state_dict, "param_groups": [first, *others]}

    def after_load(optimizer: Optimizer) -> None:  # only now: the optimizer might have refused its part
        restore()

    return [
        optimizer.register_state_dict_post_hook(after_save),
        optimizer.register_load_state_dict_pre_hook(before_load),
        optimizer.register_load_state_dict_post_hook(after_load),
    ]
