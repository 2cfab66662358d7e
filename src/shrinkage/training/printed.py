"""A regularizer in print: what it is attached to, its plan, and what of that no attached optimizer steps."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan
from shrinkage.selection.supported_parameters import is_frozen
from shrinkage.tables import names_note
from shrinkage.training.attachment import Attachment
from shrinkage.training.double_decay import decayed_beside
from shrinkage.training.options import Options
from shrinkage.training.penalized import names_of


def text_of(model: nn.Module, plan: Plan, pairs: Sequence[tuple[Optimizer, Attachment]], options: Options) -> str:
    """Return a regularizer as text.

    Args:
        model: whose parameters are penalized.
        plan: by which.
        pairs: the optimizers that it is attached to, each with what acts there.
        options: of the regularizer.
    """
    ranked = [entry for planned in plan.budgets for entry in planned.entries]
    names = [entry.name for entry in (*plan, *ranked)]
    optimizers = ", ".join(type(optimizer).__name__ for optimizer, _ in pairs)
    state = f"attached to {optimizers}" if optimizers else "not attached"
    held = names_of(model, (each for own, attached in pairs for each in attached.concerned_left(own)))
    now = {candidate.name: candidate.parameter for candidate in named_parameters(model)}
    frozen = [name for name in names if is_frozen(now.get(name))]
    missed = [name for name in names if optimizers and name not in {*held, *frozen}]
    note = names_note("frozen, so not penalized", [name for name in frozen if name not in {e.name for e in ranked}])
    note += names_note("not in an attached optimizer, so not penalized", missed)
    ranking = sum(bool(attached.budgets.parameters) for _, attached in pairs)
    note += f"\nBudget: in {ranking} optimizers, each by itself" if ranking > 1 else ""
    for own, attached in pairs:
        by_option: dict[str, list[str]] = {}
        for name, option in decayed_beside(attached.targets_left(own), own):
            by_option.setdefault(option, []).append(name)
        note += "".join(names_note(f"+ {text} of {type(own).__name__}", each) for text, each in by_option.items())
    decay = options.hold_zeros
    zeros = "" if decay is None else f", zeros held by gradients averaged with decay {decay:g}"
    return f"Regularizer: {len(names)} parameter{'s' * (len(names) != 1)}, {state}{zeros}\n{plan}{note}"
