"""Rules whose groups span parameters: which parameters they name, and one line of a printed plan for each family."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch.nn.parameter import is_lazy

from shrinkage.errors import ParameterError, SelectionError
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.coupled_groups import NONE, Coupled
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.membership import coupled_of
from shrinkage.selection.first_match import nearest
from shrinkage.selection.named_parameters import NamedParameter
from shrinkage.selection.selectors import Named, selector_text


def check_named(coupled: Coupled, candidates: Sequence[NamedParameter]) -> None:
    """Raise `SelectionError` if a member names what is not in the model."""
    held = {candidate.name for candidate in candidates}
    for name in coupled.names:
        if name not in held:
            raise SelectionError(
                f"{coupled!r} has a member {name!r}, which is no parameter of the model; nearest names: "
                f"{nearest(name, held)}"
            )


def check_won(coupled: Coupled, winners: Mapping[str, object]) -> None:
    """Raise `SelectionError` if an earlier rule takes a member; `winners` are the selectors that do, by name."""
    for name in coupled.names:
        winner = winners[name]
        if winner != Named(coupled.names):
            raise SelectionError(
                f"two rules penalize {name!r}: {coupled!r} and, before it, the rule {selector_text(winner)}; the first "
                "match wins and would leave groups without this member: put the rule of the coupled groups first, or "
                "penalize both in one Coupled"
            )


def sized(penalty: Penalty | Budget | None, candidates: Sequence[NamedParameter]) -> Penalty | Budget | None:
    """Return `penalty`; if its groups span parameters, with groups that know how many elements they have.

    A budget comes back as it is: two of them are told apart by which object they are.
    """
    coupled = coupled_of(penalty)
    if coupled is None:
        return penalty
    check_named(coupled, candidates)
    if not isinstance(penalty, Grouped):
        return penalty
    shapes: dict[str, tuple[int, ...]] = {}
    for candidate in candidates:
        lazy = candidate.parameter is None or is_lazy(candidate.parameter)
        if candidate.name in coupled.names and lazy:
            raise ParameterError(
                f"{candidate.name!r} is in {coupled!r} and has no shape yet, or is computed from other parameters; run "
                "one forward pass first, or couple those"
            )
        if candidate.parameter is not None and not lazy:
            shapes[candidate.name] = tuple(candidate.parameter.shape)
    return replace(penalty, groups=coupled.sized(shapes))


def family_cells(coupled: Coupled, names: Sequence[str]) -> tuple[str, str, str]:
    """Return name, shape and groups of a family in a printed plan."""
    own = {group for name in names for group in coupled.slices(name).groups if group != NONE}
    entries = sorted({coupled.sizes[group] for group in own})
    size = str(entries[0]) if len(entries) == 1 else f"{entries[0]}-{entries[-1]}" if entries else "0"
    return block_text(names), f"{len(own)}x{size}", f"{len(own)} x Coupled"


def block_text(names: Sequence[str]) -> str:
    """Return the parameters of one family in words.

    >>> block_text(["conv.weight", "norm.weight", "norm.bias"])
    'conv.weight and 2 more'
    """
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
