"""Tensors that modules keep of earlier calls, which a smaller model must not compute with."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from shrinkage.compression.calls.modes import has_own_modes, in_mode
from shrinkage.compression.plans.tensors import joined, tensors_of

REGISTERED = ("_parameters", "_buffers", "_modules")


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
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    held = [value for kind in classes for value in vars(kind).values() if type(value) in (dict, list)]
    contents = [copy(value) for value in held]
    try:
        yield
    finally:
        for value, before in zip(held, contents, strict=True):
            if type(value) is dict:
                value.clear()
                value.update(before)
            else:
                value[:] = before
