"""The work that all variants of a table share: parameters, their gradients, and the state of one optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from benchmarks.memory import require
from benchmarks.shapes import Architecture, Shape, shapes_of

LEARNING_RATE = (
    1e-7  # so small that weights stay what they are: the time must not depend on how often they are penalized
)
BLOCK = (1 << 20) + 7  # random numbers, repeated over a list: drawing a billion of them would take longer than all else
TENSORS = 4  # a weight's value, its gradient, and its two moments


@dataclass(frozen=True)
class Work:
    """Parameters with gradients, and the moments that every optimizer made here works on.

    A variant can so be measured beside twenty others in the memory of one.
    """

    parameters: nn.ParameterList
    first: list[Tensor]
    second: list[Tensor]
    counts: list[Tensor]
    architecture: Architecture | None = None

    @staticmethod
    def of(
        shapes: Sequence[Shape],
        device: torch.device,
        architecture: Architecture | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Work":
        """Return work on tensors of these shapes; skip it if memory is short."""
        numel = sum(torch.Size(shape).numel() for shape in shapes)
        require(dtype.itemsize * TENSORS * numel, device)
        block = 0.02 * torch.randn(min(BLOCK, numel + 1), device=device, dtype=dtype)
        return Work.around([nn.Parameter(tiled(block, shape)) for shape in shapes], architecture)

    @staticmethod
    def around(parameters: Sequence[nn.Parameter], architecture: Architecture | None = None) -> "Work":
        """Return work on given parameters, as after 10,000 steps of Adam.

        Second moments spread over four decades. Gradients are their roots with random signs, so that they stay so.
        """
        numel = sum(parameter.numel() for parameter in parameters)
        device, dtype = parameters[0].device, parameters[0].dtype
        second = (10 ** (4 * torch.rand(min(BLOCK, numel + 1), device=device) - 10)).to(dtype)
        signs = torch.randint(2, second.shape, device=device) * 2 - 1
        grad = second.sqrt() * signs
        for parameter in parameters:
            parameter.grad = tiled(grad, parameter.shape)
        return Work(
            nn.ParameterList(parameters),
            [tiled(grad, parameter.shape) for parameter in parameters],
            [tiled(second, parameter.shape) for parameter in parameters],
            [torch.tensor(1e4, device=device) for _ in parameters],
            architecture,
        )

    @staticmethod
    def on(architecture: Architecture, device: torch.device) -> "Work":
        """Return work on the parameter list of a model."""
        return Work.of(shapes_of(architecture.on_meta()), device, architecture)

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.parameters[0].device

    @property
    def weights(self) -> int:
        """The number of all weights."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def bytes_per_weight(self) -> int:
        """The size of their type."""
        return self.parameters[0].element_size()

    @property
    def penalized(self) -> list[nn.Parameter]:
        """The parameters that rules penalize: two dimensions or more."""
        return [parameter for parameter in self.parameters if is_penalized("", None, parameter)]

    @property
    def penalized_weights(self) -> int:
        """The number of weights that rules penalize."""
        return sum(parameter.numel() for parameter in self.penalized)

    def copy(self) -> None:
        """Copy as many bytes as a threshold moves: the penalized parameters' gradients to their first moments.

        That is where they are anyway, so that nothing changes.
        """
        for parameter, first in zip(self.parameters, self.first, strict=True):
            if is_penalized("", None, parameter):
                first.copy_(parameter.grad)

    def adamw(self, groups: Sequence[dict] | None = None) -> AdamW:
        """Return a fused AdamW on this state."""
        optimizer = AdamW(groups or self.parameters, lr=LEARNING_RATE, fused=True)
        for parameter, *state in zip(self.parameters, self.counts, self.first, self.second, strict=True):
            optimizer.state[parameter] = dict(zip(("step", "exp_avg", "exp_avg_sq"), state, strict=True))
        return optimizer

    def sgd(self) -> SGD:
        """Return a fused SGD with momentum on this state."""
        optimizer = SGD(self.parameters, lr=LEARNING_RATE, momentum=0.9, fused=True)
        for parameter, first in zip(self.parameters, self.first, strict=True):
            optimizer.state[parameter] = {"momentum_buffer": first}
        return optimizer


def is_penalized(name: str, module: nn.Module | None, parameter: Tensor) -> bool:
    """Select what rules penalize: parameters of two dimensions or more."""
    return parameter.dim() >= 2


def tiled(block: Tensor, shape: Shape) -> Tensor:
    """Return a tensor of a shape with the numbers of a flat block, over and over.

    >>> tiled(torch.tensor([1.0, 2.0, 3.0]), (2, 2))
    tensor([[1., 2.],
            [3., 1.]])
    """
    tensor = torch.empty(shape, device=block.device, dtype=block.dtype)
    for piece in tensor.view(-1).split(block.numel()):
        piece.copy_(block[: piece.numel()])
    return tensor
