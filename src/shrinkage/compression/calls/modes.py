"""Modes of a model and of the process, set for a call and restored."""

import gc
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import fx, nn

from shrinkage.private import private

LINES = "do_not_emit_stack_traces"  # in the configuration of torch.fx
CHECKS = "_validate_args"  # of the class of all distributions


def evaluated(model: nn.Module) -> nn.Module:
    """Put `model` into evaluation mode, and return it; see `in_mode`."""
    return in_mode(model, training=False)


def in_mode(model: nn.Module, *, training: bool) -> nn.Module:
    """Put `model` into training or evaluation mode, and return it.

    Modules whose `train` is something else than a change of mode, such as the training of a layer of its own, only have
    their attribute `training` set.
    """
    if all(map(_takes_mode, model.modules())):
        if not training and _is_callable(model.eval):
            model.eval()
        else:
            model.train(training)
    else:
        model.training = training
        for child in model.children():
            in_mode(child, training=training)
    return model


def has_own_modes(module: nn.Module) -> bool:
    """Return whether a change of mode runs code of the module's own class, which may write into its parameters."""
    changing = (type(module).train, type(module).eval)
    return changing != (nn.Module.train, nn.Module.eval) or not vars(module).keys().isdisjoint({"train", "eval"})


def _takes_mode(module: nn.Module) -> bool:
    """Return whether the `train` of `module` takes a mode alone."""
    if type(module).train is nn.Module.train and "train" not in vars(module):
        return True
    if not _is_callable(module.train, False):
        return False
    first = next(iter(inspect.signature(module.train).parameters.values()))
    return first.name == "mode" or isinstance(first.default, bool) or first.kind is first.VAR_POSITIONAL


def _is_callable(function: Any, *arguments: object) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


@contextmanager
def evaluating(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Hold every module of `model` in evaluation mode, or in that of `training`."""
    modes = {module: module.training for module in model.modules()}
    in_mode(model, training=training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Restore the process afterwards, also where a graph that is replayed stops between two of its operators.

    Levels of `torch.func`, gradients, autocast, the default type of numbers, and the random state of the CPU.
    """
    use = "close levels of torch.func that are left open"
    depth = private(torch._C._functorch, "get_dynamic_layer_stack_depth", use)
    close = private(torch._C._functorch, "pop_dynamic_layer_stack_and_undo_to_depth", use)
    levels = depth()
    number, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    devices = {"cpu", getattr(torch.accelerator.current_accelerator(), "type", "cpu")}
    cast = {device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices}
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            if depth() > levels:
                with suppress(RuntimeError):  # that of torch 2.10 closes them, and then fails an assertion of its own
                    close(levels)
            torch.set_default_dtype(number)
            torch.set_grad_enabled(gradients)
            for device, (enabled, kind) in cast.items():
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, kind)


@contextmanager
def without_lines() -> Iterator[None]:
    """Let graphs that are traced not note the line of code of each operator, which takes a fifth of the time.

    Early releases of torch note it whatever they are told.
    """
    before = getattr(fx.config, LINES, None)
    if before is not None:
        setattr(fx.config, LINES, True)
    try:
        yield
    finally:
        if before is not None:
            setattr(fx.config, LINES, before)


@contextmanager
def without_checks() -> Iterator[None]:
    """Let distributions of torch take any numbers: their checks depend on the data, which no export follows."""
    own: Any = torch.distributions.Distribution
    before = getattr(own, CHECKS, __debug__)
    own.set_default_validate_args(False)
    try:
        yield
    finally:
        own.set_default_validate_args(before)


@contextmanager
def without_collection() -> Iterator[None]:
    """Let Python collect no garbage meanwhile: graphs and copies keep what is made, of which it would look at all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def without_autocast_off() -> Iterator[None]:
    """Let blocks that switch autocast off, where it is off, be nothing: an export makes graphs of their own of them."""
    own: Any = torch.autocast
    enter, leave = own.__enter__, own.__exit__
    idle = list[bool]()

    def entered(block: Any) -> Any:
        idle.append(not vars(block).get("_enabled", True) and not torch.is_autocast_enabled(block.device))
        return block if idle[-1] else enter(block)

    def left(block: Any, *error: Any) -> Any:
        return None if idle.pop() else leave(block, *error)

    own.__enter__, own.__exit__ = entered, left
    try:
        yield
    finally:
        own.__enter__, own.__exit__ = enter, leave


@contextmanager
def seeing(mode: AbstractContextManager[Any]) -> Iterator[None]:
    """Let `mode` see the operators that are called.

    Nothing is compiled meanwhile: what a function compiles in front of a mode fails, and fails afterwards too. Nor are
    transformers of torch computed by one operator, which would hide all others.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"), mode:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
