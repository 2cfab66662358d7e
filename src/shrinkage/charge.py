"""What is charged in one optimizer, and what every step of it needs: the strengths of an update, and their count."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.apply import Number
from shrinkage.errors import ParameterError
from shrinkage.penalties import Penalty
from shrinkage.plan import How
from shrinkage.prox import wide
from shrinkage.sharding import Crossing, whole, whole_penalty


class Charge(NamedTuple):
    """One parameter of an optimizer that is charged: its name, its rule, and the index of its parameter group.

    `crossing` tells how its groups cross machines; None if each machine can charge its piece by itself.
    """

    name: str
    penalty: Penalty
    how: How
    parameter: nn.Parameter
    group: int
    crossing: Crossing | None = None

    @property
    def before(self) -> bool:
        """Whether the penalty acts before the step, through its derivative, and not after it through its prox."""
        return self.how == "gradient" or (self.how == "decoupled" and self.penalty.smooth)

    @property
    def takes_part(self) -> bool:
        """Whether this machine has a part in the charge: it has a gradient, or others wait for its sums."""
        return self.parameter.grad is not None or self.crossing is not None


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


def at_update(charge: Charge, update: int) -> Penalty:
    """Return the penalty of `charge` at an update; an error of its schedule gets the parameter's name."""
    try:
        return charge.penalty.at(update)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the schedule of {charge.name!r} at update {update}: {error}") from error


def check_gradients(charges: Sequence[Charge]) -> None:
    """Raise `ParameterError` if a gradient is sparse, before anything is changed."""
    for name, parameter in ((charge.name, charge.parameter) for charge in charges):
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ParameterError(
                f"the gradient of {name!r} of shape {tuple(parameter.shape)} is sparse: its optimizer updates only the "
                "rows that a batch touched, while a penalty charges all of them; build the layer with sparse=False, "
                f"or leave it alone with {{{name!r}: None}}"
            )


def unless(overflow: Tensor | None, step: Number) -> Number:
    """Return `step`, or 0 if the update is skipped."""
    return step if overflow is None else step * (1 - overflow)


def value_of(penalty: Penalty, parameter: Tensor) -> Tensor:
    """Return the value of `penalty` at a parameter, of which this machine may hold only a piece."""
    value = whole_penalty(penalty).value(wide(whole(parameter.detach())))
    return value


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
