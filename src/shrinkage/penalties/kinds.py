"""Kinds of groups: how much is left of a model when so many groups of each kind are gone.

All groups of one kind take as much along as each other: as many indices of each dimension of each parameter. So lengths
of dimensions are linear in the numbers of groups that are gone, and what is counted is a sum of products of lengths.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from math import prod
from typing import Any

from shrinkage.penalties.value_objects import Value, value_class

# A length while no group is gone, and by how much each group of a kind shortens it: (size, ((kind, less), ...)).
Length = tuple[int, tuple[tuple[int, int], ...]]
Product = tuple[int, tuple[Length, ...]]  # of a number and lengths that vary


@value_class
class Amount(Value):
    """A sum of products of lengths: of parameters, or of multiply-adds.

    Args:
        products: what is added up; `amount` makes few of many.

    >>> rows, columns = (8, ((0, 1),)), (12, ((1, 3),))
    >>> weight = amount([(1, (rows, columns)), (1, (rows,))])
    >>> weight.left([0, 0]), weight.left([2, 1])
    (104, 60)
    """

    products: tuple[Product, ...]

    def left(self, gone: Sequence[int]) -> int:
        """Return what is left when `gone[kind]` groups of each kind are gone."""
        known: dict[Length, int] = {}
        total = 0
        for number, lengths in self.products:
            for length in lengths:
                if length not in known:
                    size, shorter = length
                    known[length] = size - sum(less * gone[kind] for kind, less in shorter)
                number *= known[length]
            total += number
        return total


def amount(products: Iterable[Product]) -> Amount:
    """Return the sum of products: what does not vary is multiplied out, and products of the same lengths are one."""
    found: dict[tuple[Length, ...], int] = {}
    for number, lengths in products:
        varying = tuple(sorted(length for length in lengths if length[1]))
        constant = prod(size for size, shorter in lengths if not shorter)
        found[varying] = found.get(varying, 0) + number * constant
    return Amount(tuple((number, lengths) for lengths, number in found.items() if number))


@value_class
class Kinds(Value):
    """Which groups are of one kind, and what is left of the model without some of them.

    Args:
        of: the kind of each group, from 0 on.
        parameters: how many entries the parameters have, tied ones counted once.
        multiply_adds: how many multiply-adds a call takes, or what finds out; None if that is not known.
    """

    of: tuple[int, ...]
    parameters: Amount
    multiply_adds: Amount | Callable[[], Amount] | None = field(default=None, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kinds":
        return self  # nothing in it changes, and what finds out holds the model

    def _data(self) -> dict[str, Any]:
        """A pickle has the multiply-adds if they were asked for."""
        known = self.multiply_adds if isinstance(self.multiply_adds, Amount) else None
        return {"of": self.of, "parameters": self.parameters, "multiply_adds": known}

    def counted_multiply_adds(self) -> Amount | None:
        """Return the multiply-adds, which are counted when they are asked for first; None if they are not known.

        Raises:
            GroupError: they do not follow from the numbers of groups.
        """
        if self.multiply_adds is not None and not isinstance(self.multiply_adds, Amount):
            object.__setattr__(self, "multiply_adds", self.multiply_adds())
        return self.multiply_adds  # type: ignore[return-value]  # the line above has just found them
