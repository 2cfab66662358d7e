"""The numbers of one demo: plain dataclasses that turn into JSON, a table, and sentences."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from digits.choose import RULE, TOLERANCE, Candidate
from digits.data import PIXELS, Images
from digits.smaller import Smaller
from digits.timing import StepTime
from digits.train import LAYERS, NEURONS, Epoch, Run, accuracy, weights_of
from digits.variants import STRENGTHS
from shrinkage import Report, report, threshold_

BELOW = 1e-3  # a weight of smaller size counts as small
OVER_SEEDS = (
    "test_accuracy", "zeros", "small", "zero_pixels", "zero_neurons", "thresholded_test_accuracy", "parameters_left",
    "difference",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One trained network. Shares are of all weights of the three layers; biases are not among them.

    `thresholded_test_accuracy` is that of the network after all weights below `BELOW` are set to zero. The last
    three are of the network after `shrink`.
    """

    seed: int
    test_accuracy: float
    validation_accuracy: float
    zeros: float
    small: float
    zero_pixels: int
    zero_neurons: int
    thresholded_test_accuracy: float
    history: tuple[Epoch, ...]
    neurons_left: tuple[int, int]
    parameters_left: int
    difference: float


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One variant: a network per seed, the time of its training steps, and of a call after `shrink`."""

    name: str
    about: str
    strength: float
    seeds: tuple[SeedResult, ...]
    time: StepTime
    milliseconds_per_call: float

    @property
    def test_accuracy(self) -> float:
        """Mean over the seeds."""
        return mean(seed.test_accuracy for seed in self.seeds)

    @property
    def test_accuracy_deviation(self) -> float | None:
        """Standard deviation over the seeds; None of a single one."""
        return stdev(seed.test_accuracy for seed in self.seeds) if len(self.seeds) > 1 else None

    @property
    def thresholded_test_accuracy(self) -> float:
        """Mean over the seeds, of networks whose weights below `BELOW` were set to zero after training."""
        return mean(seed.thresholded_test_accuracy for seed in self.seeds)

    @property
    def zeros(self) -> float:
        """Share of weights that are exactly zero, mean over the seeds."""
        return mean(seed.zeros for seed in self.seeds)

    @property
    def small(self) -> float:
        """Share of weights of size below `BELOW`, exact zeros included, mean over the seeds."""
        return mean(seed.small for seed in self.seeds)

    @property
    def zero_pixels(self) -> float:
        """Columns of the first layer that are zero as a whole, mean over the seeds."""
        return mean(seed.zero_pixels for seed in self.seeds)

    @property
    def zero_neurons(self) -> float:
        """Rows of the second layer that are zero as a whole, mean over the seeds."""
        return mean(seed.zero_neurons for seed in self.seeds)

    @property
    def parameters_left(self) -> float:
        """Weights and biases after `shrink`, mean over the seeds."""
        return mean(seed.parameters_left for seed in self.seeds)

    @property
    def difference(self) -> float:
        """Of the outputs on the test images before and after `shrink`: the largest one over the seeds."""
        return max(seed.difference for seed in self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Return the means, and the numbers of every seed."""
        deviation = {"test_accuracy_deviation": self.test_accuracy_deviation}
        return {**asdict(self), **{word: getattr(self, word) for word in OVER_SEEDS}, **deviation}


