"""Tensors that stand for one number per element of a parameter, and have its shape or one that spreads over it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shrinkage.errors import GroupError


def check_spread(name: str, own: Sequence[int], shape: Sequence[int]) -> None:
    """Raise `GroupError` unless a tensor of shape `own` spreads over `shape` in one way only.

    It does where it is one number, has as many dimensions, each of the same size or 1, or has fewer, that are the last
    ones of `shape` and could be no others.

    >>> check_spread("weights", (8,), (4, 8))
    >>> check_spread("weights", (8,), (8, 8))
    Traceback (most recent call last):
    shrinkage.errors.GroupError: weights of shape (8,) can stand for more than one dimension of shape (8, 8): ...
    """
    own, shape = tuple(own), tuple(shape)
    if all(size == 1 for size in own) and len(own) <= len(shape):
        return
    missing = len(shape) - len(own)
    places = [first for first in range(missing + 1) if fits(own, shape[first : first + len(own)])]
    if places == [missing]:
        return
    if len(places) > 1:
        raise GroupError(
            f"{name} of shape {own} can stand for more than one dimension of shape {shape}: give them as many "
            f"dimensions, such as {spelled(own, shape, places[0])} or {spelled(own, shape, places[-1])}"
        )
    hint = f"; reshape them to {spelled(own, shape, places[0])}" if places else ", nor a shape that spreads over it"
    raise GroupError(f"{name} of shape {own} do not have the shape of what they stand for, {shape}{hint}")


def spread(tensor: Tensor, name: str, shape: Sequence[int]) -> Tensor:
    """Return `tensor` with one number per element of a parameter of `shape`, as a view."""
    check_spread(name, tensor.shape, shape)
    return tensor.expand(tuple(shape))


def spread_together(*given: float | Tensor) -> bool:
    """Return whether the tensors among numbers and tensors spread over each other.

    >>> spread_together(torch.ones(4, 1), 2.0, torch.ones(8)), spread_together(torch.ones(3), torch.ones(4))
    (True, False)
    """
    try:
        torch.broadcast_shapes(*(x.shape for x in given if isinstance(x, Tensor)))  # type: ignore[no-untyped-call]  # torch gives it no types
    except RuntimeError:
        return False
    return True


def fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether each size is that of `shape`, or 1."""
    return all(one in (1, other) for one, other in zip(own, shape, strict=True))


def spelled(own: tuple[int, ...], shape: tuple[int, ...], first: int) -> tuple[int, ...]:
    """Return `own` with as many dimensions as `shape`, from dimension `first` on."""
    return (1,) * first + own + (1,) * (len(shape) - first - len(own))
