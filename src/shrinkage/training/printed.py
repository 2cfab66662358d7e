"""A regularizer in print: what it is attached to, its plan, and what of that nothing penalizes, or layers declare."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import nn

from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan
from shrinkage.selection.supported_parameters import is_frozen
from shrinkage.tables import names_note
from shrinkage.training.acting import Acting, by_layers, declared_in
from shrinkage.training.double_decay import decayed_beside
from shrinkage.training.options import Options
from shrinkage.training.penalized import names_of


def text_of(model: nn.Module, plan: Plan, attached: Sequence[Acting], options: Options) -> str:
    """Return a regularizer as text.

    Args:
        model: whose parameters are penalized.
        plan: by which.
        attached: what it penalizes in each optimizer that it is attached to.
        options: of the regularizer.
    """
    names = [entry.name for entry in (*plan, *(each for planned in plan.budgets for each in planned.entries))]
    ranked = {entry.name for planned in plan.budgets for entry in planned.entries}
    held = names_of(model, (each for own in attached for each in own.attachment.concerned_left(own.optimizer)))
    now = {candidate.name: candidate.parameter for candidate in named_parameters(model)}
    frozen = {name for name in names if is_frozen(now.get(name))}
    declared = {name: each.hold_zeros for name, each in declared_in(model).items()}
    left = [name for name in names if name not in {*held, *frozen}]
    by_layer = [name for name in left if name in declared]
    note = names_note("frozen, so not penalized", [name for name in names if name in frozen - ranked])
    if attached:
        missed = [name for name in left if name not in declared]
        note += names_note("not in an attached optimizer, so not penalized", missed)
    elsewhere = by_layers(model, attached)
    note += declared_note({name: declared[name] for name in by_layer}, elsewhere)
    ranking = sum(bool(each.attachment.budgets.parameters) for each in attached)
    note += f"\nBudget: in {ranking} optimizers, each by itself" if ranking > 1 else ""
    note += "".join(map(decay_note, [*attached, *elsewhere]))
    optimizers = ", ".join(type(each.optimizer).__name__ for each in attached)
    state = f"attached to {optimizers}" if optimizers else "not attached"
    state += zeros_held(options.hold_zeros)
    if not attached and left and by_layer == left:
        state = "declared by layers"
    return f"Regularizer: {len(names)} parameter{'s' * (len(names) != 1)}, {state}\n{plan}{note}"


def declared_note(declared: Mapping[str, float | None], elsewhere: Sequence[Acting]) -> str:
    """Return lines about what layers declare: in which optimizers it is penalized, and how zeros are held."""
    lines: dict[str, list[str]] = defaultdict(list)
    for name, decay in declared.items():
        kinds = [type(each.optimizer).__name__ for each in elsewhere if name in {own.name for own in each.targets}]
        where = ", ".join(kinds) or "each optimizer that steps them"
        lines[f"declared by layers, so penalized without attach in {where}{zeros_held(decay)}"].append(name)
    return "".join(names_note(line, names) for line, names in lines.items())


def zeros_held(decay: float | None) -> str:
    """Return the end of a line about parameters whose zeros averages with this decay hold; nothing if none do."""
    return "" if decay is None else f", zeros held by gradients averaged with decay {decay:g}"


def decay_note(acting: Acting) -> str:
    """Return lines about parameters that are penalized in an optimizer, and that it decays by itself as well."""
    by_option: dict[str, list[str]] = defaultdict(list)
    for name, option in decayed_beside(acting.targets, acting.optimizer):
        by_option[option].append(name)
    kind = type(acting.optimizer).__name__
    return "".join(names_note(f"+ {text} of {kind}", names) for text, names in by_option.items())
