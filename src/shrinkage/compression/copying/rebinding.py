"""What a deep copy of a model shares with it and has to bind anew: functions that hold layers, and weak references."""

import copy
import copyreg
import functools
import gc
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Rebind = Callable[["Memo", Any], Any]

PLAIN = (type, types.ModuleType, types.CodeType, types.FrameType, str, bytes, int, float, complex, type(None))
COPYING = (
    "__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs__", "__getnewargs_ex__",
)  # fmt: skip
ATOMS = frozenset((type, str, bytes, bool, int, float, complex, type(None)))
EMPTY = frozenset((list, dict, set, OrderedDict))
CONTAINERS = (list, tuple, dict, set, frozenset, types.CellType, functools.partial)


class Memo(dict[int, Any]):
    """The memo of a deep copy of `model` that has other things in the place of those `replaced`.

    `deepcopy` asks its memo for each object before it looks at it. It would share functions with the model: those that
    hold layers or tensors of it, in a closure, in defaults or in attributes, are made anew when they are asked for,
    with copies of what they hold. So are weak references. A cell that holds nothing of the model stays shared, as a
    list in which a hook collects outputs. What was computed with gradients, which `deepcopy` refuses, is copied without
    them. Modules are copied as `deepcopy` does it, in less time.
    """

    def __init__(self, model: nn.Module, replaced: Mapping[Any, object]) -> None:
        super().__init__({id(old): new for old, new in replaced.items()})
        seen: dict[int, object] = {}
        found = list(reached(model, seen=seen))
        self.own = {id(each): each for each in found if _is(each, nn.Module, Tensor)}
        self.shared: dict[int, tuple[Any, Rebind]] = {}
        inside = [_held(each) for each in found if type(each) in REBINDS]
        for each in (*found, *reached(inside, entering_functions=True, seen=seen)):
            if _is(each, Tensor) and not _is(each, nn.Parameter) and id(each) not in self and _is_refused(each):
                self[id(each)] = _without_history(each)
            rebind = REBINDS.get(type(each))
            if rebind is not None and self.holds(each):
                self.shared[id(each)] = each, rebind
            elif _is(each, nn.Module) and _is_copied_as_usual(each):
                self.shared[id(each)] = each, _module

    def get(self, key: int, default: Any = None) -> Any:
        """Return the copy of the object with the identity `key`, made now if it is one to bind anew."""
        if key in self.shared and key not in self:
            old, rebind = self.shared[key]
            self.setdefault(key, rebind(self, old))
        return super().get(key, default)

    def holds(self, held: object) -> bool:
        """Return whether `held` leads to a layer or tensor of the model, or holds a layer of nobody directly."""
        seen: dict[int, object] = {}
        open_ = [(held, True)]
        while open_:
            each, direct = open_.pop()
            if id(each) in self.own or (direct and _is(each, nn.Module, nn.Parameter)):
                return True
            if id(each) in seen or _is(each, Tensor):
                continue
            seen[id(each)] = each
            direct = direct and type(each) in {*CONTAINERS, *REBINDS}
            open_ += [(item, direct) for item in _held(each)]
        return False

    def copied(self, held: Any) -> Any:
        """Return a copy of what a function holds.

        An object that only leads to the model, such as a trainer with its files, is shared where it cannot be copied.
        """
        before = dict(self)
        try:
            return copy.deepcopy(held, self)
        except Exception:
            if type(held) in CONTAINERS or _is(held, nn.Module):
                raise
            self.clear()
            self.update(before)
            return held


