"""What is charged in one optimizer, and what every step of it needs: the strengths of an update, and their count."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.optim import Optimizer

from shrinkage.apply import Number
from shrinkage.errors import AttachmentError, ParameterError, SelectionError
from shrinkage.optimizers import group_indices
from shrinkage.penalties import Penalty
from shrinkage.plan import How, Plan, check_shape
from shrinkage.select import NamedParameter, check_not_computed, named_parameters


class Place(NamedTuple):
    """Where a model holds a parameter: a module, by weak reference, and the parameter's name in it."""

    module: ref[nn.Module]
    attribute: str

    def holds(self, parameter: nn.Parameter) -> bool:
        """Return whether `parameter` is still there, as far as the module is."""
        module = self.module()
        return module is None or module._parameters.get(self.attribute) is parameter


class Charge(NamedTuple):
    """One parameter of an optimizer that is charged: its name, its rule, and the index of its parameter group.

    `places` are where it was found, `lazy` whether it had no shape yet then.
    """

    name: str
    penalty: Penalty
    how: How
    parameter: nn.Parameter
    group: int
    places: tuple[Place, ...] = ()
    lazy: bool = False

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
    plain = type(parameter) in (nn.Parameter, UninitializedParameter)
    return tuple(Place(ref(name.module), name.attribute) for name in names) if plain else ()


def charges_of(model: nn.Module, plan: Plan, optimizer: Optimizer) -> list[Charge]:
    """Return what `plan` charges in `optimizer`, found by names in the model as it is now.

    Names that were tied when the plan was made may have come apart, and others may have been tied since.
    """
    put_shards_back(model)
    held = {candidate.name: candidate for candidate in named_parameters(model)}
    groups = group_indices(optimizer)
    charges: dict[int, Charge] = {}
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
            if parameter is None or id(parameter) not in groups:
                continue
            lazy = is_lazy(parameter)
            if not lazy:
                check_shape(candidate.name, parameter.shape, entry.penalty)
            penalty = entry.penalty.bound(candidate.name, parameter)  # the model may have moved to another device
            places = places_of([candidate], parameter)
            charge = Charge(candidate.name, penalty, entry.how, parameter, groups[id(parameter)], places, lazy)
            charges[id(parameter)] = merged(charges.get(id(parameter), charge), charge)
    if not charges:
        names = ", ".join(f"{entry.name!r} {entry.shape}" for entry in plan.entries[:3])
        raise AttachmentError(
            f"this {type(optimizer).__name__} holds none of the {len(plan)} charged parameters ({names} ...); "
            "make it from the parameters of the same model, after whatever replaced them"
        )
    return list(charges.values())


def put_shards_back(model: nn.Module) -> None:
    """Let FSDP's modules hold their shards, which an evaluation leaves gathered: the optimizer has the shards."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported here: it takes long, and is seldom needed
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def merged(one: Charge, other: Charge) -> Charge:
    """Return the charge of a parameter that is found under two names; raise if it is charged differently."""
    if (one.penalty, one.how) != (other.penalty, other.how):
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


def at_update(charge: Charge, update: int) -> Penalty:
    """Return the penalty of `charge` at an update; an error of its schedule gets the parameter's name."""
    try:
        return charge.penalty.at(update)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the schedule of {charge.name!r} at update {update}: {error}") from error


def check_gradients(charges: Sequence[Charge]) -> None:
    """Raise `ParameterError` if a gradient is sparse, before anything is changed."""
    for charge in charges:
        name, parameter = charge.name, charge.parameter
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ParameterError(
                f"the gradient of {name!r} of shape {tuple(parameter.shape)} is sparse: its optimizer updates only the "
                "rows that a batch touched, while a penalty charges all of them; build the layer with sparse=False, "
                f"or leave it alone with {{{name!r}: None}}"
            )


def unless(overflow: Tensor | None, step: Number) -> Number:
    """Return `step`, or 0 if the update is skipped."""
    return step if overflow is None else step * (1 - overflow)


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of 0-dim tensors, on the device of the first."""
    return torch.stack([value.to(values[0].device) for value in values]).sum()


@contextmanager
def without_autograd_or_autocast(charges: Sequence[Charge]) -> Iterator[None]:
    """Hold a context in which nothing is recorded and every operation runs in the type of its operands."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device_type in {charge.parameter.device.type for charge in charges}:
            if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield
