"""A step that is prepared: what it needs is resolved once, and kept while nothing changed.

`update.py` says what a step does, for everything that can be penalized. Most steps are like the one before: the same
parameters, penalties and options, and a gradient for each. `Prepared` does those by native kernels alone. Before each
of them it asks, by identities, whether all is as it was; what is not as it was takes the general form.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import is_

import torch
from torch import nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from shrinkage.execution import native, native_build
from shrinkage.execution.native import Batch
from shrinkage.execution.single_tensor import shrink_all_
from shrinkage.execution.task import Compile, Task
from shrinkage.optimizers.adaptive_step import AdaptiveStep, JointSteps, State
from shrinkage.optimizers.metrics import NOTHING
from shrinkage.optimizers.registry import Etas, Metric, learning_rate
from shrinkage.penalties.base import Penalty
from shrinkage.private import FLATTENED
from shrinkage.proximal.precision import NARROW
from shrinkage.selection.how import decides
from shrinkage.training.lasting import Lasting, Looked
from shrinkage.training.penalized import PenalizedParameter
from shrinkage.training.prepared_zeros import PreparedZeros
from shrinkage.training.update import without_autograd_or_autocast

Targets = Sequence[PenalizedParameter]


class UsualSteps:
    """The steps of one optimizer that are like those before, as far as they are prepared."""

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._runs = False  # whether a step is under way that is prepared
        self._tried = 0  # the number of the look-up after which steps were prepared, or could not be

    def before(self, optimizer: Optimizer, penalties: Callable[[], Sequence[Penalty]]) -> bool:
        """Do what comes before a step, and return True; False, and nothing is done, if the step is not prepared."""
        prepared = self._prepared
        self._runs = prepared is not None and prepared.fits(optimizer) and prepared.before(penalties)
        return self._runs

    def after(self) -> bool:
        """Do what comes after a step that began here, and return True; False if none did."""
        if not self._runs or self._prepared is None:
            return False
        self._runs = False
        self._prepared.after()
        return True

    def end(self) -> None:
        """Forget a step that raised."""
        self._runs = False

    def forget(self) -> None:
        """Forget what is prepared."""
        self._prepared, self._runs, self._tried = None, False, 0

    def prepare(self, optimizer: Optimizer, found: Looked, lasting: Lasting) -> None:
        """Prepare the steps after an unusual one; where that failed before, after 1, 2, 4 ... updates only."""
        prepared, made = self._prepared, lasting.updates.steps
        if prepared is not None and prepared.holds(optimizer):
            return
        if prepared is not None or self._tried != found.number or made & (made - 1) == 0:
            self._prepared, self._tried = Prepared.of(optimizer, found, lasting), found.number


class Prepared:
    """The steps of one optimizer, as long as nothing changes.

    Args:
        optimizer: what steps.
        found: what is penalized in it.
        library: of native kernels.
        runs: the proximal operators after a step.
        zeros: the zeros that are held; None if none are.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        found: Looked,
        library: ctypes.CDLL,
        runs: Sequence["Run"],
        zeros: PreparedZeros | None,
    ) -> None:
        self._library, self._runs, self._zeros = library, runs, zeros
        self._parameters = [target.parameter for target in found.targets]
        self._stepped = [(group, list(group["params"])) for group in optimizer.param_groups]
        self._penalized = [optimizer.param_groups[index] for index in {target.group for target in found.targets}]
        self._state, self._states = optimizer.state, list(optimizer.state.values())
        self._elsewhere, self._held = found.elsewhere, found.held
        self._names = [target.name for target in found.targets]
        self._scheduled = any(target.penalty.scheduled for target in found.targets)
        self._places = [
            (place.module, place.attribute, target.parameter) for target in found.targets for place in target.places
        ]

    @staticmethod
    def of(optimizer: Optimizer, found: Looked, lasting: Lasting) -> "Prepared | None":
        """Return the prepared steps of an optimizer that has just stepped; None where the general form is needed."""
        targets = found.targets
        metric, library = lasting.metric, native_build.library() if lasting.compile is not False else None
        if library is None or metric is None or metric.before is not None or metric.iterate is not None:
            return None
        if not targets or not all(map(is_usual, targets)):
            return None
        pairs = zip(targets, found.penalties, strict=True)
        targets = [target._replace(penalty=penalty) for target, penalty in pairs]
        runs = runs_of(optimizer, targets, metric, lasting.compile)
        zeros, held = None, [target for target in targets if decides(target.penalty, target.how)]
        if lasting.averages is not None and held:
            groups = [optimizer.param_groups[target.group] for target in held]
            zeros = PreparedZeros.of(held, groups, lasting.averages)
            if zeros is None:
                return None
        return None if runs is None else Prepared(optimizer, found, library, runs, zeros)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # pointers are of no use to a copy

    def fits(self, optimizer: Optimizer) -> bool:
        """Return whether the next step is a usual one, of what this was made for."""
        if getattr(optimizer, "found_inf", None) is not None or getattr(optimizer, "grad_scale", None) is not None:
            return False
        if torch.is_inference_mode_enabled():
            return False
        for group in self._penalized:
            lr = group["lr"]
            if type(lr) is not float or not lr:  # a distributed checkpoint steps with 0
                return False
        for parameter in self._parameters:
            if parameter.grad is None or FLATTENED in parameter.__dict__:
                return False
        return self.holds(optimizer)

    def holds(self, optimizer: Optimizer) -> bool:
        """Return whether the optimizer and the model still are what this was made for."""
        groups = optimizer.param_groups
        if optimizer.state is not self._state or len(groups) != len(self._stepped):
            return False
        for group, (own, parameters) in zip(groups, self._stepped, strict=True):
            now = group["params"]
            if group is not own or len(now) != len(parameters) or not all(map(is_, now, parameters)):
                return False
        if len(self._state) != len(self._states) or not all(map(is_, self._state.values(), self._states)):
            return False
        for module, attribute, parameter in self._places:
            found = module()
            if found is not None and found._parameters.get(attribute) is not parameter:
                return False
        for place in self._elsewhere:
            if place.holds_any(self._held):
                return False
        return True

    def before(self, penalties: Callable[[], Sequence[Penalty]]) -> bool:
        """Do what comes before a step; False, and nothing is done, where that takes the general form."""
        if self._scheduled:
            now = dict(zip(self._names, penalties(), strict=True))
            if not all([run.adopts(now) for run in self._runs]):
                return False
            if self._zeros is not None and not self._zeros.adopts(now):
                return False
        return self._zeros is None or self._zeros.before(self._library)

    def after(self) -> None:
        """Do what comes after a step."""
        as_they_were = True
        for run in self._runs:
            as_they_were &= run.move_(self._library)
        if self._zeros is not None:
            self._zeros.after(self._library, as_they_were=as_they_were)
        increment_version(self._parameters)


