"""Whether two models give the same outputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from shrinkage.shrink.export import evaluating
from shrinkage.shrink.fold import varied

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the example call, the same with other numbers twice, and with another number of samples."""
    leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
    for number in range(3):
        yield tree_unflatten(varied(leaves, number), structure)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if tensors and len({len(leaf) for leaf in tensors}) == 1:
        longer = [torch.cat([leaf, leaf[:1]]) if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]
        yield tree_unflatten(longer, structure)


def outputs(model: nn.Module, call: Call) -> list[Tensor]:
    """Return the tensors that `model` puts out, in evaluation mode and with the same random numbers every time."""
    args, kwargs = tree_map_only(Tensor, torch.clone, call)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of outputs, relative to the largest number of its tensor."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return float("inf")
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if not old.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(old, new) else float("inf"))
        elif old.numel():
            old, new = old.double(), new.double()
            finite = old.isfinite()
            if not torch.equal(torch.nan_to_num(old[~finite]), torch.nan_to_num(new[~finite])):
                return float("inf")
            scale = old[finite].abs().max() if finite.any() else torch.ones(())
            gap = (old - new)[finite].abs().max() if finite.any() else torch.zeros(())
            worst = max(worst, float(torch.nan_to_num(gap / scale.clamp_min(1e-30), nan=float("inf"))))
    return worst