def reached(
    start: object, *, entering_functions: bool = False, entering_layers: bool = True,
    seen: dict[int, object] | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Yield what `start` holds, directly or not, each once: what functions and what layers hold as well, if asked.

    What is `seen` is left out, and noted there.
    """
    seen = {} if seen is None else seen
    open_ = [start]
    while open_:
        each = open_.pop()
        if id(each) in seen or type(each) in PLAIN:
            continue
        seen[id(each)] = each
        yield each
        closed = type(each) in REBINDS and type(each) is not types.MethodType
        if (entering_functions or not closed) and (entering_layers or not _is(each, nn.Module)):
            open_ += _held(each)


def _held(each: Any) -> list[Any]:
    """Return what an object holds itself: no classes, no modules of Python, no global variables."""
    return _holding(type(each))(each)  # type: ignore[arg-type]  # classes have hashes


@functools.lru_cache(maxsize=1024)
def _holding(kind: type) -> Callable[[Any], list[Any]]:
    """Return the function that tells what objects of a class hold."""
    if issubclass(kind, PLAIN):
        return lambda each: []
    if issubclass(kind, nn.Module):
        return lambda each: [held for held in vars(each).values() if not holds_nothing(held)]
    if issubclass(kind, types.FunctionType):
        return lambda each: [*(each.__closure__ or ()), each.__defaults__, each.__kwdefaults__, vars(each)]
    if issubclass(kind, weakref.ref | weakref.ProxyType | weakref.CallableProxyType):
        return lambda each: [_target(each)]
    return _held_by_tensor if issubclass(kind, Tensor) else gc.get_referents


def _held_by_tensor(each: Tensor) -> list[Any]:
    return [vars(each), each.grad if each.is_leaf and not _is(each, nn.Parameter) else None]


def holds_nothing(each: Any) -> bool:
    """Return whether `each` is a number, a text or an empty container, which leads to no tensor and no module."""
    kind = type(each)
    return kind in ATOMS or (kind in EMPTY and not each and not getattr(each, "__dict__", None))


def _is_refused(tensor: Tensor) -> bool:
    """Return whether `deepcopy` makes no copy of `tensor`: it has a history, or compressed rows or columns."""
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        return True
    return not tensor.is_leaf or (tensor.grad is not None and not tensor.grad.is_leaf)


def _without_history(tensor: Tensor) -> Tensor:
    result = tensor.detach().clone()
    if tensor.is_leaf and tensor.grad is not None:
        result.requires_grad_().grad = tensor.grad.detach().clone()
    return result


def _is(each: object, *kinds: type) -> bool:
    """Return whether `each` itself is of one of `kinds`; `isinstance` asks what a weak proxy stands for."""
    return issubclass(type(each), kinds)


def _target(weak: Any) -> Any:
    """Return what a weak reference or proxy refers to, None if that is gone."""
    try:
        return weak() if _is(weak, weakref.ref) else weak.__init__.__self__
    except ReferenceError:
        return None


def _is_copied_as_usual(module: nn.Module) -> bool:
    """Return whether `module` has no code of its own that copies it."""
    kind: Any = type(module)
    return _has_usual_code(kind) and vars(module).keys().isdisjoint(COPYING) and kind not in copyreg.dispatch_table


@functools.lru_cache(maxsize=1024)
def _has_usual_code(kind: type[nn.Module]) -> bool:
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in COPYING)


def _module(memo: Memo, old: nn.Module) -> nn.Module:
    """Return what `deepcopy` makes of a module, most of whose many containers are empty."""
    new = memo[id(old)] = type(old).__new__(type(old))
    state = _copied_values(memo, vars(old))
    new.__setstate__(state)  # type: ignore[no-untyped-call]  # torch gives it no types
    return new


def _copied_values(memo: Memo, values: dict[str, Any]) -> dict[str, Any]:
    return {name: old if type(old) in ATOMS else _attribute(memo, old) for name, old in values.items()}


def _attribute(memo: Memo, old: Any) -> Any:
    kind = type(old)
    if kind is tuple and all(type(each) in ATOMS for each in old):
        return old
    named = kind is dict and all(type(name) is str for name in old)
    if id(old) in memo or not (named or holds_nothing(old)):
        return copy.deepcopy(old, memo)
    made = memo[id(old)] = kind()
    if named:
        made.update(_copied_values(memo, old))
    return made


def _function(memo: Memo, old: types.FunctionType) -> types.FunctionType:
    cells = tuple(_cell(memo, cell) for cell in old.__closure__ or ())
    new = types.FunctionType(old.__code__, old.__globals__, old.__name__, None, cells or None)
    memo[id(old)] = new
    new.__qualname__, new.__module__, new.__doc__ = old.__qualname__, old.__module__, old.__doc__
    new.__annotations__ = dict(old.__annotations__)
    for cell, made in zip(old.__closure__ or (), cells, strict=True):
        if made is not cell and _is_empty(made):
            made.cell_contents = memo.copied(cell.cell_contents)
    new.__defaults__, new.__kwdefaults__ = _items(memo, old.__defaults__), _values(memo, old.__kwdefaults__)
    vars(new).update(_values(memo, vars(old)) or {})
    return new


def _cell(memo: Memo, cell: types.CellType) -> types.CellType:
    """Return a cell for a copy of what `cell` holds, the same for all functions that have it; itself to share it."""
    if id(cell) not in memo:
        memo[id(cell)] = types.CellType() if not _is_empty(cell) and memo.holds(cell.cell_contents) else cell
    made: types.CellType = memo[id(cell)]
    return made


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _items(memo: Memo, items: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return items and tuple(memo.copied(item) if memo.holds(item) else item for item in items)


def _values(memo: Memo, values: dict[str, Any] | None) -> dict[str, Any] | None:
    return values and {name: memo.copied(value) if memo.holds(value) else value for name, value in values.items()}


def _method(memo: Memo, old: types.MethodType) -> types.MethodType:
    return types.MethodType(copy.deepcopy(old.__func__, memo), copy.deepcopy(old.__self__, memo))


def _builtin_method(memo: Memo, old: types.BuiltinMethodType) -> Any:
    return getattr(copy.deepcopy(old.__self__, memo), old.__name__)


def _cached(memo: Memo, old: Any) -> Any:
    return functools.lru_cache(**old.cache_parameters())(copy.deepcopy(old.__wrapped__, memo))


def _reference(memo: Memo, old: "weakref.ref[Any]") -> "weakref.ref[Any]":
    return type(old)(copy.deepcopy(old(), memo))


def _proxy(memo: Memo, old: Any) -> Any:
    return weakref.proxy(copy.deepcopy(_target(old), memo))


def _weak_dictionary(memo: Memo, old: Any) -> Any:
    return type(old)([(copy.deepcopy(key, memo), copy.deepcopy(value, memo)) for key, value in old.items()])


REBINDS: dict[type, Rebind] = {
    types.FunctionType: _function,
    types.MethodType: _method,
    types.BuiltinMethodType: _builtin_method,
    type(functools.lru_cache(len)): _cached,
    weakref.ref: _reference,
    weakref.WeakMethod: _reference,
    weakref.ProxyType: _proxy,
    weakref.CallableProxyType: _proxy,
    weakref.WeakValueDictionary: _weak_dictionary,
    weakref.WeakKeyDictionary: _weak_dictionary,
}
