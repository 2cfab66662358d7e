"""A smaller model in one safetensors file: its tensors, and in the header the plan that makes it from its class."""

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.cost import Cost, byte_count, parameter_count
from shrinkage.compression.copying.copies import plain
from shrinkage.compression.plans.applying import apply_plan
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.tensors import joined, layer_of, saved_shapes
from shrinkage.compression.removal.summary import LayerSummary, ShrinkReport
from shrinkage.compression.shrink import Shrunk
from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.errors import PlanError, first_line, listed, shown

LISTED = 3  # differences that a message names


def save_smaller(path: str | os.PathLike[str], small: Shrunk | nn.Module, *, plan: ShrinkPlan | None = None) -> None:
    """Save a smaller model into one safetensors file that `load_smaller` reads.

    Args:
        path: of the file. An earlier one of this name is replaced once all is written.
        small: what `shrink` returned, or a smaller model, then with its plan. The model may have been trained on since.
        plan: of a model; what `apply_plan` made it with, or `ShrinkPlan.then` composed.

    The file holds the `state_dict`, tied tensors once, and its header the plan. It is an ordinary file of safetensors,
    and nothing in it is pickled.

    Raises:
        PlanError: the model has other shapes than the plan gives it, or holds what such a file cannot: tensors that are
            sparse, quantized, sharded, or without numbers (the meta device), and entries that are no tensors.
        TypeError: a model without a plan, or a plan beside what `shrink` returned.
        ImportError: safetensors is not installed.

    >>> import tempfile
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     model[0].weight[1] = 0
    >>> from shrinkage import shrink
    >>> small = shrink(model, torch.randn(5, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_smaller(f"{folder}/small.safetensors", small)
    ...     os.listdir(folder)
    ['small.safetensors']
    """
    if isinstance(small, Shrunk):
        if plan is not None:
            raise TypeError("expected no plan beside what `shrink` returned, which has one")
        return save_smaller(path, small.model, plan=small.plan)
    if plan is None:
        raise TypeError(f"expected what `shrink` returned, or a model and its plan=, found {shown(small)}")
    model, path = plain(small), Path(path)
    entries = model.state_dict(keep_vars=True)
    _check_can_be_saved(entries)
    _check_is_smaller(model, plan)
    first = _first_names(entries)
    header = {
        "format": "pt",
        "plan": plan.to_json(),
        "tied": json.dumps({name: other for name, other in first.items() if name != other}),
        "unsaved": json.dumps({name: str(buffer.dtype) for name, buffer in _unsaved(model)}),
    }
    _write(path, _in_memory_of_their_own({name: entries[name].detach() for name in first.values()}), header)


def load_smaller(path: str | os.PathLike[str], build: Callable[[], nn.Module], *, low_memory: bool = False) -> Shrunk:
    """Return the smaller model that `save_smaller` wrote, with its plan.

    Args:
        path: of the file.
        build: makes the dense model, with any weights. The smaller one has its devices and modes, and the types of
            numbers that were saved.
        low_memory: build it on the meta device, so that the dense model takes no memory; the smaller one is on the CPU.

    The report tells parameters and bytes. What was counted, timed and compared with example inputs is not saved.

    Raises:
        PlanError: the file has no plan or is damaged, `build` makes another model than the plan is of, or ties tensors
            that were saved apart; with `low_memory`, a model that cannot be built on the meta device, or has buffers
            that are not saved.
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.

    >>> import tempfile
    >>> def build():
    ...     return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> dense = build()
    >>> plan = ShrinkPlan.of(dense, {"0.weight": {0: (0, 2)}, "0.bias": {0: (0, 2)}, "2.weight": {1: (0, 2)}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_smaller(f"{folder}/small.safetensors", apply_plan(dense, plan), plan=plan)
    ...     load_smaller(f"{folder}/small.safetensors", build)
    Shrunk(Sequential, 23 to 16 parameters)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    header, state = _read(path)
    plan = ShrinkPlan.from_json(header["plan"])
    dense = plain(_built(build, low_memory))
    model = apply_plan(dense, plan)
    for name, other in json.loads(header["tied"]).items():
        state[name] = state[other]
    first = _first_names(model.state_dict(keep_vars=True))
    apart = [name for name, other in first.items() if state.get(name) is not state.get(other)]
    if apart:
        raise PlanError(
            f"{apart[0]!r} and {first[apart[0]]!r} are tied in the model that `build` makes, and were saved as two "
            "tensors: build it as the dense one was"
        )
    if low_memory:
        _fill_empty(model, state, first)
    else:
        _fill(model, state, json.loads(header["unsaved"]))
    return Shrunk(model, plan, _report(dense, model, plan))


def _in_memory_of_their_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors`, contiguous, with copies of those that share memory, which safetensors refuses."""
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        if shared[tensor.untyped_storage().data_ptr()] > 1
        else tensor.contiguous()
        for name, tensor in tensors.items()
    }


