"""Check and measure the library on one device, with torch alone: `PYTHONPATH=src python -m benchmarks.device`.

First the checks of `device_checks.py`. Then AdamW's step with each rule on every matrix, for parameter lists of whole
models, in float32 and bfloat16, beside the floor that memory sets: (AdamW's bytes + the rule's) / AdamW's bytes. At
last whole training steps of a small GPT. Numbers go to runs/bench/device-<device>.json. On a CPU sizes are small.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from benchmarks.device_checks import Check, run_checks
from benchmarks.models import GPT
from benchmarks.record import surroundings, write
from benchmarks.shapes import Shape, shrunk
from benchmarks.skipping import SkippedError
from benchmarks.tables import COPY, Settings
from benchmarks.timing import Limits, Spread, extra, interleaved, ratios, warm_up
from benchmarks.training import Task, Training, measure_training, text
from benchmarks.variants import ADAMW, ADAMW_ALONE, STRENGTH, Variant, rule
from benchmarks.work import Work
from shrinkage.tables import table

ADAMW_NUMBERS = (
    7  # that a step moves per weight: it reads weight, gradient and moments, and writes all but the gradient
)
FLOAT32 = 4  # bytes, in which a variant tells what it moves
HEADER = ["variant", "ms", "ratio", "quartiles", "floor", "of floor", "GB/s", "of copy", "us/tensor", "first step s"]


def gpt2(layers: int = 12, width: int = 768, tokens: int = 50257, places: int = 1024) -> list[Shape]:
    """Return the shapes of GPT-2; as it stands, of the small one with 124 million weights."""
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    network: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(tokens, width), (places, width), *(norm + attention + norm + network) * layers, *norm]


def llama(layers: int = 22, width: int = 2048, inner: int = 5632, tokens: int = 32000, keys: int = 256) -> list[Shape]:
    """Return the shapes of a Llama; as it stands, of TinyLlama with 1.1 billion weights."""
    attention: list[Shape] = [(width, width), (keys, width), (keys, width), (width, width)]
    network: list[Shape] = [(inner, width), (inner, width), (width, inner)]
    return [(tokens, width), *[*attention, *network, (width,), (width,)] * layers, (width,), (tokens, width)]


@dataclass(frozen=True)
class Row:
    """What one variant costs.

    Attributes:
        ratio: to AdamW's step in the same round.
        floor: that ratio, if only the bytes counted that a step has to move.
        gigabytes_per_second: the rule's bytes, by the time that it adds.
        share_of_copy: that, by the same of a copy.
        host_microseconds: what the rule adds per penalized tensor, where tensors are so small that nothing else counts.
        first_step_seconds: of the first step, with compilation if there is any.
    """

    name: str
    milliseconds: float
    ratio: Spread
    floor: float
    gigabytes_per_second: float | None
    share_of_copy: float | None
    host_microseconds: float | None
    first_step_seconds: float

    def cells(self) -> list[str]:
        """Return the row as text."""

        def text(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        quartiles = f"{self.ratio.lower:.2f} to {self.ratio.upper:.2f}"
        return [
            self.name,
            f"{self.milliseconds:.2f}",
            f"{self.ratio.median:.2f}",
            quartiles,
            f"{self.floor:.2f}",
            f"{self.ratio.median / self.floor:.2f}",
            text(self.gigabytes_per_second, ".0f"),
            text(self.share_of_copy, ".0%"),
            text(self.host_microseconds, ".1f"),
            f"{self.first_step_seconds:.1f}",
        ]


@dataclass
class Table:
    """The costs on one parameter list in one type."""

    name: str
    tensors: int = 0
    weights: int = 0
    rounds: int = 0
    copy_rate: float = 0.0  # bytes per second
    rows: list[Row] = field(default_factory=list)
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name}: skipped, {self.skipped}"
        title = (
            f"{self.name}: {self.tensors} tensors, {self.weights / 1e6:.1f} million weights, {self.rounds} rounds, "
            f"copy {self.copy_rate / 1e9:.0f} GB/s"
        )
        return f"{title}\n{table(HEADER, [row.cells() for row in self.rows], right=range(1, len(HEADER)))}"


def variants() -> list[Variant]:
    """Return AdamW alone, and with the rules that are measured."""
    kinds = ("L1", "rows", "columns")
    return [ADAMW_ALONE, *(rule(kind, how, compile=True) for how in ("decoupled", "proximal") for kind in kinds)]


def measure(name: str, shapes: Sequence[Shape], dtype: torch.dtype, settings: Settings) -> Table:
    """Return what every variant costs on parameters of these shapes."""
    short = str(dtype).removeprefix("torch.")
    try:
        work = Work.of(shapes, settings.device, dtype=dtype)
    except SkippedError as error:
        return Table(f"{name}, {short}", skipped=str(error))
    chosen, steps, first = variants(), {}, {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is too small to move")  # in bfloat16, where it takes as long
        for variant in chosen:
            steps[variant.name] = variant.make(work, STRENGTH).step
            start = settings.clock()
            warm_up([steps[variant.name]], times=1)
            first[variant.name] = settings.clock() - start
        warm_up(steps.values(), times=1)
    times = interleaved({**steps, COPY: work.copy}, settings.limits, settings.device, settings.clock)
    small = on_small_tensors(chosen, shapes, settings)
    copy_rate = 2 * dtype.itemsize * work.penalized_weights / median(times[COPY])
    found = Table(f"{name}, {short}", len(work.parameters), work.weights, len(times[ADAMW]), copy_rate)
    for variant in chosen:
        own, alone = times[variant.name], times[ADAMW]
        numbers = (variant.bytes_per_weight or 0) / FLOAT32
        floor = 1 + numbers * work.penalized_weights / (ADAMW_NUMBERS * work.weights)
        added = extra(own, alone)
        rate = numbers * dtype.itemsize * work.penalized_weights / added if numbers and added > 0 else None
        of_copy = None if rate is None else rate / copy_rate
        gigabytes = None if rate is None else rate / 1e9
        milliseconds, spread = 1e3 * median(own), ratios(own, alone)
        host = small.get(variant.name)
        found.rows.append(Row(variant.name, milliseconds, spread, floor, gigabytes, of_copy, host, first[variant.name]))
    return found


def on_small_tensors(chosen: Sequence[Variant], shapes: Sequence[Shape], settings: Settings) -> dict[str, float]:
    """Return the microseconds that each rule adds per penalized tensor, where the host's work is all that counts."""
    work = Work.of(shrunk(list(shapes), 1 << 20), settings.device)
    steps = {variant.name: variant.make(work, STRENGTH).step for variant in chosen}
    warm_up(steps.values(), times=2)
    limits = Limits(settings.limits.rounds, settings.limits.seconds / 5)
    times = interleaved(steps, limits, settings.device, settings.clock)
    return {name: 1e6 * extra(own, times[ADAMW]) / len(work.penalized) for name, own in times.items() if name != ADAMW}


