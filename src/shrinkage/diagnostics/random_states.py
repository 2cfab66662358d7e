"""Random states of the process: of Python, of numpy if it is in use, and of torch on every device that is in use."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

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
