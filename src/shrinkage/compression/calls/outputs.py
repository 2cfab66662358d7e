"""Whether two models give the same outputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.inputs import Call, cloned
from shrinkage.compression.calls.modes import evaluated
from shrinkage.compression.calls.results import all_tensors_in, tensors_in
from shrinkage.compression.copying.caches import class_caches_left_out
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.diagnostics.random_states import random_states_left_out, same_random_numbers

OUTLIER = 100.0  # a number so many times larger than all that differ says nothing of how much they may


def outputs(model: nn.Module, call: Call) -> list[Tensor]:
    """Return the tensors that `model` puts out, in evaluation mode and with the same random numbers every time.

    A copy is called, so that what a model notes of its calls is the same every time too. Where the model is in
    evaluation mode its own code is not told so again: what it keeps of earlier calls is used as it is.
    """
    probe = with_own_state(model)
    if any(module.training for module in probe.modules()):
        evaluated(probe)
    return outputs_of_copy(probe, call)


def outputs_of_copy(probe: nn.Module, call: Call) -> list[Tensor]:
    """Return the tensors that `probe` puts out in the mode that it is in; parameters may be those of another model."""
    args, kwargs = cloned(call)
    with torch.no_grad(), same_random_numbers(), class_caches_left_out(probe), gradients_left_out(probe):
        result = probe(*args, **kwargs)
    return tensors_in(result) or all_tensors_in(result)


def random_states_noted(model: nn.Module) -> list[list[Tensor]]:
    """Return a list to which calls of `model`, and of its copies, add the random states at their start and end."""
    states = list[list[Tensor]]()

    def note(*_: object) -> None:
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch gives it no types
        states.append([torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if in_use else ())])

    model.register_forward_pre_hook(note)
    model.register_forward_hook(note)
    return states


@contextmanager
def gradients_left_out(model: nn.Module) -> Iterator[None]:
    """Restore gradients afterwards: code that computes some in its forward pass adds to them."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what copies of `model` share with it, and the random states of the process."""
    with random_states_left_out(), class_caches_left_out(model), gradients_left_out(model):
        yield


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of outputs, relative to the largest number of its tensor."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return float("inf")
    return max((_distance(old, new) for old, new in zip(before, after, strict=True)), default=0.0)


def _distance(old: Tensor, new: Tensor) -> float:
    if old.is_complex():
        old, new = torch.view_as_real(old.resolve_conj()), torch.view_as_real(new.resolve_conj())
    if not old.is_floating_point():
        return 0.0 if torch.equal(old, new) else float("inf")
    old, new = old.double(), new.double()
    finite = old.isfinite()
    if not torch.equal(torch.nan_to_num(old[~finite]), torch.nan_to_num(new[~finite])):
        return float("inf")
    old, new = old[finite], new[finite]
    differ = old != new
    if not differ.any():
        return 0.0
    largest, scale = float(old.abs().max()), float(old[differ].abs().max())
    if largest <= OUTLIER * scale:
        scale = largest
    else:  # a mask of -1e9, say, must not hide what stands beside it
        sizes = torch.unique(old.abs())
        scale = max(scale, float(sizes[len(sizes) // 4]))
    return float(torch.nan_to_num((old - new).abs().max() / max(scale, 1e-30), nan=float("inf")))
