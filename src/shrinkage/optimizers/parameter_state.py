"""What regularizers keep of an optimizer's parameters: it is cut where these become smaller.

It is a state as `Regularizer.state_dict` gives it, with the names of the parameters and where the optimizer holds them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.errors import ShrinkError
from shrinkage.optimizers.per_optimizer import PerOptimizer

KEY = "shrinkage"  # in the first parameter group of an optimizer, for who is attached next
Dims = Mapping[int, Sequence[int]]
State = Mapping[str, Any]


class Passenger(NamedTuple):
    """A function that returns the state of an attachment; or, without one, a state that a removed attachment left."""

    attachment: object
    state: Callable[[Optimizer], State | None]


class Plan(Protocol):
    """A `ShrinkPlan`: which indices stay of each tensor, its shape before, new biases, and which are multiplied."""

    @property
    def keep(self) -> Mapping[str, Dims]:
        """The indices that stay, by dimension, by name."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes before, by name."""

    @property
    def biases(self) -> tuple[str, ...]:
        """The names of the layers that get one."""

    @property
    def scales(self) -> Mapping[str, tuple[float, float]]:
        """The factors and offsets of parameters that are multiplied, by name."""


class Cut(NamedTuple):
    """What a plan does to a parameter: `dims` stay, and with an `offset` it is multiplied by a `factor`.

    There may be one factor for each of several slices.
    """

    dims: Dims
    factor: float | Tensor = 1.0
    offset: float = 0.0

    @classmethod
    def of(cls, plan: Plan, name: str) -> "Cut":
        """Return what `plan` does to the parameter called `name`."""
        return cls(plan.keep.get(name, {}), *plan.scales.get(name, ()))


passengers: PerOptimizer[list[Passenger]] = PerOptimizer("passengers")


def states_in(group: Mapping[str, Any]) -> list[State]:
    """Return the states that the first parameter group of an optimizer, or of its `state_dict`, holds."""
    return list(group.get(KEY, []))


def put_states(group: dict[str, Any], states: Sequence[State]) -> None:
    """Let the first parameter group of an optimizer, or of its `state_dict`, hold these states and no others."""
    group.pop(KEY, None)
    if states:
        group[KEY] = list(states)


def states_beside(optimizer: Optimizer) -> list[State]:
    """Return what regularizers keep of the parameters of `optimizer`, and what none of them has taken up yet."""
    found = [passenger.state(optimizer) for passenger in passengers.get(optimizer, [])]
    return [*states_in(optimizer.param_groups[0]), *(state for state in found if state is not None)]


def check_nothing_aside(states: Sequence[State]) -> None:
    """Raise `ShrinkError` if a budget keeps weights aside: a smaller model has no place for them."""
    for state in states:
        for updates, budgets in zip(state.get("updates", ()), state.get("budgets", ()), strict=False):
            for each in budgets.values():
                if each.get("asides"):
                    raise ShrinkError(
                        f"weights are kept aside until update {each['until']:,} of {each['of']:,} (now {updates:,}); "
                        "detach() the regularizer to go on with what is there"
                    )


def put_smaller(
    optimizer: Optimizer, states: Sequence[State], cuts: Mapping[int, Cut], after: Mapping[int, int]
) -> None:
    """Leave `states` for who is attached next, cut as the parameters of `optimizer` were.

    Args:
        optimizer: the one that holds smaller parameters by now.
        states: what `states_beside` returned before.
        cuts: what became of a parameter, by its position before.
        after: the position of the one that took its place.
    """
    cut_ones = []
    for state in states:
        places = state.get("positions", [])
        names = zip(state.get("parameters", []), places, strict=False)
        by_name = {name: cuts[place] for name, place in names if place in cuts}
        positions = [after.get(place, place) for place in places]
        cut_ones.append({**smaller_state(state, by_name), "positions": positions, "shrunk": True})
    passengers[optimizer] = []
    put_states(optimizer.param_groups[0], cut_ones)


def before_shrink(state: State, plan: Plan | None) -> tuple[State, tuple[str, ...]]:
    """Return a state from before a model was made smaller by `plan` as one of the smaller model, and its new biases.

    Raises:
        ValueError: a tensor of the state does not have the shape that the plan knows.
    """
    if plan is None or not isinstance(state, Mapping):
        return state, ()
    for name, tensor in tensors_in(state):
        if plan.shapes.get(name) not in (None, tuple(tensor.shape)):
            raise ValueError(
                f"the state has a tensor of shape {tuple(tensor.shape)} for {name!r}, the plan cuts one of shape "
                f"{plan.shapes[name]}: pass the plan of the shrink that came after the state was saved"
            )
    cuts = {name: Cut.of(plan, name) for name in {**plan.keep, **plan.scales}}
    return smaller_state(state, cuts), tuple(f"{path}.bias" if path else "bias" for path in plan.biases)


def tensors_in(state: State) -> list[tuple[str, Tensor]]:
    """Return name and tensor of all in a state that has the shape of a parameter."""
    parts = [*state.get("averages", []), *state.get("intervals", [])]
    totals = [(name, each["total"]) for part in parts for name, each in part.items()]
    found = [*totals, *state.get("references", {}).items()]
    return [(name, each) for name, each in found if isinstance(each, Tensor) and each.dim()]


def smaller_state(state: State, cuts: Mapping[str, Cut]) -> dict[str, Any]:
    """Return `state` with tensors that are cut as their parameters are, by name.

    Budgets are left out: what they ranked is not what there is now. Where a parameter is multiplied, a reference is
    too, and averages of gradients are divided.
    """
    result = {key: value for key, value in state.items() if key != "budgets"}
    for part, power in (("averages", -1), ("intervals", 0)):
        if part in state:
            result[part] = [
                {name: {**each, "total": kept(each["total"], cuts.get(name), power)} for name, each in own.items()}
                for own in state[part]
            ]
    if "references" in state:
        result["references"] = {name: kept(each, cuts.get(name), 1) for name, each in state["references"].items()}
    return result


def kept(value: Any, cut: Cut | None, power: int) -> Any:
    """Return what a parameter's `cut` leaves of a tensor of its shape, multiplied by a `power` of the factor."""
    if cut is None or not isinstance(value, Tensor) or not value.dim():
        return value
    for dim, indices in cut.dims.items():
        value = value.index_select(dim, torch.tensor(indices, dtype=torch.long, device=value.device))
    if power == 0 or not is_scaled(cut.factor):
        return value
    offset = cut.offset if power == 1 else 0.0
    return ((value.double() + offset) * raised(cut.factor, power) - offset).to(value.dtype)


def is_scaled(factor: float | Tensor) -> bool:
    """Return whether a factor changes what it multiplies."""
    return isinstance(factor, Tensor) or factor != 1


def raised(factor: float | Tensor, power: int) -> float | Tensor:
    """Return a power of a factor; 0 where one of several factors is 0, since nothing is left there.

    >>> raised(torch.tensor([0.0, 2.0]), -1)
    tensor([0.0000, 0.5000])
    """
    return torch.where(factor == 0, 0.0, factor**power) if isinstance(factor, Tensor) else factor**power
