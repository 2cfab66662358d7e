"""Cost against the number of tensors and of weights: it should grow with both in proportion, and no faster."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from statistics import linear_regression, median

from benchmarks.shapes import Shape
from benchmarks.skipping import SkippedError
from benchmarks.tables import Settings
from benchmarks.timing import extra, interleaved, warm_up
from benchmarks.variants import STRENGTH, Variant
from benchmarks.work import Work
from shrinkage.tables import table

TENSORS = (10, 30, 100, 300, 1000, 3000, 10_000)
WEIGHTS = tuple(10**power for power in range(3, 10))


@dataclass(frozen=True)
class Point:
    """The milliseconds of every variant at one size, and what each adds to its baseline; `skipped` says why not."""

    size: int
    milliseconds: dict[str, float]
    added: dict[str, float]
    skipped: str | None = None


@dataclass(frozen=True)
class Sweep:
    """Costs over sizes; `slopes` are microseconds of a rule per penalized tensor, or picoseconds per weight."""

    of: str
    unit: str
    points: list[Point]
    slopes: dict[str, float]

    def __str__(self) -> str:
        measured = [point for point in self.points if point.skipped is None]
        header = [self.of, *(f"{point.size:g}" for point in measured), self.unit]
        rows = [
            [
                name,
                *(f"{point.milliseconds[name]:.3g}" for point in measured),
                f"{self.slopes[name]:.2f}" if name in self.slopes else "-",
            ]
            for name in measured[0].milliseconds
        ]
        skipped = [f"{point.size:g} {self.of}: skipped, {point.skipped}" for point in self.points if point.skipped]
        body = table(header, rows, right=range(1, len(header)))
        return "\n".join([f"milliseconds of a step, by the number of {self.of}", body, *skipped])


def small_tensors(count: int) -> list[Shape]:
    """Return as many shapes, one half 64x64 matrices and one half biases of 64.

    >>> small_tensors(2)
    [(64, 64), (64,)]
    """
    return [(64, 64), (64,)] * (count // 2)


def square(weights: int) -> list[Shape]:
    """Return the shape of one matrix of about so many weights.

    >>> square(1000)
    [(31, 31)]
    """
    return [(isqrt(weights), isqrt(weights))]


def by_tensors(variants: Sequence[Variant], sizes: Sequence[int], settings: Settings) -> Sweep:
    """Return costs over numbers of small tensors; a rule penalizes half of them."""
    points = list(over(small_tensors, sizes, variants, settings))
    return Sweep("tensors", "us/tensor", points, slopes(points, variants, 2e3))


def by_weights(variants: Sequence[Variant], sizes: Sequence[int], settings: Settings) -> Sweep:
    """Return costs over sizes of one matrix."""
    points = list(over(square, sizes, variants, settings))
    return Sweep("weights", "ps/weight", points, slopes(points, variants, 1e9))


def over(
    shapes: Callable[[int], list[Shape]], sizes: Sequence[int], variants: Sequence[Variant], settings: Settings
) -> Iterator[Point]:
    """Yield a point for each size."""
    for size in sizes:
        try:
            work = Work.of(shapes(size), settings.device)
        except SkippedError as error:
            yield Point(size, {}, {}, str(error))
            continue
        steps = {variant.name: variant.make(work, STRENGTH).step for variant in variants}
        warm_up(steps.values())
        times = interleaved(steps, settings.limits, settings.device, settings.clock)
        added = {
            variant.name: 1e3 * extra(times[variant.name], times[variant.baseline])
            for variant in variants
            if variant.name != variant.baseline
        }
        yield Point(size, {name: 1e3 * median(own) for name, own in times.items()}, added)


def slopes(points: Sequence[Point], variants: Sequence[Variant], per_millisecond: float) -> dict[str, float]:
    """Return the slope of what each rule adds over size, by least squares through the three largest."""
    measured = [point for point in points if point.skipped is None][-3:]
    rules = [variant.name for variant in variants if variant.name != variant.baseline]
    if len(measured) < 2:
        return {}
    sizes = [point.size for point in measured]
    return {
        name: per_millisecond * linear_regression(sizes, [point.added[name] for point in measured]).slope
        for name in rules
    }
