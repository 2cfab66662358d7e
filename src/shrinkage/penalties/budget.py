"""Budget: how many weights are zero, or what `shrink` leaves, when training ends."""

import math
from dataclasses import KW_ONLY, fields
from typing import Literal, NoReturn

from shrinkage.errors import shown
from shrinkage.penalties.coupled_groups import Coupled
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.value_objects import Value, value_class

TARGETS = ("zeros", "parameters", "multiply_adds")
SHORTEST_RAMP = 10  # updates; fewer are epochs, most likely
NO_STRENGTH = (
    "a Budget has no strength: it decides which weights are zero. One parameter takes a penalty or a Budget; weight "
    "decay belongs to the optimizer"
)


@value_class
class Budget(Value):
    """Exactly so many zeros at the end of training, among all weights that a rule names together.

    zeros = target * (1 - (1 - f)^3),  f = (update - begin) / (end - begin), all of them counted over all parameters

    Stands where a penalty stands in the rules of a `Regularizer`. At each update from `begin` on, the smallest weights
    are set to zero, along a ramp that ends with the target. What is cut is kept aside: between two steps the model is
    sparse, and its gradients move the dense weights, so that a weight can come back. At `freeze` the zeros become final
    and what is aside is dropped; the rest is trained on.

    Args:
        zeros: the share of weights that are zero in the end, between 0 and 1.
        parameters: or: at most so many parameters are left after `shrink`, with `groups=CoupledChannels(...)`; a
            number between 0 and 1 is a share of those of the model.
        multiply_adds: or: at most so many multiply-adds of one call of the model that `shrink` leaves, or that share.
        updates: steps of the optimizer in the whole training; the next three are fractions of it.
        groups: what goes together: None for single weights, `Rows()`, `Columns()`, `Kernels()`, `Heads(n)`,
            `Blocks(r, c)`, or channels that span parameters.
        begin: where the ramp begins.
        end: where the target is reached; 0.4, or 0.5 for groups that span parameters.
        freeze: where zeros become final; 0.6. Groups that span parameters are final from the moment that they go.
        least: no layer keeps fewer than this part of its even share, and never fewer than one weight (or group).
        score: "effect" or "size": by what groups that span parameters are ranked. Others go by their size.

    Raises:
        TypeError: `updates` is missing, or something is of another type.
        ValueError: there is not exactly one target, a number is out of its range, or the ramp is too short.

    One object is one budget: rules that share it are ranked together, and two equal ones each meet their own target.
    Source: Zhu and Gupta 2017 (arXiv:1710.01878) for the ramp; Lin et al. 2020 (arXiv:2006.07253) for gradients of the
    sparse model that move the dense one.

    >>> import shrinkage, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 100))
    >>> plan = shrinkage.Regularizer(model, Budget(zeros=0.95, updates=12_000)).plan
    >>> print(plan)  # doctest: +NORMALIZE_WHITESPACE
    parameter  shape    groups  penalty  strength   how
    ---------  -------  ------  -------  ---------  ----------
    0.weight   300x64   -       Budget   95% zeros  kept aside
    2.weight   100x300  -       Budget   95% zeros  kept aside
    Budget: 46,740 of 49,200 weights in 2 parameters zero by update 4,800 (from 1,200 on), kept aside until
    7,200 of 12,000; at least 288 and 450 stay
    """

    _: KW_ONLY
    zeros: float | None = None
    parameters: float | None = None
    multiply_adds: float | None = None
    updates: int = 0
    groups: Groups | None = None
    begin: float = 0.1
    end: float | None = None
    freeze: float | None = None
    least: float = 0.3
    score: Literal["effect", "size"] = "effect"

    def __post_init__(self) -> None:
        if not is_whole(self.updates) or self.updates == 0:
            raise TypeError(
                "Budget needs updates=, the number of optimizer steps of the whole training: the ramp follows from it"
                + (f", got {shown(self.updates)}" if self.updates != 0 else "")
            )
        if not (self.groups is None or isinstance(self.groups, Groups)):
            raise TypeError(f"Budget: groups must be an instance such as Rows(), or None, got {shown(self.groups)}")
        self._check_target()
        if self.score not in ("effect", "size"):
            raise ValueError(f'Budget: score must be "effect" or "size", got {shown(self.score)}')
        if not (is_number(self.least) and 0 <= self.least <= 1):
            raise ValueError(f"Budget: least must be a number from 0 to 1, got {shown(self.least)}")
        self._check_window()

    def _check_target(self) -> None:
        given = {name: getattr(self, name) for name in TARGETS if getattr(self, name) is not None}
        if len(given) != 1:
            found = " and ".join(f"{name}={shown(value)}" for name, value in given.items()) or "none"
            raise ValueError(f"Budget takes exactly one of zeros=, parameters=, multiply_adds=, got {found}")
        ((name, value),) = given.items()
        if name == "zeros":
            if not (is_number(value) and 0 < value < 1):
                hint = f"; did you mean {value / 100:g}?" if is_number(value) and 1 <= value < 100 else ""
                raise ValueError(f"zeros is a share between 0 and 1, got {shown(value)}{hint}")
        elif not (is_number(value) and (0 < value < 1 or (is_whole(value) and value >= 1))):
            raise ValueError(
                f"{name} must be a whole number of at least 1, or a share of the model's between 0 and 1, got "
                f"{shown(value)}"
            )
        elif not self.coupled:
            raise ValueError(
                f"{name}= counts what shrink leaves, so it needs groups=CoupledChannels(model, inputs); for single "
                "weights say zeros="
            )

    def _check_window(self) -> None:
        if self.coupled and self.freeze is not None:
            raise ValueError(
                "Budget: freeze= is for single weights and groups inside of a parameter; groups that span parameters "
                "are held from the moment that they go: leave it out"
            )
        begin, end, freeze = self.begin, self.ends, self.freezes
        if not (all(map(is_number, (begin, end, freeze))) and 0 <= begin < end <= freeze <= 1):
            last = "" if self.coupled else f" <= freeze={shown(freeze)}"
            raise ValueError(
                f"begin={shown(begin)} < end={shown(end)}{last} <= 1 has to hold; they are fractions of "
                f"updates={self.updates}"
            )
        if self.zeros is not None and self.last_update - self.first_update < SHORTEST_RAMP:
            raise ValueError(
                f"the ramp from update {self.first_update} to {self.last_update} is shorter than {SHORTEST_RAMP} "
                "updates; updates= is counted in optimizer steps, not epochs"
            )

    @property
    def coupled(self) -> bool:
        """Whether its groups span parameters."""
        return isinstance(self.groups, Coupled)

    @property
    def ends(self) -> float:
        """The fraction of `updates` where the target is reached."""
        return (0.5 if self.coupled else 0.4) if self.end is None else self.end

    @property
    def freezes(self) -> float:
        """The fraction of `updates` where zeros become final."""
        return self.ends if self.coupled else 0.6 if self.freeze is None else self.freeze

    @property
    def first_update(self) -> int:
        """The number of updates after which the ramp begins."""
        return round(self.begin * self.updates)

    @property
    def last_update(self) -> int:
        """The number of updates after which the target is reached."""
        return round(self.ends * self.updates)

    @property
    def freeze_update(self) -> int:
        """The number of updates after which zeros are final."""
        return round(self.freezes * self.updates)

    def ramp(self, update: int) -> float:
        """Return how much of the way to the target is to be made after so many updates, from 0 to 1.

        >>> budget = Budget(zeros=0.9, updates=100)
        >>> [budget.ramp(update) for update in (10, 25, 40)]
        [0.0, 0.875, 1.0]
        """
        done = (update - self.first_update) / max(self.last_update - self.first_update, 1)
        return 1 - (1 - min(max(done, 0.0), 1.0)) ** 3

    def zeros_at(self, update: int, count: int) -> int:
        """Return how many of `count` weights have to be zero after so many updates.

        >>> Budget(zeros=0.9, updates=100).zeros_at(40, 1001)
        901
        """
        return math.ceil((self.zeros or 0.0) * self.ramp(update) * count - 1e-9)

    def __repr__(self) -> str:
        own = ((field.name, getattr(self, field.name)) for field in fields(self))
        default = {field.name: field.default for field in fields(self)}
        given = (f"{name}={value!r}" for name, value in own if value != default[name])
        return f"Budget({', '.join(given)})"

    def __add__(self, other: object) -> NoReturn:
        raise TypeError(NO_STRENGTH)

    __radd__ = __mul__ = __rmul__ = __add__


def reason(penalty: object) -> str:
    """Return why `penalty` cannot be part of another, as the end of a message; empty unless it is a budget."""
    return f": {NO_STRENGTH}" if isinstance(penalty, Budget) else ""


def is_number(value: object) -> bool:
    """Return whether `value` is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Return whether `value` is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
