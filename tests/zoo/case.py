"""What a case is: a model with random weights and statistics in evaluation mode, and inputs for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class Input(Protocol):
    """A kind of input; `batch`, where it is given, replaces the size of dimension 0."""

    def draw(self, generator: Generator, batch: int | None = None) -> Tensor: ...


class Normal:
    """Standard normal numbers."""

    def __init__(self, *shape: int):
        self.shape = shape

    def draw(self, generator: Generator, batch: int | None = None) -> Tensor:
        first, *others = self.shape
        return torch.randn(batch or first, *others, generator=generator)


class Tokens:
    """Whole numbers below `count`."""

    def __init__(self, count: int, *shape: int):
        self.count, self.shape = count, shape

    def draw(self, generator: Generator, batch: int | None = None) -> Tensor:
        first, *others = self.shape
        return torch.randint(self.count, (batch or first, *others), generator=generator)


class Ones:
    """A mask that keeps everything but the last element of each row."""

    def __init__(self, *shape: int):
        self.shape = shape

    def draw(self, generator: Generator, batch: int | None = None) -> Tensor:
        first, *others = self.shape
        mask = torch.ones(batch or first, *others, dtype=torch.long)
        mask[..., -1] = 0
        return mask


@dataclass(frozen=True)
class Case:
    """One model and its inputs. Equal calls give equal models and inputs."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Input, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False
    exports: bool = True  # False: what it does depends on the values of its input

    def example(self, seed: int = 0, batch: int | None = None) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Positional and keyword arguments for the model."""
        generator = torch.Generator().manual_seed(seed)
        arguments = tuple(kind.draw(generator, batch) for kind in self.inputs)
        keywords = {
            name: kind.draw(generator, batch) if isinstance(kind, Normal | Tokens | Ones) else kind
            for name, kind in self.keywords.items()
        }
        return arguments, keywords

    def make(self, seed: int = 0) -> nn.Module:
        """The model, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build().eval()
            randomize_(model)
            arguments, keywords = self.example(seed + 1000)
            measure_statistics_(model, arguments, keywords)
        return model

    def __str__(self) -> str:
        return self.name


@torch.no_grad()
def randomize_(model: nn.Module) -> None:
    """Draw every parameter anew, so that nothing is zero, tiny or constant as libraries initialize it.

    Layers keep the size of what passes through them: sqrt(2 / fan in) for filters, sqrt(1 / fan in) for matrices.
    Tables that are never trained stay: some are not saved, and made anew when a model is loaded.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        constant = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
        if parameter.ndim >= 2 and not (constant and parameter.numel() == max(parameter.shape)):
            fan_in = parameter[0].numel()
            parameter.normal_(0, ((2 if parameter.ndim > 2 else 1) / fan_in) ** 0.5)
        elif "bias" in name or (parameter.ndim == 1 and parameter.abs().max() == 0):
            parameter.normal_(0, 0.3)
        else:  # scales of norms and of branches
            parameter.uniform_(0.5, 1.5)


@torch.no_grad()
def measure_statistics_(model: nn.Module, arguments: tuple[Tensor, ...], keywords: Mapping[str, Any]) -> None:
    """Set running statistics to those of one batch, and disturb them."""
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(*arguments, **keywords)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        norm.running_mean.add_(0.3 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        # a channel that hardly varies in this batch would be blown up in the next
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.5, 1.5)).add_(0.3 * norm.running_var.mean())
