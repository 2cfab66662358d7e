"""Values that stand beside an optimizer, and live as long as it does."""

from typing import Generic, TypeVar

from torch.optim import Optimizer

Value = TypeVar("Value")


class PerOptimizer(Generic[Value]):
    """One value per optimizer, which lives as long as the optimizer does.

    It stands in the optimizer's `__dict__`, which neither copies nor pickles take along. A `WeakKeyDictionary` would
    keep every optimizer alive that can be reached from its value: by a model that holds it, or hooks of a parameter.

    Args:
        name: of the value, among those of this package.
    """

    def __init__(self, name: str) -> None:
        self._attribute = f"_shrinkage_{name}"

    def __getitem__(self, optimizer: Optimizer) -> Value:
        value: Value = vars(optimizer)[self._attribute]
        return value

    def __setitem__(self, optimizer: Optimizer, value: Value) -> None:
        vars(optimizer)[self._attribute] = value

    def get(self, optimizer: Optimizer, default: Value) -> Value:
        """Return the value of `optimizer`, or `default` if there is none."""
        value: Value = vars(optimizer).get(self._attribute, default)
        return value
