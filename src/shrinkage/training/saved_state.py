"""What a regularizer saves: how many updates it made, what it averaged, and the references it took from the model.

The `state_dict` of every optimizer that is attached to holds it as well: see `state_hooks.py`.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from shrinkage.errors import listed, warn_user
from shrinkage.penalties.toward import Toward
from shrinkage.selection.matrices import is_matrix
from shrinkage.selection.plan import Plan
from shrinkage.training.attachment import Attachment

State = Mapping[str, Any]
PARTS = ("averages", "intervals", "controls")
Restore = Callable[[], None]


class Progress(NamedTuple):
    """How far one attachment has come."""

    updates: int
    averages: dict[str, dict[str, Tensor]]
    intervals: dict[str, dict[str, Any]]
    controls: dict[str, list[dict[str, Any]]]
    budgets: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, attachment: Attachment) -> "Progress":
        """Return the progress of `attachment`."""
        averages = {} if attachment.averages is None else attachment.averages.state_dict()
        intervals, budgets = attachment.intervals.state_dict(), attachment.budgets.state_dict()
        return cls(attachment.updates.count(), averages, intervals, attachment.looks.state_dict(), budgets)

    def completed(self, attachment: Attachment, added: Container[str] = ()) -> "Progress":
        """Return this with averages that start now of `added` parameters, and of those that an older default left out.

        Warns:
            UserWarning: there are some of the latter.
        """
        own = {} if attachment.averages is None or not self.averages else attachment.averages.state_dict()
        missing = own.keys() - self.averages.keys()
        older = {name for name in missing if name not in added}
        if not all(map(is_newer, older)):
            return self
        if older:
            warn_of_older(older)
        return self._replace(averages={**{name: own[name] for name in missing}, **self.averages})

    def check(self, attachment: Attachment) -> None:
        """Raise `ValueError` if `attachment` cannot go on from here."""
        if attachment.averages is not None:
            attachment.averages.check(self.averages)
        attachment.looks.check_state(self.controls)
        attachment.budgets.check_state(self.budgets, self.updates)

    def restore(self, attachment: Attachment) -> None:
        """Let `attachment` go on from here."""
        attachment.updates.steps, attachment.updates.skipped = self.updates, None
        if attachment.averages is not None:
            attachment.averages.load_state_dict(self.averages)
        attachment.intervals.load_state_dict(self.intervals)
        attachment.looks.load_state_dict(self.controls)
        attachment.budgets.load_state_dict(self.budgets, self.updates)
        attachment.forget()


def state_of(progress: Sequence[Progress], plan: Plan) -> dict[str, Any]:
    """Return a state_dict; what was not used is not in it."""
    state: dict[str, Any] = {"version": 1, "updates": [each.updates for each in progress]}
    if any(each.averages for each in progress):
        state["averages"] = [each.averages for each in progress]
    if any(each.intervals for each in progress):
        state["intervals"] = [each.intervals for each in progress]
    if any(each.controls for each in progress):
        state["controls"] = [each.controls for each in progress]
    if any(each.budgets for each in progress):
        state["budgets"] = [each.budgets for each in progress]
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
    for part in PARTS:
        each_of = state.get(part, [{}] * len(updates)) if isinstance(state, Mapping) else []
        if len(each_of) != len(updates):
            raise ValueError(f"the state has {part} of {len(each_of)} optimizers and updates of {len(updates)}")
        for each in each_of:
            check_penalized(each, plan, part)
        parts.append(each_of)
    budgets = state.get("budgets", [{}] * len(updates)) if isinstance(state, Mapping) else []
    return [Progress(count, *map(dict, each)) for count, *each in zip(updates, *parts, budgets, strict=True)]


def check_penalized(found: Mapping[str, Any], plan: Plan, part: str) -> None:
    """Raise `ValueError` unless what was `found` under `part` of a state is that of parameters in `plan`."""
    names = [name for entry in plan for name in (entry.name, *entry.aliases)]
    for name in found:
        if name not in names:
            raise ValueError(
                f"the state holds {part} of {name!r}, which this regularizer does not penalize (it penalizes "
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
            f"the state holds references of {listed(sorted(references)) or 'nothing'}, this regularizer of "
            f"{listed(sorted(saved)) or 'nothing'}; use the rules "
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
            entry = entry._replace(penalty=replace(entry.penalty, reference=moved.clone()))
        entries.append(entry)
    return replace(plan, entries=tuple(entries))


def membership_of(plan: Plan, names: Sequence[str]) -> Plan:
    """Return the entries of `plan` that have these names."""
    return replace(plan, entries=tuple(entry for entry in plan if entry.name in names))


def replaced(plan: Plan, part: Plan) -> Plan:
    """Return `plan` with the entries of `part` in place of those of the same names."""
    newer = {entry.name: entry for entry in part}
    return replace(plan, entries=tuple(newer.get(entry.name, entry) for entry in plan))


def is_newer(name: str) -> bool:
    """Return whether an earlier version did not count the parameter called `name` among the weights of its layer."""
    return is_matrix(name.rpartition(".")[2])


def warn_of_older(names: Iterable[str]) -> None:
    """Warn that a state knows nothing of the parameters called `names`."""
    warn_user(
        "the state was saved when a bare penalty, or one for a class, left these parameters alone: "
        f"{', '.join(map(repr, sorted(names)))}. What belongs to them starts now; a rule with None before the others "
        "leaves them alone still"
    )
