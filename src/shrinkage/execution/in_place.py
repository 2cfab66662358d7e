"""Proximal operators that move a tensor in place, with as little scratch memory as their steps allow.

The plain form takes any penalty, and is what every other form is compared with. A penalty for which torch has
something that touches each weight once has a form of its own.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from shrinkage.optimizers.adaptive_step import LATER, AdaptiveStep, MetricStep, Step, number
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L1
from shrinkage.penalties.group_norms import scales
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.groups import norms_within
from shrinkage.penalties.schedules import fixed
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.private import private
from shrinkage.proximal.precision import at_least_float32, upcast

Form = Callable[[Any, Tensor, Step], None]
BLOCK = 1 << 16  # elements whose squares are added up at a time


def touches_once(penalty: Penalty, w: Tensor, step: Step) -> bool:
    """Return whether `shrink_` needs no scratch memory of the size of `w`."""
    if type(penalty) is Grouped:
        return in_plain_metric(w, step)
    plain = isinstance(step, float) and upcast(w) is w
    return plain and (type(penalty) is L1 or (type(penalty) is SparseGroupLasso and w.is_contiguous()))


def in_plain_metric(w: Tensor, step: Step) -> bool:
    """Return whether one step serves all elements of `w`, which lie in memory in their order."""
    shaped = (isinstance(step, Tensor) and step.dim() > 0) or isinstance(step, LATER)
    return not shaped and w.is_contiguous()


def shrink_(penalty: Penalty, w: Tensor, step: Step) -> None:
    """w <- prox(w), computed in float32 at least."""
    form: Form = FORMS.get(type(penalty), shrink_plainly_)
    form(penalty, w, step)


def shrink_plainly_(penalty: Penalty, w: Tensor, step: Step) -> None:
    """w <- prox(w)."""
    size = number(step)
    w.copy_(penalty.prox(upcast(w), size))


def shrink_elements_(penalty: L1, w: Tensor, step: Step) -> None:
    """Torch's own soft threshold writes where it reads; its zeros have the signs of the weights.

    It takes a number only, and rounds it to a narrow type.
    """
    if isinstance(step, MetricStep) or upcast(w) is not w:
        shrink_plainly_(penalty, w, step)
    elif isinstance(step, AdaptiveStep):
        strength = fixed(penalty.strength)
        threshold = step.tensor().mul_(strength)
        kept = torch.minimum(w, threshold)
        w.sub_(torch.maximum(kept, threshold.neg_(), out=kept))
    elif isinstance(step, Tensor):
        threshold = step * fixed(penalty.strength)
        w.sub_(w.clamp(-threshold, threshold))
    else:
        softshrink = private(torch._C._nn, "softshrink", "shrink weights in place")  # torch.ops takes thrice as long
        softshrink(w, step * fixed(penalty.strength), out=w)


def shrink_groups_(penalty: Grouped, w: Tensor, step: Step) -> None:
    """In a plain metric, norms are read once and weights scaled where they are."""
    if isinstance(step, LATER) or not in_plain_metric(w, step):
        shrink_plainly_(penalty, w, step)
        return
    layout = penalty.groups.layout(w.shape)
    split = w.view(layout.shape)
    norms = norms_in_blocks(split, layout.within)
    split.mul_(scales(norms, step, penalty.penalty, penalty.weight(w.shape)))


def shrink_groups_and_elements_(penalty: SparseGroupLasso, w: Tensor, step: Step) -> None:
    """In a plain metric, the soft threshold and then the norms, both in place."""
    if not touches_once(penalty, w, step):
        shrink_plainly_(penalty, w, step)
        return
    shrink_elements_(L1(penalty.l1), w, step)
    shrink_groups_(penalty.of_groups, w, step)


def norms_in_blocks(w: Tensor, within: tuple[int, ...]) -> Tensor:
    """Return the norms over the dimensions `within`, which stay with size 1, reading `w` once.

    What lies together in memory comes first. Across it, squares are added up block by block, so that no tensor of the
    squares is written down.
    """
    together = tuple(dim for dim in within if all(later in within for later in range(dim, w.dim())))
    norms = norms_within(w, together) if together else w
    across = tuple(dim for dim in within if dim not in together)
    rows = max(BLOCK * norms.shape[0] // max(norms.numel(), 1), 1)
    if not across:
        return norms
    if across[0] != 0 or rows >= norms.shape[0]:
        return norms_within(norms, across)
    squares = torch.zeros((rows, *norms.shape[1:]), dtype=at_least_float32(w.dtype), device=w.device)
    for block in torch.split(norms, rows):
        squares[: len(block)].addcmul_(block, block)
    return squares.sum(across, keepdim=True).sqrt()


# By exact class: what is derived from one may have a prox of its own.
FORMS: MappingProxyType[type[Penalty], Form] = MappingProxyType(
    {L1: shrink_elements_, Grouped: shrink_groups_, SparseGroupLasso: shrink_groups_and_elements_}
)
