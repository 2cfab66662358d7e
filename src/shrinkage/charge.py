"""What is charged in one optimizer, and what every step of it needs: the strengths of an update, and their count."""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.optim import Optimizer

from shrinkage.apply import Number
from shrinkage.eligible import check_not_computed
from shrinkage.errors import AttachmentError, ParameterError, SelectionError
from shrinkage.flattened import check_piece, check_stepped, is_piece
from shrinkage.how import How
from shrinkage.metrics import is_captured
from shrinkage.optimizers import group_indices, stepped
from shrinkage.penalties import Penalty
from shrinkage.plan import Entry, Plan, check_shape
from shrinkage.select import NamedParameter, named_parameters
from shrinkage.sharding import Crossing, put_shards_back


class Place(NamedTuple):
    """Where a model holds a parameter: a module, by weak reference, and the parameter's name in it."""

    module: ref[nn.Module]
    attribute: str

    def holds(self, parameter: nn.Parameter) -> bool:
        """Return whether `parameter` is still there, as far as the module is."""
        module = self.module()
        return module is None or module._parameters.get(self.attribute) is parameter

    def holds_any(self, identities: Container[int]) -> bool:
        """Return whether one of the parameters that have these ids is there now."""
        module = self.module()
        return module is not None and id(module._parameters.get(self.attribute)) in identities


class Charge(NamedTuple):
    """One parameter of an optimizer that is charged: its name, its rule, and the index of its parameter group.

    `places` are where it was found, `lazy` whether it had no shape yet then. `crossing` tells how its groups cross
    machines; None if each machine can charge its piece by itself. Its proximal operator acts at `every`-th step.
    """

    name: str
    penalty: Penalty
    how: How
    parameter: nn.Parameter
    group: int
    places: tuple[Place, ...] = ()
    lazy: bool = False
    crossing: Crossing | None = None
    every: int = 1

    @property
    def stale(self) -> bool:
        """Whether the model holds something else in the parameter's place by now, or the parameter came into being."""
        for place in self.places:  # plain loops: this is asked before every step
            if not place.holds(self.parameter):
                return True
        return self.lazy and not is_lazy(self.parameter)

    @property
    def before(self) -> bool:
        """Whether the penalty acts before the step, through its derivative, and not after it through its prox."""
        return self.how == "gradient" or (self.how == "decoupled" and self.penalty.smooth)


class Found(NamedTuple):
    """What is charged in one optimizer, and the places that rules charge too but that hold nothing it steps."""

    charges: list[Charge]
    elsewhere: list[Place]


@dataclass
class Updates:
    """Counts the updates that happened: a fused optimizer that met an overflow took a step, but no update."""

    steps: int = 0
    skipped: Tensor | None = None

    def record(self, overflow: Tensor | None) -> None:
        """Count one step; `overflow` is 1 on the device if it did not update anything."""
        self.steps += 1
        if overflow is not None:
            self.skipped = overflow.clone() if self.skipped is None else self.skipped + overflow

    def count(self) -> int:
        """Return the number of updates; waits for the device if loss scaling with a fused optimizer is in use."""
        return self.steps - (0 if self.skipped is None else int(self.skipped.item()))


def places_of(names: Sequence[NamedParameter], parameter: Tensor) -> tuple[Place, ...]:
    """Return where `parameter` has to stay, of the `names` that it was found under.

    A distributed one may come and go: during an evaluation, and after it, FSDP's modules hold gathered ones.
    """
    sharded = is_sharded_parameter(parameter)
    return () if sharded else tuple(Place(ref(name.module), name.attribute) for name in names)


def is_sharded_parameter(parameter: Tensor) -> bool:
    """Return whether a machine holds a piece of `parameter`, in whose place a module may hold something else."""
    return type(parameter) not in (nn.Parameter, UninitializedParameter) or is_piece(parameter)


def charges_of(model: nn.Module, plan: Plan, optimizer: Optimizer, given: Optimizer) -> Found:
    """Return what `plan` charges in `optimizer`, found by names in the model as it is now.

    Names that were tied when the plan was made may have come apart, and others may have been tied since. The optimizer
    is one of those that do the work of the `given` one: it may step none of them, but together they have to.
    """
    put_shards_back(model)
    held = {candidate.name: candidate for candidate in named_parameters(model)}
    for name, candidate in held.items():
        check_stepped(name, candidate.parameter)
    groups = group_indices(optimizer)
    charges: dict[int, Charge] = {}
    elsewhere: list[Place] = []
    ids: set[int] = set()
    for entry in plan:
        found = [held[name] for name in (entry.name, *entry.aliases) if name in held]
        if not found:
            raise AttachmentError(
                f"{entry.name!r} of shape {entry.shape} is not in the model any more; detach() this regularizer "
                "and make a new one for the model as it is now"
            )
        for candidate in found:
            check_not_computed(candidate)
            parameter = candidate.parameter
            ids.add(id(parameter))
            if parameter is not None and id(parameter) in groups:
                charge = charge_of(entry, candidate, parameter, groups[id(parameter)])
                charges[id(parameter)] = merged(charges.get(id(parameter), charge), charge)
            else:
                elsewhere.append(Place(ref(candidate.module), candidate.attribute))
    if not charges and stepped(given).isdisjoint(ids):
        names = ", ".join(f"{entry.name!r} {entry.shape}" for entry in plan.entries[:3])
        raise AttachmentError(
            f"this {type(given).__name__} holds none of the {len(plan)} charged parameters ({names} ...); "
            "make it from the parameters of the same model, after whatever replaced them"
        )
    return Found(list(charges.values()), elsewhere)


def names_of(model: nn.Module, charges: Iterable[Charge]) -> set[str]:
    """Return all names in `model` of parameters that are charged."""
    found = {id(charge.parameter): charge.name for charge in charges}
    tied = {name.name for name in named_parameters(model) if id(name.parameter) in found}
    return tied | set(found.values())


