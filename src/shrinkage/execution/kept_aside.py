"""Weights that are cut and kept aside: moved out of a tensor into another one of its shape, and back.

Each weight is in one of the two, and the other is zero there.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shrinkage.proximal.ranking import below, patterns_of, pieces


def restore_(w: Tensor, aside: Tensor) -> None:
    """Bring back what was cut, where `w` is still zero: whatever was written there meanwhile stays."""
    for part, other in together(w, aside):
        torch.where(part == 0, other, part, out=part)


def cut_(w: Tensor, aside: Tensor, pattern: int | Tensor, ties: int | Tensor | None) -> Tensor:
    """Move what is below a threshold from `w` to `aside`, and return how many weights were not there before.

    Args:
        w: what stays of it, and +0.0 elsewhere, is left there.
        aside: holds what was cut the last time; it is written over.
        pattern: the threshold; see `ranking.below`.
        ties: so many weights that equal it stay.
    """
    changed = torch.zeros((), dtype=torch.long, device=w.device)
    seen: int | Tensor = 0
    for part, other in together(w, aside):
        numbers = patterns_of(part)
        gone = below(numbers, pattern, ties, seen)
        if ties is not None:
            seen = seen + (numbers == pattern).sum()
        changed += move_(part, other, gone.view(part.shape))
    return changed


def cut_groups_(w: Tensor, aside: Tensor, gone: Tensor) -> Tensor:
    """Do what `cut_` does, for the weights where `gone` is true."""
    return move_(w, aside, gone)


def move_(w: Tensor, aside: Tensor, gone: Tensor) -> Tensor:
    """Move the weights where `gone` is true; return how many places of `aside` changed between zero and not."""
    changed = (aside != 0).logical_xor_(gone).sum()
    torch.where(gone, w, w.new_zeros(()), out=aside)
    w.masked_fill_(gone, 0)
    return changed


def hold_zeros_(w: Tensor, zero: Tensor) -> None:
    """Write +0.0 where `zero` is true."""
    w.masked_fill_(zero, 0)


def together(w: Tensor, aside: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield the pieces of two tensors in the same places; as a whole if they are not in order in memory."""
    if w.is_contiguous() and aside.is_contiguous():
        yield from zip(pieces(w.view(-1)), pieces(aside.view(-1)), strict=True)
    else:
        yield w, aside
