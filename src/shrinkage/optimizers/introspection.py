"""What can be known of an optimizer around a step: what it holds, what it wraps, and how far its step has come."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import is_
from types import CodeType, FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.distributed.flat_parameters import is_flat_shard
from shrinkage.errors import AttachmentError
from shrinkage.private import code_inside, private

HookType = TypeVar("HookType", bound=Callable[..., Any])


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of `optimizer`."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def may_move(parameter: Tensor) -> bool:
    """Return whether a step moves `parameter`, here or on another process that holds a shard of it."""
    return parameter.grad is not None or is_dtensor(parameter) or is_flat_shard(parameter)


def same_objects(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> bool:
    """Return whether two lists of lists hold the very same tensors."""
    lengths = list(map(len, one)) == list(map(len, other))
    return lengths and all(all(map(is_, a, b)) for a, b in zip(one, other, strict=True))


def group_indices(optimizer: Optimizer) -> Mapping[int, int]:
    """Return the index of the parameter group of every parameter that `optimizer` steps itself, by id.

    It leaves the others to the optimizers that it keeps.
    """
    if is_sharded(optimizer):
        return {}
    left = {id(p) for kept in kept_optimizers(optimizer) for p in parameters_of(kept)}
    pairs = ((id(p), index) for index, group in enumerate(optimizer.param_groups) for p in group["params"])
    return {identity: index for identity, index in pairs if identity not in left}


def kept_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that `optimizer` keeps, itself, in a list or in a dict, to step some or all of its own."""
    attributes = (each for value in vars(optimizer).values() for each in contents(value))
    kept = [each for each in attributes if isinstance(each, Optimizer) and each is not optimizer]
    if not kept:
        return []
    held = {id(p) for p in parameters_of(optimizer)}
    # Of a sharded optimizer's parameters this process may step none.
    return [each for each in kept if is_sharded(optimizer) or any(id(p) in held for p in parameters_of(each))]


def contents(value: object) -> Iterable[object]:
    """Return what a list, a tuple or a mapping holds; of anything else, itself."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)


def working(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that step the parameters of `optimizer`: itself, or those that it keeps, or both."""
    kept = list(dict.fromkeys(each for inner in kept_optimizers(optimizer) for each in working(inner)))
    return kept if kept and not group_indices(optimizer) else [optimizer, *kept]


def stepped(optimizer: Optimizer) -> set[int]:
    """Return the ids of the parameters that a step of `optimizer` moves, in this process or in another one."""
    if is_sharded(optimizer):
        return {id(parameter) for parameter in parameters_of(optimizer)}
    return set(group_indices(optimizer)).union(*map(stepped, kept_optimizers(optimizer)))


def is_sharded(optimizer: Optimizer) -> bool:
    """Return whether every process steps other parameters of `optimizer`: whether it is a ZeroRedundancyOptimizer."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")  # a second to import
    return module is not None and isinstance(optimizer, module.ZeroRedundancyOptimizer)


def unwrapped(optimizer: Any) -> Optimizer:
    """Return `optimizer`, or the one inside of wrappers that are no optimizers and keep one as an attribute.

    Raises:
        TypeError: there is none.
        AttachmentError: its steps are hidden from hooks.
    """
    check_hooks_see_steps(optimizer)
    if isinstance(optimizer, Optimizer):
        return optimizer
    for attribute in ("optimizer", "_optimizer", "base_optimizer", "optim"):
        inner = getattr(optimizer, attribute, None)
        if inner is not None and getattr(inner, "param_groups", None) is not None:
            return unwrapped(inner)
    raise TypeError(f"expected a torch.optim.Optimizer, got {instead(optimizer)}")


def instead(given: object) -> str:
    """Return what was given in place of an optimizer, and what to do about it."""
    if isinstance(given, type) and issubclass(given, Optimizer):
        return f"the class {given.__name__}: make one, {given.__name__}(model.parameters(), ...)"
    held = list(given.values()) if isinstance(given, Mapping) else given
    if isinstance(held, list | tuple | set) and any(isinstance(each, Optimizer) for each in held):
        return f"a {type(given).__name__} of {len(held)}: call attach for each of them, one after the other"
    return type(given).__name__


def check_hooks_see_steps(optimizer: object) -> None:
    """Raise `AttachmentError` if `optimizer` steps what are not the model's parameters, or not in `step`."""
    if any(parent.__module__.startswith("deepspeed.runtime.") for parent in type(optimizer).__mro__):
        raise AttachmentError(
            f"DeepSpeed's {type(optimizer).__name__} steps flat shards that it made of the parameters, in which no "
            "penalty finds its own; train with fully_shard (FSDP2) or ZeroRedundancyOptimizer instead, or attach "
            "to the torch optimizer of an engine that uses neither ZeRO nor half precision"
        )
    if isinstance(optimizer, Optimizer) and is_sharded(optimizer) and getattr(optimizer, "_overlap_with_ddp", False):
        raise AttachmentError(
            "this ZeroRedundancyOptimizer steps while gradients are still being computed, where no hook runs; make it "
            "with overlap_with_ddp=False"
        )


def sign_of(optimizer: Optimizer, group: int) -> float:
    """Return the sign with which a penalty enters what `optimizer` works on in a group: a penalty is never maximised.

    Whether it ascends is an option of the group, or of the whole optimizer.
    """
    climbs = optimizer.param_groups[group].get("maximize", getattr(optimizer, "maximize", False))
    return -1.0 if climbs else 1.0


def runs_inside_own_step(optimizer: Optimizer) -> bool:
    """Return whether two steps of `optimizer` are under way: one that calls its parent's, which called this hook.

    Only the stack can tell that from a step that raised and so never reached its second hook.
    """
    use = "tell a step inside of another from one that raised"
    step = code_inside(private(Optimizer, "profile_hook_step", use), "wrapper", use)
    own = (frame for frame in calls_under_way(step) if frame.f_locals.get("self") is optimizer)
    return len(list(islice(own, 2))) == 2


def steps_for_a_checkpoint(optimizer: Optimizer) -> bool:
    """Return whether a distributed checkpoint steps `optimizer`, to have a state that it can save or load into.

    It does so with gradients and learning rates of 0; only the stack can tell that from a step of the training loop.
    """
    module = sys.modules.get("torch.distributed.checkpoint.state_dict")
    if module is None or not all(may_be_zero(group.get("lr", 0.0)) for group in optimizer.param_groups):
        return False
    use = "tell the step that a distributed checkpoint makes"
    code: CodeType = private(module, "_init_optim_state", use).__code__
    return any(calls_under_way(code))


def may_be_zero(lr: float | Tensor) -> bool:
    """Return whether a learning rate can be 0, without waiting for the device if it is there."""
    return isinstance(lr, Tensor) or lr == 0


def calls_under_way(code: CodeType) -> Iterator[FrameType]:
    """Yield the stack's frames of a function, the innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            yield frame
        frame = frame.f_back


def is_captured(parameter: Tensor) -> bool:
    """Return whether a CUDA graph is being recorded, which cannot wait for a number."""
    return parameter.is_cuda and torch.cuda.is_current_stream_capturing()
