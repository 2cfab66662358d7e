"""Calls of a model that leave it exactly as it was: buffers, attributes, modes, gradients and random states."""

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import getattr_static
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from shrinkage.diagnostics.random_states import Undo, random_states

CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


@contextmanager
def restored(model: nn.Module, closure: object, data: object = None) -> Iterator[None]:
    """Put back afterwards what calls of `closure` change, whether they raise or not.

    That is, in `model` and in the modules that `closure` refers to: buffers, attributes, `training`, `requires_grad`,
    and `.grad`, which is None meanwhile; and the random states of torch, of Python, of numpy, and of generators that
    are an attribute of a module or belong to the loader `data`. Buffers and tensors in attributes are copied for that.

    Not put back: values of parameters, what stands deeper than in a list or dict of an attribute, and other objects.
    """
    modules = list(dict.fromkeys((*model.modules(), *modules_of(closure))))
    undo = [*random_states(), *map(generator_state, generators_of(modules, data))]
    undo += [put_back for module in modules for put_back in module_state(module)]
    try:
        for module in modules:
            for parameter in module.parameters(recurse=False):
                parameter.grad = None
        yield
    finally:
        for put_back in undo:
            put_back()


def module_state(module: nn.Module) -> list[Undo]:
    """Return what puts the state of one module back, without its children's."""
    attributes = dict(vars(module))
    containers = [value for value in attributes.values() if type(value) in CONTAINERS]
    leaves = [*tree_leaves(list(attributes.values())), *module.buffers(recurse=False)]
    tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter)}
    return [
        partial(bind_back, module, attributes, module.training),
        *(partial(fill_back, container, copy.copy(container)) for container in containers),
        *(partial(write_back, each, each.detach().clone()) for each in tensors.values() if not is_lazy(each)),
        *(partial(differentiate_back, p, p.grad, p.requires_grad) for p in module.parameters(recurse=False)),
    ]


def bind_back(module: nn.Module, attributes: dict[str, Any], training: bool) -> None:
    """Bind the attributes of `module` to the objects that they were."""
    now = vars(module)
    for name in now.keys() - attributes.keys():
        del now[name]
    now.update({name: value for name, value in attributes.items() if now.get(name) is not value})
    if module.training is not training:  # of a scripted module, which does not keep it there
        module.training = training


def fill_back(container: Any, contents: Any) -> None:
    """Let `container` hold the objects that it held."""
    container.clear()
    if isinstance(container, dict | set):
        container.update(contents)
    else:
        container.extend(contents)


def write_back(tensor: Tensor, value: Tensor) -> None:
    """Give `tensor` its shape and value back; nothing is written where they are the same, as in expanded tensors."""
    if tensor.shape != value.shape:
        tensor.data = value
    elif tensor.layout != torch.strided or not torch.equal(tensor, value):
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            tensor.copy_(value)


def differentiate_back(parameter: nn.Parameter, grad: Tensor | None, requires_grad: bool) -> None:
    """Give `parameter` its gradient back, the very tensor."""
    parameter.grad = grad
    if parameter.requires_grad is not requires_grad:
        parameter.requires_grad_(requires_grad)


def generator_state(generator: torch.Generator) -> Undo:
    """Return what puts the state of `generator` back."""
    return partial(generator.set_state, generator.get_state())


def generators_of(modules: Iterable[nn.Module], data: object) -> list[torch.Generator]:
    """Return the generators that are attributes of modules, or draw the batches of a loader."""
    holders: list[object] = list(modules)
    if isinstance(data, DataLoader):
        holders += [data, data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None)]
    values = (value for holder in holders for value in getattr(holder, "__dict__", {}).values())
    found = {id(value): value for value in values if isinstance(value, torch.Generator)}
    return list(found.values())


def modules_of(closure: object) -> list[nn.Module]:
    """Return the modules that `closure` refers to: itself, or through what it calls and holds, four steps far."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    left = [(closure, 0)]
    while left:
        value, depth = left.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found |= {id(module): module for module in value.modules()}
        elif depth < 4:
            left += [(each, depth + 1) for each in references_of(value)]
    return list(found.values())


def references_of(value: Any) -> list[Any]:
    """Return what `value` refers to, where modules may be: not the code of torch, nor what tensors and classes hold."""
    if isinstance(value, list | tuple | set):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        if str(value.__module__).partition(".")[0] == "torch":
            return []
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        named = [value.__globals__[name] for name in names_in(value.__code__) if name in value.__globals__]
        return [*cells, *named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, type | ModuleType | Tensor):
        return []
    return [*getattr(value, "__dict__", {}).values(), getattr_static(type(value), "__call__", None)]


def names_in(code: CodeType) -> set[str]:
    """Return the names that `code` looks up, those of functions inside of it too."""
    return set(code.co_names).union(*(names_in(each) for each in code.co_consts if isinstance(each, CodeType)))
