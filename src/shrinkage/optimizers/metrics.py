"""The metrics of torch's optimizers: one function per class, of (parameter group, state, parameter).

Where the loss has gradient g and the iteration has converged, an update moves a weight by -eta * g. That eta, a
number or one per element, is the optimizer's metric: the step that a proximal operator has to use for the optimizer to
rest where loss + penalty is stationary, and nowhere else.

* momentum b <- mu b + (1 - d) g rests at b = g (1 - d) / (1 - mu), so eta = lr (1 - d) / (1 - mu);
* Adam's bias correction of the first moment belongs to its estimate of g, that of the second to the metric:
  eta = lr / (sqrt(v_hat) + eps);
* an element whose second moment is exactly 0 never had a gradient; it takes eta = lr, not lr / eps, which would throw
  out at the first step what the data has not reached yet.

The functions run after the step. The state they see holds the gradient too, as "grad", and what the `_before` function
of the optimizer returned before the step, for optimizers that step with what they then change.

Reference: Yun, Lozano and Yang (2021), "Adaptive proximal gradient methods for structured neural networks", alg. 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shrinkage.optimizers.adaptive_step import AdaptiveStep, JointSteps, MetricStep, Number, State, Step, item_if_on_cpu
from shrinkage.proximal.precision import at_least_float32, upcast

Group = Mapping[str, Any]
NOTHING = torch.empty(0)  # in the place of a parameter that a metric does not look at


def sgd_metric(group: Group, state: State, w: Tensor) -> Number:
    """lr (1 - dampening) / (1 - momentum); Nesterov's momentum rests at the same point."""
    lr = item_if_on_cpu(group["lr"])
    if group["momentum"] == 0:
        return lr
    rest: float = (1 - group["dampening"]) / (1 - group["momentum"])
    return lr * rest


def adam_metric(group: Group, state: State, w: Tensor) -> Step:
    """lr / (sqrt(v_hat) + eps), v_hat the bias-corrected second moment, or its running maximum (amsgrad)."""
    second_moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    beta2 = group["betas"][1]
    correction = 1 - beta2 ** updates(state["step"], second_moment)
    return AdaptiveStep(item_if_on_cpu(group["lr"]), second_moment, group["eps"], correction)


def sgd_metrics(group: Group, states: Sequence[State]) -> JointSteps:
    """`sgd_metric`, which is the same for all parameters of a group."""
    return JointSteps([], [(sgd_metric(group, {}, NOTHING), 0.0, 1.0)] * len(states))


def adam_metrics(group: Group, states: Sequence[State]) -> JointSteps:
    """`adam_metric` of several parameters on a CPU, most of which have made as many steps."""
    moment, beta2 = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq", group["betas"][1]
    lr, eps = item_if_on_cpu(group["lr"]), group["eps"]
    found, made, numbers = JointSteps([], []), None, (lr, eps, 1.0)
    for state in states:  # a plain loop: this is asked after every step
        count = float(state["step"])
        if count != made:
            made, numbers = count, (lr, eps, 1 - beta2 ** max(count, 1.0))
        found.moments.append(state[moment])
        found.numbers.append(numbers)
    return found


def rmsprop_metric(group: Group, state: State, w: Tensor) -> Step:
    """lr / (1 - momentum) / (sqrt(v) + eps), v the second moment, or the variance (centered)."""
    second_moment = state["square_avg"]
    lr = item_if_on_cpu(group["lr"]) / (1 - max(group["momentum"], 0))
    if not group["centered"]:
        return AdaptiveStep(lr, second_moment, group["eps"])
    return MetricStep(centered_rmsprop_metric, group, state, w)


def centered_rmsprop_metric(group: Group, state: State, w: Tensor) -> Tensor:
    """lr / (1 - momentum) / (sqrt(variance) + eps)."""
    second_moment = state["square_avg"]
    lr = item_if_on_cpu(group["lr"]) / (1 - max(group["momentum"], 0))
    variance = second_moment.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    centered = lr / (variance.to(at_least_float32(variance.dtype)).sqrt() + group["eps"])
    return torch.where(second_moment == 0, AdaptiveStep(lr, second_moment, group["eps"]).tensor(), centered)


def adagrad_metric(group: Group, state: State, w: Tensor) -> Step:
    """lr / (1 + (t - 1) lr_decay) / (sqrt(sum of squared gradients) + eps)."""
    lr = item_if_on_cpu(group["lr"])
    if group["lr_decay"]:
        lr = lr / (1 + (updates(state["step"], state["sum"]) - 1) * group["lr_decay"])
    return AdaptiveStep(lr, state["sum"], group["eps"])


def nadam_metric(group: Group, state: State, w: Tensor) -> Step:
    """lr (1 - mu_t + mu_{t+1}) / (sqrt(v_hat) + eps), with mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)."""
    beta1, beta2 = group["betas"]
    count = updates(state["step"], state["exp_avg_sq"])
    now, later = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (count, count + 1))
    lr = item_if_on_cpu(group["lr"]) * (1 - now + later)
    return AdaptiveStep(lr, state["exp_avg_sq"], group["eps"], 1 - beta2**count)


