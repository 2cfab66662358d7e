"""The calls of a model's code that ask for sizes, in the order in which they are made."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shrinkage.compression.calls.inputs import Call, taken_apart
from shrinkage.compression.calls.modes import evaluated, seeing
from shrinkage.compression.calls.outputs import outputs_of_copy
from shrinkage.compression.calls.running import running
from shrinkage.compression.copying.caches import emptied, global_caches_left_out
from shrinkage.compression.copying.copies import with_own_state, without_numbers
from shrinkage.compression.plans.attention import with_prunable_heads
from shrinkage.compression.plans.sizes import FILL, FILLING, SPLIT, SPLIT_WITH_SIZES, Asked, asked_by, asking, read_by

Shape = tuple[int, ...]
Right = Sequence[int | None]

ADAPTED = (nn.MultiheadAttention, nn.RNNBase)  # whose code takes its sizes from what is cut anyway


class Step(NamedTuple):
    """A call that asks for sizes, of a tensor of `shape`, in the code of the last of the modules at `paths`."""

    paths: tuple[str, ...]
    shape: Shape
    asked: Asked
    outputs: list[Shape]

    @property
    def path(self) -> str:
        """The dotted name of the module whose code it is."""
        return self.paths[-1] if self.paths else ""

    @property
    def name(self) -> str:
        """The name of the operator that it comes to."""
        if self.asked.call in FILLING:
            return FILL
        return SPLIT if self.asked.call == SPLIT_WITH_SIZES else self.asked.call


class Recorder(TorchFunctionMode):
    """Notes calls that ask for sizes; the n-th call gets the n-th of the `right` sizes in place of those."""

    def __init__(self, paths: Sequence[str], adapted: set[str], right: Sequence[Right | None]):
        super().__init__()
        self.paths, self.adapted, self.right, self.steps = paths, adapted, right, list[Step]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asked = asked_by(func, args, kwargs or {})
        if asked is None or (self.paths and self.paths[-1] in self.adapted):
            return func(*args, **(kwargs or {}))
        place = len(self.steps)
        right = self.right[place] if place < len(self.right) else None
        if right is None:
            result = func(*args, **(kwargs or {}))
        else:
            result = asking(func, args, kwargs or {}, asked, complete(asked, right))
        parts = result if isinstance(result, tuple | list) else [result]
        self.steps.append(Step(tuple(self.paths), read_by(asked, args), asked, [tuple(x.shape) for x in parts]))
        return result


def complete(asked: Asked, right: Right) -> list[int]:
    """Return the right sizes, with those that are asked where any is right, or where the size follows by itself."""
    if asked.call in (SPLIT, SPLIT_WITH_SIZES):
        return [size for size in right if size is not None]
    return [was if now is None or was == -1 else now for was, now in zip(asked.sizes, right, strict=True)]


def recorded(model: nn.Module, call: Call, right: Sequence[Right | None] = ()) -> list[Step]:
    """Return the calls in the code of `model` that ask for sizes, in order, each with the `right` ones if given.

    A copy is called on the meta device, where nothing is computed, and with numbers if it cannot be called there.
    """
    with suppress(Exception), global_caches_left_out(model):  # Whatever a model's code does where there are no numbers.
        leaves, rebuilt = taken_apart(call)
        empty = rebuilt([leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        return _recorded(without_numbers(model), empty, right)
    return _recorded(with_own_state(model), call, right)


def _recorded(copy: nn.Module, call: Call, right: Sequence[Right | None]) -> list[Step]:
    """Return what `recorded` does of a copy, whose modules and caches are changed."""
    probe = evaluated(with_prunable_heads(emptied(copy)))
    adapted = {path for path, module in probe.named_modules() if isinstance(module, ADAPTED)}
    with running(probe) as paths:
        recorder = Recorder(paths, adapted, right)
        with seeing(recorder):
            outputs_of_copy(probe, call)
    return recorder.steps