def _write(path: Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a file, which is there as a whole or not at all."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to save {path.name!r} in: make it first")
    beside = path.with_name(f"{path.name}.part")
    try:
        _safetensors().save_file(dict(state), beside, metadata=dict(header))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("smaller models are saved with safetensors: pip install safetensors") from error
    return safetensors.torch


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the header and the tensors of a file."""
    torch_tensors = _safetensors()
    try:
        with torch_tensors.safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
        state = dict(torch_tensors.load_file(path))
    except Exception as error:
        raise PlanError(f"{path.name!r} is no file of safetensors, or damaged: {first_line(error)}") from error
    if not {"plan", "tied", "unsaved"} <= header.keys():
        raise PlanError(f"{path.name!r} has no plan in its header: expected a file that save_smaller wrote")
    return header, state


def _built(build: Callable[[], nn.Module], low_memory: bool) -> nn.Module:
    if not low_memory:
        return build()
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:
        raise PlanError(
            f"`build` fails on the meta device with {type(error).__name__}, {first_line(error)}: low_memory=False"
        ) from error


def _fill(model: nn.Module, state: Mapping[str, Tensor], unsaved: Mapping[str, str]) -> None:
    """Copy `state` into a model, whose tensors take the types of numbers that were saved."""
    kinds = {name: tensor.dtype for name, tensor in state.items()}
    kinds |= {name: getattr(torch, kind.removeprefix("torch.")) for name, kind in unsaved.items()}
    for name, tensor in {**dict(model.named_buffers()), **dict(model.named_parameters())}.items():
        if kinds.get(name, tensor.dtype) != tensor.dtype:
            tensor.data = tensor.data.to(kinds[name])
    with _in_words():
        model.load_state_dict(_with_versions(state, model))


def _with_versions(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Return `state` with the versions of the modules of `model`: some ask for theirs, which no file has."""
    found = OrderedDict(state)
    found._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # where torch has them
    return found


def _fill_empty(model: nn.Module, state: Mapping[str, Tensor], first: Mapping[str, str]) -> None:
    """Put `state` into a model on the meta device, and tie again what was tied."""
    empty = [name for name, buffer in _unsaved(model) if buffer.is_meta]
    if empty:
        raise PlanError(
            f"buffers that are not saved cannot be made on the meta device: {listed(empty, LISTED)}: low_memory=False"
        )
    with _in_words():
        model.load_state_dict(_with_versions(state, model), assign=True)
    tensors = model.state_dict(keep_vars=True)
    for name, other in first.items():
        owner, _, attribute = name.rpartition(".")
        if name != other:
            setattr(model.get_submodule(owner), attribute, tensors[other])


@contextmanager
def _in_words() -> Iterator[None]:
    """Raise `PlanError` where a state_dict does not fit the model."""
    try:
        yield
    except RuntimeError as error:
        raise PlanError(f"the file does not fit the model that its plan makes: {error}") from error


def _first_names(entries: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each entry of a state_dict the first name that its tensor has there."""
    known: dict[int, str] = {}
    return {name: known.setdefault(id(tensor), name) for name, tensor in entries.items()}


def _unsaved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of a model that are not part of its state_dict, by dotted name."""
    for path, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield joined(path, name), buffer


def _check_can_be_saved(entries: Mapping[str, object]) -> None:
    """Raise `PlanError` unless all entries of a state_dict are dense tensors with numbers."""
    for name, entry in entries.items():
        if not isinstance(entry, Tensor):
            raise PlanError(f"{name!r} is {shown(entry)}: expected tensors alone, since safetensors holds nothing else")
        if is_dtensor(entry):
            raise PlanError(f"{name!r} is sharded over processes: gather the model before, and save it in one of them")
        if entry.is_meta:
            raise PlanError(f"{name!r} is on the meta device and holds no numbers: load the weights first")
        if entry.layout != torch.strided or entry.is_quantized:
            raise PlanError(f"{name!r} is stored as {entry.layout}, {entry.dtype}: make it dense first")


def _check_is_smaller(model: nn.Module, plan: ShrinkPlan) -> None:
    """Raise `PlanError` unless the tensors of `model` have the shapes that `plan` gives them."""
    found = saved_shapes(model, plan.keep)
    expected = {name: plan.shape_after(name) for name in plan.shapes}
    new = {joined(path, "bias") for path in plan.biases}
    wrong = [name for name in {**expected, **found} if name not in new and found.get(name) != expected.get(name)]
    if not wrong and new <= found.keys():
        return
    if found == dict(plan.shapes):
        raise PlanError("the model is the dense one: expected the smaller one, that `apply_plan` or `shrink` returned")
    texts = [
        f"{name!r} should be {expected.get(name, 'absent')}, is {found.get(name, 'absent')}"
        for name in [*wrong, *(new - found.keys())][:LISTED]
    ]
    raise PlanError(f"the model is not the one that the plan makes: {'; '.join(texts)}: give the plan of this model")


def _report(dense: nn.Module, small: nn.Module, plan: ShrinkPlan) -> ShrinkReport:
    """Return what is known without a call of the models: parameters and bytes."""
    before, after = (Cost(parameter_count(model), byte_count(model), 0, None) for model in (dense, small))
    tensors: dict[str, list[str]] = {}
    for name in plan.keep:
        tensors.setdefault(layer_of(name), []).append(name)
    layers = []
    for path, names in tensors.items():
        shapes = {name: (plan.shapes[name], plan.shape_after(name)) for name in names}
        old, new = (model.get_submodule(path) for model in (dense, small))
        each = [Cost(parameter_count(layer), byte_count(layer), 0, None) for layer in (old, new)]
        layers.append(LayerSummary(path, shapes, *each))
    return ShrinkReport(before, after, float("nan"), tuple(layers), (), {}, {}, (), (), (), {}, ())