def tables(device: torch.device, seconds: float) -> Iterator[Table]:
    """Measure the parameter lists, of small models on a CPU."""
    small = device.type == "cpu"
    models = {
        "GPT-2 small": gpt2(2, 256, 4096, 256) if small else gpt2(),
        "Llama 1B": llama(2, 256, 704, 4096, 64) if small else llama(),
    }
    limits = Limits(40, seconds / (2 * len(models)))
    for dtype in (torch.float32, torch.bfloat16):
        for name, shapes in models.items():
            yield measure(f"{name}{' (smaller)' if small else ''}", shapes, dtype, Settings(limits, device))


def training(device: torch.device, seconds: float) -> Training:
    """Measure whole training steps of a GPT with 11 million weights; on a CPU, of a smaller one."""
    if device.type == "cpu":
        task = Task("GPT of 0.2 million weights, 4 texts of 32 tokens", lambda: GPT(2, 64, 2, 32), lambda: text(4, 32))
    else:
        task = Task("GPT of 11 million weights, 32 texts of 128 tokens", GPT, lambda: text(32))
    return measure_training(task, variants(), Settings(Limits(40, seconds), device))


def main() -> None:
    """Run all checks, then measure; the exit status is 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=default, help="left out: cuda if there is one, else cpu")
    parser.add_argument("--seconds", type=float, help="to measure for, without compilation; left out: 100, 20 on a CPU")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    device, start = options.device, perf_counter()
    seconds = options.seconds or (20.0 if device.type == "cpu" else 100.0)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    where = surroundings(device)
    print(f"{where['device']}, torch {where['versions']['torch']}\n", flush=True)
    checks: list[Check] = []
    for check in run_checks(device):
        print(check, flush=True)
        checks.append(check)
    results: list[object] = []
    for result in tables(device, 0.8 * seconds):
        print(f"\n{result}", flush=True)
        results.append(result)
    results.append(training(device, 0.2 * seconds))
    print(f"\n{results[-1]}\n", flush=True)
    path = options.output / f"device-{device.type}.json"
    write(path, {**where, "seconds": perf_counter() - start, "checks": checks, "results": results})
    print(f"{perf_counter() - start:.0f} s, written to {path}")
    raise SystemExit(int(any(check.passed is False for check in checks)))


if __name__ == "__main__":
    main()
