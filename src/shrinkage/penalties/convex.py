"""Convex penalties of elements: absolute values, squares, and both."""

from torch import Tensor

from shrinkage.penalties.elementwise import Elementwise, Radial
from shrinkage.penalties.schedules import Strength, check_positive, fixed
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision, thresholds


@value_class
class L1(Elementwise):
    """Penalize the sum of absolute values, which makes weights exactly zero.

    R(w) = strength * sum |w|

    Args:
        strength: >= 0, loss units per unit of |w|; or a schedule of the update count.

    Raises:
        ValueError: the strength is negative or not finite.

    Reference: Tibshirani (1996), "Regression shrinkage and selection via the lasso", eq. 1.

    >>> import torch
    >>> L1(1.0).prox(torch.tensor([-3.0, 0.5]), step=2.0)
    tensor([-1.,  0.])
    """

    strength: Strength

    @property
    def slope_at_zero(self) -> float:
        return fixed(self.strength)

    def cost(self, w: Tensor) -> Tensor:
        return fixed(self.strength) * w.abs()

    def gradient(self, w: Tensor) -> Tensor:
        return fixed(self.strength) * w.sign()

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold at step * strength."""
        return thresholds.soft_threshold(w, step * fixed(self.strength))

    def radial(self) -> Radial:
        return Radial(fixed(self.strength), 0.0)


@value_class
class L2(Elementwise):
    """Penalize half the sum of squares: weight decay. It makes weights small, never zero.

    R(w) = strength / 2 * sum w^2

    With `how="gradient"` the strength is that of `weight_decay` in `SGD` and `Adam`, with `how="decoupled"` that of
    `AdamW`, bit for bit. In bfloat16 and float16 two differ, by rounding: fused optimizers, which do not round what
    they add to the gradient, and `AdamW(foreach=True)` on a CPU, which rounds 1 - lr * weight_decay.

    Args:
        strength: >= 0, loss units per unit of w^2 / 2; or a schedule of the update count.

    Raises:
        ValueError: the strength is negative or not finite.

    Reference: Hoerl and Kennard (1970), "Ridge regression", eq. 2.1.

    >>> import torch
    >>> L2(1.0).prox(torch.tensor([-3.0, 0.5]), step=2.0)
    tensor([-1.0000,  0.1667])
    """

    strength: Strength

    @property
    def smooth(self) -> bool:
        return True

    @property
    def slope_at_zero(self) -> float:
        return 0.0

    def cost(self, w: Tensor) -> Tensor:
        return 0.5 * fixed(self.strength) * w.square()

    def gradient(self, w: Tensor) -> Tensor:
        return fixed(self.strength) * w

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """w / (1 + step * strength)."""
        return thresholds.scale_down(w, step * fixed(self.strength))

    def radial(self) -> Radial:
        return Radial(0.0, fixed(self.strength))


@value_class
class ElasticNet(Elementwise):
    """Penalize absolute values and half squares together: exact zeros, and correlated weights are kept together.

    R(w) = l1 * sum |w| + l2 / 2 * sum w^2

    Args:
        l1: >= 0, strength of the absolute values; or a schedule of the update count.
        l2: >= 0, strength of the squares, as in `L2`; or a schedule of the update count.

    Raises:
        ValueError: a strength is negative or not finite.

    Reference: Zou and Hastie (2005), "Regularization and variable selection via the elastic net", eq. 3 (there
    without the factor 1/2).

    >>> import torch
    >>> ElasticNet(1.0, 0.5).prox(torch.tensor([-3.0, 0.5]), step=2.0)
    tensor([-0.5000,  0.0000])
    """

    l1: Strength
    l2: Strength

    @property
    def slope_at_zero(self) -> float:
        return fixed(self.l1)

    def cost(self, w: Tensor) -> Tensor:
        return fixed(self.l1) * w.abs() + 0.5 * fixed(self.l2) * w.square()

    def gradient(self, w: Tensor) -> Tensor:
        return fixed(self.l1) * w.sign() + fixed(self.l2) * w

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold at step * l1, then division by 1 + step * l2."""
        shrunk = thresholds.soft_threshold(precision.upcast(w), step * fixed(self.l1))
        return thresholds.scale_down(shrunk, step * fixed(self.l2)).to(w.dtype)

    def radial(self) -> Radial:
        return Radial(fixed(self.l1), fixed(self.l2))


@value_class
class Huber(Elementwise):
    """Penalize squares of small weights and absolute values of large ones: robust decay, with no zeros.

    R(w) = strength * sum of  w^2 / (2 delta) if |w| <= delta, else |w| - delta / 2

    Args:
        strength: >= 0, loss units per unit of |w|, for large w; or a schedule of the update count.
        delta: > 0, in units of w: where the square ends.

    Raises:
        ValueError: the strength is negative or not finite, or `delta` is not a finite number > 0.

    Reference: Huber (1964), "Robust estimation of a location parameter", eq. 1.8, divided by delta.

    >>> import torch
    >>> Huber(1.0, delta=1.0).prox(torch.tensor([-4.0, 0.4]), step=1.0)
    tensor([-3.0000,  0.2000])
    """

    strength: Strength
    delta: float

    def __post_init__(self) -> None:
        Elementwise.__post_init__(self)
        check_positive("Huber", "delta", self.delta)

    @property
    def smooth(self) -> bool:
        return True

    @property
    def slope_at_zero(self) -> float:
        return 0.0

    def cost(self, w: Tensor) -> Tensor:
        """strength * (w^2 / (2 delta) up to delta, |w| - delta / 2 beyond)."""
        inside = w.abs().clamp(max=self.delta)
        return fixed(self.strength) * (inside.square() / (2 * self.delta) + (w.abs() - inside))

    def gradient(self, w: Tensor) -> Tensor:
        """strength * clamp(w / delta, -1, 1)."""
        return fixed(self.strength) * (w / self.delta).clamp(-1, 1)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """(1 - u / max(|w|, u + delta)) * w,  u = step * strength."""
        return thresholds.huber_scale(w, step, fixed(self.strength), self.delta)
