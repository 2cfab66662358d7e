"""Random states of the process: of Python, of numpy if it is in use, and of torch on every device that is in use."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

Undo = Callable[[], object]


def random_states() -> Iterator[Undo]:
    """Yield what puts each of the random states back."""
    yield partial(random.setstate, random.getstate())
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        yield partial(numpy.set_state, numpy.get_state())
    yield partial(torch.set_rng_state, torch.get_rng_state())
    for module in (torch.cuda, torch.xpu):
        if module.is_initialized():
            yield partial(module.set_rng_state_all, module.get_rng_state_all())
    if torch.backends.mps.is_available():
        yield partial(torch.mps.set_rng_state, torch.mps.get_rng_state())


@contextmanager
def random_states_left_out() -> Iterator[None]:
    """Give random states back as they were."""
    undo = list(random_states())
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Draw the same random numbers every time, and give random states back as they were."""
    with random_states_left_out():
        random.seed(0)
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            numpy.seed(0)
        torch.default_generator.manual_seed(0)  # torch.manual_seed also seeds devices that are used later
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch gives it no types
        for generator in torch.cuda.default_generators if in_use else ():
            generator.manual_seed(0)
        yield


def states_to_save() -> dict[str, Any]:
    """Return the random states as numbers, tensors and containers, which `torch.load` reads with weights_only=True."""
    version, numbers, gauss = random.getstate()
    found: dict[str, Any] = {"python": [version, list(numbers), gauss], "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        name, keys, *others = numpy.get_state()
        found["numpy"] = [name, keys.tolist(), *others]
    for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if module.is_initialized():
            found[name] = module.get_rng_state_all()
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def restore_saved(states: Mapping[str, Any]) -> None:
    """Give the process the random states that `states_to_save` returned, as far as its devices are there."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(states["torch"])
    numpy = sys.modules.get("numpy.random")
    if numpy is not None and "numpy" in states:
        numpy.set_state(tuple(states["numpy"]))
    for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if name in states and module.is_available():
            for device, state in zip(range(module.device_count()), states[name], strict=False):
                module.set_rng_state(state, device)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
