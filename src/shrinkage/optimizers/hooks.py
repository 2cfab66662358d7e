"""Hooks that stand next to an optimizer's step: the last before it, and the first behind it.

torch calls the hooks of an optimizer in the order in which they came. Clipping in one that came later would cut a
penalty that is in the gradient already, and an average of weights in one that came earlier would miss the zeros.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from shrinkage.optimizers.introspection import HookType
from shrinkage.optimizers.per_optimizer import PerOptimizer


def hook_around(
    optimizer: Optimizer, before: Callable[..., Any], after: Callable[..., None]
) -> tuple[RemovableHandle, RemovableHandle]:
    """Call `before` after all other hooks before a step of `optimizer`, and `after` before all others behind it."""
    keep_last_everywhere()
    first = optimizer.register_step_pre_hook(uncompiled(before))
    second = optimizer.register_step_post_hook(uncompiled(after))
    move(second, last=False)
    _last[optimizer] = [*(_last.get(optimizer, None) or []), first]
    return first, second


@functools.cache
def keep_last_everywhere() -> None:
    """Install a hook for all optimizers, once: torch runs those before any hook of one optimizer."""
    register_optimizer_step_pre_hook(uncompiled(keep_last))


def keep_last(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let hooks that came later go first, before a step calls any of them."""
    handles = _last.get(optimizer, None)
    if handles:
        hooks = handles[0].hooks_dict_ref() or {}
        if [*hooks][-len(handles) :] != [handle.id for handle in handles]:
            _last[optimizer] = [handle for handle in handles if move(handle, last=True)]
    elif handles is None:
        meet(optimizer)


def meet(optimizer: Optimizer) -> None:
    """Call `first_steps` before the first step of an optimizer that nothing is attached to."""
    if _last.get(optimizer, None) is None:
        _last[optimizer] = []
        for each in first_steps:
            each(optimizer)


def move(handle: RemovableHandle, *, last: bool) -> bool:
    """Move a hook behind all others or before them, as torch's `prepend` does; return whether it is still there."""
    hooks = handle.hooks_dict_ref()
    if hooks is None or handle.id not in hooks:
        return False
    hooks.move_to_end(handle.id, last=last)
    return True


first_steps: list[Callable[[Optimizer], None]] = []
_last: PerOptimizer[list[RemovableHandle] | None] = PerOptimizer("last_hooks")


def uncompiled(hook: HookType) -> HookType:
    """Return `hook` in a form that `torch.compile` calls and does not trace: an update count would recompile it."""
    disabled = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @functools.wraps(hook)
    def called(*args: Any) -> Any:
        # What is disabled sets torch's hook of the interpreter back and forth, as long as a small network's L1 takes.
        return disabled(*args) if torch.compiler.is_dynamo_compiling() else hook(*args)

    return cast(HookType, called)
