"""What is in `.grad`: the derivative of the loss alone, or that of a penalty too.

During a step their sum stands in `.grad`, and the loop's own gradient is held aside: the step leaves `.grad` as it
was, as torch's `weight_decay` does, at the price of one copy that lives as long as the step. A loop that wants the
penalties in `.grad` before the step has them added, once, and the step then leaves those gradients alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef


class Aside(NamedTuple):
    """A gradient held aside, the sum that stands in its place, and how often that had been written then."""

    parameter: nn.Parameter
    own: Tensor
    summed: Tensor
    version: int


class Gradients:
    """The gradients of one optimizer's penalized parameters."""

    def __init__(self) -> None:
        self._aside: list[Aside] = []
        self._early: dict[str, TensorWeakRef] = {}  # by name, gradients to which the loop had the penalty added

    @contextmanager
    def held_aside(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Let a copy stand in the place of each gradient, for the block to add to, until `restore`."""
        owned = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        try:
            for parameter, own in owned:
                parameter.grad = own.clone()
            yield
        except BaseException:
            for parameter, own in owned:
                parameter.grad = own
            raise
        for parameter, own in owned:
            if parameter.grad is not None:
                self._aside.append(Aside(parameter, own, parameter.grad, parameter.grad._version))

    def restore(self) -> None:
        """Put back what is held aside, last first, unless it was replaced or written to: then it is the caller's."""
        for parameter, own, summed, version in reversed(self._aside):
            if parameter.grad is summed and summed._version == version:
                parameter.grad = own
        self._aside = []

    def note_early(self, name: str, parameter: nn.Parameter) -> None:
        """Note that the loop had the penalty added to this gradient, if there is one on this process."""
        if parameter.grad is not None:
            self._early[name] = TensorWeakRef(parameter.grad)

    def holds(self, name: str, parameter: nn.Parameter) -> bool:
        """Return whether the loop had the penalty added to this very gradient, since the last step."""
        early = self._early.get(name)
        return early is not None and early() is parameter.grad is not None

    def end_step(self) -> None:
        """Restore, and let the next step add what the loop does not."""
        self.restore()
        self._early = {}


def dense(grad: Tensor) -> Tensor:
    """Return `grad` with the rows that a sparse gradient leaves out, which are 0."""
    return grad.to_dense() if grad.is_sparse else grad
