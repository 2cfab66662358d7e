"""Parameters that another system flattens: FullyShardedDataParallel (FSDP1) and DeepSpeed's ZeRO.

Both lay parameters end to end and cut the line between processes, across rows and wherever it falls. Of FSDP1 with
`use_orig_params=True`, a process steps flat shards of the model's own parameters. There, penalties of single elements
are right; everything else is refused by name. Such parameters are recognized by attributes that these systems set on
them; nothing is imported.
"""

from contextlib import suppress

from torch import Tensor

from shrinkage.errors import GroupError, ParameterError
from shrinkage.penalties.base import Penalty
from shrinkage.private import FLAT, FLATTENED, is_a


def is_flat(parameter: Tensor | None) -> bool:
    """Return whether FSDP1 put a flat parameter of its own in the place of the model's (`use_orig_params=False`)."""
    return is_a(parameter, *FLAT)


def is_flat_shard(parameter: Tensor | None) -> bool:
    """Return whether FSDP1 leaves a flat shard of this parameter to each process (`use_orig_params=True`)."""
    return getattr(parameter, FLATTENED, False) and not is_flat(parameter)


def check_stepped(name: str, parameter: Tensor | None) -> None:
    """Raise `ParameterError` if not this parameter of the model is stepped, but one that was made of it and others."""
    if is_flat(parameter):
        raise ParameterError(
            f"{name!r} is in a flat parameter that FullyShardedDataParallel made of the model's own, where no rule "
            "finds it; use fully_shard, or FullyShardedDataParallel(..., use_orig_params=True)"
        )
    if not {"_hp_mapping", "ds_id"}.isdisjoint(vars(parameter) if parameter is not None else ()):
        raise ParameterError(
            f"{name!r} belongs to DeepSpeed's ZeRO, which steps flat copies of parameters and not the parameters, so "
            "that a penalty would be lost; train with fully_shard or ZeroRedundancyOptimizer, or without ZeRO"
        )


def check_flat_shard(name: str, parameter: Tensor, penalty: Penalty) -> None:
    """Raise `ParameterError` if a process holds a flat shard of `parameter`, and `penalty` cannot penalize that."""
    if is_flat_shard(parameter) and not penalizes_any_shard(penalty):
        raise ParameterError(
            f"{name!r} cannot be penalized by {penalty}: FullyShardedDataParallel leaves a flat shard of shape "
            f"{tuple(parameter.shape)} of it to this process, and only penalties of single elements, without weights "
            "or a reference for each, can penalize that; use fully_shard, which keeps the shape"
        )


def check_has_value(name: str, parameter: Tensor) -> None:
    """Raise `ParameterError` if this process holds a flat shard of `parameter` only."""
    if is_flat_shard(parameter):
        raise ParameterError(
            f"this process holds a flat shard of {name!r}, of shape {tuple(parameter.shape)}, so that it knows neither "
            "the penalty's value nor its residual; load the full state_dict into a model that is not wrapped and ask "
            "a Regularizer of that one"
        )


def penalizes_any_shard(penalty: Penalty) -> bool:
    """Return whether `penalty` penalizes each element by itself, all of them alike."""
    tensors: list[Tensor] = []

    def take(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    penalty.with_tensors(take)
    with suppress(GroupError):
        return not tensors and penalty.cuts((2, 2)) == (0, 1)
    return False
