"""Weights and buffers of a model, copied to the CPU and back."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from shrinkage.distributed.dtensor import is_dtensor, shard_like, spread, whole

State = Mapping[str, Any]


def state_on_cpu(model: nn.Module) -> dict[str, Any]:
    """Return a copy of the `state_dict` of `model` with full tensors on the CPU.

    If the model is sharded over processes, all of them have to call this.
    """
    return {name: copied(value) for name, value in model.state_dict().items()}


def copied(value: Any) -> Any:
    """Return a copy of one entry of a `state_dict`, which may be any object."""
    return whole(value.detach()).cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def load_state(model: nn.Module, state: State) -> None:
    """Give `model` the weights and buffers in `state`, wherever they are, and cut as they are."""
    held = model.state_dict()
    model.load_state_dict({name: placed(value, held.get(name)) for name, value in state.items()})


def placed(value: Any, like: Any) -> Any:
    """Return a full tensor distributed as `like` is."""
    if not is_dtensor(like):
        return value
    return spread(shard_like(value.to(like.device), like), like)
