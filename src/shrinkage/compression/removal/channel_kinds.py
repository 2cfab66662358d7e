"""Kinds of channels, and what a model has left without some: from what makes and reads each channel."""

from collections.abc import Container, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.counted_operators import CountedOperator, counted_operators, multiply_adds_left
from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.copying.copies import without_gradients
from shrinkage.compression.plans.applying import applied
from shrinkage.compression.plans.attention import with_prunable_heads
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.sized_modules import correct_sizes_
from shrinkage.compression.removal.attributes import changed_attributes
from shrinkage.compression.removal.lockstep import Lockstep
from shrinkage.compression.removal.removable import kept_indices
from shrinkage.compression.removal.rescaling import rescaling
from shrinkage.compression.tracing.coupling import Coupling, couple
from shrinkage.compression.tracing.parameter_axes import Axis
from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.errors import GroupError, first_line
from shrinkage.penalties.coupled_groups import NONE
from shrinkage.penalties.kinds import Amount, Kinds, Length, amount

Shares = Mapping[int, int]  # by kind, how many indices of an axis go with one channel


def kinds_of(
    coupling: Coupling,
    model: nn.Module,
    call: Call,
    pin: Sequence[str],
    groups: Sequence[Sequence[int]],
    *,
    sized: bool,
) -> Kinds:
    """Return the kinds of channels: each of `groups` holds the labels of one or more.

    Two channels are of one kind if they take as many indices along of each axis of each parameter and buffer. What
    counts multiply-adds later follows the model anew: a graph would hold the parameters as they are now. If `sized`,
    sizes in the code of copies without some channels are corrected.
    """
    places = by_label(coupling, groups)
    own: list[list[tuple[Axis, int]]] = [[] for _ in groups]
    for axis, channels in coupling.axes.items():
        found_there = places[channels]
        found, counts = torch.unique(found_there[found_there != NONE], return_counts=True)
        for group, count in zip(found.tolist(), counts.tolist(), strict=True):
            own[group].append((axis, count))
    known: dict[tuple[tuple[Axis, int], ...], int] = {}
    of = tuple(known.setdefault(tuple(each), len(known)) for each in own)
    shares: dict[Axis, dict[int, int]] = {}
    for axes, kind in known.items():
        for axis, count in axes:
            shares.setdefault(axis, {})[kind] = count
    multiply_adds = partial(multiply_adds_of, model, call, tuple(pin), tuple(map(tuple, groups)), of, sized=sized)
    return Kinds(of, parameters_of(model, shares), multiply_adds)


def by_label(coupling: Coupling, groups: Sequence[Sequence[int]]) -> Tensor:
    """Return for each label the number of the one of `groups` that it is in; -1 for those in none."""
    number = torch.full((coupling.labels.count,), NONE)
    number[[root for group in groups for root in group]] = torch.tensor(
        [place for place, group in enumerate(groups) for _ in group], dtype=torch.long
    )
    return number


def parameters_of(model: nn.Module, shares: Mapping[Axis, Shares]) -> Amount:
    """Return how many entries the parameters have, tied ones counted once."""

    def length(name: str, dim: int, size: int) -> Length:
        return size, tuple(shares.get((name, dim), {}).items())

    return amount(
        (1, tuple(length(name, dim, size) for dim, size in enumerate(parameter.shape)))
        for name, parameter in model.named_parameters()
    )


def multiply_adds_of(
    model: nn.Module,
    call: Call,
    pin: Sequence[str],
    groups: Sequence[Sequence[int]],
    of: Sequence[int],
    *,
    sized: bool = False,
) -> Amount:
    """Return how many multiply-adds a call takes: found in copies of the model with one channel of a kind less.

    Args:
        model: is copied.
        call: of it.
        pin: what stays.
        groups: the labels of the channels of each, which are the same each time that the model is followed.
        of: their kinds.
        sized: correct sizes in the code of the copies.

    Raises:
        GroupError: what copies without some channels take does not follow from that.
    """
    if any(map(is_dtensor, model.parameters())):
        raise GroupError(
            "multiply-adds are counted in copies of the model, which is sharded over processes: make the Regularizer "
            "before that, and attach it after"
        )
    args, kwargs = call
    coupling = couple(model, args, example_kwargs=kwargs, pin=pin)
    by_kind: dict[int, list[Sequence[int]]] = {}
    for roots, kind in zip(groups, of, strict=True):
        by_kind.setdefault(kind, []).append(roots)
    lockstep = Lockstep(model, coupling, call) if sized else None
    half = {kind: own[(len(own) + 1) // 2 :] for kind, own in by_kind.items()}

    def counted(gone: Sequence[Sequence[int]]) -> list[CountedOperator]:
        which = torch.zeros(coupling.labels.count, dtype=torch.bool)
        which[[root for roots in gone for root in roots]] = True
        made = without(which, coupling, model, lockstep=lockstep) if gone else without_gradients(model)
        return counted_operators(with_prunable_heads(made), call)

    try:
        smaller = {kind: counted(own[:1]) for kind, own in by_kind.items() if len(own) > 1}
        found = multiply_adds_left(counted([]), smaller)
        sample = counted([roots for own in half.values() for roots in own])
    except GroupError:
        raise
    except Exception as error:  # Whatever a model's code does with other widths than it expects.
        raise GroupError(f"the model fails when channels of one kind go: {first_line(error)}") from error
    if sum(each.operations for each in sample) // 2 != found.left([len(half[kind]) for kind in sorted(half)]):
        raise GroupError("the multiply-adds of the model do not follow from how many channels of each kind are left")
    return found


def without(
    gone: Tensor, coupling: Coupling, model: nn.Module, kept: Container[str] = (), lockstep: Lockstep | None = None
) -> nn.Module:
    """Return a copy of `model` without the channels that are `gone`; the attributes `kept` stay as they are.

    Sizes in its code are corrected by `lockstep`, if it is given.
    """
    changed = changed_attributes(coupling, model, gone)
    attributes = {name: value for name, value in changed.items() if name not in kept}
    divided = rescaling(coupling, gone)
    plan = ShrinkPlan.of(
        model,
        kept_indices(coupling, gone),
        attributes=attributes | divided.attributes,
        scales=divided.scales,
        numbers=divided.numbers,
    )
    small = applied(model, plan)
    if lockstep is not None:
        correct_sizes_(small, lockstep.corrections(small, gone))
    return small
