"""What compiling costs, and how often it happens: counted by torch's own compiler, not by us."""

from time import perf_counter

import torch
from torch._dynamo.utils import counters

from benchmarks.timing import Clock, Step, seconds
from benchmarks.variants import STRENGTH, Variant
from benchmarks.work import LEARNING_RATE, Work


def compiled_graphs() -> int:
    """Return how many graphs were compiled since the process began."""
    return counters["stats"]["unique_graphs"]


def compilations_when_all_changes(variant: Variant, work: Work, steps: int) -> int:
    """Return how many graphs are compiled in so many steps, each with another learning rate and another strength."""
    before = compiled_graphs()
    trial = variant.make(work, lambda update: STRENGTH * (1 + update % 10))
    for step in range(steps):
        for group in trial.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 + step % 7)
        trial.step()
    return compiled_graphs() - before


def first_and_later(step: Step, device: torch.device, clock: Clock = perf_counter) -> float:
    """Return how many seconds the first step takes longer than the faster of two later ones."""
    first = seconds(step, device, clock)
    return max(first - min(seconds(step, device, clock) for _ in range(2)), 0.0)
