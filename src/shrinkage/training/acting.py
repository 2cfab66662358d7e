"""What penalizes parameters of a model, and in which optimizers: a regularizer, or what layers declare."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from shrinkage.errors import ShrinkageError
from shrinkage.optimizers.adaptive_step import Number
from shrinkage.optimizers.introspection import sign_of
from shrinkage.selection.declaration import ATTRIBUTE, Declaration
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.training.attachment import Attachment
from shrinkage.training.global_hook import declared_attachments, optimizers_that_stepped
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.regularize import DeclaredRule, declared_rules


class Acting(NamedTuple):
    """What penalizes parameters of a model in one optimizer.

    Args:
        optimizer: around whose steps it acts.
        attachment: what acts there.
        targets: what is penalized, under the names that the model gives.
    """

    optimizer: Optimizer
    attachment: Attachment
    targets: Sequence[PenalizedParameter]

    @property
    def decay(self) -> float | None:
        """The decay of the averages that hold zeros; None if none do."""
        averages = self.attachment.averages
        return None if averages is None else averages.decay

    def steps(self) -> dict[str, Number]:
        """Return the step of each penalized parameter's proximal operator now, as far as it has made one."""
        return self.attachment.steps(self.optimizer, self.targets)

    def maximized(self) -> set[str]:
        """Return the names of the penalized parameters whose loss the optimizer maximizes."""
        return {each.name for each in self.targets if sign_of(self.optimizer, each.group) < 0}


def by_regularizer(pairs: Iterable[tuple[Optimizer, Attachment]]) -> list[Acting]:
    """Return what a regularizer penalizes in the optimizers that it is attached to."""
    return [Acting(own, each, each.targets_left(own)) for own, each in pairs]


def by_layers(model: nn.Module, others: Iterable[Acting] = ()) -> list[Acting]:
    """Return what layers of `model` declare, in each optimizer that stepped one of them and is alive.

    What `others` penalize already is left out: a regularizer takes the place of a declaration.
    """
    taken = {id(target.parameter) for each in others for target in each.targets}
    candidates = reversed(list(named_parameters(model)))
    names = {id(each.parameter): each.name for each in candidates if id(each.parameter) not in taken}
    found = []
    for optimizer in optimizers_that_stepped():
        for attachment in declared_attachments(optimizer):
            with suppress(ShrinkageError):  # its own step tells why nothing can be penalized
                targets = attachment.targets(optimizer)
                own = [each._replace(name=names[id(each.parameter)]) for each in targets if id(each.parameter) in names]
                found += [Acting(optimizer, attachment, own)] if own else []
    return found


def declared_in(model: nn.Module) -> dict[str, DeclaredRule]:
    """Return what layers of `model` declare now, by the name of the parameter; nothing if that contradicts itself."""
    with suppress(ShrinkageError):
        return declared_rules(model)
    return {}


def updates_by_layers(model: nn.Module) -> int:
    """Return the updates of the optimizer of declared layers that came furthest; the layers keep it if it matters."""
    declared: list[Declaration] = [vars(module)[ATTRIBUTE] for module in model.modules() if ATTRIBUTE in vars(module)]
    kept = [count if isinstance(count, int) else count.count() for each in declared for count in each.counts.values()]
    return max([*kept, *(each.attachment.updates.count() for each in by_layers(model))], default=0)