def is_usual(target: PenalizedParameter) -> bool:
    """Return whether a parameter is whole, on a CPU, and moved by one prox after each step."""
    parameter = target.parameter
    whole = type(parameter) is nn.Parameter and parameter.is_cpu and target.group_sharding is None and not target.lazy
    each = target.every == 1 and not target.before and target.how != "cautious"
    return whole and each and parameter.grad is not None and parameter.dtype not in NARROW


class Run:
    """Parameters of one penalty that one call moves after each step.

    Args:
        batch: the call.
        targets: what is moved.
        optimizer: that has stepped.
        metric: how it steps.
        compile: what moves parameters that changed.
    """

    def __init__(self, batch: Batch, targets: Targets, optimizer: Optimizer, metric: Metric, compile: Compile) -> None:
        self._batch, self._targets, self._compile = batch, targets, compile
        self._penalty = targets[0].penalty
        self._ws = tuple(target.parameter for target in targets)
        self._steps_of = steps_of(targets[0].how, metric)
        self._parts = [
            (optimizer.param_groups[group], states_of(optimizer, list(members)))
            for group, members in groupby(targets, lambda target: target.group)
        ]

    def adopts(self, penalties: Mapping[str, Penalty]) -> bool:
        """Take the penalty of this update, by name of a parameter, and return whether the call can."""
        self._penalty = penalties[self._targets[0].name]
        return self._batch.adopts(self._penalty)

    def move_(self, library: ctypes.CDLL) -> bool:
        """Move the parameters by one call, and return True; False if they changed, and took another way.

        Autograd is told by the caller.
        """
        (group, states), *others = self._parts
        steps = self._steps_of(group, states)
        for group, states in others:
            moments, numbers = self._steps_of(group, states)
            steps = JointSteps(steps.moments + moments, steps.numbers + numbers)
        if self._batch.move_(library, self._ws, steps):
            return True
        with without_autograd_or_autocast(self._targets):
            pairs = zip(self._targets, steps.each(), strict=True)
            tasks = [Task(self._penalty, target.parameter.detach(), step) for target, step in pairs]
            shrink_all_(tasks, compile=self._compile)
        return False


def states_of(optimizer: Optimizer, targets: Targets) -> list[State]:
    """Return what an optimizer keeps of each parameter."""
    return [optimizer.state.get(target.parameter, {}) for target in targets]


def steps_of(how: str, metric: Metric) -> Etas:
    """Return a function of a parameter group and states that returns the steps of parameters."""
    if how == "decoupled":
        return lambda group, states: JointSteps.of([learning_rate(metric, group)] * len(states))
    if metric.etas is not None:
        return metric.etas
    # Steps that depend on the parameter have no kernel.
    return lambda group, states: JointSteps.of([metric.eta(group, state, NOTHING) for state in states])


def runs_of(optimizer: Optimizer, targets: Targets, metric: Metric, compile: Compile) -> list[Run] | None:
    """Return the proximal operators of `targets`, a call for each penalty; None if one of them has no kernel."""
    alike: dict[object, list[tuple[PenalizedParameter, Task]]] = {}
    for target in targets:
        w = target.parameter
        try:
            states = states_of(optimizer, [target])
            steps = steps_of(target.how, metric)(optimizer.param_groups[target.group], states).each()
        except KeyError:  # it never had a gradient
            return None
        if not steps:  # it is a function
            return None
        (step,) = steps
        task = Task(target.penalty, w, step)
        if not native.has_kernel(task):
            return None
        key = (id(target.penalty), target.how, isinstance(step, AdaptiveStep), w.dtype)
        alike.setdefault(key, []).append((target, task))
    runs = []
    for pairs in alike.values():
        batch = Batch.of([task for _, task in pairs])
        if batch is None:
            return None
        runs.append(Run(batch, [target for target, _ in pairs], optimizer, metric, compile))
    return runs
