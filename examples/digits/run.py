"""The demo from beginning to end: train, choose strengths, time, make smaller, measure."""

import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from digits import train
from digits.choose import Candidate, choose
from digits.data import Digits
from digits.results import BELOW, Results, variant_result
from digits.smaller import Smaller, made_smaller, milliseconds_per_call
from digits.timing import ROUNDS, STEPS, one_thread, time_steps
from digits.train import Run
from digits.variants import (
    STRENGTHS,
    Variant,
    group_lasso,
    l1_gradient,
    l1_in_loss,
    l1_proximal,
    no_penalty,
)
from shrinkage import __version__

Tick = Callable[[str], None]
VARIANTS = 5
TRAINED_VARIANTS = 3 + 2 * len(STRENGTHS)  # three with one strength, two with all


@dataclass(frozen=True, slots=True)
class Settings:
    """How much a demo does: seeds and epochs of training, rounds and steps of timing."""

    seeds: int = 3
    epochs: int = 50
    rounds: int = ROUNDS
    steps: int = STEPS

    @property
    def ticks(self) -> int:
        """How often a demo reports progress: per epoch of training, round of timing, and network made smaller."""
        return TRAINED_VARIANTS * self.seeds * self.epochs + self.rounds + VARIANTS * self.seeds


@dataclass(frozen=True, slots=True)
class Demo:
    """What a demo found: the numbers, and the networks before and after `shrink`, one per seed for each variant."""

    results: Results
    runs: tuple[tuple[Run, ...], ...]
    smaller: tuple[tuple[Smaller, ...], ...]


def run(digits: Digits, settings: Settings, tick: Tick) -> Demo:
    """Run the demo.

    Args:
        digits: what is learnt.
        settings: how much to do.
        tick: called `settings.ticks` times, with what is being done.
    """
    with one_thread():
        runs, candidates = train_variants(digits, settings, tick)
        times = time_steps(
            [of_variant[0] for of_variant in runs],
            digits.train,
            rounds=settings.rounds,
            steps=settings.steps,
            after_round=lambda: tick("timing steps"),
        )
        smaller = tuple(make_smaller(of_variant, digits, tick) for of_variant in runs)
        calls = milliseconds_per_call([of_variant[0] for of_variant in smaller], digits)
        variants = tuple(
            variant_result(of_variant, small, digits.test, time, call)
            for of_variant, small, time, call in zip(runs, smaller, times, calls, strict=True)
        )
    return Demo(Results(configuration(digits, settings), versions(), candidates, variants), runs, smaller)


def make_smaller(runs: tuple[Run, ...], digits: Digits, tick: Tick) -> tuple[Smaller, ...]:
    """Return the networks of one variant without what they do not need."""
    smaller = []
    for run in runs:
        smaller.append(made_smaller(run, digits))
        tick("making networks smaller")
    return tuple(smaller)


def train_variants(
    digits: Digits, settings: Settings, tick: Tick
) -> tuple[tuple[tuple[Run, ...], ...], tuple[Candidate, ...]]:
    """Train every variant with every seed; the proximal ones choose their strength on the validation images."""

    def train_all(variant: Variant) -> tuple[Run, ...]:
        doing = f"{variant.name} {variant.strength:g}" if variant.strength else variant.name
        return tuple(
            train.train(variant, digits, seed=seed, epochs=settings.epochs, after_epoch=lambda: tick(doing))
            for seed in range(settings.seeds)
        )

    plain = train_all(no_penalty())
    l1 = choose(l1_proximal, train_all, plain)
    group = choose(group_lasso, train_all, plain)
    in_loss, gradient = train_all(l1_in_loss(l1.strength)), train_all(l1_gradient(l1.strength))
    return (plain, in_loss, gradient, l1.runs, group.runs), l1.candidates + group.candidates


def configuration(digits: Digits, settings: Settings) -> dict[str, object]:
    """Return everything that has to be the same for the accuracies to be the same."""
    return {
        "seeds": list(range(settings.seeds)),
        "epochs": settings.epochs,
        "images": {"train": len(digits.train), "validation": len(digits.validation), "test": len(digits.test)},
        "network": str(train.network()),
        "optimizer": "SGD",
        "momentum": train.MOMENTUM,
        "batch": train.BATCH,
        "learning_rate": train.LEARNING_RATE,
        "final_learning_rate": train.FINAL_LEARNING_RATE,
        "schedule": "cosine, per step",
        "small_is_below": BELOW,
        "timing": {"rounds": settings.rounds, "steps_per_round": settings.steps, "threads": 1, "unit": "milliseconds"},
    }


def versions() -> dict[str, str]:
    """Return the versions that the numbers were made with."""
    return {"shrinkage": __version__, "torch": torch.__version__, "python": platform.python_version()}
