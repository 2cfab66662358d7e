"""Rules from plain data, as a configuration file holds them: names of classes of this package, and their arguments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, NamedTuple, TypeGuard, get_args, get_origin

import torch
from torch import Tensor

from shrinkage.errors import listed, shown
from shrinkage.penalties.balls import L1Ball, MaxNorm, MinMaxNorm, Simplex, SpectralBall, UnitNorm
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.box import Box
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.common_schedules import Cosine, Cubic, Ramp, Steps
from shrinkage.penalties.constraints import NofM, TopK
from shrinkage.penalties.controls import Bound, Corrected
from shrinkage.penalties.convex import L1, L2, ElasticNet, Huber
from shrinkage.penalties.counting import L0, Counted, Lp
from shrinkage.penalties.fused import FusedLasso
from shrinkage.penalties.group_linf import GroupLInf
from shrinkage.penalties.grouped import Grouped, GroupLasso
from shrinkage.penalties.groups import Blocks, Columns, Groups, Heads, Kernels, Rows, Whole
from shrinkage.penalties.matrix import Nuclear, Orthogonal
from shrinkage.penalties.nonconvex import MCP, SCAD, LogSum
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.penalties.ridged import Ridged
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.penalties.toward import Toward
from shrinkage.penalties.weighted import Weighted
from shrinkage.selection.first_match import nearest
from shrinkage.selection.how import How
from shrinkage.selection.rules import Rule, how_of

Named = Callable[..., Any]


class Kind(NamedTuple):
    """Things that stand in one place: the key of a mapping that names one, and what can be named."""

    key: str
    things: tuple[Named, ...]

    def called(self, name: str) -> Named | None:
        """Return what has this name, None if nothing has."""
        return next((thing for thing in self.things if thing.__name__ == name), None)

    @property
    def names(self) -> list[str]:
        """What can be named."""
        return [thing.__name__ for thing in self.things]


PENALTIES = Kind(
    "penalty",
    (
        *(L0, L1, L2, MCP, SCAD, Box, Budget, Counted, ElasticNet, FusedLasso, GroupLInf, GroupLasso, Grouped, Huber),
        *(L1Ball, LogSum, Lp, MaxNorm, MinMaxNorm, NofM, NonNegative, Nuclear, Orthogonal, Ridged, Simplex),
        *(SparseGroupLasso, SpectralBall, TopK, Toward, UnitNorm, Weighted),
    ),
)
GROUPS = Kind("groups", (Blocks, Columns, Heads, Kernels, Rows, Whole))
SCHEDULES = Kind("schedule", (Bound, Corrected, Cosine, Cubic, Ramp, Steps))

# Where data calls an argument otherwise: a penalty inside of another, whose own class has the key "penalty".
IN_DATA = {"penalty": "of", "parameters": "select"}
OF_RULES = ("select", "how", "every", "until", "after")
EXAMPLE = '[{"select": "encoder.*.weight", "penalty": "L1", "strength": 0.001}]'

Data = Sequence[Mapping[str, Any]]


def rules_from(data: Data, *, how: How = "proximal") -> tuple[Rule, ...]:
    """Return the rules that plain data describes, such as a list in a YAML or JSON file.

    Each rule is a mapping. `penalty` names a class, and further keys are its arguments; `select` (a glob on the names
    of parameters), `how`, `every`, `until` and `after` are those of `Rule`. An argument that is a penalty, groups or a
    schedule itself has the same form: a mapping whose key `penalty`, `groups` or `schedule` names the class, or the
    bare name of a class that needs no arguments. A penalty inside of another one is called `of`. `penalty: null` leaves
    alone what is selected.

    Args:
        data: a list of mappings. Numbers may be text, since YAML reads 1e-3 without a dot as such.
        how: how penalties enter the step whose rules do not say it.

    Raises:
        TypeError: a value is of another type than expected.
        ValueError: a name is not known, or an argument is missing or out of its range.

    Errors name the place in `data`. Only penalties, groups and schedules of this package are made, and nothing is
    imported by its name: data of strangers cannot run code. Selectors other than globs, groups that span parameters,
    and references that are state_dicts have no form as data.

    >>> rules_from([{"select": "0.weight", "penalty": "L1", "strength": 1e-3}])
    (Rule(penalty=L1(strength=0.001), parameters='0.weight', how='proximal', every=1, until=None, after=None),)
    >>> steps = {"schedule": "Steps", "values": {0: 1e-4, 500: 1e-3}}
    >>> (rule,) = rules_from([{"penalty": "Grouped", "of": {"penalty": "L1", "strength": steps}, "groups": "Rows"}])
    >>> rule.penalty
    Grouped(penalty=L1(strength=Steps({0: 0.0001, 500: 0.001})), groups=Rows(), weigh_by_size=True)
    """
    if isinstance(data, str | Mapping) or not isinstance(data, Sequence):
        lists = [key for key, value in data.items() if isinstance(value, list)] if isinstance(data, Mapping) else []
        inside = f": give its entry {lists[0]!r}" if len(lists) == 1 else ""
        raise TypeError(f"rules: expected a list of mappings such as {EXAMPLE}, got {shown(data)}{inside}")
    if not data:
        raise ValueError(f"rules: the list is empty; expected at least one mapping, such as {EXAMPLE}")
    return tuple(rule_from(each, f"rules[{index}]", how) for index, each in enumerate(data))


def is_data(rules: object) -> TypeGuard[Data]:
    """Return whether `rules` are plain data: mappings in a list, or one that should stand in a list."""
    if isinstance(rules, Mapping):
        return PENALTIES.key in rules
    return isinstance(rules, Sequence) and any(isinstance(each, Mapping) for each in rules)


def rule_from(data: object, place: str, how: How) -> Rule:
    """Return the rule of one mapping."""
    mapping = keys_are_text(data, place, f"a mapping such as {EXAMPLE[1:-1]}")
    of_rule = {key: value for key, value in mapping.items() if key in OF_RULES}
    rest = {key: value for key, value in mapping.items() if key not in OF_RULES}
    if PENALTIES.key not in rest:
        found = f"found {listed(mapping)}" if mapping else "it is empty"
        raise ValueError(f"{place}: the key 'penalty' is missing, which names a penalty, or is null; {found}")
    # A penalty that is a mapping, or null, has no arguments beside it.
    alone = len(rest) == 1 and not isinstance(rest["penalty"], str)
    named, where = (rest["penalty"], f"{place}.penalty") if alone else (rest, place)
    penalty = None if named is None else thing_from(PENALTIES, named, where, also=OF_RULES)
    given = {"how": how_of(penalty, how), **arguments(Rule, of_rule, place, given=["penalty"])}
    if not isinstance(given.get("parameters"), str | None):
        raise TypeError(
            f"{place}.select: expected a glob on the names of parameters such as 'encoder.*.weight', "
            f"got {shown(given['parameters'])}"
        )
    return called(Rule, {"penalty": penalty, **given}, place)  # type: ignore[no-any-return]


def keys_are_text(data: object, place: str, expected: str) -> Mapping[str, Any]:
    """Return `data`, or raise `TypeError` unless it is a mapping from names."""
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise TypeError(f"{place}: expected {expected}, got {shown(data)}")
    return data


def thing_from(kind: Kind, data: object, place: str, also: Iterable[str] = ()) -> Any:
    """Return what `data` names, made of its arguments; `also` are keys that would have been known beside them."""
    form = f"the name of a class ({kind.names[1]}), or a mapping with one under the key {kind.key!r} and its arguments"
    mapping = {kind.key: data} if isinstance(data, str) else keys_are_text(data, place, form)
    if kind.key not in mapping:
        raise ValueError(f"{place}: the key {kind.key!r} is missing; expected {form}, found {listed(mapping)}")
    name = mapping[kind.key]
    where = place if isinstance(data, str) else f"{place}.{kind.key}"
    if not isinstance(name, str):
        raise TypeError(f"{where}: expected the name of a class such as {kind.names[1]!r}, got {shown(name)}")
    cls = kind.called(name)
    if cls is None:
        raise ValueError(
            f"{where}: {name!r} cannot be named here; nearest names: {nearest(name, kind.names)}. "
            f"Known are {', '.join(kind.names)}"
        )
    given = {key: value for key, value in mapping.items() if key != kind.key}
    return called(cls, arguments(cls, given, place, also=also), place)


def arguments(
    cls: Named, data: Mapping[str, Any], place: str, *, also: Iterable[str] = (), given: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the arguments of `cls` by their own names; those in `given` come from elsewhere."""
    known = {IN_DATA.get(name, name): each for name, each in signature(cls).parameters.items() if name not in given}
    for key in data:
        if key not in known:
            takes = f"it takes {listed(known, most=9)}" if known else "it takes no arguments"
            raise ValueError(
                f"{place}: {cls.__name__} has no argument {key!r}; {takes}; "
                f"nearest names: {nearest(key, [*known, *also])}"
            )
    missing = [key for key, each in known.items() if each.default is Parameter.empty and key not in data]
    if missing:
        raise ValueError(f"{place}: {cls.__name__} needs {listed(missing)}; given are {listed(data) or 'no arguments'}")
    return {known[key].name: argument(known[key].annotation, value, f"{place}.{key}") for key, value in data.items()}


