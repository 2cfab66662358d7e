"""Which metric did this optimizer step in? A table of the optimizers whose metric is known, open to registration.

What a metric is, and the formulas of torch's own optimizers, stand in `metrics.py`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.errors import MetricError, shown
from shrinkage.optimizers.adaptive_step import JointSteps, MetricStep, Number, State, Step
from shrinkage.optimizers.learning_rate import check_learning_rate, is_torchs, other_rate
from shrinkage.optimizers.metrics import (
    Group,
    adadelta_before,
    adadelta_metric,
    adafactor_before,
    adafactor_metric,
    adagrad_metric,
    adam_metric,
    adam_metrics,
    adamax_metric,
    asgd_before,
    asgd_metric,
    nadam_metric,
    radam_metric,
    rmsprop_metric,
    rprop_metric,
    sgd_metric,
    sgd_metrics,
    sparse_adam_metric,
)

Eta = Callable[[Group, State, Tensor], Step]
Before = Callable[[Group, State, Tensor], State]
Iterate = Callable[[Group, State, Tensor], tuple[Tensor, Number]]
Rate = Callable[[Group], Number]
Etas = Callable[[Group, Sequence[State]], JointSteps]


class Metric(NamedTuple):
    """How an optimizer turns a gradient into a move; see `register_metric` for the functions.

    `eta` returns a number, or a step that is computed where it is used. `etas` returns those of several parameters of
    a group on a CPU, given their states.
    """

    eta: Eta
    before: Before | None = None
    iterate: Iterate | None = None
    lr: Rate | None = None
    elementwise: bool = True
    etas: Etas | None = None


_metrics: dict[type[Optimizer], Metric] = {
    SGD: Metric(sgd_metric, etas=sgd_metrics),
    Adam: Metric(adam_metric, etas=adam_metrics),
    AdamW: Metric(adam_metric, etas=adam_metrics),
    RMSprop: Metric(rmsprop_metric),
    Adagrad: Metric(adagrad_metric),
    NAdam: Metric(nadam_metric),
    RAdam: Metric(radam_metric),
    SparseAdam: Metric(sparse_adam_metric),
    Adamax: Metric(partial(MetricStep, adamax_metric)),
    Adadelta: Metric(partial(MetricStep, adadelta_metric), before=adadelta_before),
    ASGD: Metric(asgd_metric, before=asgd_before),
    Rprop: Metric(partial(MetricStep, rprop_metric)),
    Adafactor: Metric(
        partial(MetricStep, adafactor_metric, elementwise=False), before=adafactor_before, elementwise=False
    ),
}

GRADIENT = 'how="gradient" (no exact zeros)'
DECOUPLED = 'how="decoupled" (exact zeros, strength in units of weight_decay)'
DECOUPLED_IF_LR_IS = 'how="decoupled" (exact zeros; every step shrinks by group["lr"] times the strength)'


# Optimizers whose steps have no metric of single weights: why, and what can be done.
_without: Mapping[type[Optimizer], tuple[str, str]] = MappingProxyType(
    {
        LBFGS: (
            "it moves all weights along one direction, as far as a line search says, and learns the curvature from its "
            "own moves alone: what moves weights after the step makes that wrong",
            f"{GRADIENT}, which is exact inside its closure",
        ),
        Muon: (
            "it moves a matrix along the orthogonal factor of its momentum, by a size that does not depend on the "
            "gradient",
            f"{DECOUPLED}, or {GRADIENT}",
        ),
    }
)


def register_metric(
    optimizer_class: type[Optimizer],
    metric: Eta,
    *,
    before: Before | None = None,
    iterate: Iterate | None = None,
    lr: Rate | None = None,
    elementwise: bool = True,
) -> None:
    """Register the metric of a class of optimizers, so that `how="proximal"` works with it.

    Args:
        optimizer_class: the optimizer; its subclasses are included as long as they do not override `step`.
        metric: a function of (parameter group, state of the parameter, parameter), called after a step, that returns
            eta: the move per unit of constant gradient, a number or a tensor shaped like the parameter. The state it
            sees holds the parameter's gradient too, as "grad".
        before: a function of the same, called before each step, that returns a mapping of what the metric needs and
            the step is about to change; copies of tensors. The metric finds it in the state. At the first step the
            state that `before` sees is empty.
        iterate: a function of the same, for optimizers whose gradients move another tensor than the parameter, which
            follows it. Returns that tensor, which the proximal operator then moves instead, and the share of its moves
            by which the parameter follows, as in the last step.
        lr: a function of the parameter group, for optimizers that do not step by the group's "lr" but by a rate that
            they make of it; `how="decoupled"` multiplies by what it returns.
        elementwise: whether eta of an element follows from the state of that element. A large parameter then comes in
            chunks, and tensors of its state that have the parameter's shape are cut alike.

    Raises:
        TypeError: `optimizer_class` is not an optimizer class.

    >>> import torch
    >>> class HalvedSGD(torch.optim.SGD):
    ...     def step(self, closure=None):
    ...         for group in self.param_groups:
    ...             for parameter in group["params"]:
    ...                 parameter.data.sub_(parameter.grad, alpha=group["lr"] / 2)
    >>> register_metric(HalvedSGD, lambda group, state, parameter: group["lr"] / 2)
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise TypeError(f"expected a subclass of torch.optim.Optimizer, got {shown(optimizer_class)}")
    eta = partial(MetricStep, metric, elementwise=elementwise)
    _metrics[optimizer_class] = Metric(eta, before, iterate, lr, elementwise)


