"""Constraints on norms: balls, spheres and the simplex, of groups or of the whole tensor."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from shrinkage.penalties.base import Description
from shrinkage.penalties.constraints import Constraint
from shrinkage.penalties.groups import Groups, Rows, Whole
from shrinkage.penalties.matrix import as_matrix, matrix_shape
from shrinkage.penalties.per_group import check_groups
from shrinkage.penalties.schedules import check_positive
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import projections
from shrinkage.proximal.fista import is_metric, prox_in_metric


class ConstraintOnGroups(Constraint):
    """A set for each group; exact in a diagonal metric."""

    __slots__ = ()

    groups: Groups

    @abstractmethod
    def project_rows(self, rows: Tensor, steps: Tensor | None) -> Tensor:
        """Return the nearest point of the set for each row of a matrix `(groups, size)`; None for the plain metric."""

    def project(self, w: Tensor, step: Tensor) -> Tensor:
        rows = self.groups.view(w)
        if not rows.numel():
            return w
        steps = self.groups.view(step.expand_as(w)) if step.dim() else None
        return self.groups.restore(self.project_rows(rows, steps), w.shape)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` does not fall into the groups."""
        self.groups.layout(shape)

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.groups.cuts(shape)

    def describe(self, shape: Sequence[int] | None) -> Description:
        count = "" if shape is None else f"{self.groups.layout(shape).count} x "
        return super().describe(shape)._replace(groups=f"{count}{self.groups}")


@value_class
class MaxNorm(ConstraintOnGroups):
    """Keep the Euclidean norm of each group below a limit.

    ||w_g|| <= limit

    Args:
        limit: > 0, in units of w.
        groups: whose norms: `Rows()`, the neurons, if left out.

    Raises:
        ValueError: `limit` is not a finite number > 0.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Srivastava et al. (2014), "Dropout", section 5.1.

    >>> import torch
    >>> MaxNorm(1.0).prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), step=1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """

    limit: float
    groups: Groups = Rows()

    def __post_init__(self) -> None:
        check_positive("MaxNorm", "limit", self.limit)
        check_groups(self.groups)

    @property
    def solid(self) -> bool:
        """True: smaller weights are in the ball too."""
        return True

    def project_rows(self, rows: Tensor, steps: Tensor | None) -> Tensor:
        return projections.l2_ball(rows, steps, self.limit)


@value_class
class MinMaxNorm(ConstraintOnGroups):
    """Keep the Euclidean norm of each group between two limits.

    low <= ||w_g|| <= high

    Each update projects as far as the set; Keras' `rate` below 1, which goes a share of the way, has no counterpart. A
    group of zeros has no nearest point if low > 0, and stays as it is.

    Args:
        low: >= 0, smallest norm allowed, in units of w.
        high: > 0, largest norm allowed, at least `low`.
        groups: whose norms: `Rows()`, the neurons, if left out.

    Raises:
        ValueError: a limit is not such a number, or `low` is greater than `high`.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Keras, `MinMaxNorm`.

    >>> import torch
    >>> MinMaxNorm(1.0, 2.0).prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), step=1.0)
    tensor([[1.2000, 1.6000],
            [0.6000, 0.8000]])
    """

    low: float
    high: float
    groups: Groups = Rows()

    def __post_init__(self) -> None:
        check_positive("MinMaxNorm", "high", self.high)
        if self.low != 0:
            check_positive("MinMaxNorm", "low, if not 0,", self.low)
        if self.low > self.high:
            raise ValueError(f"MinMaxNorm: low must not be greater than high, got low={self.low!r}, high={self.high!r}")
        check_groups(self.groups)

    def project_rows(self, rows: Tensor, steps: Tensor | None) -> Tensor:
        return projections.l2_shell(rows, steps, self.low, self.high)


