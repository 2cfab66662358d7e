"""The ranking of weights by the native kernels: digits that are counted, what is near a threshold, and what is cut.

Each call serves all tensors that there is a kernel for, in one pass over their memory.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from shrinkage.execution.native import threads_for
from shrinkage.execution.native_layout import TYPES, is_plain
from shrinkage.execution.native_structs import Act, Ranked

Library = ctypes.CDLL | None  # None: there are no native kernels, or none are wanted
ROOM = 20  # elements of a tensor for each one that may lie in a window; the widest has 4% of those that stay
LEAST_ROOM = 1 << 10


class Cut(NamedTuple):
    """A tensor of which something is moved aside.

    Args:
        w: what is larger than a bit pattern stays there, and +0.0 elsewhere.
        aside: holds what was cut the last time; it is written over.
        pattern: the magnitude of a float32.
        ties: so many elements that equal it stay too, in the order of their places.
    """

    w: Tensor
    aside: Tensor
    pattern: int
    ties: int


def can_rank(*tensors: Tensor) -> bool:
    """Return whether tensors have one shape and type, and lie in memory in their order, as kernels read them."""
    first = tensors[0]
    return all(
        is_plain(each) and each.is_contiguous() and each.shape == first.shape and each.dtype is first.dtype
        for each in tensors
    )


def counted(library: ctypes.CDLL, sizes: Tensor, prefix: int, shift: int, bits: int) -> Tensor:
    """Return the same as `ranking.counted`, of a tensor that can be ranked."""
    found = torch.zeros(1 << bits, dtype=torch.long)
    entries = entries_of([sizes])
    entries[0].counts, entries[0].prefix = found.data_ptr(), prefix
    entries[0].shift, entries[0].bits = shift, bits
    call(library, entries, Act.COUNT)
    return found


def looked_at(
    library: ctypes.CDLL, sizes: Sequence[Tensor], lows: Sequence[int], highs: Sequence[int]
) -> list[tuple[Tensor, int]] | None:
    """Return, of each tensor, the sizes whose bit patterns are above `low`, up to `high`, and how many are larger.

    All of them can be ranked. None if more lie in a window than there is room for.
    """
    entries = entries_of(sizes)
    rooms = [torch.empty(max(LEAST_ROOM, each.numel() // ROOM)) for each in sizes]
    for entry, room, low, high in zip(entries, rooms, lows, highs, strict=True):
        entry.room, entry.spare, entry.low, entry.high = room.data_ptr(), room.numel(), low, high
    call(library, entries, Act.LOOK)
    if any(entry.inside > entry.spare for entry in entries):
        return None
    return [(room[: entry.inside], entry.above) for entry, room in zip(entries, rooms, strict=True)]


def cut_(library: ctypes.CDLL, cuts: Sequence[Cut]) -> int:
    """Move what does not stay aside, and return how many elements came back; all of them can be ranked."""
    entries = entries_of([each.w for each in cuts])
    for entry, (_, aside, pattern, ties) in zip(entries, cuts, strict=True):
        entry.aside, entry.pattern, entry.ties = aside.data_ptr(), pattern, ties
    call(library, entries, Act.CUT)
    increment_version([tensor for each in cuts for tensor in (each.w, each.aside)])
    return sum(entry.back for entry in entries)


def restore_(library: ctypes.CDLL, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Bring back what is aside where a tensor is zero; all of them can be ranked."""
    entries = entries_of([w for w, _ in pairs])
    for entry, (_, aside) in zip(entries, pairs, strict=True):
        entry.aside = aside.data_ptr()
    call(library, entries, Act.RESTORE)
    increment_version([w for w, _ in pairs])


def entries_of(tensors: Sequence[Tensor]) -> ctypes.Array[Ranked]:
    """Return an array of structs that say where tensors are."""
    entries = (Ranked * len(tensors))()
    for entry, tensor in zip(entries, tensors, strict=True):
        entry.w, entry.size, entry.type = tensor.data_ptr(), tensor.numel(), TYPES[tensor.dtype]
    return entries


def call(library: ctypes.CDLL, entries: ctypes.Array[Ranked], act: Act) -> None:
    """Let the kernels act on tensors."""
    threads = threads_for(sum(entry.size for entry in entries))
    library.shrinkage_rank(entries, ctypes.c_int64(len(entries)), int(act), threads)
