"""Penalties that are a sum over elements, so that a diagonal metric is only an elementwise step."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage import prox
from shrinkage.penalties.base import Description, Penalty
from shrinkage.schedules import Strength, check_strength, fixed


class Radial(NamedTuple):
    """A penalty of one element as a function of its size r: `linear` * r + `quadratic` / 2 * r^2."""

    linear: float
    quadratic: float


class Elementwise(Penalty):
    """A sum over elements. `Grouped` charges the norms of groups with it instead."""

    __slots__ = ()

    @abstractmethod
    def radial(self) -> Radial:
        """Return the penalty of one element as a function of its size."""

    def check_shape(self, shape: Sequence[int]) -> None:
        """Take any shape."""

    def cut(self, shape: Sequence[int]) -> int | None:
        """Cut along the first dimension that is long enough for many pieces."""
        return max(range(len(shape)), key=lambda dim: min(shape[dim], 64), default=None)

    def describe(self, shape: Sequence[int] | None) -> Description:
        """Return the class and its strengths."""
        strengths = ["schedule" if callable(value) else f"{value:g}" for value in self._fields().values()]
        return Description(type(self).__name__, ", ".join(strengths), "-")


@dataclass(frozen=True, slots=True)
class L1(Elementwise):
    """Charge the sum of absolute values, which makes weights exactly zero.

    R(w) = strength * sum |w|

    Args:
        strength: >= 0, loss units per unit of |w|; or a schedule of the update count.

    Raises:
        ValueError: the strength is negative or not finite.

    Reference: Tibshirani (1996), "Regression shrinkage and selection via the lasso", eq. 1.

    >>> L1(1.0).prox(torch.tensor([-3.0, 0.5]), step=2.0)
    tensor([-1.,  0.])
    """

    strength: Strength

    def __post_init__(self) -> None:
        check_strength("L1", "strength", self.strength)

    @property
    def smooth(self) -> bool:
        """False: |w| has a kink at 0."""
        return False

    def value(self, w: Tensor) -> Tensor:
        """strength * sum |w|."""
        return fixed(self.strength) * w.abs().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """strength * sign(w)."""
        return fixed(self.strength) * w.sign()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold at step * strength."""
        return prox.soft_threshold(w, step * fixed(self.strength))

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance from -grad to strength * sign(w), or to [-strength, strength] where w is 0."""
        return linear_residual(w, grad, fixed(self.strength))

    def strength_max(self, grad: Tensor) -> Tensor:
        """max |grad|."""
        return largest(grad.abs())

    def radial(self) -> Radial:
        """strength * r."""
        return Radial(fixed(self.strength), 0.0)


@dataclass(frozen=True, slots=True)
class L2(Elementwise):
    """Charge half the sum of squares: weight decay. It makes weights small, never zero.

    R(w) = strength / 2 * sum w^2

    With `how="gradient"` the strength is that of `weight_decay` in `SGD` and `Adam`, with `how="decoupled"` that of
    `AdamW`, bit for bit.

    Args:
        strength: >= 0, loss units per unit of w^2 / 2; or a schedule of the update count.

    Raises:
        ValueError: the strength is negative or not finite.

    Reference: Hoerl and Kennard (1970), "Ridge regression", eq. 2.1.

    >>> L2(1.0).prox(torch.tensor([-3.0, 0.5]), step=2.0)
    tensor([-1.0000,  0.1667])
    """

    strength: Strength

    def __post_init__(self) -> None:
        check_strength("L2", "strength", self.strength)

    @property
    def smooth(self) -> bool:
        """True."""
        return True

    def value(self, w: Tensor) -> Tensor:
        """strength / 2 * sum w^2."""
        return 0.5 * fixed(self.strength) * w.square().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """strength * w."""
        return fixed(self.strength) * w

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """w / (1 + step * strength)."""
        return w / (1 + step * fixed(self.strength))

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """|grad + strength * w|."""
        return (grad + self.gradient(w)).abs()

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return infinity: no finite strength makes 0 stationary, unless the gradient is 0."""
        return torch.where(largest(grad.abs()) > 0, torch.inf, 0.0).to(grad.dtype)

    def radial(self) -> Radial:
        """strength / 2 * r^2."""
        return Radial(0.0, fixed(self.strength))


@dataclass(frozen=True, slots=True)
class ElasticNet(Elementwise):
    """Charge absolute values and half squares together: exact zeros, and correlated weights are kept together.

    R(w) = l1 * sum |w| + l2 / 2 * sum w^2

    Args:
        l1: >= 0, strength of the absolute values; or a schedule of the update count.
        l2: >= 0, strength of the squares, as in `L2`; or a schedule of the update count.

    Raises:
        ValueError: a strength is negative or not finite.

    Reference: Zou and Hastie (2005), "Regularization and variable selection via the elastic net", eq. 3 (there
    without the factor 1/2).

    >>> ElasticNet(1.0, 0.5).prox(torch.tensor([-3.0, 0.5]), step=2.0)
    tensor([-0.5000,  0.0000])
    """

    l1: Strength
    l2: Strength

    def __post_init__(self) -> None:
        check_strength("ElasticNet", "l1", self.l1)
        check_strength("ElasticNet", "l2", self.l2)

    @property
    def smooth(self) -> bool:
        """False: |w| has a kink at 0."""
        return False

    def value(self, w: Tensor) -> Tensor:
        """l1 * sum |w| + l2 / 2 * sum w^2."""
        return fixed(self.l1) * w.abs().sum() + 0.5 * fixed(self.l2) * w.square().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """l1 * sign(w) + l2 * w."""
        return fixed(self.l1) * w.sign() + fixed(self.l2) * w

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold at step * l1, then division by 1 + step * l2."""
        return prox.soft_threshold(w, step * fixed(self.l1)) / (1 + step * fixed(self.l2))

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return `L1`'s residual for the gradient grad + l2 * w."""
        return linear_residual(w, grad + fixed(self.l2) * w, fixed(self.l1))

    def strength_max(self, grad: Tensor) -> Tensor:
        """max |grad|, a value of `l1`: `l2` has no part in whether 0 is stationary."""
        return largest(grad.abs())

    def radial(self) -> Radial:
        """l1 * r + l2 / 2 * r^2."""
        return Radial(fixed(self.l1), fixed(self.l2))


def linear_residual(w: Tensor, grad: Tensor, strength: float) -> Tensor:
    """Return the distance from -grad to the subdifferential of strength * |w|."""
    at_zero = (grad.abs() - strength).clamp_min(0)  # distance to the interval [-strength, strength]
    elsewhere = (grad + strength * w.sign()).abs()  # distance to the point strength * sign(w)
    return torch.where(w == 0, at_zero, elsewhere)


def largest(values: Tensor) -> Tensor:
    """Return the largest of `values` >= 0, 0 if there are none."""
    return values.amax() if values.numel() else values.new_zeros(())
