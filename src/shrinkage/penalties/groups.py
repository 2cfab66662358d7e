"""Groups: which elements of a tensor live and die together.

A group view never moves an element. It splits dimensions of the tensor where it has to (`Heads`), and says which
dimensions tell groups apart; the rest run within a group. Norms are sums over the dimensions within, and a scale per
group broadcasts back, so neither needs a copy of the tensor.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shrinkage.errors import GroupError, shown
from shrinkage.penalties.value_objects import Value, value_class
from shrinkage.proximal.precision import at_least_float32


@dataclass(frozen=True)  # made anew at every step, so that it has setters of its own
class Layout:
    """How a tensor falls into groups: its shape with some dimensions split, and those that tell groups apart.

    At least one dimension of `shape` runs within a group. `split` names the dimensions of the tensor that are split.
    """

    shape: tuple[int, ...]
    between: tuple[int, ...]
    split: tuple[int, ...] = ()

    @property
    def within(self) -> tuple[int, ...]:
        """The dimensions of `shape` that run inside a group."""
        return tuple(dim for dim in range(len(self.shape)) if dim not in self.between)

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of one value per group that broadcasts against `shape`."""
        return tuple(size if dim in self.between else 1 for dim, size in enumerate(self.shape))

    @property
    def count(self) -> int:
        """Number of groups."""
        return math.prod(self.shape[dim] for dim in self.between)

    @property
    def size(self) -> int:
        """Number of elements in each group."""
        return math.prod(self.shape[dim] for dim in self.within)


