"""Copies of a model, and the model inside of what wraps it."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shrinkage.errors import ShrinkError
from shrinkage.parametrized import computed_weights


def plain(model: nn.Module) -> nn.Module:
    """Return the module behind one that is compiled, averaged, or trained on several machines.

    Raises TypeError if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    compiled = dict(model.named_children()).get("_orig_mod")  # asking torch._dynamo for its class would import it
    if compiled is not None:
        return plain(compiled)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel | AveragedModel):
        return plain(model.module)
    return model


def copy_of(model: nn.Module, replaced: Mapping[Any, object]) -> nn.Module:
    """Return a copy of `model` that has other things in the place of some, wherever it holds these.

    What hooks compute anew at each call, `deepcopy` refuses to copy with its history.

    Raises ShrinkError if the model holds something of which Python makes no copy.
    """
    memo = {id(old): new for old, new in replaced.items()}
    for module in model.modules():
        held = [vars(module).get(computed.attribute) for computed in computed_weights(module)]
        memo |= {id(tensor): tensor.detach().clone() for tensor in held if isinstance(tensor, Tensor)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ShrinkError(
            f"a copy of the {type(model).__name__} is needed, and copy.deepcopy makes none: {error}"
        ) from error


def without_gradients(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the same numbers, none of which takes a gradient."""
    return copy_of(model, {old: nn.Parameter(old.detach(), requires_grad=False) for old in model.parameters()})


def with_own_state(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the same parameters, to be called without leaving a trace in the model."""
    return copy_of(model, {parameter: parameter for parameter in model.parameters()})
