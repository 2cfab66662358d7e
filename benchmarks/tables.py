"""What a rule adds to an optimizer's step, on the parameter list of a model, beside other ways to the same end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch

from benchmarks.compilations import compilations_when_all_changes, first_and_later
from benchmarks.memory import extra_peak, require
from benchmarks.shapes import Architecture, Shape, shapes_of, shrunk
from benchmarks.skipping import SkippedError
from benchmarks.timing import CPU, Clock, Limits, Spread, Step, Times, extra, interleaved, ratios, warm_up
from benchmarks.variants import ADAMW, STRENGTH, Variant
from benchmarks.work import Work
from shrinkage.errors import first_line
from shrinkage.tables import table

COPY = "copy"
NOISE = 1.02  # a ratio below it is no ground for a rate
FLOAT32 = 4  # bytes, in which a variant tells what it moves


@dataclass
class Row:
    """What one variant costs; None where a figure does not apply, and all of them where it was skipped.

    Attributes:
        milliseconds: of one step.
        ratio: to the baseline's step in the same round.
        floor: that ratio, if only the bytes counted that a step has to move.
        gigabytes_per_second: the bytes that the rule has to move, by the time that it adds.
        share_of_copy: that, by the same of a copy; more than 1 where a copy also reads what it overwrites.
        extra_mebibytes: the most memory that a step holds beyond what was held before.
        host_microseconds: what the rule adds per penalized tensor, where tensors are so small that nothing else counts.
        compile_seconds: what the first step takes longer than a later one.
        first_step_seconds: of the first step, with compilation if there is any.
        compilations: in 100 steps after that, with other shapes, learning rates and strengths.
        skipped: why there are no figures.
    """

    name: str
    baseline: str
    milliseconds: float | None = None
    ratio: Spread | None = None
    floor: float | None = None
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None
    extra_mebibytes: float | None = None
    host_microseconds: float | None = None
    compile_seconds: float | None = None
    first_step_seconds: float | None = None
    compilations: int | None = None
    skipped: str | None = None


@dataclass
class Table:
    """The costs on one parameter list; `copy_rate` is that of a measured copy, in bytes per second."""

    name: str
    tensors: int = 0
    penalized: int = 0
    weights: int = 0
    rounds: int = 0
    copy_rate: float = 0.0
    rows: list[Row] = field(default_factory=list)
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name}: skipped, {self.skipped}"
        title = (
            f"{self.name}: {self.tensors} tensors, {self.penalized} penalized, {self.weights / 1e6:.1f} million "
            f"weights, {self.rounds} rounds, copy {self.copy_rate / 1e9:.1f} GB/s"
        )
        return "\n".join(
            [title, as_text(self.rows), *(f"{row.name}: {row.skipped}" for row in self.rows if row.skipped)]
        )


def as_text(rows: Sequence[Row]) -> str:
    """Return rows as a table, without columns that are empty."""
    cells = {name: [column(row) for row in rows] for name, column in COLUMNS.items()}
    shown = {name: own for name, own in cells.items() if {*own} != {""}}
    lines = [["-" if cell == "" else cell for cell in line] for line in zip(*shown.values(), strict=True)]
    return table(list(shown), lines, right=range(1, len(shown)))


def figure(name: str, form: str) -> Callable[[Row], str]:
    """Return the column of an attribute, in this format."""

    def cell(row: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else format(value, form)

    return cell


COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "variant": lambda row: row.name,
    "ms": lambda row: "skipped" if row.skipped else figure("milliseconds", ".2f")(row),
    "ratio": lambda row: f"{row.ratio.median:.2f}" if row.ratio else "",
    "quartiles": lambda row: f"{row.ratio.lower:.2f} to {row.ratio.upper:.2f}" if row.ratio else "",
    "floor": figure("floor", ".2f"),
    "of floor": lambda row: f"{row.ratio.median / row.floor:.2f}" if row.ratio and row.floor else "",
    "GB/s": figure("gigabytes_per_second", ".1f"),
    "of copy": figure("share_of_copy", ".0%"),
    "MiB more": figure("extra_mebibytes", ".1f"),
    "us/tensor": figure("host_microseconds", ".1f"),
    "compile s": figure("compile_seconds", ".1f"),
    "first step s": figure("first_step_seconds", ".1f"),
    "recompiled": figure("compilations", "d"),
}


@dataclass(frozen=True)
class Settings:
    """How a table is measured."""

    limits: Limits
    device: torch.device = CPU
    steps: int = 100  # in which everything changes
    clock: Clock = perf_counter


def measure(architecture: Architecture, variants: Sequence[Variant], settings: Settings) -> Table:
    """Return what every variant costs on the parameters of a model."""
    try:
        shapes = shapes_of(architecture.on_meta())
        work = Work.of(shapes, settings.device, architecture)
    except SkippedError as error:
        return Table(architecture.name, skipped=str(error))
    rows = {variant.name: Row(variant.name, variant.baseline) for variant in variants}
    steps: dict[str, Step] = {}
    for variant in variants:
        try:
            steps[variant.name] = prepare(variant, work, rows[variant.name], settings)
        except SkippedError as error:
            rows[variant.name].skipped = str(error)
    times = interleaved({**steps, COPY: work.copy}, settings.limits, settings.device, settings.clock)
    measured = [variant for variant in variants if variant.name in steps]
    enter_small(rows, measured, shapes, settings)
    return table_of(architecture.name, work, times, measured, rows)


def table_of(name: str, work: Work, times: Times, variants: Sequence[Variant], rows: Mapping[str, Row]) -> Table:
    """Return the table of rows, into which this enters what follows from the times of all rounds."""
    copy_rate = 2 * work.bytes_per_weight * work.penalized_weights / median(times[COPY])
    for variant in variants:
        enter_times(rows[variant.name], variant, times, work, copy_rate)
    counts = (len(work.parameters), len(work.penalized), work.weights, len(times[ADAMW]))
    return Table(name, *counts, copy_rate, list(rows.values()))


def prepare(variant: Variant, work: Work, row: Row, settings: Settings) -> Step:
    """Return a variant's step, warmed up; enter what that cost, and the memory that it takes."""
    require(4 * variant.copies * work.penalized_weights, settings.device)
    try:
        step = variant.make(work, STRENGTH).step
        compiling = first_and_later(step, settings.device, settings.clock)
        row.extra_mebibytes = extra_peak(step, settings.device) / 2**20
    except Exception as error:
        if variant.rival and not isinstance(error, SkippedError):
            raise SkippedError(f"{type(error).__name__}: {first_line(error)}") from error
        raise
    row.compile_seconds = compiling if variant.compiled else None
    return step


