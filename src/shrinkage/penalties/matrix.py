"""Penalties of a weight as a matrix: its singular values, and its rows against each other."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shrinkage.errors import GroupError, shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.elementwise import infinite_unless_zero, largest
from shrinkage.penalties.schedules import Strength, fixed
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision
from shrinkage.proximal.fista import is_metric, prox_in_metric
from shrinkage.proximal.precision import upcast, widest_float


class OfMatrix(Penalty):
    """A function of the whole matrix."""

    __slots__ = ()

    strength: Strength

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless there are two dimensions or more."""
        matrix_shape(self, shape)

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return none: a matrix is penalized as a whole."""
        return ()


@value_class
class Nuclear(OfMatrix):
    """Penalize the sum of singular values, which makes the matrix low-rank.

    R(W) = strength * sum sigma_i(W),  W of shape (out, rest): a convolution is flattened

    Args:
        strength: >= 0, loss units per unit of singular value; or a schedule of the update count.

    Raises:
        ValueError: the strength is negative or not finite.
        GroupError: from any method, if the tensor has fewer than two dimensions.

    Reference: Cai, Candes and Shen (2010), "A singular value thresholding algorithm for matrix completion", th. 2.1.
    Every prox takes a singular value decomposition. In a diagonal metric there is no closed form; accelerated gradient
    steps are taken until they no longer move, at one decomposition each: some hundreds to 2000 of them, exact while the
    steps of a matrix differ by less than a factor of 10000, approximate beyond. With Adam that is slow; prefer SGD, or
    `how="decoupled"`, whose strength is in units of weight decay.

    >>> Nuclear(1.0).prox(torch.diag(torch.tensor([3.0, 0.5])), step=1.0)
    tensor([[2., 0.],
            [0., 0.]])
    """

    strength: Strength

    def slope(self, shape: Sequence[int]) -> float:
        return fixed(self.strength)

    def value(self, w: Tensor) -> Tensor:
        """strength * sum of singular values."""
        return fixed(self.strength) * singular_values(as_matrix(self, upcast(w))).sum()

    def gradient(self, w: Tensor) -> Tensor:
        """strength * U V^T over the singular values that are not zero."""
        left, _, right = decomposed(as_matrix(self, upcast(w)))
        return (fixed(self.strength) * left @ right).reshape(w.shape).to(w.dtype)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Soft threshold of the singular values at step * strength."""
        matrix, step = as_matrix(self, upcast(w)), precision.as_tensor(step, upcast(w))
        if not matrix.numel() or not fixed(self.strength) or not matrix.isfinite().all():
            return w.clone()  # decompositions of matrices that are not finite raise
        if is_metric(step):
            y = prox_in_metric(matrix, step.expand_as(w).reshape(matrix.shape), self._threshold)
        else:
            y = torch.where(step > 0, self._threshold(matrix, step), matrix)
        return y.reshape(w.shape).to(w.dtype)

    def _threshold(self, matrix: Tensor, step: Tensor) -> Tensor:
        """Return the prox in a plain metric."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        y: Tensor = (left * (values - step * fixed(self.strength)).clamp_min(0)) @ right
        return y

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the distance to the subdifferential, one value of shape `(1,)`.

        That is the set of strength * (U V^T + M) with M orthogonal to U and V, and no singular value of M beyond 1.
        """
        left, _, right = decomposed(as_matrix(self, upcast(w)))
        steepest = -as_matrix(self, upcast(grad))
        outside = steepest - left @ (left.T @ steepest)
        outside = outside - (outside @ right.T) @ right
        along = steepest - outside - fixed(self.strength) * left @ right
        beyond = (singular_values(outside) - fixed(self.strength)).clamp_min(0)
        return (along.square().sum() + beyond.square().sum()).sqrt().reshape(1)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the largest singular value of the gradient."""
        return largest(singular_values(as_matrix(self, upcast(grad))))


@value_class
class Orthogonal(OfMatrix):
    """Penalize rows that are not orthogonal to each other, or singular values that are not 1.

    "cosines":   R(W) = strength * mean over pairs of rows of |cos(w_i, w_j)|
    "spectral":  R(W) = strength * max_i |sigma_i(W)^2 - 1|

    with W of shape (out, rest): a convolution is flattened.

    Args:
        strength: >= 0, loss units; or a schedule of the update count.
        form: "cosines" as Keras has it, or "spectral", the spectral restricted isometry property (SRIP); there with
            the smaller of W W^T and W^T W, and with singular values instead of a power iteration.

    Raises:
        ValueError: the strength is negative or not finite, or `form` is another word.
        GroupError: from any method, if the tensor has fewer than two dimensions.

    Reference: Keras, `OrthogonalRegularizer`; Bansal, Chen and Wang (2018), "Can we gain more from orthogonality
    regularizations in training deep networks?", eq. 8.
    There is no closed prox: `prox` takes one step along the derivative instead, which leaves stationary points where
    they are, and agrees with the prox as the step goes to 0. It is finite as far as step * derivative is: the cosines
    of a row have a slope of one over its norm, the spectral form one that grows with W.

    >>> Orthogonal(1.0).value(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    tensor(0.7071)
    """

    strength: Strength
    form: Literal["cosines", "spectral"] = "cosines"

    def __post_init__(self) -> None:
        Penalty.__post_init__(self)
        if self.form not in ("cosines", "spectral"):
            raise ValueError(f'Orthogonal: form must be "cosines" or "spectral", got {shown(self.form)}')

    @property
    def smooth(self) -> bool:
        """True: it has kinks, but gives no zeros and acts through its derivative."""
        return True

    def value(self, w: Tensor) -> Tensor:
        """Return strength times the mean cosine, or the largest deviation."""
        matrix = as_matrix(self, upcast(w))
        if not matrix.numel():
            return matrix.new_zeros(())
        if self.form == "spectral":
            return fixed(self.strength) * (singular_values(matrix).square() - 1).abs().amax()
        _, cosines = directions(matrix)
        return 0.5 * self._per_pair(matrix) * cosines.abs().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """Return the derivative; a row of zeros has none, and gets 0."""
        matrix = as_matrix(self, upcast(w))
        if not matrix.numel() or not matrix.isfinite().all():
            return torch.zeros_like(w)  # decompositions of matrices that are not finite raise
        if self.form == "spectral":
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            deviation = values.square() - 1
            first = deviation.abs().argmax()
            factor = 2 * fixed(self.strength) * deviation[first].sign() * values[first]
            steepest: Tensor = factor * torch.outer(left[:, first], right[first])
            return steepest.reshape(w.shape).to(w.dtype)
        units, cosines = directions(matrix)
        signs = cosines.sign()
        norms = row_norms(matrix)
        along = (signs * cosines).sum(1, keepdim=True)
        slopes = self._per_pair(matrix) * (signs @ units - along * units)
        return torch.where(norms > 0, slopes / norms, 0.0).reshape(w.shape).to(w.dtype)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return w - step * gradient: one explicit step in place of the prox."""
        return (upcast(w) - precision.as_tensor(step, upcast(w)) * self.gradient(upcast(w))).to(w.dtype)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """|grad + gradient|, per element."""
        return (grad + self.gradient(w)).abs()

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return infinity unless the gradient is 0: no strength makes 0 stationary."""
        return infinite_unless_zero(grad)

    def _per_pair(self, matrix: Tensor) -> float:
        """Return the strength divided by the number of pairs of rows."""
        return fixed(self.strength) / max(len(matrix) * (len(matrix) - 1) / 2, 1)


def matrix_shape(penalty: Penalty, shape: Sequence[int]) -> tuple[int, int]:
    """Return `(out, rest)` of a tensor of `shape`, or raise `GroupError`."""
    if len(shape) < 2:
        raise GroupError(f"{penalty} needs a matrix, two dimensions or more, got shape {tuple(shape)}")
    return shape[0], math.prod(shape[1:])


def as_matrix(penalty: Penalty, w: Tensor) -> Tensor:
    """Return `w` with all dimensions but the first flattened."""
    return w.reshape(matrix_shape(penalty, w.shape))


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of `matrix`, none if it is empty."""
    values: Tensor = torch.linalg.svdvals(matrix)
    return values


def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular vectors and values of `matrix` that are not zero to rounding."""
    if not matrix.numel():
        rows, columns = matrix.shape
        return matrix.new_zeros(rows, 0), matrix.new_zeros(0), matrix.new_zeros(0, columns)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    return left[:, :rank], values[:rank], right[:rank]


def row_norms(matrix: Tensor) -> Tensor:
    """Return the norms of the rows, shape `(rows, 1)`, of which no square overflows."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, keepdim=True, dtype=widest_float(matrix.device))
    return norms.to(matrix.dtype)


def directions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of `matrix` at length 1, zero rows as they are, and the cosines between different rows."""
    norms = row_norms(matrix)
    units = torch.where(norms > 0, matrix / norms, 0.0)
    return units, (units @ units.T).fill_diagonal_(0)
