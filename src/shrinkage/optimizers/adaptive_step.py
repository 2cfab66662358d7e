"""The step of an optimizer in its metric: a number, a tensor, or one that is computed where it is used.

Steps of all kinds have one number for all elements, or one per element, and can be cut as the parameter is: see
`number` and `narrowed`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from shrinkage.proximal.precision import at_least_float32

Number = float | Tensor
State = Mapping[str, Any]


class AdaptiveStep(NamedTuple):
    """The step lr / (sqrt(moment / correction) + eps) of each element, computed only where it is used.

    Where the moment is exactly 0 the step is lr.

    Args:
        lr: a number or a 0-dim tensor.
        moment: the second moment, shaped like the parameter.
        eps: a number or a 0-dim tensor.
        correction: of the moment's bias; a number or a 0-dim tensor.
    """

    lr: Number
    moment: Tensor
    eps: Number
    correction: Number = 1.0

    def tensor(self) -> Tensor:
        """Return the steps, in float32 at least."""
        denominator = self.denominator()
        # Between 1, where the moment is 0, and the denominator, where it is positive: several times faster than a mask.
        steps = denominator.new_ones(()).lerp(denominator, self.moment.sign().to(denominator.dtype))
        return steps.reciprocal_().mul_(self.lr)

    def denominator(self) -> Tensor:
        """Return sqrt(moment / correction) + eps."""
        corrected = self.moment.to(at_least_float32(self.moment.dtype)) / self.correction
        return corrected.sqrt_().add_(self.eps).clamp_(max=torch.finfo(corrected.dtype).max)

    def narrow(self, dim: int, start: int, length: int) -> "AdaptiveStep":
        """Return the step of `length` indices of dimension `dim`."""
        return self._replace(moment=self.moment.narrow(dim, start, length))

    def zero_if(self, overflow: Tensor) -> "AdaptiveStep":
        """Return the step, or 0 if `overflow` is 1."""
        return self._replace(lr=zero_if(overflow, self.lr))


class JointSteps(NamedTuple):
    """The steps of several parameters, as lists.

    Args:
        moments: of each `AdaptiveStep`; none where the steps are numbers.
        numbers: lr, eps and correction of each; a step that is a number stands in the place of lr.
    """

    moments: list[Tensor]
    numbers: list[tuple[Number, Number, Number]]

    @staticmethod
    def of(steps: Sequence["Step"]) -> "JointSteps":
        """Return steps as lists; those that are functions are left out."""
        adaptive = [step for step in steps if isinstance(step, AdaptiveStep)]
        plain = [step for step in steps if not isinstance(step, LATER)]
        numbers = [(lr, eps, correction) for lr, _, eps, correction in adaptive]
        return JointSteps([step.moment for step in adaptive], numbers or [(step, 0.0, 1.0) for step in plain])

    def each(self) -> list[Number | AdaptiveStep]:
        """Return the step of each parameter."""
        if not self.moments:
            return [lr for lr, _, _ in self.numbers]
        pairs = zip(self.moments, self.numbers, strict=True)
        return [AdaptiveStep(lr, moment, eps, correction) for moment, (lr, eps, correction) in pairs]


class MetricStep(NamedTuple):
    """The step that a function returns, called only where it is used: it may need as much memory as the parameter.

    Args:
        eta: a function of (parameter group, state, parameter), as in `register_metric`.
        group: the options of the parameter group.
        state: what the optimizer keeps of the parameter.
        w: the parameter.
        overflow: 1 if the update is skipped, so that the step is 0; None outside of loss scaling.
        elementwise: whether the step of an element follows from the state of that element.
    """

    eta: Callable[[Mapping[str, Any], State, Tensor], Any]
    group: Mapping[str, Any]
    state: State
    w: Tensor
    overflow: Tensor | None = None
    elementwise: bool = True

    def tensor(self) -> Number:
        """Return the step: a number, or shaped like the parameter."""
        return zero_if(self.overflow, number(self.eta(self.group, self.state, self.w)))

    def narrow(self, dim: int, start: int, length: int) -> "MetricStep":
        """Return the step of `length` indices of dimension `dim`."""
        w, shape = self.w.narrow(dim, start, length), self.w.shape
        cut = {
            name: value.narrow(dim, start, length)
            for name, value in self.state.items()
            if isinstance(value, Tensor) and value.shape == shape and not value.is_sparse
        }
        return self._replace(w=w, state={**self.state, **cut})

    def zero_if(self, overflow: Tensor) -> "MetricStep":
        """Return the step, or 0 if `overflow` is 1."""
        return self._replace(overflow=overflow)

    @property
    def can_be_cut(self) -> bool:
        """Whether all tensors of the state are numbers, or have the shape of the parameter."""
        tensors = (value for value in self.state.values() if isinstance(value, Tensor))
        return self.elementwise and all(value.numel() == 1 or value.shape == self.w.shape for value in tensors)


Step = Number | AdaptiveStep | MetricStep
StepT = TypeVar("StepT", bound=Step)
LATER = (AdaptiveStep, MetricStep)


def number(step: Step) -> Number:
    """Return `step` as a number, or as a tensor with one number per element."""
    return step.tensor() if isinstance(step, LATER) else step


def narrowed(step: StepT, dim: int, start: int, length: int) -> StepT:
    """Return the step of `length` indices of dimension `dim`; one number for all elements as it is."""
    found: Any = step
    if isinstance(step, LATER) or (isinstance(step, Tensor) and step.dim()):
        found = step.narrow(dim, start, length)
    own: StepT = found
    return own


def can_be_cut(step: Step) -> bool:
    """Return whether the step of some elements is known without that of the others."""
    return not isinstance(step, MetricStep) or step.can_be_cut


def zero_if(overflow: Tensor | None, size: Number) -> Number:
    """Return a step size, or 0 if `overflow` is 1."""
    if overflow is None:
        return size
    happens = 1 - overflow
    # A number has double precision, and thresholds that are rounded otherwise are others.
    return size * (happens if isinstance(size, Tensor) or happens.device.type == "mps" else happens.double())


def item_if_on_cpu(number: Number) -> Number:
    """Return a tensor's number where reading it does not wait for a device, as optimizers read it; else the tensor."""
    return number.item() if isinstance(number, Tensor) and number.device.type == "cpu" else number


def zero_on_overflow(step: Step, overflow: Tensor | None) -> Step:
    """Return `step`, or 0 if `overflow` is 1, because the update is skipped; None outside of loss scaling."""
    if overflow is None:
        return step
    return step.zero_if(overflow) if isinstance(step, LATER) else zero_if(overflow, step)
