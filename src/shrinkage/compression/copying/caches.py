"""Tensors that modules keep of earlier calls, which a smaller model must not compute with."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from shrinkage.compression.calls.modes import has_own_modes, in_mode
from shrinkage.compression.copying.rebinding import holds_nothing
from shrinkage.compression.plans.tensors import joined, tensors_of

REGISTERED = ("_parameters", "_buffers", "_modules")
CACHED = type(lru_cache(len))
NOT_SEARCHED = {*sys.stdlib_module_names, "torch"} - {"__main__"}  # of which no global variable is a model's


def caches_of(model: nn.Module) -> list[str]:
    """Return the dotted names of attributes that hold tensors which are neither parameters nor buffers of `model`.

    >>> layer = nn.Linear(2, 2)
    >>> layer.tables = {3: layer.weight.sum(0), 4: None}
    >>> caches_of(nn.Sequential(layer))
    ['0.tables']
    """
    own = {id(tensor) for tensor in tensors_of(model).values()}
    return [
        joined(path, name)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in REGISTERED
        and not holds_nothing(value)
        and any(isinstance(leaf, Tensor) and id(leaf) not in own for leaf in tree_leaves(value))
    ]


def emptied(model: nn.Module) -> nn.Module:
    """Let the modules of `model` empty their caches where their own code does that, and return it.

    That is when they change from training to evaluation or back, or when tensors are moved. Modes are as they were.
    """
    if not caches_of(model):
        return model
    modes, mode = {module: module.training for module in model.modules()}, model.training
    if any(map(has_own_modes, modes)):
        for training in (not mode, mode):
            with suppress(Exception):  # Whatever code does that insists on its mode.
                in_mode(model, training=training)
    if any(type(module)._apply is not nn.Module._apply for module in modes):
        model._apply(lambda tensor: tensor)  # type: ignore[no-untyped-call]  # torch gives it no types
    for module, before in modes.items():
        module.training = before
    return model


@contextmanager
def class_caches_left_out(model: nn.Module) -> Iterator[None]:
    """Leave dictionaries and lists that belong to classes of modules, not to one of them, as they are."""
    held = _containers([value for kind in _classes(model) for value in vars(kind).values()])
    contents = [copy(value) for value in held]
    try:
        yield
    finally:
        for value, before in zip(held, contents, strict=True):
            _restore(value, before)


@contextmanager
def global_caches_left_out(model: nn.Module) -> Iterator[None]:
    """Leave no tensors in what is global where the code of `model` is, or belongs to its classes.

    A call that computes without numbers must not leave any there. What `functools` keeps of results is forgotten, and
    dictionaries and lists that hold other tensors afterwards are as they were.
    """
    values = [value for kind in _classes(model) for value in vars(kind).values()]
    values += [value for file in _files(model) for name, value in [*vars(file).items()] if not name.startswith("__")]
    held = _containers(values)
    contents = [copy(value) for value in held]
    results = [value for value in values if type(value) is CACHED]
    misses = [each.cache_info().misses for each in results]
    try:
        yield
    finally:
        for value, before in zip(held, contents, strict=True):
            if any(isinstance(leaf, Tensor) for leaf in tree_leaves(_others(value, before))):
                _restore(value, before)
        for each, count in zip(results, misses, strict=True):
            if each.cache_info().misses > count:
                each.cache_clear()


def _files(model: nn.Module) -> list[ModuleType]:
    """Return the modules of Python that the classes of `model` are from, and those of functions that they import."""
    own = {kind.__module__ for kind in _classes(model)}
    files = [file for file in map(sys.modules.get, own) if file is not None]
    imported = {
        value.__module__ for file in files for value in vars(file).values() if type(value) in (FunctionType, CACHED)
    }
    return [
        file
        for name in sorted({*own, *imported} - {None})
        if (file := sys.modules.get(name)) is not None and name.partition(".")[0] not in NOT_SEARCHED
    ]


def _classes(model: nn.Module) -> set[type]:
    return {kind for module in model.modules() for kind in type(module).__mro__}


def _containers(values: Sequence[object]) -> list[Any]:
    return [value for value in values if type(value) in (dict, list)]


def _restore(value: Any, before: Any) -> None:
    if type(value) is dict:
        value.clear()
        value.update(before)
    else:
        value[:] = before


def _others(value: Any, before: Any) -> list[Any]:
    """Return what a dictionary or list holds that it did not hold before."""
    known, now = ([*each.values()] if type(each) is dict else each for each in (before, value))
    own = set(map(id, known))
    return [each for each in now if id(each) not in own]
