"""Which strength? The choice that the demo makes, on validation images only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from digits.train import Run
from digits.variants import STRENGTHS, Variant

TOLERANCE = 0.01
RULE = (
    "the largest strength whose mean validation accuracy is at most one percentage point below that without a penalty, "
    "or the smallest if there is none"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One strength that was tried: means over the seeds after training."""

    variant: str
    strength: float
    validation_accuracy: float
    zeros_per_layer: dict[str, float]
    chosen: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The strength that was chosen, the networks trained with it, and all that were tried."""

    strength: float
    runs: tuple[Run, ...]
    candidates: tuple[Candidate, ...]


def choose(
    make: Callable[[float], Variant], train_all: Callable[[Variant], tuple[Run, ...]], reference: Sequence[Run]
) -> Choice:
    """Train with every strength and choose one by `RULE`.

    Args:
        make: the variant with a given strength.
        train_all: trains a variant with every seed.
        reference: the networks without a penalty.
    """
    tried = {strength: train_all(make(strength)) for strength in STRENGTHS}
    least = mean_validation_accuracy(reference) - TOLERANCE
    accepted = [strength for strength, runs in tried.items() if mean_validation_accuracy(runs) >= least]
    chosen = max(accepted, default=min(tried))
    candidates = tuple(candidate_of(runs, chosen) for runs in tried.values())
    return Choice(chosen, tried[chosen], candidates)


def mean_validation_accuracy(runs: Sequence[Run]) -> float:
    """Return the mean over seeds."""
    return mean(run.validation_accuracy for run in runs)


def candidate_of(runs: Sequence[Run], chosen: float) -> Candidate:
    """Return what is remembered of one strength."""
    variant = runs[0].variant
    layers = runs[0].history[-1].zeros
    return Candidate(
        variant=variant.name,
        strength=variant.strength,
        validation_accuracy=mean_validation_accuracy(runs),
        zeros_per_layer={layer: mean(run.history[-1].zeros[layer] for run in runs) for layer in layers},
        chosen=variant.strength == chosen,
    )
