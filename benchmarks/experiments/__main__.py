"""Run the experiments, print their tables, and write their numbers. Run it with `make experiments`."""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import process_time

import torch

from benchmarks.experiments.bias import ARMS, Bias, bias
from benchmarks.experiments.delay import Delay, delay
from benchmarks.experiments.minibatches import Identification, minibatch_group_lasso, minibatch_lasso
from benchmarks.experiments.networks import Networks, networks
from benchmarks.experiments.shortcuts import Shortcuts, group_shortcuts, lasso_shortcuts

Result = Bias | Delay | Identification | Networks | Shortcuts

EXPERIMENTS: dict[str, Callable[[int], Result]] = {
    "lasso": minibatch_lasso,
    "groups": minibatch_group_lasso,
    "delay": delay,
    "networks": networks,
    "lasso-shortcuts": lambda seeds: lasso_shortcuts(),  # these two have no randomness
    "group-shortcuts": lambda seeds: group_shortcuts(),
    "bias": lambda seeds: bias(),  # these two have repetitions of their own
    "bias-small": lambda seeds: bias(arms=ARMS[:1], smallest=1.0),
}


def main() -> None:
    """Print tables; write JSON, in which experiments that are not run again keep their numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="this experiment; may be repeated")
    parser.add_argument("--seeds", type=int, default=3, help="training runs that differ in their minibatches alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/experiments.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    numbers = json.loads(options.output.read_text()) if options.output.exists() else {}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only or EXPERIMENTS:
        start = process_time()
        result = EXPERIMENTS[name](options.seeds)
        seconds = process_time() - start
        print(f"{name}: {result}\n{seconds:.0f} s of processor time\n", flush=True)
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        settings = {"seeds": options.seeds, "threads": options.threads}
        numbers[name] = {"settings": settings, "versions": versions, "seconds": seconds, **asdict(result)}
        options.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
