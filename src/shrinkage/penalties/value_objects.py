"""Values: frozen dataclasses that are equal where their fields are, and print them.

The methods for that stand here once: `@dataclass` would write and compile them for each of forty classes, whenever the
package is imported. So those classes are declared with `@value_class`, and `@dataclass` writes no more than their
`__init__`. Users' own are frozen dataclasses.
"""

from dataclasses import Field, FrozenInstanceError, dataclass, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform

from shrinkage.penalties.pickling import Saved, set_state

Class = TypeVar("Class", bound=type)


@dataclass_transform(eq_default=False, frozen_default=True)
def value_class(cls: Class) -> Class:
    """Make a class a frozen dataclass without methods of its own to compare and print it: see `ByFields`.

    >>> from shrinkage import L1
    >>> L1(0.1).strength = 0.2
    Traceback (most recent call last):
    dataclasses.FrozenInstanceError: cannot assign to field 'strength'
    """
    derived = is_dataclass(cls)  # from one that is frozen; such classes are few
    made: Any = dataclass(frozen=derived, eq=False, repr=False)(cls)
    if not derived:
        made.__dataclass_params__.frozen = True  # so that frozen classes may derive from this one
        made.__setattr__, made.__delattr__ = set_once, refuse_to_delete
    found: Class = made
    return found


def set_once(self: Any, name: str, value: object) -> None:
    """Set a field that is not there yet, as `__init__` does; a derived class may add attributes of its own."""
    known = name in self.__dataclass_fields__
    if name in vars(self) if known else "__dataclass_fields__" in vars(type(self)):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def refuse_to_delete(self: Any, name: str) -> None:
    """Raise if a field would be deleted, or any attribute unless it is that of a derived class."""
    if name in self.__dataclass_fields__ or "__dataclass_fields__" in vars(type(self)):
        raise FrozenInstanceError(f"cannot delete field {name!r}")
    object.__delattr__(self, name)


class ByFields:
    """What is equal, hashed and printed by its fields; one that is no dataclass is equal to itself alone."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Whether `other` is of the same class and has equal fields."""
        if not isinstance(other, ByFields) or type(other) is not type(self):
            return NotImplemented
        return self is other if not is_dataclass(self) else compared(self) == compared(other)

    def __hash__(self) -> int:
        return hash(compared(self)) if is_dataclass(self) else object.__hash__(self)

    def __repr__(self) -> str:
        if not is_dataclass(self):
            return object.__repr__(self)
        texts = (f"{field.name}={getattr(self, field.name)!r}" for field in fields_of(self) if field.repr)
        return f"{type(self).__qualname__}({', '.join(texts)})"

    def __setstate__(self, state: Any) -> None:
        set_state(self, state)


class Value(ByFields, Saved):
    """The base of penalties, groups and rules."""

    __slots__ = ()


def compared(value: ByFields) -> tuple[Any, ...]:
    """Return what a dataclass is compared by."""
    return tuple(getattr(value, field.name) for field in fields_of(value) if field.compare)


def fields_of(value: ByFields) -> tuple[Field[Any], ...]:
    """Return the fields of a dataclass."""
    return fields(value)  # type: ignore[arg-type]  # the base itself is none
