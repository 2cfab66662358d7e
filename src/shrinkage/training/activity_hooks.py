"""Hooks of layers whose outputs are penalized, and how compilers see that there are some."""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from shrinkage.distributed.dtensor import is_dtensor
from shrinkage.errors import GroupError, shown
from shrinkage.training.activity_gradients import ActivitiesOutput, Passes, joined


@dataclass(eq=False)
class Hook:
    """Lets the gradient of one layer's output pass through its penalty."""

    passes: Passes
    index: int
    name: str
    samples: int
    clone: bool

    def __call__(self, module: nn.Module, args: object, output: Any) -> Any:
        """Return the output with a penalty behind it; None if there is nothing to do."""
        if self.passes.handle not in getattr(module, MARK, ()) or is_exporting():
            return None
        if isinstance(output, Tensor):
            return self._penalized(output)
        leaves, structure = tree_flatten(output)
        first = next((i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()), None)
        if first is None:
            raise TypeError(f"{self.name!r} puts out {shown(output)}, without a tensor that could be penalized")
        leaves[first] = self._penalized(leaves[first])
        return None if leaves[first] is None else tree_unflatten(leaves, structure)

    def _penalized(self, a: Tensor) -> Tensor | None:
        """Return `a` with the penalty behind it; None where nothing is differentiated."""
        if self.passes.measured is not None:
            self._check(a)
            self.passes.measured.append((self.index, a.detach()))
        if not (torch.is_grad_enabled() and a.requires_grad):
            return None
        self._check(a)
        own = (self.passes.handle, self.index, self.samples, self.clone)
        penalized: Tensor = ActivitiesOutput.apply(a, *own)  # type: ignore[no-untyped-call]  # torch's
        return penalized

    def _check(self, a: Tensor) -> None:
        """Raise unless `a` can be penalized."""
        if not a.is_floating_point() or a.layout != torch.strided or a.is_nested or is_dtensor(a):
            kind = "distributed" if is_dtensor(a) else f"{a.dtype} and {a.layout}"
            raise TypeError(f"the output of {self.name!r} is {kind}: only dense floating point tensors are penalized")
        if a.dim() < max(self.samples, 1):
            raise ValueError(
                f"the output of {self.name!r} has shape {tuple(a.shape)}, and samples={self.samples} asks for as many "
                "leading dimensions of samples; name a layer whose output has them"
            )
        try:
            self.passes.penalties[self.index].check_shape(joined(a, self.samples).shape)
        except GroupError as error:
            raise GroupError(f"the output of {self.name!r}: {error}") from None


def is_exporting() -> bool:
    """Return whether torch exports what is called. Compilers of torch 2.11 take its own function as True everywhere."""
    flag: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


MARK = "_shrinkage_activities"  # the handles of those that penalize a layer


def announce(module: nn.Module, handle: str) -> None:
    """Let the hook with this handle act on `module`, in what torch.compile made of it before too.

    Compiled code is made anew if an instance has other attributes, or a `forward` of its own; hooks are not looked at.
    """
    setattr(module, MARK, (*getattr(module, MARK, ()), handle))
    if "forward" not in vars(module):
        vars(module)["forward"] = MethodType(type(module).forward, module)


def withdraw(module: nn.Module, handle: str) -> None:
    """Leave `module` as it was before `announce`."""
    left = tuple(each for each in getattr(module, MARK) if each != handle)
    setattr(module, MARK, left)
    if not left:
        delattr(module, MARK)
        own = vars(module).get("forward")
        if isinstance(own, MethodType) and own.__func__ is type(module).forward:
            del vars(module)["forward"]
