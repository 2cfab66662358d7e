"""What a step of a `Budget` costs, per weight and thread: `PYTHONPATH=src python -m benchmarks.budget`.

The same step of fused AdamW with and without a budget, in turns, on one thread. Times are those of the thread, so that
other programs of the machine disturb them little. In the ramp the threshold is where it was expected; a first ranking
has to count everything.
"""

import argparse
import warnings
from statistics import median
from time import thread_time

import torch
from torch import nn
from torch.optim import AdamW

from benchmarks.record import surroundings
from shrinkage import Budget, Regularizer
from shrinkage.tables import table

LAYERS = 5
UPDATES = 12_000
WARM_UP, ROUNDS = 5, 9


def stepping(layers: list[nn.Module], budget: Budget | None, reached: int) -> AdamW:
    """Return an optimizer with gradients, attached to after `reached` updates."""
    model = nn.ModuleList(layers)
    optimizer = AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer.regularizer = None if budget is None else Regularizer(model, budget).attach(optimizer)
    if optimizer.regularizer is not None:
        optimizer.regularizer.load_state_dict({"version": 1, "updates": [reached]})
    return optimizer


def seconds(optimizer: AdamW) -> float:
    """Return the time of one step."""
    before = thread_time()
    optimizer.step()
    return thread_time() - before


def nanoseconds(weights: int, budget: Budget | None, reached: int = 0) -> tuple[float, float]:
    """Return the time of the first step, and the median of later ones, by the number of weights."""
    side = round((weights / LAYERS) ** 0.5)
    optimizer = stepping([nn.Linear(side, side, bias=False) for _ in range(LAYERS)], budget, reached)
    times = [seconds(optimizer) for _ in range(WARM_UP + ROUNDS)]
    count = LAYERS * side * side
    return 1e9 * times[0] / count, 1e9 * median(times[WARM_UP:]) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[10**6, 10**7])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    budget = Budget(zeros=0.95, updates=UPDATES)
    rows = []
    for weights in parser.parse_args().weights:
        _, alone = nanoseconds(weights, None)
        first, ramp = nanoseconds(weights, budget, reached=budget.first_update + UPDATES // 10)
        _, frozen = nanoseconds(weights, budget, reached=budget.freeze_update)
        rows.append([f"{weights:,}", *(f"{each:.1f}" for each in (alone, ramp, first, frozen))])
    print(surroundings(torch.device("cpu")))
    print(table(["weights", "AdamW, ns", "ramp", "first of all", "frozen"], rows, right=[1, 2, 3, 4]))


if __name__ == "__main__":
    main()
