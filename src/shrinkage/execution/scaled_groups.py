"""Groups that span parameters, made zero or smaller in place, slice by slice."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from shrinkage.penalties.membership import Membership


class ScaledSlices(NamedTuple):
    """The slices of one tensor that are made zero, and those that are multiplied; None where there are none.

    Args:
        dim: the dimension that is sliced.
        zero: the indices along it of the former.
        smaller: those of the latter.
    """

    dim: int
    zero: Tensor | None
    smaller: Tensor | None

    @classmethod
    def of(cls, part: Membership, zero: Tensor, smaller: Tensor) -> "ScaledSlices":
        """Return the slices of the groups for which `zero` or `smaller` holds, each of shape `(count + 1,)`."""
        found = (which.to(part.groups.device)[part.groups].nonzero().flatten() for which in (zero, smaller))
        return cls(part.dim, *(indices if len(indices) else None for indices in found))


def scale_slices_(slices: Sequence[ScaledSlices], ws: Sequence[Tensor], factor: float) -> None:
    """Make slices exactly +0, whatever they were, and multiply others by `factor`."""
    for (dim, zero, smaller), w in zip(slices, ws, strict=True):
        if zero is not None:
            w.index_fill_(dim, zero, 0.0)
        if smaller is not None:
            w.index_copy_(dim, smaller, w.index_select(dim, smaller).mul_(factor))
