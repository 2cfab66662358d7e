"""What a regularizer saves: how many updates it made, what it averaged, and the references it took from the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from shrinkage.attachment import Attachment
from shrinkage.penalties import Toward
from shrinkage.plan import Plan

State = Mapping[str, Any]


class Progress(NamedTuple):
    """How far one attachment has come."""

    updates: int
    averages: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, attachment: Attachment) -> "Progress":
        """Return the progress of `attachment`."""
        averages = attachment.averages
        return cls(attachment.updates.count(), {} if averages is None else averages.state_dict())

    def restore(self, attachment: Attachment) -> None:
        """Let `attachment` go on from here."""
        attachment.updates.steps, attachment.updates.skipped = self.updates, None
        if attachment.averages is not None:
            attachment.averages.load_state_dict(self.averages)


def state_of(progress: Sequence[Progress], plan: Plan) -> dict[str, Any]:
    """Return a state_dict; what was not used is not in it."""
    state: dict[str, Any] = {"version": 1, "updates": [each.updates for each in progress]}
    if any(each.averages for each in progress):
        state["averages"] = [each.averages for each in progress]
    references = {
        entry.name: entry.penalty.reference
        for entry in plan
        if isinstance(entry.penalty, Toward) and entry.penalty.saved
    }
    return {**state, "references": references} if references else state


def checked_progress(state: object) -> list[Progress]:
    """Return the progress in a state of `Regularizer.state_dict`, or raise `ValueError`."""
    updates = state.get("updates") if isinstance(state, Mapping) and state.get("version") == 1 else None
    if not isinstance(updates, list) or not all(isinstance(count, int) and count >= 0 for count in updates):
        found = f"a mapping with the keys {list(state)}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"expected {{'version': 1, 'updates': [...]}} of Regularizer.state_dict(), got {found}")
    averages = state.get("averages", [{}] * len(updates)) if isinstance(state, Mapping) else []
    return [Progress(count, dict(each)) for count, each in zip(updates, averages, strict=True)]


def with_references(plan: Plan, references: Mapping[str, Tensor]) -> Plan:
    """Return `plan` with the saved references in place of those that were taken from the model as it is now."""
    saved = {entry.name for entry in plan if isinstance(entry.penalty, Toward) and entry.penalty.saved}
    if saved != references.keys():
        raise ValueError(
            f"the state holds references of {sorted(references)}, this regularizer of {sorted(saved)}; use the rules "
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
    return Plan(tuple(entries))