def charge_of(entry: Entry, candidate: NamedParameter, parameter: nn.Parameter, group: int) -> Charge:
    """Return the charge of one parameter, found under one name, in one group of an optimizer."""
    check_piece(candidate.name, parameter, entry.penalty)
    lazy = is_lazy(parameter)
    if not lazy:
        check_shape(candidate.name, parameter.shape, entry.penalty)
    penalty = entry.penalty.bound(candidate.name, parameter)  # the model may have moved to another device
    places = places_of([candidate], parameter)
    return Charge(candidate.name, penalty, entry.how, parameter, group, places, lazy, every=entry.every)


def merged(one: Charge, other: Charge) -> Charge:
    """Return the charge of a parameter that is found under two names; raise if it is charged differently."""
    if (one.penalty, one.how, one.every) != (other.penalty, other.how, other.every):
        raise SelectionError(
            f"{one.name!r} and {other.name!r} are one tied parameter by now, but two rules clash on it: "
            f"{one.penalty} ({one.how}) and {other.penalty} ({other.how}); give both names one rule"
        )
    return one._replace(places=tuple(dict.fromkeys((*one.places, *other.places))))


def check_kept(before: Sequence[Charge], now: Sequence[Charge], optimizer: Optimizer) -> None:
    """Raise `AttachmentError` if `optimizer` holds a parameter that was charged and is not in the model any more."""
    covered = {place for charge in now for place in charge.places}
    held = group_indices(optimizer)
    for charge in before:
        if charge.stale and id(charge.parameter) in held and covered.isdisjoint(charge.places):
            raise AttachmentError(
                f"{charge.name!r} of shape {tuple(charge.parameter.shape)} was replaced in the model, but this "
                f"{type(optimizer).__name__} still updates the parameter that was there; make the optimizer from the "
                "parameters of the model as it is now, and attach to that"
            )


def at_update(charges: Sequence[Charge], update: int) -> list[Penalty]:
    """Return the penalties of `charges` at an update; an error of a schedule gets the parameter's name.

    A penalty that several parameters share is asked once, and stays one for all of them.
    """
    found: dict[int, Penalty] = {}
    for charge in charges:
        if id(charge.penalty) in found:
            continue
        try:
            found[id(charge.penalty)] = charge.penalty.at(update)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the schedule of {charge.name!r} at update {update}: {error}") from error
    return [found[id(charge.penalty)] for charge in charges]


def check_captured(charges: Iterable[Charge], *, averaged: bool) -> None:
    """Raise `AttachmentError` if a CUDA graph is recorded whose replays would repeat what should change."""
    for charge in charges:
        scheduled = charge.penalty.scheduled
        frozen = "a scheduled strength" if scheduled else "entry=" if averaged else f"every={charge.every}"
        if (scheduled or averaged or charge.every > 1) and is_captured(charge.parameter):
            raise AttachmentError(
                f"{charge.name!r} of shape {tuple(charge.parameter.shape)} is charged with {frozen}, and a CUDA graph "
                "that is recorded now would repeat this step as it is, without Python: use a strength that is a "
                "number, or leave optimizer.step() out of the graph"
            )


def check_gradients(charges: Sequence[Charge]) -> None:
    """Raise `ParameterError` if a penalty is to be added to a sparse gradient, or a parameter was flattened."""
    for charge in charges:
        name, parameter = charge.name, charge.parameter
        check_piece(name, parameter, charge.penalty)
        if charge.how != "gradient":
            continue
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ParameterError(
                f"the gradient of {name!r} of shape {tuple(parameter.shape)} is sparse: its optimizer updates only the "
                "rows that a batch touched, and a penalty in the gradient charges all of them; choose "
                'how="proximal" or how="decoupled", which charge all rows after the step, or build the layer with '
                "sparse=False"
            )


def check_added_once(added: Iterable[Charge]) -> None:
    """Raise `AttachmentError` if there is a gradient to which its penalty was added already."""
    for charge in added:
        raise AttachmentError(
            f"add_gradients_() has been called on this gradient of {charge.name!r} of shape "
            f"{tuple(charge.parameter.shape)} already; call it once per update, after the last backward(). After a "
            "step that was left out, optimizer.zero_grad(set_to_none=True) makes new gradients"
        )


def check_unscaled(added: Iterable[Charge]) -> None:
    """Raise `AttachmentError` if there is a gradient that still carries the loss scale, but its penalty does not."""
    for charge in added:
        raise AttachmentError(
            f"add_gradients_() has been called on the gradient of {charge.name!r} of shape "
            f"{tuple(charge.parameter.shape)} while it was multiplied by the loss scale; call "
            "scaler.unscale_(optimizer) before it"
        )


def dense(grad: Tensor) -> Tensor:
    """Return `grad` with the rows that a sparse gradient leaves out, which are 0."""
    return grad.to_dense() if grad.is_sparse else grad


def unless(overflow: Tensor | None, step: Number) -> Number:
    """Return `step`, or 0 if the update is skipped."""
    if overflow is None:
        return step
    happens = 1 - overflow
    # A number has double precision, and thresholds that are rounded otherwise are others.
    return step * (happens if isinstance(step, Tensor) or happens.device.type == "mps" else happens.double())


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of 0-dim tensors, on the device of the first."""
    return torch.stack([value.to(values[0].device) for value in values]).sum()


@contextmanager
def without_autograd_or_autocast(charges: Iterable[Charge]) -> Iterator[None]:
    """Hold a context in which nothing is recorded and every operation runs in the type of its operands."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # its tensors do not count how often they are written
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device_type in {charge.parameter.device.type for charge in charges}:
            if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield
