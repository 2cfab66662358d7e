"""A model as graphs of operators: whole, or child by child where its code depends on the data."""

import inspect
import logging
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property, partial
from io import StringIO
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from shrinkage.compression.calls.modes import (
    evaluating,
    process_as_it_was,
    without_autocast_off,
    without_checks,
    without_collection,
    without_lines,
)
from shrinkage.compression.calls.results import all_tensors_in
from shrinkage.compression.plans.attention import PrunedMultiheadAttention
from shrinkage.compression.plans.tensors import joined
from shrinkage.compression.tracing.dead_code import without_dead_code
from shrinkage.compression.tracing.own_data import FollowingData
from shrinkage.compression.tracing.recurrent import Direction, recurrent_taken_apart
from shrinkage.compression.tracing.recurrent_calls import Following
from shrinkage.errors import first_line


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A module of a model, at the dotted name `path`, as a graph; `leaves` are the tensors and numbers of its call.

    `recurrent` has the weights of the recurrent layers that were taken apart, those of one call together.
    """

    path: str
    program: ExportedProgram
    leaves: tuple[Any, ...]
    recurrent: tuple[tuple[Direction, ...], ...] = ()

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


def subgraphs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, training: bool = False
) -> tuple[list[Subgraph], dict[str, str]]:
    """Return the graphs of `model`, and the first line of the error of each module that has none as a whole.

    They are those of evaluation mode, or of `training`.
    """
    with process_as_it_was(), evaluating(model, training=training), torch.no_grad(), without_autocast_off():
        return _subgraphs(model, "", tuple(args), dict(kwargs))


def _subgraphs(
    module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Subgraph], dict[str, str]]:
    failed: dict[str, str] = {}
    ways: list[tuple[bool, bool]] = [(False, False), (True, False)]  # as tensors alone, and with what `data` does
    for as_tensors, of_data in ways:
        try:
            with _quietly(), without_lines(), process_as_it_was(), without_checks(), _masks_as_given(module):
                with _following_layers(module), _tensors_alone(module) if as_tensors else nullcontext():
                    with FollowingData() if of_data else nullcontext(), without_collection():
                        program = torch.export.export(module, args, kwargs, strict=False)
                    program = _without_levels(program)
                    recurrent = recurrent_taken_apart(program.graph)
                    subgraph = Subgraph(path, program, tuple(tree_leaves((args, kwargs))), recurrent)
                    without_dead_code(program.graph, subgraph.owned)
                    return [subgraph], {}
        except Exception as error:  # Whatever a model's code does while it is traced: its children are tried instead.
            failed.setdefault(path, _reason(error))
            if NOT_SEEN in str(error) and len(ways) == 2:
                ways[1:] = [(False, True), (True, True)]
    found = []
    try:
        calls = _calls_of_children(module, args, kwargs)
    except Exception:
        if path:  # What is called inside of a transform of functions cannot be called outside of it.
            return [], failed
        raise
    for name, call in calls.items():
        more, errors = _subgraphs(module.get_submodule(name), joined(path, name), *call)
        found += more
        failed |= errors
    return found, failed


def _reason(error: Exception) -> str:
    """Return the first line of an error of the exporter, or in plain words what it means."""
    if any(_packs(frame) for frame, _ in walk_tb(error.__traceback__)):
        return PACKED
    line = first_line(error)
    return next((words for phrase, words in MEANINGS.items() if phrase in line), line)


def _packs(frame: FrameType) -> bool:
    """Return whether a call of code in torch packs sequences, or is that of a recurrent layer which is given some."""
    code = frame.f_globals.get("__name__")
    return code == "torch.nn.utils.rnn" or (
        code == "torch.nn.modules.rnn" and frame.f_locals.get("batch_sizes") is not None
    )


PACKED = (
    "it is given packed sequences, or packs some in a way that torch.export does not follow, as by lengths of `tolist`:"
    " give an example that is padded, without lengths; the smaller model takes packed calls like the dense one"
)
NOT_SEEN = "found a fake tensor in the exported program"
MEANINGS = {
    NOT_SEEN: "torch.export does not follow an operator of it, such as torch.autograd.grad inside of the call",
    "inside a function being vmapped": "it is called inside of a transform of functions, such as torch.vmap, and can"
    " not be exported by itself",
    "data-dependent": "its code asks for a number that depends on the data, as in `if x.sum() > 0`, which torch.export"
    " does not follow: write it with torch.where or torch.cond",
    "view functorch tensor": "torch.export does not follow its transforms of functions, such as torch.func.grad",
}


def _following_layers(module: nn.Module) -> AbstractContextManager[Any]:
    """Let recurrent layers in `module` be one operator each."""
    return Following() if any(isinstance(each, nn.RNNBase) for each in module.modules()) else nullcontext()


def _without_levels(program: ExportedProgram) -> ExportedProgram:
    """Return `program` with the operators that those under `torch.vmap` and other transforms of functions come to."""
    targets = [getattr(node.target, "__module__", "") or "" for node in program.graph.nodes]
    return program.run_decompositions({}) if any(name.startswith("torch._functorch") for name in targets) else program


@contextmanager
def _masks_as_given(module: nn.Module) -> Iterator[None]:
    """Let the transformers of torch in `module` take masks as they are, without a test whether these are causal.

    Masks of single heads hold none of these: a smaller layer takes those of the heads that it has.
    """
    with ExitStack() as hooks:
        for each in module.modules():
            if isinstance(each, nn.TransformerEncoder | nn.TransformerDecoder):
                hooks.callback(_answering_no(each, {"is_causal", "tgt_is_causal", "memory_is_causal"}))
            elif isinstance(each, PrunedMultiheadAttention):
                vars(each)["of_heads"] = partial(_with_one_mask, each)
                hooks.callback(vars(each).pop, "of_heads")
        yield


def _with_one_mask(layer: PrunedMultiheadAttention, mask: Tensor, samples: int) -> Tensor:
    """Return a mask of attention as `layer` takes it; what any head sees as that of all, if each has its own."""
    each = type(layer).of_heads(layer, mask, samples)
    if each.shape[1] == 1:
        return each
    seen = (each.amin if each.dtype == torch.bool else each.amax)(1, keepdim=True)
    return seen.expand(-1, layer.num_heads, -1, -1)


@contextmanager
def _tensors_alone(module: nn.Module) -> Iterator[None]:
    """Let `module` return its outputs as a tuple of tensors, and no cache that its call does not ask for.

    An export takes neither dataclasses nor other objects, such as the caches that decoders of transformers return
    unless they are told not to.
    """
    with ExitStack() as hooks:
        results = module.register_forward_hook(lambda _, args, result: tuple(all_tensors_in(result)) or result)
        hooks.callback(results.remove)
        for each in module.modules():
            hooks.callback(_answering_no(each, {"use_cache"}))
        yield


def _answering_no(module: nn.Module, questions: Container[str]) -> Callable[[], None]:
    """Set to False those arguments of `questions` that calls of `module` leave out; return what ends that."""
    try:
        signature = inspect.signature(module.forward)
    except (ValueError, TypeError):  # of a traced module, which has no signature
        return lambda: None
    asked = [name for name in signature.parameters if name in questions]
    if not asked:
        return lambda: None

    def decide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = dict(zip(signature.parameters, args, strict=False))  # by position, as it has to stay
        answers = {name: False for name in asked if (given | kwargs).get(name) is None}
        placed = tuple(answers.get(name, value) for name, value in given.items())
        return placed + args[len(placed) :], kwargs | {name: no for name, no in answers.items() if name not in given}

    return module.register_forward_pre_hook(decide, with_kwargs=True).remove


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the warnings of an export about a copy that nobody trains, and the graph that it prints if it fails."""
    logs = [
        logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")
    ]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.filterwarnings("ignore", "The tensor attributes? .* (was|were) assigned during export")
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)  # which torch itself uses
            yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


def _calls_of_children(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the first call that `module` makes of each of its children, those in lists and dictionaries too."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: str) -> Any:
        return lambda _, args, kwargs: calls.setdefault(name, (args, kwargs)) and None

    handles = [
        child.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, child in _children(module)
        if not isinstance(child, torch.jit.ScriptModule)  # which takes no hooks and has no operators to export
    ]
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


def sources(node: Any) -> set[Any]:
    """Return `node` and all that it is computed from."""
    return reachable([node], lambda each: each.all_input_nodes)


def reachable(start: Iterable[Any], following: Callable[[Any], Iterable[Any]]) -> set[Any]:
    """Return the nodes of `start` and all that come after them, by what is `following` each.

    >>> sorted(reachable([3], lambda number: [number - 1] if number else []))
    [0, 1, 2, 3]
    """
    found, open_ = set(), list(start)
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_ += following(node)
    return found
