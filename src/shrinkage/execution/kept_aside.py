"""Weights that are cut and kept aside: moved out of a tensor into another one of its shape, and back.

Each weight is in one of the two, and the other is zero there. float32 on a CPU is moved by `hardshrink`, its derivative
and sums, of which each is exact for finite numbers and several times as fast as a selection by truth values.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from shrinkage.proximal.ranking import CHUNK, below, chunks, patterns_of
from shrinkage.proximal.ranking_window import LARGEST, number_of

where_nonzero = torch.ops.aten.hardshrink_backward  # at lambd 0: its first operand where the second one is not 0


def restore_(w: Tensor, aside: Tensor) -> None:
    """Bring back what was cut, where `w` is still zero: whatever was written there meanwhile stays."""
    scratch = None
    for part, other in together(w, aside):
        if is_fast(part) and part.dim() == 1:
            scratch = torch.empty_like(part) if scratch is None else scratch[: part.numel()]
            where_nonzero.grad_input(other, part, 0.0, grad_input=scratch)
            part.add_(torch.sub(other, scratch, out=scratch))
        else:
            torch.where(part == 0, other, part, out=part)


def cut_(w: Tensor, aside: Tensor, pattern: int | Tensor, ties: int | Tensor | None) -> int | Tensor:
    """Move what is below a threshold from `w` to `aside`, and return how many weights came back that were there.

    Args:
        w: what stays of it, and +0.0 elsewhere, is left there.
        aside: holds what was cut the last time; it is written over.
        pattern: the threshold; see `ranking.below`. A number if `w` is on a CPU.
        ties: so many weights that equal it stay; None: all of them.
    """
    if isinstance(pattern, int) and pattern < LARGEST and ties is None and is_fast(w) and in_order(w, aside):
        return shrink_(w, aside, number_of(max(pattern - 1, 0)))
    back: int | Tensor = 0
    seen: int | Tensor = 0
    for part, other in together(w, aside):
        numbers = patterns_of(part)
        gone = below(numbers, pattern, ties, seen)
        if ties is not None:
            seen = seen + (numbers == pattern).sum()
        back += move_(part, other, gone.view(part.shape))
    return back


def shrink_(w: Tensor, aside: Tensor, low: float) -> int:
    """Move what is not larger than `low` from `w` to `aside`; return how many were there and stay now."""
    back = 0
    size = min(w.numel(), CHUNK)
    scratch, both, marks = w.new_empty(size), w.new_empty(size), w.new_empty(size, dtype=torch.bool)
    for part, other in together(w, aside):
        n = part.numel()
        kept = torch.hardshrink(part, low, out=scratch[:n])
        where_nonzero.grad_input(other, kept, 0.0, grad_input=both[:n])
        back += int(marks[:n].copy_(both[:n]).view(torch.uint8).sum(dtype=torch.int32))
        torch.sub(part, kept, out=other).nan_to_num_(0.0)  # an infinite weight stays, less itself
        part.copy_(kept)
    return back


def move_(w: Tensor, aside: Tensor, gone: Tensor) -> Tensor:
    """Move the weights where `gone` is true to `aside`; return how many were there and stay now."""
    back = ((aside != 0) & ~gone).sum()
    torch.where(gone, w, w.new_zeros(()), out=aside)
    w.masked_fill_(gone, 0)
    return back


def is_fast(w: Tensor) -> bool:
    """Return whether torch moves the chunks of `w` by vector operations."""
    return w.is_cpu and w.dtype is torch.float32


def together(w: Tensor, aside: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the chunks of two tensors in the same places; as a whole if they are not in order in memory."""
    if in_order(w, aside):
        yield from zip(chunks(w.view(-1)), chunks(aside.view(-1)), strict=True)
    else:
        yield w, aside


def in_order(w: Tensor, aside: Tensor) -> bool:
    """Return whether the elements of both lie in memory in their order."""
    return w.is_contiguous() and aside.is_contiguous()