@dataclass(frozen=True, slots=True)
class Results:
    """All numbers of one demo. The first variant is the one without a penalty."""

    configuration: Mapping[str, object]
    versions: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    variants: tuple[VariantResult, ...]

    def __getitem__(self, name: str) -> VariantResult:
        """Return the variant called `name`."""
        return next(variant for variant in self.variants if variant.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, text, lists and dictionaries, ready for JSON."""
        return {
            "configuration": dict(self.configuration),
            "versions": dict(self.versions),
            "choice_of_strengths": {
                "rule": RULE,
                "strengths": STRENGTHS,
                "tolerance": TOLERANCE,
                "candidates": [asdict(candidate) for candidate in self.candidates],
            },
            "variants": [variant.to_dict() for variant in self.variants],
        }


def seed_result(run: Run, small: Smaller, test: Images) -> SeedResult:
    """Measure one trained network. Only here are test images looked at."""
    weights: Report = report(weights_of(run.model), below=BELOW)
    first, second, _ = LAYERS
    thresholded = copy.deepcopy(run.model)
    threshold_(thresholded, BELOW)
    return SeedResult(
        seed=run.seed,
        test_accuracy=accuracy(run.model, test),
        validation_accuracy=run.validation_accuracy,
        zeros=weights.sparsity,
        small=weights.small / weights.size,
        zero_pixels=weights[first].zero_columns,
        zero_neurons=weights[second].zero_rows,
        thresholded_test_accuracy=accuracy(thresholded, test),
        history=run.history,
        neurons_left=small.neurons,
        parameters_left=small.parameters,
        difference=small.difference,
    )


def variant_result(
    runs: Sequence[Run], smaller: Sequence[Smaller], test: Images, time: StepTime, milliseconds_per_call: float
) -> VariantResult:
    """Measure the networks of one variant."""
    variant = runs[0].variant
    seeds = tuple(seed_result(run, small, test) for run, small in zip(runs, smaller, strict=True))
    return VariantResult(variant.name, variant.about, variant.strength, seeds, time, milliseconds_per_call)


TABLE_HEADER = (
    "variant",
    "test\naccuracy",
    "exact\nzeros",
    f"below\n{BELOW:g}",
    f"zero\npixels\nof {PIXELS}",
    f"zero\nneurons\nof {NEURONS}",
    "ms per\nstep",
    "penalty\nshare",
)
SMALLER_HEADER = (
    "after shrink",
    "first\nlayer",
    "second\nlayer",
    "weights\nand biases",
    "ms per\ncall",
    "outputs\ndiffer by",
)


def table_rows(results: Results) -> list[tuple[str, ...]]:
    """Return one row of text per variant, under `TABLE_HEADER`."""
    return [cells(variant, is_reference=index == 0) for index, variant in enumerate(results.variants)]


def cells(variant: VariantResult, *, is_reference: bool) -> tuple[str, ...]:
    """Return the row of one variant."""
    deviation = variant.test_accuracy_deviation
    return (
        variant.name,
        percent(variant.test_accuracy)
        if deviation is None
        else f"{100 * variant.test_accuracy:.1f} ± {100 * deviation:.1f}%",
        percent(variant.zeros),
        percent(variant.small),
        f"{variant.zero_pixels:.1f}",
        f"{variant.zero_neurons:.1f}",
        f"{variant.time.milliseconds.median:.2f}",
        "" if is_reference else f"{variant.time.share:.0%}",
    )


def smaller_rows(results: Results) -> list[tuple[str, ...]]:
    """Return one row of text per variant, under `SMALLER_HEADER`."""
    return [
        (
            variant.name,
            *(f"{mean(seed.neurons_left[layer] for seed in variant.seeds):.1f}" for layer in (0, 1)),
            f"{variant.parameters_left:,.0f}",
            f"{variant.milliseconds_per_call:.3f}",
            difference(variant),
        )
        for variant in results.variants
    ]


def percent(value: float) -> str:
    """Return a share as text.

    >>> percent(0.4637)
    '46.4%'
    """
    return f"{value:.1%}"


def findings(results: Results) -> list[str]:
    """Return four findings of this run."""
    plain, in_loss, proximal = (results[name] for name in ("no penalty", "L1 in the loss", "L1 proximal"))
    group = results["group lasso"]
    return [
        f"One objective, one strength ({proximal.strength:g}): L1 in the loss makes {percent(in_loss.zeros)} of the "
        f"weights exactly zero, and proximal L1 makes {percent(proximal.zeros)} exactly zero. Test accuracy is "
        f"{percent(in_loss.test_accuracy)} and {percent(proximal.test_accuracy)}, and "
        f"{percent(plain.test_accuracy)} without a penalty.",
        f"If all weights below {BELOW:g} are set to zero after training, the network with L1 in the loss has "
        f"{percent(in_loss.small)} zeros at {percent(in_loss.thresholded_test_accuracy)}. But one has to know this "
        "threshold.",
        f"The group lasso (strength {group.strength:g}) sets all weights of {group.zero_pixels:.1f} of {PIXELS} pixels "
        f"and {group.zero_neurons:.1f} of {NEURONS} neurons of the second hidden layer to zero. Test accuracy is "
        f"{percent(group.test_accuracy)}.",
        smaller_finding(group, plain),
    ]


def smaller_finding(group: VariantResult, plain: VariantResult) -> str:
    """Return what `shrink` made of the network that the group lasso trained."""
    if group.parameters_left == plain.parameters_left:
        return "`shrink` removes nothing from that network: no neuron is zero as a whole."
    return (
        f"`shrink` keeps {group.parameters_left:,.0f} of the {plain.parameters_left:,.0f} weights and biases of that "
        f"network. A call takes {group.milliseconds_per_call:.3f} ms instead of "
        f"{plain.milliseconds_per_call:.3f} ms. Outputs differ by at most {difference(group)} of the largest."
    )


def difference(variant: VariantResult) -> str:
    """Return by what outputs differ before and after `shrink`, as text."""
    return f"{variant.difference:.0e}" if variant.difference else "0"
