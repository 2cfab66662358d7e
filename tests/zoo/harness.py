"""Zeros in a model's channels, and how far the outputs of two models are apart.

What is a channel is said by whoever couples them: a list of channels, and a channel is a list of members, each of them
some slices of one parameter. This file knows nothing of how either is found, or of how channels are removed.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from zoo.case import Case

Mode = Literal["all", "weights"]


class Member(NamedTuple):
    """The slices `indices` along `dim` of a parameter: they make the channel ("out") or read it ("in")."""

    parameter: str
    dim: int
    indices: Sequence[int]
    role: Literal["out", "in"]


Channel = Sequence[Member]


class Couple(Protocol):
    """Finds the channels of a model."""

    def __call__(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Channel]: ...


class Shrink(Protocol):
    """Makes a smaller model; the one that is given may be changed."""

    def __call__(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> nn.Module: ...


@dataclass(frozen=True)
class Result:
    """What became of one model."""

    case: str
    mode: Mode
    channels: int
    zeroed: int
    before: int  # parameters
    after: int
    error: float  # see `difference`; the largest over several inputs
    couple_seconds: float
    shrink_seconds: float


def choose(channels: Sequence[Any], share: float = 0.35, seed: int = 0) -> list[Any]:
    """A random `share` of the channels, but at least one."""
    generator = torch.Generator().manual_seed(seed)
    count = min(len(channels), max(1, round(share * len(channels))))
    return [channels[index] for index in torch.randperm(len(channels), generator=generator)[:count].tolist()]


@torch.no_grad()
def zero_(model: nn.Module, channels: Sequence[Channel], mode: Mode) -> None:
    """Set what makes the channels to zero: weights, biases, scales, shifts; or only weights of several dimensions."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for member in (member for channel in channels for member in channel):
        parameter = parameters[member.parameter]
        if member.role == "out" and (mode == "all" or parameter.ndim > 1):
            parameter.index_fill_(member.dim, torch.as_tensor(member.indices), 0.0)


@torch.no_grad()
def disturb_readers_(model: nn.Module, channels: Sequence[Channel], seed: int = 0) -> None:
    """Replace what reads the channels by noise. Where a channel is zero on arrival, no output changes."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for member in (member for channel in channels for member in channel):
        if member.role == "in":
            parameter, indices = parameters[member.parameter], torch.as_tensor(member.indices)
            slices = parameter.index_select(member.dim, indices)
            noise = torch.randn(slices.shape, generator=generator, dtype=slices.dtype)
            parameter.index_copy_(member.dim, indices, noise.to(slices.device))


def outputs(model: nn.Module, case: Case, seeds: Sequence[int] = (0, 1), batch: int | None = 3) -> list[Any]:
    """What a model gives for several inputs, the last of which has another batch size."""
    found = []
    for seed, size in (*((seed, None) for seed in seeds), *([(len(seeds), batch)] if batch else [])):
        arguments, keywords = case.example(seed, size)
        with torch.no_grad():
            found.append(model(*arguments, **keywords))
    return found


def difference(one: Any, other: Any) -> float:
    """The largest difference of two nested outputs, each tensor relative to its largest absolute value.

    Infinite where structures, shapes or values that are not finite differ.
    """
    (ones, structure), (others, other_structure) = tree_flatten(one), tree_flatten(other)
    if structure != other_structure:
        return float("inf")
    return max((_distance(a, b) for a, b in zip(ones, others, strict=True)), default=0.0)


def _distance(one: Any, other: Any) -> float:
    if not isinstance(one, Tensor):
        return 0.0 if one == other else float("inf")
    if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    one, other = one.double(), other.double()
    same = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(same, 0.0, (one - other).abs()).nan_to_num(float("inf"), float("inf"))
    scale = one[one.isfinite()].abs().amax() if one.isfinite().any() else one.new_tensor(1.0)
    largest = float(gap.amax()) if gap.numel() else 0.0
    return largest / max(float(scale), torch.finfo(torch.float32).tiny) if largest else 0.0


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def run(case: Case, couple: Couple, shrink: Shrink, mode: Mode, share: float = 0.35, seed: int = 0) -> Result:
    """Zero a share of a model's channels, make it smaller, and compare the two."""
    model = case.make()
    arguments, keywords = case.example()
    start = time.perf_counter()
    channels = couple(model, arguments, keywords)
    coupled = time.perf_counter() - start
    chosen = choose(channels, share, seed)
    zero_(model, chosen, mode)
    expected = outputs(model, case)
    start = time.perf_counter()
    small = shrink(copy.deepcopy(model), arguments, keywords)
    shrunk = time.perf_counter() - start
    error = difference(expected, outputs(small, case))
    return Result(case.name, mode, len(channels), len(chosen), size(model), size(small), error, coupled, shrunk)