def radam_metric(group: Group, state: State, w: Tensor) -> Step:
    """lr r_t / (sqrt(v_hat) + eps / sqrt(1 - beta2^t)), r_t the rectification; lr while there is none: rho_t <= 5."""
    lr, beta2 = item_if_on_cpu(group["lr"]), group["betas"][1]
    count = updates(state["step"], state["exp_avg_sq"])
    correction = 1 - beta2**count
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * count * beta2**count / correction  # rho_t
    if not isinstance(length, Tensor) and length <= 5:
        return lr
    rectification = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
    step = AdaptiveStep(lr * rectification, state["exp_avg_sq"], group["eps"] / correction**0.5, correction)
    return torch.where(length > 5, step.tensor(), lr) if isinstance(length, Tensor) else step


def sparse_adam_metric(group: Group, state: State, w: Tensor) -> Step:
    """lr / (sqrt(v_hat) + eps / sqrt(1 - beta2^t)): Adam's, with eps added before the correction.

    A row moves, by this metric, in the share of the steps that touch it, and its gradient is 0 in the others: penalized
    at every step, it rests in expectation where loss + penalty does.
    """
    correction = 1 - group["betas"][1] ** updates(state["step"], state["exp_avg_sq"])
    return AdaptiveStep(item_if_on_cpu(group["lr"]), state["exp_avg_sq"], group["eps"] / correction**0.5, correction)


def adamax_metric(group: Group, state: State, w: Tensor) -> Number:
    """lr / u, u the decaying maximum of |g| + eps: exactly eps where there never was a gradient."""
    largest = state["exp_inf"]
    denominator = upcast(largest).masked_fill(largest <= group["eps"], 1.0)
    return denominator.reciprocal_().mul_(group["lr"])


def adadelta_before(group: Group, state: State, w: Tensor) -> State:
    """Note the mean square of the moves so far: the step is made with it before it takes in its own move."""
    return {"acc_delta_before": state["acc_delta"].clone()} if state else {}


def adadelta_metric(group: Group, state: State, w: Tensor) -> Number:
    """lr sqrt(mean square of the moves before + eps) / sqrt(v + eps); the former is 0 at the first step."""
    eps: float = group["eps"]
    second_moment = upcast(state["square_avg"])
    moves = upcast(state.get("acc_delta_before", torch.zeros_like(second_moment)))
    return moves.add(eps).div_(second_moment + eps).sqrt_().mul_(group["lr"])


def asgd_before(group: Group, state: State, w: Tensor) -> State:
    """Note the step size, which the step replaces by the next one at its end."""
    return {"eta_before": state["eta"].clone()} if state else {}


def asgd_metric(group: Group, state: State, w: Tensor) -> Number:
    """The decaying step size that this step was made with; lr at the first. `lambd` is an L2 penalty of its own."""
    first = torch.as_tensor(group["lr"]).to(state["step"])  # rounded as the optimizer rounds it
    return item_if_on_cpu(state.get("eta_before", first))


def rprop_metric(group: Group, state: State, w: Tensor) -> Number:
    """step size / |g|; 0 where g changed its sign, since the weight then stays where it is; lr where g is 0."""
    moving = upcast(state["prev"]).abs()  # |g|, and 0 where the sign changed
    grad = state.get("grad", moving)
    largest = torch.finfo(moving.dtype).max
    step = torch.where(moving > 0, (upcast(state["step_size"]) / moving).clamp_(max=largest), 0.0)
    return torch.where(grad == 0, group["lr"], step)


def adafactor_before(group: Group, state: State, w: Tensor) -> State:
    """Note the root mean square of the parameter, in which its learning rate is measured."""
    return {"rms": upcast(w.norm(2)) / w.numel() ** 0.5}


def adafactor_metric(group: Group, state: State, w: Tensor) -> Number:
    """max(eps2, rms(w before)) min(lr, 1 / sqrt(t)) / max(1, rms(g / s) / d) / s, with s = max(sqrt(v), eps1).

    v is the second moment, of a matrix: (row mean)(column mean) / (mean of all).
    """
    eps1, eps2 = group["eps"]
    floor = torch.finfo(w.dtype).eps if eps1 is None else eps1
    if "variance" in state:
        second_moment = upcast(state["variance"])
    else:
        rows, columns = upcast(state["row_var"]), upcast(state["col_var"])
        second_moment = rows @ columns / rows.mean(dim=-2, keepdim=True).clamp_(min=floor)
    root = second_moment.sqrt().clamp_(min=floor)
    lr: Tensor = state["rms"].clamp_min(eps2) * min(float(group["lr"]), float(state["step"]) ** -0.5)
    if "grad" in state:
        lr = lr / ((upcast(state["grad"]) / root).norm(2) / w.numel() ** 0.5 / group["d"]).clamp_(min=1)
    return lr / torch.where(second_moment == 0, 1.0, root)


def updates(count: Number, like: Tensor) -> Number:
    """Return an optimizer's update count: a number on a CPU, a tensor where reading it would wait for the device.

    It is at least 1, though a fused optimizer whose first step met an overflow has made none.
    """
    if isinstance(count, Tensor) and count.device.type != "cpu":
        return count.to(like.device).clamp_min(1)
    return max(float(count), 1.0)
