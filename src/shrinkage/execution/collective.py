"""Groups that cross processes, or span several parameters: what is asked in one round is answered for all of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.distributed.all_reduce import GroupSharding, gradient_across, prox_across, together
from shrinkage.distributed.dtensor import local, local_gradient
from shrinkage.execution.compiled import Compile, pays
from shrinkage.execution.coupled_updates import Slab, shrink_together_
from shrinkage.execution.single_tensor import write_
from shrinkage.optimizers.adaptive_step import Step, number
from shrinkage.penalties import coupled_norms
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.membership import GroupPenalty, Membership, group_penalty_of
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import Reduction

One = Callable[["Move"], Reduction[list[Tensor]]]
Together = Callable[[Sequence["Move"]], Reduction[list[Tensor]]]


class Move(NamedTuple):
    """One parameter whose groups cross processes or other parameters, and its place in a step.

    `factor` is what its derivative is multiplied by, or the step of its prox: a number, or shaped like the piece here.
    For zeros that are held it is the piece of the averaged gradient.
    `moves` tells whether this process had a gradient; otherwise it only adds its sums to those of the others.
    """

    penalty: Penalty
    parameter: nn.Parameter
    factor: Step
    group_sharding: GroupSharding
    generator: torch.Generator | None = None
    moves: bool = True

    @property
    def piece(self) -> Tensor:
        """What this process holds of the parameter."""
        piece: Tensor = local(self.parameter.detach())
        return piece


def add_gradients_across_(moves: Sequence[Move], *, to_weights: bool = False) -> None:
    """Add `factor` times the penalty's derivative to each gradient, or to the weights themselves."""
    for move, slope in zip(moves, answered(moves, gradient_of_one, gradients_of_family), strict=True):
        gradient = local_gradient(move.parameter)
        if gradient is not None:
            target = move.piece if to_weights else gradient
            write_(target, upcast(target) + number(move.factor) * slope, move.generator if to_weights else None)


def prox_across_(moves: Sequence[Move], compile: Compile) -> None:
    """Move each parameter that had a gradient on this process to the penalty's proximal point."""
    families: dict[object, list[Move]] = {}
    for index, move in enumerate(moves):
        families.setdefault(move.group_sharding.family or index, []).append(move)
    here = [family for family in families.values() if all(map(is_here, family))]
    rest = [move for family in families.values() if not all(map(is_here, family)) for move in family]
    for family in here:
        penalized, parts = family_of(family)
        slabs = [Slab(part, move.piece, move.factor) for move, part in zip(family, parts, strict=True)]
        pay = pays([slab.shrink for slab in slabs]) if compile == "auto" else compile
        shrink_together_(penalized, slabs, compile=pay)
    for move, moved in zip(rest, answered(rest, prox_of_one, prox_of_family), strict=True):
        if move.moves:
            write_(move.piece, moved, move.generator)


def is_here(move: Move) -> bool:
    """Return whether groups span parameters but no processes, and this one is moved, to the nearest numbers."""
    group_sharding = move.group_sharding
    return group_sharding.family is not None and not group_sharding.machines and move.moves and move.generator is None


def stay_in_families(moves: Sequence[Move]) -> list[Tensor]:
    """Return where parameters are in groups that are zero and stay so by the averaged gradients, their `factor`."""
    return answered(moves, prox_of_one, stays_of_family)


def answered(moves: Sequence[Move], one: One, family: Together) -> list[Tensor]:
    """Return what the computation of each parameter by itself, or of its family, finds for it, in the order given."""
    found: dict[object, list[int]] = {}
    for index, move in enumerate(moves):
        found.setdefault(move.group_sharding.family or index, []).append(index)
    batches = [[moves[index] for index in indices] for indices in found.values()]
    computations = [one(*batch) if batch[0].group_sharding.family is None else family(batch) for batch in batches]
    results: dict[int, Tensor] = {}
    for indices, each in zip(
        found.values(), together(computations, [batch[0].group_sharding for batch in batches]), strict=True
    ):
        results |= dict(zip(indices, each, strict=True))
    return [results[index] for index in range(len(moves))]


def prox_of_one(move: Move) -> Reduction[list[Tensor]]:
    """Return a computation of this process's piece of the prox."""
    return [(yield from prox_across(move.penalty, move.parameter.detach(), number(move.factor), move.group_sharding))]


def gradient_of_one(move: Move) -> Reduction[list[Tensor]]:
    """Return a computation of this process's piece of the derivative."""
    return [(yield from gradient_across(move.penalty, move.parameter.detach(), move.group_sharding))]


def prox_of_family(moves: Sequence[Move]) -> Reduction[list[Tensor]]:
    """Return a computation of the prox of parameters whose groups they share."""
    penalized, parts = family_of(moves)
    pieces = [move.piece for move in moves]
    to_rest = not moves[0].group_sharding.machines and all(piece.device.type == "cpu" for piece in pieces)
    return coupled_norms.prox(penalized, parts, pieces, [number(move.factor) for move in moves], to_rest=to_rest)


def gradients_of_family(moves: Sequence[Move]) -> Reduction[list[Tensor]]:
    """Return a computation of the derivatives of parameters whose groups they share."""
    return coupled_norms.gradient(*family_of(moves), [move.piece for move in moves])


def stays_of_family(moves: Sequence[Move]) -> Reduction[list[Tensor]]:
    """Return a computation of where parameters are in groups that stay zero."""
    averages = [move.factor for move in moves if isinstance(move.factor, Tensor)]
    return coupled_norms.stays(*family_of(moves), [move.piece for move in moves], averages)


def family_of(moves: Sequence[Move]) -> tuple[GroupPenalty, list[Membership]]:
    """Return what groups are penalized that span the parameters of `moves`, and which groups each has."""
    weights = [move.group_sharding.family.weights for move in moves if move.group_sharding.family is not None]
    parts = [move.group_sharding.part for move in moves if move.group_sharding.part is not None]
    return group_penalty_of(moves[0].penalty, weights[0]), parts
