"""Constraints: penalties that are 0 on a set and infinite outside, so that the prox is the projection onto the set.

How far a constraint moves a weight does not depend on the step; that a diagonal metric decides which point is nearest
does. An element whose step is 0 comes back as it is, so that an update that an overflow skips leaves everything alone.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from shrinkage.errors import GroupError, shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.elementwise import infinite_unless_zero
from shrinkage.penalties.groups import Groups, Whole
from shrinkage.penalties.per_group import check_groups
from shrinkage.penalties.schedules import Strength, fixed, strength_text
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision, projections
from shrinkage.proximal.precision import at_least_float32

SHORT = 1e-3  # length of a step, in units of the mean size of a weight
TOLERANCE = 64  # in units of the type's eps: a point that is outside by rounding counts as inside


class Constraint(Penalty):
    """A set that the weights have to stay in."""

    __slots__ = ()

    @abstractmethod
    def project(self, w: Tensor, step: Tensor) -> Tensor:
        """Return the nearest point of the set, in float32 at least; `step` is 0-dim or shaped like `w`."""

    @property
    def explicit(self) -> bool:
        """False: there is no derivative that leads into the set."""
        return False

    def value(self, w: Tensor) -> Tensor:
        """Return 0 in the set, to rounding, and infinity outside."""
        distance = (w - self.prox(w, 1.0)).abs()
        size = w.abs().amax().clamp_min(1e-30) if w.numel() else w.new_ones(())
        inside = (distance <= TOLERANCE * torch.finfo(w.dtype).eps * size).all()
        return torch.where(inside, 0.0, torch.inf).to(at_least_float32(w.dtype))

    def unrounded(self, w: Tensor) -> Tensor:
        """Return the point at the border of the set that rounding to the type of `w` moved, into the set or out of it.

        If there is none, return `w`.
        """
        exact = precision.upcast(w)
        if w.dtype not in precision.NARROW or not w.numel():
            return exact
        eps, found = torch.finfo(w.dtype).eps, exact
        for factor in (1 + eps, 1 - eps):  # a ball ends above, and a least norm below
            moved = factor * exact
            nearest = self.prox(moved, 1.0)
            found = torch.where(nearest == moved, found, nearest)
        near = (found - exact).abs() <= eps * exact.abs().amax()
        return torch.where(near.all(), found, exact)

    def gradient(self, w: Tensor) -> Tensor:
        """Return 0, the normal of least norm."""
        return torch.zeros_like(w)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        upcast = w.to(at_least_float32(w.dtype))
        steps = precision.as_tensor(step, upcast)
        return torch.where(steps > 0, self.project(upcast, steps), upcast).to(w.dtype)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the length of the projected gradient, per element: how far a short step along -grad leads in the set.

        |w - projection of (w - t grad)| / t  for a small t: the distance of -grad to the normal cone of a convex set,
        and 0 where `w` is stationary on a set that is not convex.
        """
        upcast, grad = w.double(), grad.double()
        if not grad.numel() or not bool((grad != 0).any()):
            return torch.zeros_like(w)
        size = torch.where(upcast.abs().sum() > 0, upcast.abs().sum() / max(w.numel(), 1), 1.0)
        t = SHORT * size / grad.abs().amax()
        return ((upcast - self.prox(upcast - t * grad, 1.0)).abs() / t).to(w.dtype)

    @property
    def strengthless(self) -> bool:
        return True

    def scaled(self, factor: float) -> Penalty:
        """Raise `TypeError`: there is no strength to multiply."""
        if self.strengthless:
            raise TypeError(
                f"{factor:g} * {self}: a constraint has no strength that could be multiplied; it is 0 on its set and "
                "infinite outside. Multiply what is penalized inside of it, or change the bound"
            )
        return Penalty.scaled(self, factor)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return infinity unless the gradient is 0: a constraint has no strength."""
        return infinite_unless_zero(grad)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Take any shape."""

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return none: the elements share the constraint."""
        return ()


@value_class
class TopK(Constraint):
    """Keep the largest weights of the tensor, or of each group, and set the others to zero.

    at most k = round(density * size) elements of a group are not zero, and k is 1 at least

    Halves are rounded to the even number, as Python rounds. A density of exactly 0 keeps none. In a diagonal metric
    those with the largest w^2 / step stay, which is the exact projection. Ties go to the lowest index.

    Args:
        density: share of elements that may differ from zero, 0 to 1; or a schedule of the update count.
        groups: in which groups to count; left out, in the whole tensor.

    Raises:
        ValueError: the density is not between 0 and 1.
        GroupError: from any method, if the tensor cannot be divided into these groups.

    Reference: Blumensath and Davies (2009), "Iterative hard thresholding for compressed sensing", eq. 8.

    >>> TopK(0.5).prox(torch.tensor([-3.0, 0.5, 1.0, 2.0]), step=1.0)
    tensor([-3.,  0.,  0.,  2.])
    """

    density: Strength
    groups: Groups = Whole()

    def __post_init__(self) -> None:
        Penalty.__post_init__(self)
        if not callable(self.density) and self.density > 1:
            raise ValueError(f"TopK: density must be between 0 and 1, got {shown(self.density)}")
        check_groups(self.groups)

    def project(self, w: Tensor, step: Tensor) -> Tensor:
        rows = self.groups.view(w)
        steps = self.groups.view(step.expand_as(w)) if step.dim() else None
        kept = projections.keep_largest(rows, steps, self.count(rows.shape[1]))
        return self.groups.restore(kept, w.shape)

    @property
    def solid(self) -> bool:
        """True: fewer weights that are not zero are in the set too."""
        return True

    def count(self, size: int) -> int:
        """Return how many elements stay in a group of this size.

        >>> TopK(0.04).count(100), TopK(0.04).count(10)
        (4, 1)
        """
        return max(round(fixed(self.density) * size), 1) if self.density else 0

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` if a tensor of `shape` does not fall into the groups."""
        self.groups.layout(shape)

    def describe(self, shape: Sequence[int] | None) -> Description:
        return Description("TopK", f"density {strength_text(self.density)}", str(self.groups))


