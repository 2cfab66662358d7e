"""What is charged in one optimizer, and what every step of it needs: the strengths of an update, and their count."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from shrinkage.apply import Number
from shrinkage.errors import AttachmentError, ParameterError
from shrinkage.penalties import Penalty
from shrinkage.plan import How


class Charge(NamedTuple):
    """One parameter of an optimizer that is charged: its name, its rule, and the index of its parameter group."""

    name: str
    penalty: Penalty
    how: How
    parameter: nn.Parameter
    group: int

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


def at_update(charge: Charge, update: int) -> Penalty:
    """Return the penalty of `charge` at an update; an error of its schedule gets the parameter's name."""
    try:
        return charge.penalty.at(update)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the schedule of {charge.name!r} at update {update}: {error}") from error


def check_gradients(charges: Sequence[Charge]) -> None:
    """Raise `ParameterError` if a gradient is sparse, before anything is changed."""
    for name, _, _, parameter, _ in charges:
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ParameterError(
                f"the gradient of {name!r} of shape {tuple(parameter.shape)} is sparse: its optimizer updates only the "
                "rows that a batch touched, while a penalty charges all of them; build the layer with sparse=False, "
                f"or leave it alone with {{{name!r}: None}}"
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


def warn_of_curvature(charges: Iterable[Charge], optimizer: Optimizer) -> None:
    """Warn if weights are moved behind the back of an optimizer that learns curvature from its own moves."""
    moved = next((charge.name for charge in charges if charge.how != "gradient"), None)
    if isinstance(optimizer, LBFGS) and moved is not None:
        warnings.warn(
            f'LBFGS does not know that {moved!r} moves between its steps by how="decoupled", so its estimate of the '
            'curvature is off; how="gradient" adds the penalty to its gradients and to the loss of its line search',
            stacklevel=4,
        )


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
def without_autograd_or_autocast(charges: Sequence[Charge]) -> Iterator[None]:
    """Hold a context in which nothing is recorded and every operation runs in the type of its operands."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # its tensors do not count how often they are written
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device_type in {charge.parameter.device.type for charge in charges}:
            if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield
