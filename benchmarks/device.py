"""Check and measure the library on one device, with torch alone: `PYTHONPATH=src python -m benchmarks.device`.

First the checks of `device_checks.py`. Then AdamW's step with each rule on every matrix, for parameter lists of whole
models, in float32 and bfloat16, beside the floor that memory sets: (AdamW's bytes + the rule's) / AdamW's bytes. At
last whole training steps of a small GPT. Numbers go to runs/bench/device-<device>.json. On a CPU sizes are small.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.device_checks import Check, run_checks
from benchmarks.models import GPT
from benchmarks.record import surroundings, write
from benchmarks.shapes import Shape, shrunk
from benchmarks.skipping import SkippedError
from benchmarks.tables import COPY, FLOAT32, Row, Settings, Table, table_of
from benchmarks.timing import Limits, extra, interleaved, warm_up
from benchmarks.training import Task, Training, measure_training, text
from benchmarks.variants import ADAMW, ADAMW_ALONE, STRENGTH, Variant, rule
from benchmarks.work import Work

ADAMW_NUMBERS = (
    7  # that a step moves per weight: it reads weight, gradient and moments, and writes all but the gradient
)


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
    chosen, steps = variants(), {}
    rows = {variant.name: Row(variant.name, variant.baseline) for variant in chosen}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is too small to move")  # in bfloat16, where it takes as long
        for variant in chosen:
            steps[variant.name] = variant.make(work, STRENGTH).step
            start = settings.clock()
            warm_up([steps[variant.name]], times=1)
            rows[variant.name].first_step_seconds = settings.clock() - start
        warm_up(steps.values(), times=1)
    times = interleaved({**steps, COPY: work.copy}, settings.limits, settings.device, settings.clock)
    small = on_small_tensors(chosen, shapes, settings)
    for variant in chosen:
        row, numbers = rows[variant.name], (variant.bytes_per_weight or 0) / FLOAT32
        row.floor = 1 + numbers * work.penalized_weights / (ADAMW_NUMBERS * work.weights)
        row.host_microseconds = small.get(variant.name)
    return table_of(f"{name}, {short}", work, times, chosen, rows)


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
