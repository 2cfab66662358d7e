"""Penalties of elements that grow ever more slowly, or not at all: zeros without the bias of L1 on large weights.

They are not convex: training finds a stationary point, which depends on where it started.
"""

from typing import ClassVar

import torch
from torch import Tensor

from shrinkage.penalties.base import Penalty
from shrinkage.penalties.elementwise import Elementwise, largest
from shrinkage.penalties.schedules import Strength, check_positive, fixed, multiple
from shrinkage.penalties.value_objects import value_class
from shrinkage.penalties.weighted import Weighted
from shrinkage.proximal import thresholds


@value_class
class MCP(Elementwise):
    """Penalize like L1 near zero, less and less for larger weights, and by a constant beyond gamma * strength.

    R(w) = sum of  strength |w| - w^2 / (2 gamma)  if |w| <= gamma * strength,  else gamma * strength^2 / 2

    Large weights are not biased. Under an adaptive optimizer, steps of gamma or more are common; the prox is then a
    hard threshold at strength * sqrt(step * gamma).

    Args:
        strength: >= 0, the slope beside 0, loss units per unit of |w|; or a schedule of the update count.
        gamma: > 0, in units of w^2 per loss unit: the smaller, the more concave.

    Raises:
        ValueError: the strength is negative or not finite, or `gamma` is not a finite number > 0.

    Reference: Zhang (2010), "Nearly unbiased variable selection under minimax concave penalty", eq. 2.1.
    With momentum m, training converges on the concave part only where step < gamma * (1 - m), that is for SGD at
    lr < gamma * (1 - m)^2; beyond, weights there go round for ever. `Regularizer.residuals` shows it.

    >>> MCP(1.0, gamma=3.0).prox(torch.tensor([-4.0, 2.0, 0.5]), step=1.0)
    tensor([-4.0000,  1.5000,  0.0000])
    """

    strength: Strength
    gamma: float = 3.0
    proportional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Elementwise.__post_init__(self)
        check_positive("MCP", "gamma", self.gamma)

    @property
    def slope_at_zero(self) -> float:
        return fixed(self.strength)

    def cost(self, w: Tensor) -> Tensor:
        """strength |w| - w^2 / (2 gamma), constant beyond gamma * strength."""
        size = w.abs().clamp(max=self.gamma * fixed(self.strength))
        return fixed(self.strength) * size - size.square() / (2 * self.gamma)

    def gradient(self, w: Tensor) -> Tensor:
        """sign(w) max(strength - |w| / gamma, 0)."""
        return w.sign() * (fixed(self.strength) - w.abs() / self.gamma).clamp_min(0)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Firm threshold, or a hard one where step >= gamma."""
        return thresholds.firm_threshold(w, step, fixed(self.strength), self.gamma)

    def scaled(self, factor: float) -> Penalty:
        """Divide gamma by the factor too: the penalty is constant beyond the same size."""
        return MCP(multiple(factor, self.strength), self.gamma / factor if factor else self.gamma)


@value_class
class SCAD(Elementwise):
    """Penalize like L1 up to the strength, less and less for larger weights, and by a constant beyond a * strength.

    R(w) = sum of  strength |w|  if |w| <= strength,
                   (2 a strength |w| - w^2 - strength^2) / (2 (a - 1))  up to a * strength,
                   (a + 1) strength^2 / 2  beyond

    Large weights are not biased. Under an adaptive optimizer, steps of a - 1 or more are common; the prox is then a
    soft threshold followed by a jump, and from a + 1 a hard threshold.

    Args:
        strength: >= 0, the slope beside 0, loss units per unit of |w|; or a schedule of the update count.
        a: > 2: the smaller, the more concave.

    Raises:
        ValueError: the strength is negative or not finite, or `a` is not a finite number > 2.

    Reference: Fan and Li (2001), "Variable selection via nonconcave penalized likelihood", eq. 2.7.
    With momentum m, training converges on the concave part only where step < (a - 1) * (1 - m), that is for SGD at
    lr < (a - 1) * (1 - m)^2; beyond, weights there go round for ever. `Regularizer.residuals` shows it.

    >>> SCAD(1.0, a=3.7).prox(torch.tensor([-4.0, 3.0, 1.5]), step=1.0)
    tensor([-4.0000,  2.5882,  0.5000])
    """

    strength: Strength
    a: float = 3.7
    proportional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Elementwise.__post_init__(self)
        check_positive("SCAD", "a", self.a, above=2.0)

    @property
    def slope_at_zero(self) -> float:
        return fixed(self.strength)

    def cost(self, w: Tensor) -> Tensor:
        """Return the three pieces of the formula above."""
        strength = fixed(self.strength)
        size = w.abs().clamp(max=self.a * strength)
        beyond = (size - strength).clamp_min(0)
        return strength * size - beyond.square() / (2 * (self.a - 1))

    def gradient(self, w: Tensor) -> Tensor:
        """sign(w) times strength up to strength, (a strength - |w|) / (a - 1) beyond, and at least 0."""
        strength = fixed(self.strength)
        slope = ((self.a * strength - w.abs()) / (self.a - 1)).clamp(min=0, max=strength)
        return w.sign() * slope

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold, a steeper line and the identity; with two pieces or one where step is large."""
        return thresholds.clipped_threshold(w, step, fixed(self.strength), self.a)

    def scaled(self, factor: float) -> Penalty:
        """Return it with a weight: its pieces end at multiples of the strength, so that no SCAD is twice another."""
        return Weighted(self, torch.tensor(factor, dtype=torch.float64))


@value_class
class LogSum(Elementwise):
    """Penalize logarithms: close to counting weights, with a slope at zero that makes small weights zero.

    R(w) = strength * sum log(1 + |w| / epsilon)

    Args:
        strength: >= 0, loss units; the slope beside 0 is strength / epsilon; or a schedule of the update count.
        epsilon: > 0, in units of w: the smaller, the closer to counting.

    Raises:
        ValueError: the strength is negative or not finite, or `epsilon` is not a finite number > 0.

    Reference: Candes, Wakin and Boyd (2008), "Enhancing sparsity by reweighted l1 minimization", eq. 11.

    >>> LogSum(1.0, epsilon=0.5).prox(torch.tensor([-4.0, 0.5]), step=1.0)
    tensor([-3.7656,  0.0000])
    """

    strength: Strength
    epsilon: float

    def __post_init__(self) -> None:
        Elementwise.__post_init__(self)
        check_positive("LogSum", "epsilon", self.epsilon)

    @property
    def slope_at_zero(self) -> float:
        return fixed(self.strength) / self.epsilon

    def cost(self, w: Tensor) -> Tensor:
        return fixed(self.strength) * torch.log1p(w.abs() / self.epsilon)

    def gradient(self, w: Tensor) -> Tensor:
        return fixed(self.strength) * w.sign() / (w.abs() + self.epsilon)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the larger root of a quadratic, or 0 where that is better."""
        return thresholds.log_threshold(w, step * fixed(self.strength), self.epsilon)

    def strength_max(self, grad: Tensor) -> Tensor:
        return self.epsilon * largest(grad.abs())
