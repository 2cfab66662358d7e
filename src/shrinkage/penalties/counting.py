"""Penalties that count weights, or nearly so: every zero is stationary, whatever the gradient."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shrinkage.errors import shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.penalties.schedules import Strength, fixed, strength_text
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision, thresholds


class Counting(Elementwise):
    """A cost that jumps at 0, or rises there without bound: no gradient moves a zero."""

    __slots__ = ()

    @property
    def explicit(self) -> bool:
        """False: the derivative is 0 wherever there is one (L0), or unbounded (Lp)."""
        return False

    @property
    def holds_zeros(self) -> bool:
        """False: 0 is always stationary."""
        return False

    @property
    def slope_at_zero(self) -> float:
        return math.inf

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return 0: 0 is stationary at every strength."""
        return grad.new_zeros(())


@value_class
class L0(Counting):
    """Penalize the number of nonzero weights.

    R(w) = strength * #{w != 0}

    Every zero is stationary, whatever the gradient; so whether a weight leaves zero depends on the optimizer's step:
    it has to reach sqrt(2 * step * strength) in one.

    Args:
        strength: >= 0, loss units per weight; or a schedule of the update count.

    Raises:
        ValueError: the strength is negative or not finite.

    Reference: Blumensath and Davies (2009), "Iterative hard thresholding for compressed sensing", eq. 10.

    >>> L0(1.0).prox(torch.tensor([-3.0, 1.0]), step=2.0)
    tensor([-3.,  0.])
    """

    strength: Strength

    def cost(self, w: Tensor) -> Tensor:
        return fixed(self.strength) * (w != 0).to(w.dtype)

    def gradient(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Hard threshold at sqrt(2 * step * strength)."""
        return thresholds.hard_threshold(w, (2 * step * fixed(self.strength)) ** 0.5)


@value_class
class Counted(Counting):
    """Penalize the number of nonzero weights on top of another penalty of elements.

    R(w) = penalty(w) + l0 * #{w != 0}

    `L0(l0) + L2(strength)` is `Counted(L2(strength), l0)`: a price per weight, and decay of those that stay. The prox
    is the penalty's own where that is worth more than the price, and 0 elsewhere.

    Args:
        penalty: what an element costs besides: any penalty of single elements.
        l0: >= 0, loss units per weight; or a schedule of the update count.

    Raises:
        TypeError: `penalty` is not elementwise.
        ValueError: the strength is negative or not finite.

    Reference: Hazimeh and Mazumder (2020), "Fast best subset selection: coordinate descent and local combinatorial
    optimization algorithms", eq. 2.

    >>> import torch
    >>> from shrinkage import L2
    >>> Counted(L2(1.0), 1.0).prox(torch.tensor([-3.0, 1.0]), step=1.0)
    tensor([-1.5000,  0.0000])
    """

    penalty: Elementwise
    l0: Strength

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Elementwise):
            raise TypeError(
                f"Counted: penalty must be one of single elements such as L2(1e-3), got {shown(self.penalty)}"
            )
        Elementwise.__post_init__(self)

    def cost(self, w: Tensor) -> Tensor:
        """What the penalty costs, and l0 where w is not 0."""
        return self.penalty.cost(w) + fixed(self.l0) * (w != 0).to(w.dtype)

    def gradient(self, w: Tensor) -> Tensor:
        """Return the penalty's, and 0 at 0."""
        return self.penalty.gradient(w).masked_fill(w == 0, 0.0)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the penalty's where it lowers the objective by more than step * l0 below that of 0."""
        upcast = precision.upcast(w)
        y = self.penalty.prox(upcast, step)
        # In units of the loss, so that no square overflows beside a large step.
        steps = precision.as_tensor(step, upcast)
        gain = (0.5 * y / steps) * (2 * upcast - y) - self.penalty.cost(y)
        return torch.where((gain < fixed(self.l0)) & (steps > 0) & upcast.isfinite(), 0.0, y).to(w.dtype)

    def with_tensors(self, take: Callable[[Tensor], Tensor]) -> Penalty:
        inner = self.penalty.with_tensors(take)
        return self if inner is self.penalty or not isinstance(inner, Elementwise) else Counted(inner, self.l0)

    def bound(self, name: str, parameter: Tensor) -> Penalty:
        inner = self.penalty.bound(name, parameter)
        return self if inner is self.penalty or not isinstance(inner, Elementwise) else Counted(inner, self.l0)

    def check_shape(self, shape: Sequence[int]) -> None:
        self.penalty.check_shape(shape)

    def describe(self, shape: Sequence[int] | None) -> Description:
        penalty, strength, groups = self.penalty.describe(shape)
        return Description(f"{penalty} + L0", f"{strength}, {strength_text(self.l0)}", groups)


@value_class
class Lp(Counting):
    """Penalize a power of each absolute value, between counting weights and summing their sizes.

    R(w) = strength * sum |w|^p

    Every zero is stationary, whatever the gradient, as for `L0`.

    Args:
        strength: >= 0, loss units per unit of |w|^p; or a schedule of the update count.
        p: 1/2 or 2/3, the exponents whose prox has a closed form.

    Raises:
        ValueError: the strength is negative or not finite, or `p` is another number.

    Reference: Xu et al. (2012), "L1/2 regularization", eq. 2; Cao, Sun and Xu (2013), "Fast image deconvolution using
    closed-form thresholding formulas of Lq (q = 1/2, 2/3) regularization".

    >>> Lp(1.0, p=1 / 2).prox(torch.tensor([-4.0, 1.0]), step=1.0)
    tensor([-3.7415,  0.0000])
    """

    strength: Strength
    p: float

    def __post_init__(self) -> None:
        Elementwise.__post_init__(self)
        if not (isinstance(self.p, float) and (self.p == 0.5 or math.isclose(self.p, 2 / 3, abs_tol=1e-3))):
            raise ValueError(
                f"Lp: p must be 1/2 or 2/3, whose prox has a closed form, got {shown(self.p)}; see also L0, L1"
            )

    def cost(self, w: Tensor) -> Tensor:
        return fixed(self.strength) * w.abs() ** self.exponent

    def gradient(self, w: Tensor) -> Tensor:
        """strength * p * sign(w) * |w|^(p - 1), and 0 at 0."""
        slope = fixed(self.strength) * self.exponent * w.abs() ** (self.exponent - 1)
        return torch.where(w == 0, 0.0, slope.copysign(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the root of a cubic (p = 1/2) or a quartic (p = 2/3), or 0 below a threshold."""
        operator = thresholds.half_threshold if self.p == 0.5 else thresholds.two_thirds_threshold
        return operator(w, step * fixed(self.strength))

    @property
    def exponent(self) -> float:
        """Exactly 1/2 or 2/3."""
        return 0.5 if self.p == 0.5 else 2 / 3
