"""What layers declare for the parameters of one optimizer: the names by which its state is saved, and the count.

A layer does not know what the model calls it, and several may be called alike. So an optimizer numbers what it steps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch.optim import Optimizer

from shrinkage.errors import SelectionError
from shrinkage.selection.declaration import Declaration
from shrinkage.selection.plan import Entry, Plan
from shrinkage.training.attachment import Attachment
from shrinkage.training.options import Options
from shrinkage.training.penalized import Found, PenalizedParameter, Place
from shrinkage.training.state_hooks import register_state_hooks, resume
from shrinkage.training.update_count import Updates

Decay = float | None  # of averaged gradients that hold zeros; None if none do


class Declared(NamedTuple):
    """What a layer declares for one parameter: how it is penalized, what holds its zeros, and who says so.

    The declaration is None if the layer is gone. `name` is that of the parameter there, with the layer's class.
    """

    target: PenalizedParameter
    decay: Decay
    declaration: Declaration | None = None
    name: str = ""


class AllDeclared(NamedTuple):
    """What layers declare in one optimizer, and the places that hold nothing that it steps."""

    own: Sequence[Declared]
    elsewhere: list[Place]

    def held_by(self, decay: Decay) -> Found:
        """Return what is penalized, of that whose zeros are held by averages of this decay."""
        return Found([each.target for each in self.own if each.decay == decay], self.elsewhere)


class DeclaredAttachment:
    """What applies the declarations whose zeros are held by averages of one decay, in one optimizer.

    Args:
        attachment: what acts around steps.
        decay: of the averages.
    """

    def __init__(self, attachment: Attachment, decay: Decay) -> None:
        self.attachment, self.decay = attachment, decay
        self.attached = False
        self.plan = Plan(())  # by the names in this optimizer
        self._saved = False  # whether the optimizer's state_dict has the state

    @staticmethod
    def options(decay: Decay) -> Options:
        """Return how an attachment for this decay acts."""
        return Options(hold_zeros=decay)

    def remember(self, optimizer: Optimizer, found: AllDeclared) -> None:
        """Count on where another optimizer of the same layers stopped, and let this one save the state, if it matters.

        A count matters to averages, and where strengths change.
        """
        own = [each for each in found.own if each.decay == self.decay]
        if self.decay is None and not any(each.target.changes for each in own):
            return
        layers = [(each.declaration, each.name) for each in own if each.declaration is not None]
        if not self._saved:
            self._count_on([declaration.counts[name] for declaration, name in layers if name in declaration.counts])
        for declaration, name in layers:
            declaration.counts = {**declaration.counts, name: self.attachment.updates}
        self.plan = Plan(tuple(entry_of(each.target) for each in own))
        if not self._saved:
            self._saved = True
            resume(optimizer, self.attachment, self, [])
            register_state_hooks(optimizer, self.attachment, self)

    def _count_on(self, made: Sequence[object]) -> None:
        """Share the count of the optimizer that came furthest, if this one made no step; of a copy, its number."""
        counts = [Updates(each) if isinstance(each, int) else each for each in made]
        furthest = max((each for each in counts if isinstance(each, Updates)), key=Updates.count, default=None)
        if furthest is not None and not self.attachment.updates.steps:
            self.attachment.updates = self.attachment.budgets.updates = furthest


def entry_of(target: PenalizedParameter) -> Entry:
    """Return the entry of a plan for what is penalized."""
    shape = None if target.lazy else tuple(target.parameter.shape)
    return Entry(target.name, (), shape, target.penalty, target.how)


def with_own_names(found: Mapping[int, Declared]) -> dict[int, Declared]:
    """Return the same with a name of its own for each: of several that are called alike, all but one are numbered."""
    names: Counter[str] = Counter()
    named = {}
    for identity, each in found.items():
        name = each.target.name
        names[name] += 1
        own = name if names[name] == 1 else f"{name} ({names[name]})"
        named[identity] = each._replace(target=each.target._replace(name=own), name=name)
    return named


def check_same_decay(one: Declared, other: Declared) -> None:
    """Raise `SelectionError` unless two layers that share a parameter hold its zeros alike."""
    if one.decay != other.decay:
        raise SelectionError(
            f"two rules clash on {other.target.name!r}, which layers share: one of them declares "
            f"hold_zeros={one.decay}, the other hold_zeros={other.decay}; give both the same"
        )
