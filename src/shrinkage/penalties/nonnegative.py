"""Signs: weights that may not become negative, with or without another penalty on top."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from shrinkage.errors import shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.budget import reason
from shrinkage.penalties.constraints import Constraint
from shrinkage.penalties.elementwise import infinite_unless_zero
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal.precision import upcast
from shrinkage.proximal.reductions import Reduction


@value_class
class NonNegative(Constraint):
    """Keep weights nonnegative, with or without a penalty on top.

    R(w) = penalty(w) if w >= 0, else infinity

    Args:
        penalty: the penalty of non-negative weights, or another constraint on them: whatever does not look at signs
            and allows weights that are smaller, such as penalties of elements and groups, `MaxNorm`, `L1Ball`, `TopK`
            and `NofM`; None penalizes nothing.

    Raises:
        TypeError: `penalty` looks at signs, so that the prox is not known exactly.

    Reference: Parikh and Boyd (2014), "Proximal algorithms", section 6.2.3.

    >>> from shrinkage import L1
    >>> NonNegative().prox(torch.tensor([-1.0, 2.0]), step=1.0)
    tensor([0., 2.])
    >>> NonNegative(L1(0.5)).prox(torch.tensor([-1.0, 2.0]), step=1.0)
    tensor([0.0000, 1.5000])
    """

    penalty: Penalty | None = None

    def __post_init__(self) -> None:
        if not (self.penalty is None or (isinstance(self.penalty, Penalty) and self.penalty.solid)):
            raise TypeError(
                "NonNegative: penalty must be one of elements or groups (L1, MCP, GroupLasso ...), or a constraint "
                f"that does not look at signs (MaxNorm, L1Ball, TopK, NofM), got {shown(self.penalty)}"
                f"{reason(self.penalty)}"
            )

    @property
    def strengthless(self) -> bool:
        return self.penalty is None or self.penalty.strengthless

    def project(self, w: Tensor, step: Tensor) -> Tensor:
        """max(w, 0), then the penalty's prox: elements below 0 have no part in it."""
        positive = w.clamp_min(0)
        return positive if self.penalty is None else self.penalty.prox(positive, step)

    def unrounded(self, w: Tensor) -> Tensor:
        """Return what the penalty returns: rounding changes no sign."""
        return upcast(w) if self.penalty is None else self.penalty.unrounded(w)

    def value(self, w: Tensor) -> Tensor:
        """Return the penalty's value if nothing is negative."""
        penalized = w.new_zeros(()) if self.penalty is None else self.penalty.value(w)
        return torch.where((w < 0).any(), torch.inf, penalized)

    def gradient(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w) if self.penalty is None else self.penalty.gradient(w)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        """Return the penalty's for the gradient without the part that would push zeros below 0."""
        inward = torch.where(w == 0, grad.clamp_max(0), grad)
        inside = inward.abs() if self.penalty is None else self.penalty.residual(w, inward)
        return inside.masked_fill((w < 0).any(), torch.inf)

    @property
    def holds_zeros(self) -> bool:
        return self.penalty is not None and self.penalty.holds_zeros

    @property
    def zero_groups(self) -> Groups | None:
        return None if self.penalty is None else self.penalty.zero_groups

    def stays(self, w: Tensor, average: Tensor) -> Tensor:
        """Return the penalty's for the part of `average` that pushes upwards."""
        if self.penalty is None:
            return torch.zeros_like(w, dtype=torch.bool)
        return self.penalty.stays(w, average.clamp_max(0))

    def slope(self, shape: Sequence[int]) -> float:
        return 0.0 if self.penalty is None else self.penalty.slope(shape)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the penalty's for the part of the gradient that pushes upwards."""
        upwards = grad.clamp_max(0)
        return infinite_unless_zero(upwards) if self.penalty is None else self.penalty.strength_max(upwards)

    def check_shape(self, shape: Sequence[int]) -> None:
        if self.penalty is not None:
            self.penalty.check_shape(shape)

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.penalty is not None:
            return self.penalty.cuts(shape)
        return tuple(range(len(shape)))

    def prox_by_sums(
        self, w: Tensor, step: float | Tensor, shape: Sequence[int], cut: Collection[int] = ()
    ) -> Reduction[Tensor] | None:
        """max(w, 0), then the penalty's."""
        return None if self.penalty is None else self.penalty.prox_by_sums(w.clamp_min(0), step, shape, cut)

    def with_tensors(self, take: Callable[[Tensor], Tensor]) -> Penalty:
        inner = None if self.penalty is None else self.penalty.with_tensors(take)
        return self if inner is self.penalty else NonNegative(inner)

    def describe(self, shape: Sequence[int] | None) -> Description:
        if self.penalty is None:
            return Description("NonNegative", "-", "-")
        penalty, strength, groups = self.penalty.describe(shape)
        return Description(f"NonNegative {penalty}", strength, groups)

    def bound(self, name: str, parameter: Tensor) -> Penalty:
        inner = None if self.penalty is None else self.penalty.bound(name, parameter)
        return self if inner is self.penalty else NonNegative(inner)

    def refusal(self, other: Penalty) -> str | None:
        return None if other.solid else f"{other} looks at signs, or forbids weights that are smaller"
