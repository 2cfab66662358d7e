"""Groups that span several parameters: a channel's row, bias and scale, or the rows of query, key and value of a head.

A member says which group each index along one dimension of a parameter belongs to. Members that share groups, directly
or through others, are coupled.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from shrinkage.errors import GroupError, shown
from shrinkage.penalties.groups import Groups, Layout, require_dimensions
from shrinkage.penalties.kinds import Kinds
from shrinkage.penalties.value_objects import Value, value_class

NONE = -1  # the group of an index that belongs to none


@value_class
class Member(Value):
    """Which slices of one parameter belong to which group.

    Args:
        parameter: its dotted name in the model.
        dim: the dimension that is sliced, >= 0.
        groups: the number of the group of each index along `dim`, -1 for an index that belongs to none; a sequence of
            whole numbers. `range(64)` gives each index a group of its own, `[row // 16 for row in range(64)]` makes
            heads of 16 rows.

    Raises:
        TypeError: the parameter is not a name, or the groups are not whole numbers.
        ValueError: `dim` is negative, or a group is less than -1.

    >>> Member("conv.weight", 0, range(4))
    Member(parameter='conv.weight', dim=0, groups=(0, 1, 2, 3))
    """

    parameter: str
    dim: int
    groups: Sequence[int]

    def __post_init__(self) -> None:
        if not isinstance(self.parameter, str):
            raise TypeError(f"Member: parameter must be a dotted name, got {shown(self.parameter)}")
        if not isinstance(self.dim, int) or isinstance(self.dim, bool) or self.dim < 0:
            raise ValueError(f"Member: dim must be a whole number of at least 0, got {shown(self.dim)}")
        if not isinstance(self.groups, Sequence) or not all(type(group) is int for group in self.groups):
            raise TypeError(
                f"Member: groups must be whole numbers, one for each index of dim, got {shown(self.groups)}"
            )
        if min(self.groups, default=NONE) < NONE:
            raise ValueError(f"Member: a group is a number of at least 0, or -1 for none, got {min(self.groups)}")
        object.__setattr__(self, "groups", tuple(self.groups))


@value_class
class Slices(Groups):
    """One group per index of dimension `dim`: what a member has before its slices are counted together.

    >>> import torch
    >>> Slices(2).view(torch.zeros(8, 3, 5)).shape
    torch.Size([5, 24])
    """

    dim: int

    def layout(self, shape: Sequence[int]) -> Layout:
        """Needs a dimension `dim`."""
        require_dimensions(self, shape, self.dim + 1)
        return Layout((*shape, 1) if len(shape) == 1 else tuple(shape), (self.dim,))


@value_class
class Coupled(Groups):
    """Groups that span several parameters: slices with the same number form one group.

    Penalized by `Grouped` or `GroupLasso`, in a `Rule` without a selector: the members name what is penalized. A group
    is then zero in all of its members, or in none.

    Args:
        members: `Member` instances. A parameter can be several of them, along one dimension, with different indices.
        sizes: how many elements each group has; a plan finds out.
        kinds: which groups are of one kind, and what a model has left without some; `CoupledChannels` finds out.

    Raises:
        TypeError: something else than a `Member` is given.
        GroupError: there are no members, or two of them claim the same elements of a parameter.

    Members that do not take a gradient take no part, but count for the size of their groups.

    >>> import torch
    >>> from shrinkage import GroupLasso, Regularizer
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> channels = Coupled([Member(name, 0, range(8)) for name in ("0.weight", "0.bias", "1.weight", "1.bias")])
    >>> print(Regularizer(model, GroupLasso(1e-3, channels)).plan)
    parameter            shape  groups       penalty     strength  how
    -------------------  -----  -----------  ----------  --------  --------
    0.weight and 3 more  8x30   8 x Coupled  GroupLasso  0.001     proximal
    """

    members: Sequence[Member]
    sizes: tuple[int, ...] = ()
    kinds: Kinds | None = None

    def __post_init__(self) -> None:
        members = tuple(self.members)
        for member in members:
            if not isinstance(member, Member):
                raise TypeError(f"Coupled: expected Member(parameter, dim, groups), got {shown(member)}")
        if not members:
            raise GroupError("Coupled: there are no members; give at least one Member(parameter, dim, groups)")
        object.__setattr__(self, "members", members)
        for name in self.names:
            self.slices(name)

    def __repr__(self) -> str:
        names = self.names
        return f"Coupled({self.count} groups in {names[0]!r}{f' and {len(names) - 1} more' * (len(names) > 1)})"

    def __hash__(self) -> int:
        return hash((self.names, self.count))  # the numbers of all groups would take long

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that have members, once each."""
        return tuple(dict.fromkeys(member.parameter for member in self.members))

    @property
    def count(self) -> int:
        """One more than the largest number of a group."""
        return 1 + max((max(member.groups, default=NONE) for member in self.members), default=NONE)

    def layout(self, shape: Sequence[int]) -> Layout:
        """Always raises `GroupError`: one tensor is not all of a group."""
        raise GroupError(
            f"{self!r} spans several parameters, so that no penalty of one tensor penalizes it: give it to Grouped or "
            "GroupLasso in a Rule of a Regularizer, without a selector"
        )

    def count_in(self, shape: Sequence[int]) -> int:
        """Return the number of all groups, which span more than one tensor."""
        return self.count

    def slices(self, name: str) -> Member:
        """Return all members of one parameter as one."""
        own = [member for member in self.members if member.parameter == name]
        first, *others = own
        groups = list(first.groups)
        for other in others:
            clash = other.dim != first.dim or len(other.groups) != len(groups)
            pairs = list(zip(groups, other.groups, strict=False))
            if clash or any(NONE not in pair for pair in pairs):
                raise GroupError(
                    f"Coupled: two members claim the same elements of {name!r}; members of one parameter run along "
                    "one dimension, have a number for each of its indices, and -1 for those of another member"
                )
            groups = [max(pair) for pair in pairs]
        return Member(name, first.dim, groups)

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless the member `name` fits a parameter of `shape`."""
        member = self.slices(name)
        if member.dim >= len(shape) or shape[member.dim] != len(member.groups):
            raise GroupError(
                f"Coupled: {name!r} has shape {tuple(shape)}, and its member numbers {len(member.groups)} indices of "
                f"dimension {member.dim}; give one number for each index"
            )

    def sized(self, shapes: Mapping[str, Sequence[int]]) -> "Coupled":
        """Return the same groups, which know how many elements they have in parameters of these shapes, by name."""
        found = [0] * self.count
        for name in self.names:
            member = self.slices(name)
            shape = shapes[name]
            size = math.prod((*shape[: member.dim], *shape[member.dim + 1 :]))
            for group in member.groups:
                if group != NONE:
                    found[group] += size
        return replace(self, sizes=tuple(found))

    def families(self) -> list[tuple[str, ...]]:
        """Return the names of parameters that share groups, those of each family together.

        >>> Coupled([Member("a", 0, range(2)), Member("b", 0, range(2, 4)), Member("c", 1, [1, 0])]).families()
        [('a', 'c'), ('b',)]
        """
        return [tuple(names) for names in merged_by_groups(self.slices(name) for name in self.names)]


def merged_by_groups(members: Iterable[Member]) -> list[list[str]]:
    """Return the names of members that share groups, directly or through others, in the order of the first of each."""
    found: list[tuple[list[str], set[int]]] = []
    for member in members:
        own = set(member.groups) - {NONE}
        met = [index for index, (_, groups) in enumerate(found) if not own.isdisjoint(groups)]
        names = [name for index in met for name in found[index][0]] + [member.parameter]
        merged = (names, own.union(*(found[index][1] for index in met)))
        place = met[0] if met else len(found)
        found = [each for index, each in enumerate(found) if index not in met]
        found.insert(place, merged)
    return [names for names, _ in found]
