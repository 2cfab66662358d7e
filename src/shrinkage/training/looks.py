"""When controls look: before each update of an optimizer, at the weights that they measure and at the learning rate.

What is measured on an accelerator is copied to the host without a wait, and read at the next look.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from shrinkage.distributed.flat_parameters import is_flat_shard
from shrinkage.errors import AttachmentError, MetricError, ParameterError
from shrinkage.optimizers.introspection import is_sharded
from shrinkage.optimizers.registry import Metric, learning_rate
from shrinkage.penalties.controlled import Controlled, controls_in
from shrinkage.training.measurements import measured, summed
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.stages import acting_at
from shrinkage.training.update import without_autograd_or_autocast
from shrinkage.training.update_count import Updates

Targets = Sequence[PenalizedParameter]
Watched = dict[Controlled, list[PenalizedParameter]]


class Ahead(NamedTuple):
    """What was measured and is not read yet.

    Args:
        of: the control and the name of each row.
        rows: R and the gain, on the host once `ready` has happened; in the last row the updates that were skipped.
        ready: the event after the copy; None if there is nothing to wait for.
    """

    of: Sequence[tuple[Controlled, str]]
    rows: Tensor
    ready: torch.Event | None


class Looks:
    """The looks of the controls that are at work in one optimizer."""

    def __init__(self) -> None:
        self._controls: dict[str, list[Controlled]] = {}  # by name of a parameter, of both stages
        self._targets: Targets = ()
        self._ahead: Ahead | None = None
        self._looked: int | None = None  # the step before which they looked last
        self._skipped: Tensor | float = 0.0  # updates, as of then

    def __bool__(self) -> bool:
        return bool(self._controls)

    def keep(self, targets: Targets, optimizer: Optimizer, whole: Optimizer, metric: Metric | None) -> None:
        """Look at these parameters from now on; raise if there is a control that cannot."""
        found = {
            target.name: [each for stage in target.stages for each in controls_in(stage.penalty)] for target in targets
        }
        for target in targets:
            for control in found[target.name]:
                check_seen(control, target, optimizer, whole, metric)
        self.forget(found)
        self._targets = [target for target in targets if found[target.name]]
        self._controls = {name: controls for name, controls in found.items() if controls}

    def forget(self, kept: Container[str] = ()) -> None:
        """Forget what was measured of parameters that are not `kept`."""
        for name, controls in self._controls.items():
            for control in controls if name not in kept else ():
                control.measured.pop(name, None)

    def look(self, optimizer: Optimizer, metric: Metric | None, updates: Updates) -> None:
        """Let controls see what there is before an update, once."""
        if self._looked == updates.steps:
            return
        self._looked = updates.steps
        staged = any(target.until is not None for target in self._targets)
        acting = acting_at(self._targets, updates.count() if staged else 0)
        acting = [target for target in acting if target.parameter.requires_grad and not is_lazy(target.parameter)]
        groups = optimizer.param_groups
        watched: Watched = {}
        for target in acting:
            for control in controls_in(target.penalty):
                watched.setdefault(control, []).append(target)
        due = {}
        for control, targets in watched.items():
            if not control.control.measures:
                control.see(float(learning_rate(metric, groups[targets[0].group])))
            elif updates.steps % targets[0].every == 0:
                due[control] = targets
        self.forget({target.name for target in acting})  # what is not penalized now
        self._read()
        if due:
            self._measure(due, optimizer, metric, updates)

    def _measure(self, due: Watched, optimizer: Optimizer, metric: Metric | None, updates: Updates) -> None:
        """Measure for the controls that are due, and let them see it: now on the host, at the next look elsewhere."""
        with without_autograd_or_autocast([target for own in due.values() for target in own]):
            found = [each for control, own in due.items() for each in measured(control, own, optimizer, metric)]
            rows = summed(found)
            skipped = 0.0 if updates.skipped is None else updates.skipped
            rows = torch.cat([rows, torch.zeros_like(rows[:1]) + (skipped - self._skipped)])
            self._skipped, ready = skipped, None
            if rows.device.type != "cpu":
                rows, ready = rows.to("cpu", non_blocking=True), torch.Event(rows.device.type)
                ready.record()
        self._ahead = Ahead([(each.control, each.name) for each in found], rows, ready)
        if ready is None:
            self._read()

    def _read(self) -> None:
        """Let controls see what was measured; not what was measured after an update that was skipped."""
        if self._ahead is None:
            return
        of, rows, ready = self._ahead
        self._ahead = None
        if ready is not None:
            ready.synchronize()
        *numbers, (skipped, _) = rows.tolist()
        for (control, name), (value, gain) in zip(of, numbers, strict=True):
            _, known = control.measured.get(name, (0.0, 0.0))
            control.measured[name] = value, gain or known
        for control in dict.fromkeys(control for control, _ in of) if not skipped else ():
            control.see()

    def state_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the states of the controls, and what they measured, by the name of the parameter."""
        ahead = {} if self._ahead is None else self._rows_ahead(self._ahead)
        return {
            name: [saved(control, name, ahead.get((control, name))) for control in controls]
            for name, controls in self._controls.items()
        }

    def _rows_ahead(self, ahead: Ahead) -> dict[tuple[Controlled, str], list[float]]:
        """Return what is to be read at the next look; waits for it."""
        if ahead.ready is not None:
            ahead.ready.synchronize()
        *numbers, (skipped, _) = ahead.rows.tolist()
        return {} if skipped else dict(zip(ahead.of, numbers, strict=True))

    def check_state(self, state: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Raise `ValueError` unless `state` was saved with these controls."""
        for name, controls in self._controls.items():
            found, own = [each["control"] for each in state.get(name, [])], [repr(each.control) for each in controls]
            if found and found != own:
                raise ValueError(
                    f"the state was saved with {', '.join(found)} for {name!r}, these rules have {', '.join(own)}; use "
                    "those that it was saved with"
                )

    def load_state_dict(self, state: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Go on from what `state_dict` returned; controls that it does not know go on from where they are."""
        self._looked, self._skipped, self._ahead = None, 0.0, None
        ahead: dict[tuple[Controlled, str], list[float]] = {}
        for name, controls in self._controls.items():
            for control, each in zip(controls, state.get(name, []), strict=False):
                control.state = dict(each["state"])
                if each["measured"] is not None:
                    control.measured[name] = tuple(each["measured"])
                if each["ahead"] is not None:
                    ahead[control, name] = each["ahead"]
        if ahead:
            self._ahead = Ahead(list(ahead), torch.tensor([*ahead.values(), [0.0, 0.0]], dtype=torch.float64), None)


def controls_of(target: PenalizedParameter) -> list[Controlled]:
    """Return the controls of one parameter, of both stages."""
    return [control for stage in target.stages for control in controls_in(stage.penalty)]


def saved(control: Controlled, name: str, ahead: list[float] | None) -> dict[str, Any]:
    """Return what a state_dict holds of one control at one parameter."""
    measured = control.measured.get(name)
    return {
        "control": repr(control.control),
        "state": dict(control.state),
        "measured": None if measured is None else list(measured),
        "ahead": ahead,
    }


def check_seen(
    control: Controlled, target: PenalizedParameter, optimizer: Optimizer, whole: Optimizer, metric: Metric | None
) -> None:
    """Raise if `control` cannot see what it needs of one parameter."""
    what = f"{control.control!r} of {target.name!r}, of shape {tuple(target.parameter.shape)},"
    if not control.control.measures:
        if "lr" not in optimizer.param_groups[target.group] and (metric is None or metric.lr is None):
            raise MetricError(f"{what} sees the learning rate, and groups of {type(optimizer).__name__} have no 'lr'")
        return
    if metric is None and "lr" not in optimizer.param_groups[target.group] and control.control.asks_gain(control.state):
        raise MetricError(
            f"{what} chooses its rate by the step of {type(optimizer).__name__}, which is not known: give it one, rate="
        )
    if optimizer.param_groups[target.group].get("line_search_fn", "none needed") is None:
        raise AttachmentError(
            f"{what} changes its strength between steps, which {type(optimizer).__name__} without a line search takes "
            'for curvature of the loss, and diverges; use line_search_fn="strong_wolfe"'
        )
    if is_flat_shard(target.parameter):
        raise ParameterError(
            f"{what} measures all of it, and FullyShardedDataParallel leaves a flat shard of it to each process; use "
            "fully_shard"
        )
    if is_sharded(whole):
        raise AttachmentError(
            f"{what} measures all parameters of its rule, and a ZeroRedundancyOptimizer steps a part of them in each "
            "process; use fully_shard"
        )
