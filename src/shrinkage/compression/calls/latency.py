"""What layers are called with when a model is called, and how long that takes."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from shrinkage.compression.calls.inputs import Call, cloned
from shrinkage.compression.calls.modes import evaluated
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.compression.sparse.csr import autocast_type

Calls = dict[tuple[torch.Size, torch.dtype, torch.dtype | None], tuple[Tensor, int]]

ROUNDS = 21
SECONDS = 0.2  # after so long no further round begins


def watched(model: nn.Module, names: Sequence[str], call: Call) -> tuple[list[Tensor], dict[str, Calls]]:
    """Return the outputs of `model` for a call in evaluation mode, and the inputs of the layers that are named.

    A copy is called, which has parameters in common with the model and buffers of its own.
    """
    probe = evaluated(with_own_state(model))
    calls: dict[str, Calls] = {name: {} for name in names}
    for name in names:
        probe.get_submodule(name).register_forward_pre_hook(noting(calls[name]), with_kwargs=True)
    args, kwargs = cloned(call)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        leaves = tree_leaves(probe(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], calls


def noting(calls: Calls) -> Callable[..., None]:
    """Return a hook that notes one input of each shape and type, and how often there was one."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (x,) = (*args, *kwargs.values())
        cast = autocast_type(x)
        example, count = calls.get((x.shape, x.dtype, cast), (x, 0))
        calls[x.shape, x.dtype, cast] = example, count + 1

    return note


def seconds_of_calls(layers: Sequence[nn.Module], calls: Calls) -> list[float]:
    """Return the seconds of all calls, for each of the layers."""
    seconds = [0.0 for _ in layers]
    for (_, _, cast), (x, count) in calls.items():
        with torch.no_grad(), torch.autocast(x.device.type, dtype=cast, enabled=cast is not None):
            for place, once in enumerate(medians(layers, x)):
                seconds[place] += count * once
    return seconds


def medians(layers: Sequence[nn.Module], x: Tensor) -> list[float]:
    """Return the median seconds of a call of each layer, measured in turns after a first call that does not count."""
    return medians_in_turns([partial(layer, x) for layer in layers], x.device)


def median(numbers: Sequence[float]) -> float:
    """Return the median of `numbers`; `statistics` takes longer to import than all of this file.

    >>> median([5.0, 1.0, 2.0]), median([5.0, 1.0, 2.0, 4.0])
    (2.0, 3.0)
    """
    ordered, count = sorted(numbers), len(numbers)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def medians_in_turns(
    calls: Sequence[Callable[[], object]], device: torch.device, *, rounds: int = ROUNDS, seconds: float = SECONDS,
    least: int = 3, warm: bool = False,
) -> list[float]:  # fmt: skip
    """Return the median seconds of each of `calls`, made in turns until `seconds` are over.

    They are made `least` times at least, and as often as there are `rounds` at most. First calls do not count, which
    are made unless what is called is `warm`.
    """
    times: list[list[float]] = [[] for _ in calls]
    for call in () if warm else calls:
        seconds_of(call, device)
    start = perf_counter()
    for turn in range(1, rounds + 1):
        for call, several in zip(calls, times, strict=True):
            several.append(seconds_of(call, device))
        if turn >= least and perf_counter() - start > seconds:
            break
    return [median(several) for several in times]


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, from an idle device to an idle device."""
    idle(device)
    start = perf_counter()
    call()
    idle(device)
    return perf_counter() - start


def idle(device: torch.device) -> None:
    """Wait until `device` has done what it was asked to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
