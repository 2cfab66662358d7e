"""Kinds of channels, and what a model has left without some: from what makes and reads each channel."""

from collections.abc import Container, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.counted_operators import counted_operators, multiply_adds_left
from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.plans.shrink_plan import ShrinkPlan, applied
from shrinkage.compression.removal.attributes import changed_attributes
from shrinkage.compression.removal.removable import kept_indices
from shrinkage.compression.tracing.coupling import Axis, Coupling
from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.errors import GroupError, first_line
from shrinkage.penalties.kinds import Amount, Kinds, Length, amount

Shares = Mapping[int, int]  # by kind, how many indices of an axis go with one channel


def kinds_of(coupling: Coupling, model: nn.Module, call: Call, number: Mapping[int, int]) -> Kinds:
    """Return the kinds of the channels that have a `number`.

    Two channels are of one kind if they take as many indices along of each axis of each parameter and buffer.
    """
    places = torch.full((coupling.labels.count,), -1)
    places[list(number)] = torch.tensor(list(number.values()))
    own: list[list[tuple[Axis, int]]] = [[] for _ in number]
    for axis, channels in coupling.axes.items():
        groups = places[channels]
        counts = torch.bincount(groups[groups >= 0], minlength=len(number))
        found = counts.nonzero().flatten()
        for group, count in zip(found.tolist(), counts[found].tolist(), strict=True):
            own[group].append((axis, count))
    known: dict[tuple[tuple[Axis, int], ...], int] = {}
    of = tuple(known.setdefault(tuple(each), len(known)) for each in own)
    shares: dict[Axis, dict[int, int]] = {}
    for axes, kind in known.items():
        for axis, count in axes:
            shares.setdefault(axis, {})[kind] = count
    labels = torch.tensor(list(number))[torch.tensor(list(number.values())).argsort()]
    multiply_adds = partial(multiply_adds_of, coupling, model, call, of, labels)
    return Kinds(of, parameters_of(model, shares), multiply_adds)


def parameters_of(model: nn.Module, shares: Mapping[Axis, Shares]) -> Amount:
    """Return how many entries the parameters have, tied ones counted once."""

    def length(name: str, dim: int, size: int) -> Length:
        return size, tuple(shares.get((name, dim), {}).items())

    return amount(
        (1, tuple(length(name, dim, size) for dim, size in enumerate(parameter.shape)))
        for name, parameter in model.named_parameters()
    )


def multiply_adds_of(coupling: Coupling, model: nn.Module, call: Call, of: Sequence[int], labels: Tensor) -> Amount:
    """Return how many multiply-adds a call takes: found in models with one channel of a kind less.

    Args:
        coupling: the channels of `model`.
        model: is copied.
        call: of it.
        of: the kind of each channel.
        labels: of each channel, in `coupling`.

    Raises:
        GroupError: what models without some channels take does not follow from that.
    """
    if any(map(is_dtensor, model.parameters())):
        raise GroupError(
            "multiply-adds are counted in copies of the model, which is sharded over processes: make the Regularizer "
            "before that, and attach it after"
        )
    by_kind: dict[int, list[int]] = {}
    for label, kind in zip(labels.tolist(), of, strict=True):
        by_kind.setdefault(kind, []).append(label)

    def counted(gone: Sequence[int]) -> int:
        return sum(each.operations for each in counted_operators(small(gone), call)) // 2

    def small(gone: Sequence[int]) -> nn.Module:
        which = torch.zeros(coupling.labels.count, dtype=torch.bool)
        which[list(gone)] = True
        return without(which, coupling, model)

    try:
        several = {kind: own for kind, own in by_kind.items() if len(own) > 1}
        smaller = {kind: counted_operators(small(own[:1]), call) for kind, own in several.items()}
        found = multiply_adds_left(counted_operators(model, call), smaller)
        half = {kind: own[len(own) // 2 + len(own) % 2 :] for kind, own in by_kind.items()}
        same = counted([label for own in half.values() for label in own]) == found.left(
            [len(half[kind]) for kind in sorted(half)]
        )
    except GroupError:
        raise
    except Exception as error:  # Whatever a model's code does with other widths than it expects.
        raise GroupError(f"the model fails when channels of one kind go: {first_line(error)}") from error
    if not same:
        raise GroupError("the multiply-adds of the model do not follow from how many channels of each kind are left")
    return found


def without(gone: Tensor, coupling: Coupling, model: nn.Module, kept: Container[str] = ()) -> nn.Module:
    """Return a copy of `model` without the channels that are `gone`; the attributes `kept` stay as they are."""
    changed = changed_attributes(coupling, model, gone)
    attributes = {name: value for name, value in changed.items() if name not in kept}
    return applied(model, ShrinkPlan.of(model, kept_indices(coupling, gone), attributes=attributes))
