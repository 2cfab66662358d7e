"""Penalties of neighbours: weights that are equal over stretches."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from shrinkage.errors import GroupError, shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.schedules import Strength, fixed, strength_text
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision
from shrinkage.proximal.total_variation import total_variation


@value_class
class FusedLasso(Penalty):
    """Penalize differences between neighbours along one dimension, which makes weights piecewise constant.

    R(w) = strength * sum |w_{i+1} - w_i|

    Exact in every diagonal metric, by dynamic programming along the dimension. `L1` cannot be penalized on top.

    Args:
        strength: >= 0, loss units per unit of difference; or a schedule of the update count.
        dim: along which neighbours stand: the last one, input features or taps of a filter, if left out.

    Raises:
        ValueError: the strength is negative or not finite.
        GroupError: from any method, if the tensor has no dimension `dim`.

    Reference: Tibshirani et al. (2005), "Sparsity and smoothness via the fused lasso", eq. 3, the second term.

    >>> FusedLasso(1.0).prox(torch.tensor([0.0, 0.0, 3.0]), step=1.0)
    tensor([0.5000, 0.5000, 2.0000])
    """

    strength: Strength
    dim: int = -1

    def __post_init__(self) -> None:
        Penalty.__post_init__(self)
        if not isinstance(self.dim, int) or isinstance(self.dim, bool):
            raise TypeError(f"FusedLasso: dim must be a whole number, got {shown(self.dim)}")

    def slope(self, shape: Sequence[int]) -> float:
        return fixed(self.strength)

    def value(self, w: Tensor) -> Tensor:
        """strength * sum of |differences|."""
        return fixed(self.strength) * w.diff(dim=self.dim).abs().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """strength times the sign of the difference to the left less that to the right."""
        signs = w.movedim(self.dim, -1).diff(dim=-1).sign()
        return (fixed(self.strength) * (pad(signs, (1, 0)) - pad(signs, (0, 1)))).movedim(-1, self.dim)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Solve by dynamic programming, in float64."""
        self.check_shape(w.shape)
        if not w.numel() or not fixed(self.strength):
            return w.clone()
        rows = self._rows(w)
        steps = precision.as_tensor(step, rows)
        steps = self._rows(steps.expand_as(w))
        finite = rows.isfinite().all(1, keepdim=True)
        strengths = torch.full_like(rows[:, 1:], fixed(self.strength))
        y = total_variation(torch.where(finite, rows, 0.0), 1 / steps.clamp_min(1e-30), strengths)
        return self._restored(torch.where(finite & (steps > 0), y, rows), w)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance per element to the subdifferential.

        Neighbours that differ fix the subgradient between them; a stretch of equal ones leaves it free up to the
        strength, and what is left of the gradient after that is the prox of the stretch.
        """
        self.check_shape(w.shape)
        if not w.numel():
            return torch.zeros_like(w)
        left = self._rows(-(grad + self.gradient(w)))
        free = fixed(self.strength) * (self._rows(w).diff(dim=1) == 0).to(left.dtype)
        return self._restored(total_variation(left, torch.ones_like(left), free), w).abs()

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the largest |partial sum| of the gradient; infinity if a row of it does not sum to 0.

        A constant costs nothing, so that 0 is stationary only where no constant is better.
        """
        self.check_shape(grad.shape)
        if not grad.numel():
            return grad.new_zeros(())
        sums = self._rows(grad).cumsum(1)
        open_ended = (sums[:, -1].abs() > 1e-6 * self._rows(grad).abs().sum(1)).any()
        return torch.where(open_ended, torch.inf, sums.abs().amax()).to(grad.dtype)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless there is a dimension `dim`."""
        if not -len(shape) <= self.dim < len(shape):
            raise GroupError(f"{self} needs a dimension {self.dim}, got shape {tuple(shape)}")

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Cut along the other dimensions."""
        return tuple(dim for dim in range(len(shape)) if dim != self.dim % len(shape))

    def describe(self, shape: Sequence[int] | None) -> Description:
        return Description("FusedLasso", strength_text(self.strength), f"along dimension {self.dim}")

    def _rows(self, w: Tensor) -> Tensor:
        """Return `w` as rows along the dimension, in float64."""
        return w.movedim(self.dim, -1).reshape(-1, w.shape[self.dim]).double()

    def _restored(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return the tensor like `like` whose rows along the dimension are `rows`."""
        along = like.movedim(self.dim, -1)
        return rows.to(like.dtype).reshape(along.shape).movedim(-1, self.dim)
