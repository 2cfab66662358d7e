"""What is in `.grad`: the derivative of the loss alone, or that of a penalty too.

During a step their sum stands in `.grad`, and the loop's own gradient is held aside: the step leaves `.grad` as it
was, as torch's `weight_decay` does, at the price of one copy that lives as long as the step. A loop that wants the
penalties in `.grad` before the step has them added, once, and the step then leaves those gradients alone.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from shrinkage.apply import add_gradient_
from shrinkage.penalties import Penalty


class Aside(NamedTuple):
    """A gradient held aside, the sum that stands in its place, and how often that had been written then."""

    parameter: nn.Parameter
    own: Tensor
    summed: Tensor
    version: int


class Gradients:
    """The gradients of one optimizer's charged parameters."""

    def __init__(self) -> None:
        self._aside: list[Aside] = []
        self._early: dict[str, TensorWeakRef] = {}  # by name, gradients to which the loop had the penalty added

    def add_for_step(self, penalty: Penalty, parameter: nn.Parameter, sign: float, scale: Tensor | None) -> None:
        """Add the penalty's derivative to the gradient of `parameter`, until `restore`.

        A fused optimizer divides gradients by the loss `scale` in place, so theirs are not kept as they were.
        """
        own = parameter.grad
        if own is None:
            return
        if scale is not None:
            add_gradient_(penalty, parameter, sign * scale)
            return
        summed = parameter.grad = own.clone()
        try:
            add_gradient_(penalty, parameter, sign)
        except BaseException:
            parameter.grad = own
            self.restore()
            raise
        self._aside.append(Aside(parameter, own, summed, summed._version))

    def restore(self) -> None:
        """Put back what is held aside, except where the sum was replaced or written to since: it is not ours then."""
        for parameter, own, summed, version in self._aside:
            if parameter.grad is summed and summed._version == version:
                parameter.grad = own
        self._aside = []

    def add_early(self, name: str, penalty: Penalty, parameter: nn.Parameter, sign: float) -> None:
        """Add the penalty's derivative to the gradient of `parameter` for good."""
        if parameter.grad is not None:
            add_gradient_(penalty, parameter, sign)
            self._early[name] = TensorWeakRef(parameter.grad)

    def holds(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether the loop had the penalty added to this very gradient, since the last step."""
        early = self._early.get(name)
        return early is not None and parameter.grad is not None and early() is parameter.grad

    def end_step(self) -> None:
        """Restore, and let the next step add what the loop does not."""
        self.restore()
        self._early = {}
