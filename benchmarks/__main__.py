"""Measure what rules cost, print it, and write it to runs/bench. Run it with `make bench`.

Parts: `tables` (parameter lists of whole models, beside other packages), `kernels` (each rule alone, against a copy),
`scaling` (over numbers of tensors and weights, with a picture), `training` (whole steps of small networks), `sparse`
(sparse linear layers beside dense ones), `shrink` (models without half of their channels), `small` (training steps of a
small network, where the host's work decides), `activities` (penalties on what layers put out), `search` (how long
models of timm are searched for channels, of which some are removed; give it `--threads 1`).
"""

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch._inductor.config

from benchmarks.activities import measure_activities
from benchmarks.kernels import measure_kernels
from benchmarks.pictures import draw
from benchmarks.record import surroundings, write
from benchmarks.rivals import RIVALS
from benchmarks.scaling import TENSORS, WEIGHTS, by_tensors, by_weights
from benchmarks.search import MODELS as SEARCHED
from benchmarks.search import QUICK as QUICKLY_SEARCHED
from benchmarks.search import measure_search
from benchmarks.shapes import ARCHITECTURES
from benchmarks.small import measure_small
from benchmarks.smaller import QUICK_SUBJECTS, SUBJECTS, measure_smaller
from benchmarks.sparse import measure_sparse
from benchmarks.tables import Settings, measure
from benchmarks.timing import Limits
from benchmarks.training import TASKS, measure_training
from benchmarks.variants import ADAMW_ALONE, KINDS, QUICK, own, rules

PROCESSES = 5  # that measure a small network


@dataclass(frozen=True)
class Plan:
    """How much is measured; `seconds` are of one table's rounds, on top of which come warming up and compiling."""

    models: tuple[str, ...]
    kinds: tuple[str, ...]
    rounds: int
    seconds: float
    side: int
    tensors: tuple[int, ...]
    weights: tuple[int, ...]
    tasks: int
    steps: int
    device: torch.device
    compile: bool
    output: Path

    def settings(self, share: float = 1.0, more: int = 1) -> Settings:
        """Return settings for a part that takes a share of a table's time, in so many times more rounds if they fit."""
        return Settings(Limits(more * self.rounds, share * self.seconds), self.device, self.steps)


def tables(plan: Plan) -> Iterator[object]:
    """Measure the parameter lists."""
    variants = [*own(plan.kinds, compile=plan.compile), *RIVALS]
    for name in plan.models:
        yield measure(ARCHITECTURES[name], variants, plan.settings())


def kernels(plan: Plan) -> Iterator[object]:
    """Measure each rule alone."""
    yield measure_kernels(rules(plan.kinds, compile=plan.compile), plan.side, plan.settings(0.5, more=5))


def scaling(plan: Plan) -> Iterator[object]:
    """Measure over sizes, and draw it."""
    variants = [ADAMW_ALONE, *rules(QUICK, compile=plan.compile, both=False)]
    sweeps = []
    for sweep, sizes in ((by_tensors, plan.tensors), (by_weights, plan.weights)):
        sweeps.append(sweep(variants, sizes, plan.settings(0.2, more=5)))
        yield sweeps[-1]
    where = surroundings(plan.device)
    title = f"AdamW and rules on {where['device']}, {where['threads']} threads, torch {where['versions']['torch']}"
    draw(sweeps, title, plan.output / "scaling.png")


def training(plan: Plan) -> Iterator[object]:
    """Measure whole training steps."""
    variants = [ADAMW_ALONE, *rules(QUICK, compile=plan.compile, both=False)]
    for task in TASKS[: plan.tasks]:
        yield measure_training(task, [*variants, *RIVALS[1:3]], plan.settings(0.75))


def sparse(plan: Plan) -> Iterator[object]:
    """Measure sparse linear layers, half as wide as the tensor of `kernels`."""
    yield measure_sparse(plan.side // 2, plan.settings(0.25, more=5))


def shrink(plan: Plan) -> Iterator[object]:
    """Make models smaller."""
    for subject in SUBJECTS if plan.tasks > 1 else QUICK_SUBJECTS:
        yield measure_smaller(subject, plan.settings())


def small(plan: Plan) -> Iterator[object]:
    """Measure a small network in several processes."""
    yield measure_small(plan.settings(0.25, more=5).limits, PROCESSES if plan.tasks > 1 else 1)


def activities(plan: Plan) -> Iterator[object]:
    """Measure penalties on activations, half as wide as the tensor of `kernels`."""
    yield measure_activities(plan.side // 2, plan.settings(0.5, more=5))


def search(plan: Plan) -> Iterator[object]:
    """Find the channels of models, and remove some."""
    for name, (size, options) in (SEARCHED if plan.tasks > 1 else QUICKLY_SEARCHED).items():
        yield measure_search(name, size, options)


PARTS: dict[str, Callable[[Plan], Iterator[object]]] = {
    "tables": tables,
    "kernels": kernels,
    "scaling": scaling,
    "training": training,
    "sparse": sparse,
    "shrink": shrink,
    "small": small,
    "activities": activities,
    "search": search,
}


def part(name: str) -> str:
    """Return the name of a part."""
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PARTS)}, got {name}")
    return name


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", type=part, metavar="part", help="left out, all of them")
    parser.add_argument("--model", choices=ARCHITECTURES, action="append", help="a table of this; may be repeated")
    parser.add_argument("--quick", action="store_true", help="less of everything, in under a minute")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--device", default="cpu", help="where to measure: cpu, cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="at most so many of each table")
    parser.add_argument("--seconds", type=float, help="and no new one after so many")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    return parser.parse_args()


def plan_of(options: argparse.Namespace) -> Plan:
    """Return how much is measured."""
    common = (torch.device(options.device), not options.eager, options.output)
    rounds, seconds = options.rounds, options.seconds
    if options.quick:
        models = tuple(options.model or ["MobileNetV2"])
        return Plan(models, QUICK, rounds or 5, seconds or 3, 1024, TENSORS[:4], WEIGHTS[:4], 1, 10, *common)
    models = tuple(options.model or ARCHITECTURES)
    return Plan(models, tuple(KINDS), rounds or 21, seconds or 40, 8192, TENSORS, WEIGHTS, len(TASKS), 100, *common)


def main() -> None:
    """Measure the parts asked for."""
    options = arguments()
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # before the first parallel work: other threads take it over from this one
    torch.set_num_threads(options.threads)
    torch._inductor.config.force_disable_caches = not options.quick  # or compiling would only cost the first time
    for name in ("torchao", "torch.utils._pytree"):  # about kernels for other machines, which nothing here uses
        logging.getLogger(name).setLevel(logging.CRITICAL)
    plan = plan_of(options)
    for name in options.parts or PARTS:
        start, results = perf_counter(), []
        for result in PARTS[name](plan):
            print(f"{result}\n", flush=True)
            results.append(result)
        seconds = perf_counter() - start
        settings = {key: str(value) for key, value in vars(options).items()}
        numbers = {"settings": settings, **surroundings(plan.device), "seconds": seconds, "results": results}
        write(plan.output / f"{name}.json", numbers)
        print(f"{name}: {seconds:.0f} s, written to {plan.output / name}.json\n", flush=True)


if __name__ == "__main__":
    main()
