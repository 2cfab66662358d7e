"""Which of the states that an optimizer holds belongs to an attachment."""

from collections.abc import Callable, Sequence, Set
from typing import Any

from torch.optim import Optimizer

from shrinkage.errors import listed, warn_user
from shrinkage.optimizers.introspection import parameters_of
from shrinkage.optimizers.parameter_state import Passenger, put_states, states_in
from shrinkage.training.attachment import Attachment
from shrinkage.training.saved_state import Restore, State, is_newer


def is_of_same(passenger: Passenger, optimizer: Optimizer, names: Set[str]) -> bool:
    """Return whether `passenger` was left by an attachment that penalized one of the parameters called `names`."""
    state = passenger.state(optimizer) if passenger.attachment is None else None
    return state is not None and not names.isdisjoint(state["parameters"])


def pop_state(
    group: dict[str, Any], optimizer: Optimizer, attachment: Attachment, checked: Callable[[Optimizer, State], Restore]
) -> Restore:
    """Take the state of what penalizes the same in `optimizer` out of `group`, and return what goes on from it."""
    states, names, positions = states_in(group), names_in(optimizer, attachment), positions_in(optimizer, attachment)
    alike = [state for state in states if state.get("parameters") == names]
    alike = alike or [state for state in states if is_for(state, names)]
    mine = next((state for state in alike if state.get("positions") == positions), alike[0] if alike else None)
    if mine is None:
        if states:
            saved = " and ".join(penalizing(state.get("parameters", [])) for state in states)
            warn_user(
                f"the optimizer's state comes from {saved}; {penalizing(names)} finds nothing there and keeps its own "
                "update count: attach it with the rules that were saved, or give it a state with load_state_dict()"
            )
        return nothing
    restore = checked(optimizer, mine)
    put_states(group, [state for state in states if state is not mine])
    return restore


def is_for(state: State, names: Sequence[str]) -> bool:
    """Return whether `state` is of smaller parameters or of an older default, with some that are called `names`."""
    saved = set(state.get("parameters", []))
    if state.get("shrunk"):
        return not saved.isdisjoint(names)
    return bool(saved) and saved < set(names) and all(map(is_newer, set(names) - saved))


def names_in(optimizer: Optimizer, attachment: Attachment) -> list[str]:
    """Return the names of what `attachment` penalizes in `optimizer`."""
    return [each.name for each in attachment.concerned(optimizer)]


def positions_in(optimizer: Optimizer, attachment: Attachment) -> list[int]:
    """Return where `optimizer` holds them, which tells two models apart whose parameters have the same names."""
    positions = {id(parameter): index for index, parameter in enumerate(parameters_of(optimizer))}
    return [positions[id(each.parameter)] for each in attachment.concerned(optimizer)]


def penalizing(names: Sequence[str]) -> str:
    """Return the regularizer that penalizes `names`, as text."""
    return f"a regularizer of {len(names)} parameters ({listed(names, most=3)})"


def nothing() -> None:
    """Go on from where things stand."""
