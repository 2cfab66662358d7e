"""Which metric did this optimizer step in? One function per optimizer class.

Where the loss has gradient g and the iteration has come to rest, an update moves a weight by -eta * g. That eta, a
number or one per element, is the optimizer's metric: the step that a proximal operator has to use for the optimizer to
rest where loss + penalty is stationary, and nowhere else.

* momentum b <- mu b + (1 - d) g rests at b = g (1 - d) / (1 - mu), so eta = lr (1 - d) / (1 - mu);
* Adam's bias correction of the first moment belongs to its estimate of g, that of the second to the metric:
  eta = lr / (sqrt(v_hat) + eps);
* an element whose second moment is exactly 0 never had a gradient; it takes eta = lr, not lr / eps, which would throw
  out at the first step what the data has not reached yet.

Reference: Yun, Lozano and Yang (2021), "Adaptive proximal gradient methods for structured neural networks", alg. 1.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from shrinkage.errors import MetricError
from shrinkage.groups import at_least_float32

Number = float | Tensor
Metric = Callable[[Mapping[str, Any], Mapping[str, Any], Tensor], Number]


def sgd_metric(group: Mapping[str, Any], state: Mapping[str, Any], w: Tensor) -> Number:
    """lr (1 - dampening) / (1 - momentum); Nesterov's momentum rests at the same point."""
    lr: Number = group["lr"]
    if group["momentum"] == 0:
        return lr
    rest: float = (1 - group["dampening"]) / (1 - group["momentum"])
    return lr * rest


def adam_metric(group: Mapping[str, Any], state: Mapping[str, Any], w: Tensor) -> Number:
    """lr / (sqrt(v_hat) + eps), v_hat the bias-corrected second moment, or its running maximum (amsgrad)."""
    second_moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    beta2 = group["betas"][1]
    correction = 1 - beta2 ** updates(state["step"], second_moment)
    return adaptive_step(group["lr"], second_moment, group["eps"], correction)


def rmsprop_metric(group: Mapping[str, Any], state: Mapping[str, Any], w: Tensor) -> Number:
    """lr / (1 - momentum) / (sqrt(v) + eps), v the second moment, or the variance (centered)."""
    second_moment = state["square_avg"]
    lr = group["lr"] / (1 - group["momentum"]) if group["momentum"] > 0 else group["lr"]
    step = adaptive_step(lr, second_moment, group["eps"])
    if not group["centered"]:
        return step
    variance = second_moment.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    centered = lr / (variance.to(at_least_float32(variance.dtype)).sqrt() + group["eps"])
    return torch.where(second_moment == 0, step, centered)


def adagrad_metric(group: Mapping[str, Any], state: Mapping[str, Any], w: Tensor) -> Number:
    """lr / (1 + (t - 1) lr_decay) / (sqrt(sum of squared gradients) + eps)."""
    lr = group["lr"]
    if group["lr_decay"]:
        lr = lr / (1 + (updates(state["step"], state["sum"]) - 1) * group["lr_decay"])
    return adaptive_step(lr, state["sum"], group["eps"])


def adaptive_step(lr: Number, second_moment: Tensor, eps: float, correction: Number = 1.0) -> Tensor:
    """Return lr / (sqrt(second_moment / correction) + eps), and lr where the second moment is exactly 0."""
    moment = second_moment.to(at_least_float32(second_moment.dtype))
    denominator = (moment / correction).sqrt_().add_(eps).clamp_(max=torch.finfo(moment.dtype).max)
    # Between 1, where the moment is 0, and the denominator, where it is positive: several times faster than a mask.
    return denominator.new_ones(()).lerp(denominator, moment.sign()).reciprocal_().mul_(lr)


def updates(count: Number, like: Tensor) -> Number:
    """Return an optimizer's update count: a number where it is at hand, a tensor where reading it would wait.

    It is at least 1, though a fused optimizer whose first step met an overflow has made none.
    """
    if isinstance(count, Tensor) and count.device.type != "cpu":
        return count.to(like.device).clamp_min(1)
    return max(float(count), 1.0)


_metrics: dict[type[Optimizer], Metric] = {
    SGD: sgd_metric,
    Adam: adam_metric,
    AdamW: adam_metric,
    RMSprop: rmsprop_metric,
    Adagrad: adagrad_metric,
}


def register_metric(optimizer_class: type[Optimizer], metric: Metric) -> None:
    """Tell which metric an optimizer steps in, so that `how="proximal"` works with it.

    Args:
        optimizer_class: the optimizer; its subclasses are included as long as they do not override `step`.
        metric: a function of (parameter group, state of the parameter, parameter), called after a step, that returns
            eta: the move per unit of constant gradient, a number or a tensor shaped like the parameter. A large
            parameter comes in pieces, and what its state holds in the parameter's shape is cut alike.

    Raises:
        TypeError: `optimizer_class` is not an optimizer class.

    >>> class HalvedSGD(torch.optim.SGD):
    ...     def step(self, closure=None):
    ...         for group in self.param_groups:
    ...             for parameter in group["params"]:
    ...                 parameter.data.sub_(parameter.grad, alpha=group["lr"] / 2)
    >>> register_metric(HalvedSGD, lambda group, state, parameter: group["lr"] / 2)
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise TypeError(f"expected a subclass of torch.optim.Optimizer, got {optimizer_class!r}")
    _metrics[optimizer_class] = metric


def metric_of(optimizer: Optimizer) -> Metric:
    """Return the function that tells which metric `optimizer` steps in.

    A subclass is known by its parent's metric only while it runs its parent's `step`.

    Raises:
        MetricError: no metric is registered for the class of `optimizer`.
    """
    own = type(optimizer)
    for optimizer_class in own.__mro__:
        metric = _metrics.get(optimizer_class) if issubclass(optimizer_class, Optimizer) else None
        if metric is not None and runs_step_of(own, optimizer_class):
            return metric
    known = ", ".join(sorted(known.__name__ for known in _metrics))
    raise MetricError(
        f'how="proximal" needs the metric that {own.__name__} steps in, and none is known for it (known: {known}); '
        'choose how="decoupled" (exact zeros, strength in units of weight_decay), how="gradient" (no exact zeros), or '
        f"register_metric({own.__name__}, ...)"
    )


def runs_step_of(optimizer_class: type[Optimizer], parent: type[Optimizer]) -> bool:
    """Return whether `optimizer_class` inherits its `step` from `parent`; torch wraps it in each class anew."""
    return inspect.unwrap(optimizer_class.step) is inspect.unwrap(parent.step)
