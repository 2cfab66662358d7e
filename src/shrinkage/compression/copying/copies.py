"""Copies of a model, and the model inside of what wraps it."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shrinkage.compression.calls.modes import has_own_modes, without_collection
from shrinkage.compression.copying.rebinding import Memo
from shrinkage.compression.plans.tensors import joined, tensors_of
from shrinkage.errors import ShrinkError, shown, warn_user
from shrinkage.private import compiled_from


def plain(model: nn.Module) -> nn.Module:
    """Return the module behind one that is compiled, averaged, or trained on several processes.

    Raises TypeError if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {shown(model)}")
    inside = compiled_from(model)
    if inside is not None:
        return plain(inside)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel | AveragedModel):
        return plain(model.module)
    return model


def copy_of(model: nn.Module, replaced: Mapping[Any, object]) -> nn.Module:
    """Return a copy of `model` that has other things in the place of some, wherever it holds these.

    Functions that it holds compute with the layers of the copy, and tensors with a history are copied without it.

    Raises ShrinkError if the model holds something of which Python makes no copy.
    """
    with without_collection():
        return copy_with(Memo(model, replaced), model)


def copy_with(memo: Memo, model: nn.Module) -> nn.Module:
    """Return a copy of `model` by `memo`, as `copy_of` does."""
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ShrinkError(
            f"a copy of the {type(model).__name__} is needed, and copy.deepcopy makes none{_where(model)}: {error}"
        ) from error


def _where(model: nn.Module) -> str:
    """Return which attribute of `model` cannot be copied, in words; empty if each of them can."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(None if name == "_modules" else value, Memo(model, {}))
            except Exception:
                return f" of the attribute {joined(path, name)!r}"
    return ""


def hooked_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of the parameters of `model` whose gradients have hooks, which no copy has."""
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    )


def warn_of_hooks(model: nn.Module) -> None:
    """Warn, once, of the hooks on gradients of the parameters of `model`, which a copy of it does not have."""
    names = hooked_parameters(model)
    if names:
        warn_user(
            f"hooks on the gradients of {', '.join(names)} do not pass to the new model, whose parameters are others:"
            " register them again there"
        )


def without_gradients(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the same numbers, none of which takes a gradient."""
    return copy_of(model, {old: nn.Parameter(old.detach(), requires_grad=False) for old in model.parameters()})


def with_own_state(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the same parameters, to be called without leaving a trace in the model.

    Layers whose change of mode may write into parameters, as where adapters are merged, get their own.
    """
    own = {p for module in model.modules() if has_own_modes(module) for p in module.parameters()}
    return copy_of(model, {parameter: parameter for parameter in model.parameters() if parameter not in own})


def without_numbers(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device, where a call tells shapes in no time."""
    empty = {old: _empty(old) for old in tensors_of(model).values()}
    return copy_of(model, empty)


def _empty(tensor: Tensor) -> Tensor:
    made = tensor.detach().to("meta")
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
