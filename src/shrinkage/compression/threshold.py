"""Magnitude thresholds, for models that were trained without exact zeros."""

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from numbers import Real

import torch
from torch import Tensor, nn

from shrinkage.diagnostics.report import Model, distinct, named_tensors, readable
from shrinkage.distributed.dtensor import local, shard_like, whole
from shrinkage.errors import ParameterError, SelectionError, shown
from shrinkage.penalties.convex import L1
from shrinkage.proximal.precision import at_least_float32
from shrinkage.selection.first_match import nearest
from shrinkage.selection.matrices import is_matrix
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import resolve
from shrinkage.selection.rules import Rule
from shrinkage.selection.selectors import Selector, selector_text


def threshold_(model: Model, magnitude: float, *, relative: bool = False, parameters: Selector | None = None) -> int:
    """Set every weight of size below `magnitude` to exactly zero, in place, and return how many were set.

    w <- 0 where |w| < magnitude, or where |w| < magnitude * (standard deviation of its tensor) if `relative`.

    Args:
        model: a module, or a state_dict, whose tensors are changed in place.
        magnitude: >= 0, in units of the weights, or of a tensor's standard deviation.
        relative: measure in standard deviations of each tensor (all of its elements, divided by their number).
        parameters: which ones, a selector as in `Rule`; of a state_dict, a glob on the name. Left out: weights with
            two dimensions or more, as a bare penalty takes, outside of norm and embedding layers as far as they are
            known: a state_dict does not tell an embedding from a linear layer.

    Raises:
        ValueError: `magnitude` is negative or not finite.
        SelectionError: nothing is selected.
        ParameterError: a selected parameter is not floating point, is computed by a parametrization, or is not dense.

    >>> layer = torch.nn.Linear(3, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.5, -0.01, 0.0]]))
    >>> threshold_(layer, 0.1, parameters="weight"), layer.weight.data
    (1, tensor([[0.5000, 0.0000, 0.0000]]))
    """
    if not (isinstance(magnitude, Real) and not isinstance(magnitude, bool) and 0 <= magnitude < math.inf):
        raise ValueError(f"magnitude must be a finite number >= 0, got {shown(magnitude)}")
    if isinstance(model, nn.Module):
        chosen = list(selected_parameters(model, parameters))
    else:
        chosen = selected_entries(model, parameters)
    with torch.no_grad():
        return sum(threshold_tensor_(name, tensor.detach(), magnitude, relative) for name, tensor in chosen)


def threshold_tensor_(name: str, w: Tensor, magnitude: float, relative: bool) -> int:
    """Apply `threshold_` to one tensor."""
    if w.numel() == 0:
        return 0
    if w.layout is not torch.strided or w.element_size() < 2:
        raise ParameterError(
            f"{name!r} of shape {tuple(w.shape)} is stored as {w.layout}, {w.dtype}: make it dense, of 16 bits or more"
        )
    upcast = readable(name, whole(w)).to(at_least_float32(w.dtype))
    limit = magnitude * upcast.std(correction=0) if relative else magnitude
    small = (upcast.abs() < limit) & (upcast != 0)
    local(w).masked_fill_(shard_like(small, w), 0.0)
    return int(small.sum())


def selected_parameters(model: nn.Module, selector: Selector | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of `model` that `selector` selects, tied ones once."""
    held = {candidate.name: candidate.parameter for candidate in named_parameters(model)}
    for entry in resolve(model, Rule(L1(0.0), selector)):
        parameter = held[entry.name]
        if parameter is not None and entry.shape is not None:
            yield entry.name, parameter


def selected_entries(state: Mapping[str, Tensor], selector: Selector | None) -> list[tuple[str, Tensor]]:
    """Return the tensors of a state_dict that `selector` selects, shared ones once."""
    if not (selector is None or isinstance(selector, str)):
        raise TypeError(f"a state_dict has names only: select by a glob, got {selector_text(selector)}")
    named = dict(named_tensors(state))
    matching = ((name, tensor) for name, tensor in named.items() if entry_matches(name, tensor, selector))
    chosen = list(distinct(matching))
    if not chosen:
        sought = selector or "weight"
        raise SelectionError(f"{shown(sought)} selects no tensor; nearest names: {nearest(sought, named)}")
    return chosen


def entry_matches(name: str, tensor: Tensor, glob: str | None) -> bool:
    """Return whether `glob`, or the default choice, selects an entry of a state_dict."""
    if glob is None:
        attribute = name.rpartition(".")[2]
        return (attribute == "weight" or is_matrix(attribute)) and tensor.dim() >= 2
    return fnmatchcase(name, glob)
