"""Gradients of a loss alone, averaged over data: `.grad`, buffers and the random state stay as they are."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.diagnostics.side_effects import restored
from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.errors import ParameterError, shown
from shrinkage.proximal.precision import upcast
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Entry

Closure = Callable[..., Tensor]


def check_not_sharded(penalized: Iterable[tuple[Entry, nn.Parameter]]) -> None:
    """Raise `ParameterError` if a parameter is sharded: its gradient exists only after backward."""
    for entry, parameter in penalized:
        if is_dtensor(parameter):
            raise ParameterError(
                f"{entry.name!r} of shape {entry.shape} is sharded over processes, and no gradient can be asked for; "
                "gather a full state_dict, load it into a model on one process, and ask there"
            )


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter of `model` that takes a gradient, once, under the name that a plan gives it."""
    seen: set[int] = set()
    for candidate in named_parameters(model):
        parameter = candidate.parameter
        if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            yield candidate.name, parameter


def mean_gradients(
    model: nn.Module, parameters: list[nn.Parameter], closure: Closure, data: Iterable[Any] | None
) -> list[Tensor]:
    """Return the gradient of the mean loss for each parameter, and leave `model` as it was, `.grad` included."""
    totals, count, reached = [torch.zeros_like(upcast(parameter.detach())) for parameter in parameters], 0, False
    with restored(model, closure, data):  # a loader draws random numbers as soon as it begins
        batches: Iterable[tuple[Any, ...]] = [()] if data is None else ((batch,) for batch in data)
        for arguments in batches:
            size = length(arguments[0]) if arguments else 1
            with torch.enable_grad():
                loss = closure(*arguments)
            for total, grad in zip(totals, gradients_of(loss, parameters), strict=True):
                if grad is not None:
                    total.add_(upcast(grad), alpha=size)
                    reached = True
            count += size
    if not count:
        raise ValueError("there are no batches in the data; an iterator can be used once only")
    if not reached:
        raise ValueError(
            "the loss does not depend on any parameter that is asked about: the closure has to compute it with this "
            "very model, not with a copy or a new one"
        )
    return [total / count for total in totals]


def gradients_of(loss: object, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Return the gradient of `loss` for each parameter; raise `TypeError` if it has none to give."""
    if not (isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1):
        constant = " without a graph" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise TypeError(
            f"the closure has to return the loss, one number that can be differentiated, got {shown(loss)}{constant}"
        )
    try:
        return torch.autograd.grad(loss.reshape(()), parameters, allow_unused=True)
    except RuntimeError as error:
        if all(parameter.grad is None for parameter in parameters):
            raise
        raise TypeError("the closure calls backward(): it has to return the loss, and to leave that out") from error


def length(batch: Any) -> int:
    """Return the length of the first tensor in a batch, 1 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return length(batch[0]) if isinstance(batch, list | tuple) and batch else 1