@value_class
class UnitNorm(ConstraintOnGroups):
    """Keep the Euclidean norm of each group at 1, or at another length.

    ||w_g|| = length

    A group of zeros has no nearest point, and stays as it is.

    Args:
        groups: whose norms: `Rows()`, the neurons, if left out.
        length: > 0, in units of w.

    Raises:
        ValueError: `length` is not a finite number > 0.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Salimans and Kingma (2016), "Weight normalization", eq. 2, with a fixed scale.
    In a diagonal metric a group that is too short and whose element with the largest step is exactly 0 is scaled
    instead of projected.

    >>> import torch
    >>> UnitNorm().prox(torch.tensor([[3.0, 4.0]]), step=1.0)
    tensor([[0.6000, 0.8000]])
    """

    groups: Groups = Rows()
    length: float = 1.0

    def __post_init__(self) -> None:
        check_groups(self.groups)
        check_positive("UnitNorm", "length", self.length)

    def project_rows(self, rows: Tensor, steps: Tensor | None) -> Tensor:
        return projections.l2_sphere(rows, steps, self.length)


@value_class
class L1Ball(ConstraintOnGroups):
    """Keep the sum of absolute values below a radius, which makes weights exactly zero.

    sum |w| <= radius

    Args:
        radius: > 0, in units of w.
        groups: whose sums: that of the whole tensor, if left out.

    Raises:
        ValueError: `radius` is not a finite number > 0.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions", eq. 2.

    >>> import torch
    >>> L1Ball(2.0).prox(torch.tensor([3.0, -1.0]), step=1.0)
    tensor([2., 0.])
    """

    radius: float
    groups: Groups = Whole()

    def __post_init__(self) -> None:
        check_positive("L1Ball", "radius", self.radius)
        check_groups(self.groups)

    @property
    def solid(self) -> bool:
        """True: smaller weights are in the ball too."""
        return True

    def project_rows(self, rows: Tensor, steps: Tensor | None) -> Tensor:
        return projections.l1_ball(rows, steps, self.radius)


@value_class
class Simplex(ConstraintOnGroups):
    """Keep weights nonnegative, and their sum at a total: a mixture.

    w >= 0,  sum w = total

    Args:
        total: > 0, in units of w.
        groups: whose sums: that of the whole tensor, if left out; `Rows()` makes each row a mixture.

    Raises:
        ValueError: `total` is not a finite number > 0.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Duchi et al. (2008), "Efficient projections onto the l1-ball for learning in high dimensions", eq. 3.

    >>> import torch
    >>> Simplex().prox(torch.tensor([3.0, 2.5, -1.0]), step=1.0)
    tensor([0.7500, 0.2500, 0.0000])
    """

    total: float = 1.0
    groups: Groups = Whole()

    def __post_init__(self) -> None:
        check_positive("Simplex", "total", self.total)
        check_groups(self.groups)

    def project_rows(self, rows: Tensor, steps: Tensor | None) -> Tensor:
        return projections.simplex(rows, steps, self.total)


@value_class
class SpectralBall(Constraint):
    """Keep the largest singular value below a limit: a bound on how much a layer can amplify.

    sigma_1(W) <= limit,  W of shape (out, rest): a convolution is flattened, so that this bounds the matrix, not the
    convolution as an operator

    Args:
        limit: > 0, in units of w.

    Raises:
        ValueError: `limit` is not a finite number > 0.
        GroupError: from any method, if the tensor has fewer than two dimensions.

    Reference: Sedghi, Gupta and Long (2019), "The singular values of convolutional layers", section 3.
    In a diagonal metric there is no closed form; accelerated gradient steps are taken until they no longer move, some
    hundreds to 2000 of them, at one singular value decomposition each.

    >>> import torch
    >>> SpectralBall(1.0).prox(torch.diag(torch.tensor([3.0, 0.5])), step=1.0)
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """

    limit: float

    def __post_init__(self) -> None:
        check_positive("SpectralBall", "limit", self.limit)

    def project(self, w: Tensor, step: Tensor) -> Tensor:
        matrix = as_matrix(self, w)
        if not matrix.numel() or not matrix.isfinite().all():
            return w  # decompositions of matrices that are not finite raise
        if not is_metric(step):
            return projections.spectral_ball(matrix, self.limit).reshape(w.shape)
        steps = step.expand_as(w).reshape(matrix.shape)
        return prox_in_metric(matrix, steps, lambda y, _: projections.spectral_ball(y, self.limit)).reshape(w.shape)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless there are two dimensions or more."""
        matrix_shape(self, shape)