def enter_times(row: Row, variant: Variant, times: Times, work: Work, copy_rate: float) -> None:
    """Enter what follows from the times of all rounds."""
    own, baseline = times[variant.name], times[variant.baseline]
    row.milliseconds = 1e3 * median(own)
    row.ratio = ratios(own, baseline)
    added = extra(own, baseline)
    if variant.bytes_per_weight and row.ratio.lower > NOISE:
        numbers = variant.bytes_per_weight / FLOAT32
        rate = numbers * work.bytes_per_weight * work.penalized_weights / added
        row.gigabytes_per_second, row.share_of_copy = rate / 1e9, rate / copy_rate


def enter_small(
    rows: Mapping[str, Row], variants: Sequence[Variant], shapes: Sequence[Shape], settings: Settings
) -> None:
    """Enter what shows on as many small tensors: the host's work, and compilations for other shapes."""
    tiny = Work.of(shrunk(shapes, 1 << 20), settings.device)
    own = [variant for variant in variants if not variant.rival]
    steps = {variant.name: variant.make(tiny, STRENGTH).step for variant in own}
    warm_up(steps.values(), times=1)
    limits = Limits(10 * settings.limits.rounds, settings.limits.seconds / 5)
    times = interleaved(steps, limits, settings.device, settings.clock)
    smaller = Work.of(shrunk(shapes, 16), settings.device)
    for variant in own:
        row = rows[variant.name]
        if variant.name != variant.baseline:
            row.host_microseconds = 1e6 * extra(times[variant.name], times[variant.baseline]) / len(tiny.penalized)
        if variant.compiled:
            row.compilations = compilations_when_all_changes(variant, smaller, settings.steps)
