"""A model as graphs of operators: whole, or child by child where its code depends on the data."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from shrinkage.errors import first_line
from shrinkage.shrink.results import all_tensors_in
from shrinkage.shrink.tensors import joined


@dataclass(frozen=True, eq=False)
class Piece:
    """A module of a model, at the dotted name `path`, as a graph; `leaves` are the tensors and numbers of its call."""

    path: str
    program: ExportedProgram
    leaves: tuple[Any, ...]

    @cached_property
    def owned(self) -> dict[fx.Node, str]:
        """The dotted name in the whole model of the parameter or buffer of each placeholder that is one."""
        return {
            node: joined(self.path, spec.target or "")
            for node, spec in self._placeholders()
            if spec.kind.name in ("PARAMETER", "BUFFER")
        }

    def inputs(self) -> list[fx.Node]:
        """Return the placeholders of the inputs of the call."""
        return [node for node, spec in self._placeholders() if spec.kind.name == "USER_INPUT"]

    def arguments(self, tensors: Mapping[str, Tensor], leaves: Sequence[Any]) -> list[Any]:
        """Return what the graph's placeholders take: the model's `tensors` by name, and the `leaves` of a call."""
        owned, given = self.owned, iter(leaves)
        constants = self.program.constants
        return [
            tensors[owned[node]]
            if node in owned
            else next(given)
            if spec.kind.name == "USER_INPUT"
            else constants[spec.target or ""]
            for node, spec in self._placeholders()
        ]

    def _placeholders(self) -> list[tuple[fx.Node, Any]]:
        """Return the placeholders of the graph, each with what `torch.export` says of it."""
        nodes = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        return list(zip(nodes, self.program.graph_signature.input_specs, strict=True))


def lines(tensor: Tensor, dim: int) -> Tensor:
    """Return `tensor` as a matrix with one row per index along `dim`."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold every module of `model` in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def pieces(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Piece], dict[str, str]]:
    """Return the graphs of `model`, and the first line of the error of each module that has none as a whole."""
    with evaluating(model), torch.no_grad():
        return _pieces(model, "", tuple(args), dict(kwargs))


def _pieces(
    module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Piece], dict[str, str]]:
    failed: dict[str, str] = {}
    for as_tensors in (False, True):
        try:
            with _quietly(), _tensors_alone(module) if as_tensors else nullcontext():
                program = torch.export.export(module, args, kwargs, strict=False)
            return [Piece(path, program, tuple(tree_leaves((args, kwargs))))], {}
        except Exception as error:  # Whatever a model's code does while it is traced: its children are tried instead.
            failed.setdefault(path, first_line(error))
    found = []
    for name, call in _calls_of_children(module, args, kwargs).items():
        more, errors = _pieces(module.get_submodule(name), joined(path, name), *call)
        found += more
        failed |= errors
    return found, failed


@contextmanager
def _tensors_alone(module: nn.Module) -> Iterator[None]:
    """Let `module` return its outputs as a tuple of tensors, and no cache that its call does not ask for.

    An export takes neither dataclasses nor other objects, such as the caches that decoders of transformers return
    unless they are told not to.
    """
    handles = [module.register_forward_hook(lambda _, args, result: tuple(all_tensors_in(result)) or result)]
    for each in module.modules():
        with suppress(ValueError, TypeError):  # of a traced module, which has no signature
            signature = inspect.signature(each.forward)
            if "use_cache" in signature.parameters:
                handles.append(each.register_forward_pre_hook(_without_cache(signature), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without_cache(signature: inspect.Signature) -> Callable[..., Any]:
    """Return a hook that answers with False where a call leaves open whether a cache is wanted."""

    def decide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        bound = signature.bind_partial(*args, **kwargs)
        if bound.arguments.get("use_cache") is not None:
            return None
        bound.arguments["use_cache"] = False
        return bound.args, bound.kwargs

    return decide


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold back what an export says of a copy that nobody trains, and the graph that it prints where it fails."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.filterwarnings("ignore", "The tensor attributes? .* (was|were) assigned during export")
            yield
    finally:
        log.disabled = before


def _calls_of_children(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the first call that `module` makes of each of its children, those in lists and dictionaries too."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: str) -> Any:
        return lambda _, args, kwargs: calls.setdefault(name, (args, kwargs)) and None

    handles = [
        child.register_forward_pre_hook(note(name), with_kwargs=True) for name, child in _children(module)
    ]  # fmt: skip
    try:
        module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _children(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _children(child, joined(path, name))
        else:
            yield joined(path, name), child
