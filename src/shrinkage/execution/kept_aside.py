"""Weights that are cut and kept aside: moved out of a tensor into another one of its shape, and back.

Each weight is in one of the two, and the other is zero there. Native kernels move all tensors in one pass. Without
them, float32 on a CPU is moved by `hardshrink` and bits, which is exact, and several times as fast as a selection by
truth values.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shrinkage.execution import native_ranking
from shrinkage.execution.native_ranking import Cut, Library, can_rank
from shrinkage.execution.ranking_window import LARGEST, number_of
from shrinkage.proximal.ranking import CHUNK, Thresholds, below, chunks, patterns_of

where_nonzero = torch.ops.aten.hardshrink_backward  # at lambd 0: its first operand where the second one is not 0


def restore_all_(pairs: Sequence[tuple[Tensor, Tensor]], library: Library) -> None:
    """Bring back what was cut of tensors, from what is aside of each."""
    by_kernel = []
    for w, aside in pairs:
        if library is not None and can_rank(w, aside):
            by_kernel.append((w, aside))
        else:
            restore_(w, aside)
    if library is not None and by_kernel:
        native_ranking.restore_(library, by_kernel)


def cut_all_(pairs: Sequence[tuple[Tensor, Tensor]], found: Thresholds, library: Library) -> int | Tensor:
    """Move what does not stay of tensors aside, and return how many weights came back that were there."""
    if not all(w.is_cpu for w, _ in pairs):
        return sum(cut_(*pair, found.patterns[i], found.ties[i]) for i, pair in enumerate(pairs))
    by_kernel, back = [], 0
    numbers = zip(found.patterns.tolist(), found.ties.tolist(), found.all_ties.tolist(), strict=True)
    for (w, aside), (pattern, ties, all_ties) in zip(pairs, numbers, strict=True):
        all_stay = ties == all_ties
        if library is not None and can_rank(w, aside):
            by_kernel.append(Cut(w, aside, pattern - 1 if all_stay else pattern, 0 if all_stay else ties))
        else:
            back += int(cut_(w, aside, pattern, None if all_stay else ties))
    if library is not None and by_kernel:
        back += native_ranking.cut_(library, by_kernel)
    return back


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
    back, scratch = 0, w.new_empty(min(w.numel(), CHUNK))
    stays, were = (torch.empty(scratch.numel(), dtype=torch.bool) for _ in range(2))
    for part, other in together(w, aside):
        n = part.numel()
        kept = torch.hardshrink(part, low, out=scratch[:n])
        both = stays[:n].copy_(kept).logical_and_(were[:n].copy_(other))
        back += int(both.view(torch.uint8).sum(dtype=torch.int32))
        # The bits of what stays are equal and leave none: so it is for what is not finite too.
        torch.bitwise_xor(part.view(torch.int32), kept.view(torch.int32), out=other.view(torch.int32))
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
