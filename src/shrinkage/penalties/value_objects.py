"""Values: frozen dataclasses that are equal where their fields are, and print them.

The methods for that stand here once: `@dataclass` would write and compile them for each of forty classes, whenever the
package is imported. So those classes are declared with `eq=False, repr=False`. Users' own need not be.
"""

from dataclasses import Field, fields, is_dataclass
from typing import Any

from shrinkage.penalties.pickling import Saved


class Value(Saved):
    """The base of penalties, groups and rules. One that is no dataclass is equal to nothing but itself."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Whether `other` is of the same class and has equal fields."""
        if not isinstance(other, Value) or type(other) is not type(self):
            return NotImplemented
        return self is other if not is_dataclass(self) else compared(self) == compared(other)

    def __hash__(self) -> int:
        return hash(compared(self)) if is_dataclass(self) else object.__hash__(self)

    def __repr__(self) -> str:
        if not is_dataclass(self):
            return object.__repr__(self)
        texts = (f"{field.name}={getattr(self, field.name)!r}" for field in fields_of(self) if field.repr)
        return f"{type(self).__qualname__}({', '.join(texts)})"


def compared(value: Value) -> tuple[Any, ...]:
    """Return what a dataclass is compared by."""
    return tuple(getattr(value, field.name) for field in fields_of(value) if field.compare)


def fields_of(value: Value) -> tuple[Field[Any], ...]:
    """Return the fields of a dataclass."""
    return fields(value)  # type: ignore[arg-type]  # Value itself is none
