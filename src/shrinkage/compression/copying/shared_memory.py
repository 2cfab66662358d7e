"""Whether a copy of a model computes with tensors of its own."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from shrinkage.compression.calls.inputs import Call, cloned
from shrinkage.compression.calls.modes import evaluated, process_as_it_was, seeing
from shrinkage.compression.calls.outputs import outputs
from shrinkage.compression.copying.caches import emptied
from shrinkage.compression.copying.copies import copy_with
from shrinkage.compression.copying.rebinding import Memo, reached
from shrinkage.compression.plans.tensors import joined, tensors_of
from shrinkage.errors import ShrinkError, first_line, warn_user


class Reads:
    """Notes which of the memory `watched`, each block under a name, calls of `model` read, and in which module."""

    def __init__(self, model: nn.Module, watched: Mapping[int, str]) -> None:
        self.model, self.watched = model, watched
        self.found: dict[str, str] = {}
        self.inside: list[str] = [""]

    def note(self, *given: Any) -> None:
        """Note the tensors in `given` whose memory is watched."""
        for leaf in tree_leaves(given):
            place = memory_of(leaf)
            if place in self.watched:
                self.found.setdefault(self.watched[place], self.inside[-1])

    def look(self, call: Call) -> Exception | None:
        """Call the model, and note what operators read, or functions of torch where no mode can see the operators.

        Returns what the model raises under the last of the modes, if it raises under all.
        """
        modes: tuple[AbstractContextManager[Any], ...] = (Operators(self), Functions(self))
        for mode in modes:
            failure = self._failure(call, mode)
            if failure is None:
                break
        return failure

    def _failure(self, call: Call, mode: AbstractContextManager[Any]) -> Exception | None:
        """Call the model under `mode`, and return what it raises."""
        args, kwargs = cloned(call)
        self.inside = [""]
        try:
            with ExitStack() as hooks:
                for path, module in self.model.named_modules():
                    if isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                        continue
                    hooks.callback(module.register_forward_pre_hook(self._entering(path), prepend=True).remove)
                    hooks.callback(module.register_forward_hook(self._leaving, always_call=True).remove)
                with process_as_it_was(), torch.no_grad(), seeing(mode):
                    self.model(*args, **kwargs)
        except Exception as failure:
            return failure
        return None

    def _entering(self, path: str) -> Any:
        return lambda *_: self.inside.append(path)

    def _leaving(self, *_: object) -> None:
        self.inside.pop()


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """Tell `reads` the arguments of each operator, and of those that it calls, as `cond` does its branch."""

    supports_higher_order_operators = True

    def __init__(self, reads: Reads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note what it reads."""
        self.reads.note(args, kwargs)
        return func(*tree_map(self._inside, args), **(kwargs or {}))

    def _inside(self, program: Any) -> Any:
        """Return `program`, if it is one that an operator calls, to run under this mode too."""
        if not callable(program) or isinstance(program, Tensor):
            return program

        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return program(*args, **kwargs)

        return run


class Functions(TorchFunctionMode):
    """Tell `reads` the arguments of each function of torch; of attributes such as `shape`, nothing is computed."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and note what it reads."""
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != "__get__" and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.reads.note(args, kwargs)
        return result


def memory_of(leaf: object) -> int:
    """Return where the numbers of a tensor begin in memory; 0 for what is none, or has no memory of its own."""
    if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
        with suppress(RuntimeError, NotImplementedError):  # tensors that stand for others
            return leaf.untyped_storage().data_ptr()
    return 0


def check_reads_own(model: nn.Module, call: Call) -> None:
    """Raise `ShrinkError` if a copy of `model` computes with tensors of the model itself, or with what is out of date.

    Functions that an attribute holds are bound to the layers of the copy; global variables, and what the methods of a
    class close over, cannot be. What was computed from parameters once, and kept, does not follow those of a copy.
    """
    memo = Memo(model, {})
    probe = emptied(evaluated(copy_with(memo, model)))
    kept = _computed_once(model, memo)
    reads = Reads(probe, _memory_of_layers(model) | {memory_of(tensor): name for name, tensor in kept.items()})
    versions = {name: tensor._version for name, tensor in kept.items()}
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False  # so that a layer of the model, if it is called, keeps its statistics
        failure = reads.look(call)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if failure is not None:
        _warn_if_alone(model, call, failure)
    for name, path in reads.found.items():
        where = f"`{path or 'the model'}`"
        if name not in kept:
            raise ShrinkError(
                f"a copy of the {type(model).__name__} computes with {name!r} of the model that was given, in {where}"
                f"{_through(model.get_submodule(path), tensors_of(model)[name])}: layers are bound to a copy if its"
                " modules hold them as attributes, and not if they are global variables"
            )
        written = kept[name]._version > versions[name]
        if not written and any(each is kept[name] for each in reached(_attribute(probe, name))):
            raise ShrinkError(
                f"{where} computes with its attribute {name!r}, which was made from parameters and does not follow"
                " those of a copy: compute it in `forward`, or make it a buffer if it should not follow"
            )


def _warn_if_alone(model: nn.Module, call: Call, failure: Exception) -> None:
    """Warn that nobody knows what a copy reads, where its call fails with `failure` only while somebody looks."""
    try:
        outputs(model, call)
    except Exception:  # The calls that follow tell what is wrong with it.
        return
    warn_user(
        f"whether a copy of the {type(model).__name__} computes with layers of its own is not known, since the call"
        f" fails while its operators are watched: {first_line(failure)}. The new model may hold on to layers of this"
        " one that are global variables"
    )


def _memory_of_layers(model: nn.Module) -> dict[int, str]:
    """Return where the parameters of `model`, and the buffers of the layers of torch, lie, and their names."""
    of_torch = {
        id(buffer)
        for module in model.modules()
        if type(module).__module__.startswith("torch.nn.")
        for buffer in module.buffers(recurse=False)
    }
    named = tensors_of(model).items()
    found = {memory_of(t): name for name, t in named if isinstance(t, nn.Parameter) or id(t) in of_torch}
    return {place: name for place, name in found.items() if place}


def _computed_once(model: nn.Module, memo: Memo) -> dict[str, Tensor]:
    """Return what the copy has of attributes that were computed from parameters, or share their memory, by name."""
    registered = {id(tensor) for tensor in tensors_of(model).values()}
    memory = {memory_of(parameter) for parameter in model.parameters()} - {0}
    found = {}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            for each in reached(value, entering_layers=False):
                if isinstance(each, Tensor) and id(each) not in registered and id(each) in memo:
                    if not each.is_leaf or memory_of(each) in memory:
                        found[joined(path, attribute)] = memo[id(each)]
    return {name: tensor for name, tensor in found.items() if memory_of(tensor)}


def _attribute(model: nn.Module, name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    return vars(model.get_submodule(path)).get(attribute)


def _through(module: nn.Module, tensor: Tensor) -> str:
    """Return by which function in an attribute of `module` it comes to `tensor`, in words; empty if it is unknown."""
    for attribute, value in vars(module).items():
        functions = [each for each in reached(value, entering_functions=True) if isinstance(each, FunctionType)]
        named = [f.__globals__[name] for f in functions for name in f.__code__.co_names if name in f.__globals__]
        if any(each is tensor for held in named for each in reached(held, entering_functions=True)):
            return f", through the function in its attribute {attribute!r}"
    return ""