def argument(annotation: Any, value: Any, place: str) -> Any:
    """Return the value of an argument with this annotation."""
    types = get_args(annotation) or (annotation,)
    kind = kind_of(types)
    if kind is not None and not (value is None and type(None) in types):
        if kind is not SCHEDULES or isinstance(value, Mapping):
            return thing_from(kind, value, place)
    if isinstance(value, Mapping):
        return {number(key, int): number(each, float) for key, each in value.items()}
    if Tensor in types and isinstance(value, Sequence) and not isinstance(value, str):
        return called(torch.tensor, {"data": value}, place)
    return number(value, int if int in types else float)


def kind_of(types: Iterable[Any]) -> Kind | None:
    """Return what kind of thing is among the types of an argument, None if it is plain data."""
    for each in types:
        if isinstance(each, type) and issubclass(each, Penalty | Groups):
            return PENALTIES if issubclass(each, Penalty) else GROUPS
        if get_origin(each) is Callable:
            return SCHEDULES
    return None


def number(value: Any, type: type[int] | type[float]) -> Any:
    """Return the number that a text is, anything else as it is.

    >>> number("1e-3", float), number("1e3", int), number("cosines", float), number(True, float)
    (0.001, 1000, 'cosines', True)
    """
    if not isinstance(value, str):
        return value
    try:
        found = float(value)
    except ValueError:
        return value
    return int(found) if type is int and found.is_integer() else found


def called(function: Named, given: Mapping[str, Any], place: str) -> Any:
    """Return what `function` makes of its arguments; its errors get the place in front."""
    try:
        return function(**given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{place}: {error}") from None