def known_metric(optimizer: Optimizer) -> Metric | None:
    """Return how `optimizer` steps, or None if that is not known.

    A subclass is known by its parent's metric only while it runs its parent's `step`.
    """
    own = type(optimizer)
    for optimizer_class in own.__mro__:
        metric = _metrics.get(optimizer_class) if issubclass(optimizer_class, Optimizer) else None
        if metric is not None and runs_step_of(own, optimizer_class):
            return metric
    return None


def metric_of(optimizer: Optimizer) -> Metric:
    """Return how `optimizer` steps.

    Raises:
        MetricError: no metric is known for the class of `optimizer`, or it has none.
    """
    metric = known_metric(optimizer)
    if metric is not None:
        return metric
    own = type(optimizer)
    for optimizer_class, (reason, instead) in _without.items():
        if issubclass(own, optimizer_class):
            raise MetricError(
                f'how="proximal" needs a metric, the move of each weight per unit of its gradient, and {own.__name__} '
                f"has none: {reason}; choose {instead}"
            )
    known = ", ".join(sorted(map(full_name, _metrics)))
    other = any(other_rate(optimizer, group) for group in optimizer.param_groups)
    decoupled = "" if other else f"{DECOUPLED_IF_LR_IS}, "
    raise MetricError(
        f'how="proximal" needs the metric that {full_name(own)} steps in, and none is known for it (known: {known}); '
        f"choose {decoupled}{GRADIENT}, or register_metric({own.__name__}, ...)"
    )


def check_spread(name: str, parameter: Tensor, how: str, optimizer: Optimizer, *, group_sharding: bool) -> None:
    """Raise `MetricError` if the metric of `optimizer` needs more of a parameter than the shard on this process.

    Args:
        name: the parameter's.
        parameter: what is penalized; it may be sharded over processes.
        how: "proximal", or "decoupled", which asks for the learning rate only.
        optimizer: what moves it.
        group_sharding: whether its groups cross processes.
    """
    metric = known_metric(optimizer)
    if metric is None or not is_dtensor(parameter):
        return
    if (how == "proximal" and not metric.elementwise) or (group_sharding and metric.iterate is not None):
        raise MetricError(
            f"{name!r} of shape {tuple(parameter.shape)} is sharded over processes, and the step of "
            f"{type(optimizer).__name__} at one element depends on others, or on a tensor that the parameter follows: "
            'choose how="gradient", or keep the parameter whole on each process (DistributedDataParallel)'
        )


def runs_step_of(optimizer_class: type[Optimizer], parent: type[Optimizer]) -> bool:
    """Return whether `optimizer_class` inherits its `step` from `parent`; torch wraps it in each class anew."""
    return inspect.unwrap(optimizer_class.step) is inspect.unwrap(parent.step)


def full_name(optimizer_class: type[Optimizer]) -> str:
    """Return the name of one of torch's optimizers, or the name with its module: others are called Adafactor too."""
    module, name = optimizer_class.__module__, optimizer_class.__qualname__
    return name if is_torchs(module) else f"{module}.{name}"


def learning_rate(metric: Metric | None, group: Group) -> Number:
    """Return what an optimizer with this metric, if it is known, steps by in `group`."""
    rate: Number = group["lr"] if metric is None or metric.lr is None else metric.lr(group)
    return rate


def check_decoupled(name: str, how: str, smooth: bool, optimizer: Optimizer, group: Group) -> None:
    """Raise `MetricError` if the learning rate of `optimizer` cannot decay the parameter `name`."""
    own, metric = type(optimizer).__name__, known_metric(optimizer)
    if metric is None or metric.lr is None:
        check_learning_rate(name, how, optimizer, group)
    if isinstance(optimizer, LBFGS):
        reason, instead = _without[LBFGS]
        raise MetricError(f'how="{how}" of {name!r} does not go with {own}: {reason}; choose {instead}')
    if smooth and metric is not None and metric.iterate is not None:
        raise MetricError(
            f'how="{how}" of {name!r} decays the parameter itself, and {own} moves another tensor, which would not '
            'follow; choose how="proximal", how="gradient", or the weight decay of the optimizer itself'
        )
