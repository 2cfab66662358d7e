"""Optimizers that step by another rate than the "lr" of their groups, and what is refused then."""

import inspect

from torch.optim import (
    Optimizer,
)

from shrinkage.errors import MetricError
from shrinkage.optimizers.metrics import (
    Group,
)

# What groups hold beside a learning rate that is not the one which their optimizer steps by: those of D-Adaptation and
# Prodigy, of schedule-free ones, and of Adafactor's relatives.
OTHER_RATES = ("d", "scheduled_lr", "lr_max", "relative_step", "scale_parameter")


def other_rate(optimizer: Optimizer, group: Group) -> str | None:
    """Return the option of `group` which says that `optimizer` does not step by its "lr", if it has one."""
    if is_torchs(inspect.unwrap(type(optimizer).step).__module__):
        return None
    return next((option for option in OTHER_RATES if group.get(option, False) is not False), None)


def check_learning_rate(name: str, how: str, optimizer: Optimizer, group: Group) -> None:
    """Raise `MetricError` if `optimizer` does not step the parameter `name` by the "lr" of its group."""
    own = type(optimizer).__name__
    if "lr" not in group:
        raise MetricError(
            f'how="{how}" multiplies by the learning rate, but the group of {name!r} in this {own} has no '
            f"'lr'; choose how=\"gradient\" or register_metric({own}, ..., lr=...)"
        )
    option = other_rate(optimizer, group)
    if option is not None:
        raise MetricError(
            f'how="{how}" multiplies by the learning rate, but this {own} steps {name!r} by another one than its '
            f"group's 'lr', as {option!r} in the group says; choose how=\"gradient\", for L2 the weight decay of the "
            f"optimizer itself, or register_metric({own}, ..., lr=...)"
        )


def is_torchs(module: str) -> bool:
    """Return whether a class or function of `module` is one of torch's optimizers, or of theirs."""
    return f"{module}.".startswith("torch.optim.")
