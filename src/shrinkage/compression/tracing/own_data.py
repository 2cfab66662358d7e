"""Tensors that a model's code changes beside autograd, by `tensor.data`, while the model is exported."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

READ, WRITTEN = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]  # descriptors made in C


class FollowingData(TorchFunctionMode):
    """Let `tensor.data` be the tensor without its gradient, and `tensor.data = other` write `other` into it.

    An exporter does not see what else they do, as in `self.weight.data *= self.mask` of masked convolutions. Without
    gradients that is the same: what has been read is a view of the tensor that writes into it.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        """Call `function`, or what is followed in its place."""
        if function == READ:
            return args[0].detach()
        if function == WRITTEN:
            args[0].detach().copy_(args[1])
            return None
        return function(*args, **(kwargs or {}))
