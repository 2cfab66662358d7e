"""Controls: strengths that find themselves during training, from the weights or from the learning rate.

A control is a specification, and never changes. Before each update it sees what the rule penalizes, and gives the next
state: a few numbers, from which the strength follows. `controlled.py` has controls at work, with their states.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple, Protocol

from shrinkage.penalties.schedules import Described, Strength, check_number, check_positive

State = Mapping[str, float]


class Seen(NamedTuple):
    """What a control sees before an update.

    Args:
        lr: the learning rate of the parameter's group; NaN for a control that measures.
        value: R at strength 1, summed over all parameters of the rule; NaN for a control that does not measure.
        gain: by how much strength 1 lowers that in one update, to first order; 0 if it is not known yet.
    """

    lr: float = math.nan
    value: float = math.nan
    gain: float = 0.0


class Controllable(Protocol):
    """What a control asks of a penalty."""

    proportional: ClassVar[bool]

    @property
    def explicit(self) -> bool:
        """Whether it has a derivative to follow."""

    @property
    def strengthless(self) -> bool:
        """Whether it is a set, which has no strength."""


class Control(Described):
    """A strength that finds itself. Concrete ones are frozen dataclasses."""

    measures: ClassVar[
        bool
    ]  # all parameters of a rule, for one strength of all; otherwise it sees lr, for each its own

    def check(self, penalty: Controllable) -> None:
        """Raise `TypeError` if it cannot be a strength of `penalty`."""
        if penalty.strengthless:
            raise TypeError(f"{type(penalty).__name__} has no strength that {self!r} could find: give it a number")

    @abstractmethod
    def start(self) -> State:
        """Return the state before the first update."""

    @abstractmethod
    def next(self, state: State, seen: Seen) -> State:
        """Return the state for the next update."""

    @abstractmethod
    def strength(self, state: State) -> float:
        """Return the strength in a state."""

    def asks_gain(self, state: State) -> bool:
        """Return whether the gain has to be measured for the next state: that takes longer than the value."""
        return False

    def __call__(self, update: int) -> float:
        """Return the strength that it starts with: what it becomes is known to a `Regularizer` alone."""
        return self.strength(self.start())

    def with_controls(self, take: Callable[[Described], Described]) -> Strength:
        return take(self)


@dataclass(frozen=True, eq=False, repr=False)
class Bound(Control):
    """A strength that keeps a penalty below a limit: the multiplier of the constraint R(w) <= limit.

    multiplier <- max(0, multiplier + rate * (R(w) - limit)),  strength = max(0, multiplier + 20 rate * (R(w) - limit))

    R is the penalty at strength 1, summed over all parameters that the rule penalizes. At the end of training the
    weights solve the problem with the constraint, and the strength that was found is the one at which the penalty alone
    has the same solution. It is 0 where the constraint is met anyway. The second term damps: without it the strength
    swings about the one that is sought (an augmented Lagrangian).

    Args:
        limit: > 0, in units of R: of sum |w| for `L1`, of half the sum of squares for `L2`.
        rate: > 0, strength per unit of R and update; None chooses 0.005 divided by what strength 1 takes off R in one
            update, which is measured from time to time.

    Raises:
        ValueError: `limit` or `rate` is not a finite number > 0.
        TypeError: the penalty is not proportional to its strength (MCP, SCAD), or has no strength (TopK), or has no
            derivative (L0) and `rate` is None.

    While R is far above the limit and falls quickly, R - limit counts as a tenth of the limit for the multiplier. On an
    accelerator the measurement of one update is used at the next, so that nothing waits for it. `LBFGS` needs
    line_search_fn="strong_wolfe": without, it takes what the strength changes for curvature, and diverges.

    Reference: Hestenes (1969), "Multiplier and gradient methods"; Franke et al. (2024), "Improving deep learning
    optimization through constrained parameter regularization" (arXiv:2311.09058), algorithm 1.

    >>> import shrinkage, torch
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> shrinkage.Regularizer(layer, shrinkage.L1(Bound(2.0))).attach(optimizer)
    Regularizer: 1 parameter, attached to SGD
    parameter  shape  groups  penalty  strength       how
    ---------  -----  ------  -------  -------------  --------
    weight     1x4    -       L1       0 (R(w) <= 2)  proximal
    """

    measures = True
    limit: float
    _: KW_ONLY
    rate: float | None = None

    def __post_init__(self) -> None:
        check_positive("Bound", "limit", self.limit)
        if self.rate is not None:
            check_positive("Bound", "rate", self.rate)

    def check(self, penalty: Controllable) -> None:
        Control.check(self, penalty)
        owner = type(penalty).__name__
        if not penalty.proportional:
            raise TypeError(
                f"{owner} is not proportional to its strength, so that {self!r} cannot be its multiplier; give it a "
                "number or a schedule, or bound another penalty"
            )
        if self.rate is None and not penalty.explicit:
            raise TypeError(f"{owner} has no derivative from which {self!r} could choose its rate: give it one, rate=")

    def start(self) -> State:
        return {"multiplier": 0.0, "strength": 0.0, "excess": 0.0, "looks": 0}

    def next(self, state: State, seen: Seen) -> State:
        found = {**state, "looks": state["looks"] + 1}
        rate = self.rate or (RATE / seen.gain if seen.gain > 0 else 0.0)
        excess = seen.value - self.limit
        if not (math.isfinite(excess) and math.isfinite(rate)):
            return found
        # While the damping term brings R down quickly, the multiplier must not wind up: R would fall to 0.
        falls = 0 < excess < FALLING * state["excess"]
        multiplier = max(0.0, state["multiplier"] + rate * (min(excess, NEAR * self.limit) if falls else excess))
        strength = max(0.0, multiplier + DAMPING * rate * excess)
        return {**found, "multiplier": multiplier, "strength": strength, "excess": excess}

    def strength(self, state: State) -> float:
        return state["strength"]

    def asks_gain(self, state: State) -> bool:
        # Several optimizers take turns to look, so that each of them has to meet some of these.
        return self.rate is None and (state["looks"] < 16 or state["looks"] % 64 < 4)

    @property
    def text(self) -> str:
        return f"R(w) <= {self.limit:g}"


RATE, DAMPING, NEAR, FALLING = 0.005, 20.0, 0.1, 0.975  # of `Bound`


@dataclass(frozen=True, eq=False, repr=False)
class Corrected(Control):
    """A strength that falls with the learning rate: weight decay that leaves the size of weights alone as it falls.

    strength = decay * lr / (the largest lr so far)

    With `L2` and `how="decoupled"` it is the decay of AdamC: AdamW with its `weight_decay` set before each step.

    Args:
        decay: >= 0, the strength at the peak of the learning rate.

    Raises:
        ValueError: `decay` is negative or not finite.

    The learning rate is that of the parameter's group. Before the first update that has one, the strength is `decay`.

    Reference: Defazio (2025), "Why gradients rapidly increase near the end of training" (arXiv:2506.02285).

    >>> control = Corrected(0.5)
    >>> control.strength(control.next({"peak": 0.4, "strength": 0.5}, Seen(lr=0.2)))
    0.25
    """

    measures = False
    decay: float

    def __post_init__(self) -> None:
        check_number("Corrected", "decay", self.decay)

    def start(self) -> State:
        return {"peak": 0.0, "strength": float(self.decay)}

    def next(self, state: State, seen: Seen) -> State:
        peak = max(state["peak"], seen.lr)
        return {"peak": peak, "strength": self.decay * seen.lr / peak if peak > 0 else float(self.decay)}

    def strength(self, state: State) -> float:
        return state["strength"]

    @property
    def text(self) -> str:
        return f"{self.decay:g} x lr / peak"
