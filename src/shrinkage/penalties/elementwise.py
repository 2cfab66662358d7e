"""What penalties have in common that are a sum over elements: a diagonal metric is only an elementwise step."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.penalties.base import Penalty


class Radial(NamedTuple):
    """A penalty of one element as a function of its size r: `linear` * r + `quadratic` / 2 * r^2."""

    linear: float | Tensor
    quadratic: float | Tensor


class Elementwise(Penalty):
    """A sum over elements. `Grouped` penalizes the norms of groups with it instead."""

    __slots__ = ()

    @property
    @abstractmethod
    def slope_at_zero(self) -> float | Tensor:
        """The derivative beside 0: 0 if there is no kink, infinity if 0 is always stationary."""

    @abstractmethod
    def cost(self, w: Tensor) -> Tensor:
        """Return what each element costs, the shape of `w`."""

    def radial(self) -> Radial | None:
        """Return the penalty of one element as a function of its size if that is linear plus quadratic, else None."""
        return None

    def value(self, w: Tensor) -> Tensor:
        return self.cost(w).sum()

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance from -grad to [-slope at 0, slope at 0] where w is 0, elsewhere to the derivative."""
        at_zero = (grad.abs() - self.slope_at_zero).clamp_min(0)
        return torch.where(w == 0, at_zero, (grad + self.gradient(w)).abs())

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return max |grad|, right where the strength is the slope beside 0; infinity if there is no kink."""
        return infinite_unless_zero(grad) if self.smooth else largest(grad.abs())

    @property
    def holds_zeros(self) -> bool:
        """Whether there is a kink at 0."""
        return not self.smooth

    @property
    def solid(self) -> bool:
        """True: an element costs more the larger it is, whatever its sign."""
        return True

    def slope(self, shape: Sequence[int]) -> float:
        """Return the derivative beside 0, the largest of all elements."""
        return float(self.slope_at_zero)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Take any shape."""

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return all dimensions: elements are independent."""
        return tuple(range(len(shape)))


def largest(values: Tensor) -> Tensor:
    """Return the largest of `values` >= 0, 0 if there are none."""
    return values.amax() if values.numel() else values.new_zeros(())


def infinite_unless_zero(grad: Tensor) -> Tensor:
    """Return infinity, or 0 if `grad` is 0 everywhere."""
    return torch.where(largest(grad.abs()) > 0, torch.inf, 0.0).to(grad.dtype)