@value_class
class NofM(Constraint):
    """Keep the n largest of every m consecutive weights along dimension 1; sparse tensor cores run 2 of 4.

    at most n of m neighbours along the input features (input channels of a convolution) are not zero

    In a diagonal metric those with the largest w^2 / step stay, which is the exact projection. Ties go to the lowest
    index.

    Args:
        n: how many stay, 0 to m.
        m: length of a block; it has to divide the size of dimension 1.

    Raises:
        ValueError: n and m are not whole numbers with 0 <= n <= m and m >= 1.
        GroupError: from any method, if dimension 1 is missing or not a multiple of m.

    Reference: Zhou et al. (2021), "Learning N:M fine-grained structured sparse neural networks from scratch", eq. 2.

    >>> NofM(2, 4).prox(torch.tensor([[-3.0, 0.5, 1.0, 2.0]]), step=1.0)
    tensor([[-3.,  0.,  0.,  2.]])
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (self.n, self.m))
        if not (whole and 0 <= self.n <= self.m and self.m >= 1):
            found = f"n={shown(self.n)}, m={shown(self.m)}"
            raise ValueError(f"NofM: expected whole numbers 0 <= n <= m, m >= 1, got {found}")

    def project(self, w: Tensor, step: Tensor) -> Tensor:
        self.check_shape(w.shape)

        def blocks(tensor: Tensor) -> Tensor:
            return tensor.movedim(1, -1).reshape(-1, self.m)

        kept = projections.keep_largest(blocks(w), blocks(step.expand_as(w)) if step.dim() else None, self.n)
        return kept.reshape(w.movedim(1, -1).shape).movedim(-1, 1)

    @property
    def solid(self) -> bool:
        """True: fewer weights that are not zero are in the set too."""
        return True

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless dimension 1 is a multiple of m."""
        if len(shape) < 2 or shape[1] % self.m:
            raise GroupError(f"{self} needs a dimension 1 that is a multiple of {self.m}, got shape {tuple(shape)}")

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Cut along all dimensions but 1."""
        return tuple(dim for dim in range(len(shape)) if dim != 1)

    def describe(self, shape: Sequence[int] | None) -> Description:
        return Description("NofM", f"{self.n} of {self.m}", "-")
