"""What can be known of an optimizer around a step: what it holds, what it wraps, and how far its step has come."""

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

HookType = TypeVar("HookType", bound=Callable[..., Any])


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of `optimizer`."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def group_indices(optimizer: Optimizer) -> Mapping[int, int]:
    """Return the index of the parameter group of every parameter of `optimizer`, by id."""
    return {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}


def share_parameters(one: Optimizer, other: Optimizer) -> bool:
    """Return whether two optimizers hold a parameter in common."""
    return not {id(p) for p in parameters_of(one)}.isdisjoint(id(p) for p in parameters_of(other))


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer that does the work, inside of wrappers that keep it as an attribute.

    An optimizer that keeps another one for other parameters is not a wrapper.
    """
    for attribute in ("optimizer", "_optimizer", "base_optimizer"):
        inner = getattr(optimizer, attribute, None)
        if inner is None or getattr(inner, "param_groups", None) is None:
            continue
        if not isinstance(optimizer, Optimizer) or share_parameters(optimizer, inner):
            return unwrapped(inner)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def sign_of(group: Mapping[str, Any]) -> float:
    """Return the sign with which a penalty enters the objective of a parameter group: a penalty is never maximised."""
    return -1.0 if group.get("maximize") else 1.0


def overflow_of(optimizer: Optimizer) -> Tensor | None:
    """Return 1 on the device if a fused optimizer skips this step because of an overflow; None outside of loss scaling.

    `found_inf` is summed over devices, so it may exceed 1.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.clamp(max=1)


def runs_inside_own_step(optimizer: Optimizer) -> bool:
    """Return whether two steps of `optimizer` are under way: one that calls its parent's, which called this hook.

    Only the stack can tell that from a step that raised and so never reached its second hook.
    """
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None and depth < 2:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == torch_optimizer.__file__:
            depth += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return depth == 2


def uncompiled(hook: HookType) -> HookType:
    """Return `hook` in a form that `torch.compile` calls and does not trace: an update count would recompile it."""
    disabled: HookType = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return disabled
