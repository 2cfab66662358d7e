"""How penalties, groups, rules and declarations stand in a pickle: a name, and plain data.

The name is that of the class, without the file that it is defined in, so that a file outlives moves of the sources.
`torch.load(weights_only=True)` calls one function to read it, which makes nothing but these classes.
"""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from types import ModuleType
from typing import Any, TypeVar

import torch

Class = TypeVar("Class", bound=type)

# Where files of version 0.1.0, which name modules, look for classes that live elsewhere now.
FORMER = {
    "shrinkage.coupled": ("Coupled", "Member"),
    "shrinkage.declarations": ("Declarations",),
    "shrinkage.groups": ("Blocks", "Columns", "Heads", "Kernels", "Rows", "Whole"),
    "shrinkage.penalties.constraints": ("Box",),
    "shrinkage.plan": ("Rule",),
    "shrinkage.shrink.plan": ("ShrinkPlan",),
    "shrinkage.shrink.sparse": ("SparseLinear",),
}


class Saved:
    """What names itself in a pickle by its class, if that is one of this package; see `restored`."""

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not is_own(cls):
            return
        _by_name[cls.__name__] = cls
        found_at_former_place(cls)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return the name and the data; a class of somebody else, derived from one of these, is pickled as ever."""
        cls = type(self)
        if _by_name.get(cls.__name__) is not cls:
            return super().__reduce_ex__(protocol)
        return restored, (cls.__name__, self._data())

    def __setstate__(self, state: Any) -> None:
        set_state(self, state)

    def _data(self) -> dict[str, Any]:
        """Return what is saved, by the name of the attribute; of a dataclass, all fields."""
        if not is_dataclass(self):
            return {}
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}


def set_state(self: object, state: Any) -> None:
    """Set the attributes that a pickle holds; fields of a dataclass that are newer have their defaults.

    In files of version 0.1.0 dataclasses with slots are a list: the values of the fields in order.
    """
    known = fields(self) if is_dataclass(self) else ()
    if isinstance(state, list):
        state = dict(zip((field.name for field in known), state, strict=False))
    for attributes in state if isinstance(state, tuple) else (state,):  # (attributes, slots), where there are both
        for attribute, value in (attributes or {}).items():
            object.__setattr__(self, attribute, value)
    for field in known:
        if field.default_factory is not MISSING and field.name not in vars(self):
            object.__setattr__(self, field.name, field.default_factory())


def restored(name: str, data: Mapping[str, Any]) -> Saved:
    """Return the object of the class called `name` that has these attributes; fields that are newer have defaults."""
    cls = _by_name.get(name)
    if cls is None:
        raise ValueError(
            f"this file has a {name} of shrinkage, which this version does not know: load it with a newer version"
        )
    found = cls.__new__(cls)
    set_state(found, data)
    return found


def plain(value: Any) -> Any:
    """Return `value`, or the number of Python that it equals: numpy's pickle by functions of numpy."""
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def found_at_former_place(cls: Class) -> Class:
    """Let files of version 0.1.0 find `cls`; return it."""
    for module, names in FORMER.items():
        if cls.__name__ in names:
            setattr(sys.modules.setdefault(module, ModuleType(module)), cls.__name__, cls)
    return cls


def is_own(cls: type) -> bool:
    """Return whether this package defines `cls`."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


_by_name: dict[str, type[Saved]] = {}

restored.__module__, restored.__qualname__ = "shrinkage", "_restored"  # what files call it, wherever it is defined
torch.serialization.add_safe_globals([restored])