class Groups(Value, ABC):
    """A way to divide tensors into groups of equal size, such as `Rows`."""

    __slots__ = ()

    @abstractmethod
    def layout(self, shape: Sequence[int]) -> Layout:
        """Return how a tensor of `shape` falls into groups, or raise `GroupError`."""

    def count_in(self, shape: Sequence[int]) -> int:
        """Return the number of groups in a tensor of `shape`.

        >>> Columns().count_in((8, 3))
        3
        """
        return self.layout(shape).count

    def norms(self, w: Tensor) -> Tensor:
        """Return the Euclidean norm of each group, shape `(groups,)`, in float32 at least.

        >>> Rows().norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
        """
        layout = self.layout(w.shape)
        return norms_within(w.reshape(layout.shape), layout.within).reshape(-1)

    def without(self, mask: Tensor) -> Tensor:
        """Return the elements of the groups in which `mask` is true nowhere.

        >>> Rows().without(torch.tensor([[True, False], [False, False]]))
        tensor([[False, False],
                [ True,  True]])
        """
        layout = self.layout(mask.shape)
        found = mask.reshape(layout.shape).any(layout.within, keepdim=True)
        return (~found).expand(layout.shape).reshape(mask.shape)

    def view(self, w: Tensor) -> Tensor:
        """Return the elements of `w` as `(groups, size)`: a view where strides allow it, else a copy.

        >>> Columns().view(torch.tensor([[1, 2], [3, 4]]))
        tensor([[1, 3],
                [2, 4]])
        """
        layout = self.layout(w.shape)
        order = layout.between + layout.within
        return w.reshape(layout.shape).permute(order).reshape(layout.count, layout.size)

    def restore(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the tensor of `shape` whose `view` is `matrix`: the inverse of `view`."""
        layout = self.layout(shape)
        order = layout.between + layout.within
        back = tuple(order.index(dim) for dim in range(len(order)))
        permuted = matrix.reshape(tuple(layout.shape[dim] for dim in order))
        return permuted.permute(back).reshape(tuple(shape))

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the dimensions along which a tensor of `shape` may be cut without cutting a group.

        Empty if groups are counted as `Heads` are: a shard has fewer of them.
        """
        layout = self.layout(shape)
        return () if layout.split else layout.between

    def spread(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Return one value per group, shape `(groups,)`, as a tensor of `shape` that holds it in each element.

        >>> Rows().spread(torch.tensor([1, 2]), (2, 3))
        tensor([[1, 1, 1],
                [2, 2, 2]])
        """
        layout = self.layout(shape)
        return values.reshape(layout.kept).expand(layout.shape).reshape(tuple(shape))


@value_class
class Rows(Groups):
    """One group per index of dimension 0: the neurons of a linear layer, the filters of a convolution.

    In a transposed convolution dimension 0 holds the input channels, in an embedding the entries.

    >>> Rows().view(torch.zeros(8, 3, 5, 5)).shape
    torch.Size([8, 75])
    """

    def layout(self, shape: Sequence[int]) -> Layout:
        """Needs one dimension or more."""
        require_dimensions(self, shape, 1)
        return Layout((*shape, 1) if len(shape) == 1 else tuple(shape), (0,))


@value_class
class Columns(Groups):
    """One group per index of dimension 1: the input features of a linear layer, the input channels of a convolution.

    >>> Columns().view(torch.zeros(8, 3, 5, 5)).shape
    torch.Size([3, 200])
    """

    def layout(self, shape: Sequence[int]) -> Layout:
        """Needs two dimensions or more."""
        require_dimensions(self, shape, 2)
        return Layout(tuple(shape), (1,))


@value_class
class Kernels(Groups):
    """One group per pair of an output and an input channel: the kernels of a convolution.

    >>> Kernels().view(torch.zeros(8, 3, 5, 5)).shape
    torch.Size([24, 25])
    """

    def layout(self, shape: Sequence[int]) -> Layout:
        """Needs three dimensions or more."""
        require_dimensions(self, shape, 3)
        return Layout(tuple(shape), (0, 1))


@value_class
class Heads(Groups):
    """`count` groups of consecutive indices of dimension `dim`: the heads of an attention projection.

    Args:
        count: number of heads; it has to divide the size of dimension `dim`.
        dim: 0 for a projection that puts out heads (query, key, value), 1 for one that reads them.

    >>> Heads(4).view(torch.zeros(12, 10)).shape
    torch.Size([4, 30])
    """

    count: int
    dim: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"Heads: count must be a whole number of at least 1, got {shown(self.count)}")
        if not isinstance(self.dim, int) or self.dim < 0:
            raise ValueError(f"Heads: dim must be a whole number of at least 0, got {shown(self.dim)}")

    def layout(self, shape: Sequence[int]) -> Layout:
        """Needs a dimension `dim` whose size is a multiple of `count`."""
        require_dimensions(self, shape, self.dim + 1)
        size = shape[self.dim]
        if size % self.count:
            raise GroupError(
                f"{self} needs dimension {self.dim} to be a multiple of {self.count}, "
                f"got {size} in shape {tuple(shape)}"
            )
        split = (*shape[: self.dim], self.count, size // self.count, *shape[self.dim + 1 :])
        return Layout(split, (self.dim,), (self.dim,))


@value_class
class Blocks(Groups):
    """Rectangles of `rows` x `columns` consecutive indices of dimensions 0 and 1, for block-sparse kernels.

    Of a convolution, a block holds whole kernels.

    Args:
        rows: height; it has to divide the size of dimension 0.
        columns: width; it has to divide the size of dimension 1.

    >>> Blocks(4, 4).view(torch.zeros(8, 12)).shape
    torch.Size([6, 16])
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        for name, size in (("rows", self.rows), ("columns", self.columns)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"Blocks: {name} must be a whole number of at least 1, got {shown(size)}")

    def layout(self, shape: Sequence[int]) -> Layout:
        """Needs two dimensions whose sizes are multiples of `rows` and `columns`."""
        require_dimensions(self, shape, 2)
        height, width, *rest = shape
        if height % self.rows or width % self.columns:
            raise GroupError(
                f"{self} needs dimensions 0 and 1 to be multiples of {self.rows} and {self.columns}, "
                f"got shape {tuple(shape)}"
            )
        split = (height // self.rows, self.rows, width // self.columns, self.columns, *rest)
        return Layout(split, (0, 2), (0, 1))


@value_class
class Whole(Groups):
    """One group: the full tensor.

    >>> Whole().view(torch.zeros(8, 3)).shape
    torch.Size([1, 24])
    """

    def layout(self, shape: Sequence[int]) -> Layout:
        """Takes any shape."""
        return Layout(tuple(shape) or (1,), ())


def require_dimensions(groups: Groups, shape: Sequence[int], least: int) -> None:
    """Raise `GroupError` unless `shape` has `least` dimensions or more."""
    if len(shape) < least:
        raise GroupError(
            f"{groups} needs at least {least} dimension{'s' if least > 1 else ''}, got shape {tuple(shape)}"
        )


def norms_within(w: Tensor, within: tuple[int, ...]) -> Tensor:
    """Return the Euclidean norms over the dimensions `within`, which stay with size 1, in float32 at least."""
    dtype = at_least_float32(w.dtype)
    if within[-1] != w.dim() - 1:  # across rows of memory torch's norm is several times slower than its sum
        return w.to(dtype).square().sum(within, keepdim=True).sqrt()
    norms: Tensor = torch.linalg.vector_norm(w, dim=within, keepdim=True, dtype=dtype)
    return norms
