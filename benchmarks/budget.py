"""What a step of a `Budget` costs, per weight and thread: `PYTHONPATH=src python -m benchmarks.budget`.

The same step of fused AdamW alone, with an L1 penalty whose zeros are held, and with a budget in its ramp and after its
freeze, with native kernels and without (`plain`). All take turns on one thread, and figures are medians over rounds.
Times are those of the thread, so that other programs of the machine disturb them little. In the ramp the threshold is
where it was expected; a first ranking has to count everything.
"""

import argparse
import warnings
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from time import thread_time

import torch
from torch import nn
from torch.optim import AdamW

from benchmarks.record import surroundings
from benchmarks.timing import Limits, Step, interleaved, ratios, warm_up
from shrinkage import L1, Budget, Penalty, Regularizer
from shrinkage.tables import table

LAYERS = 5
SMALL = (64, 100, 100, 10)  # sizes of the layers of a small network
UPDATES = 12_000
WARM_UP, ROUNDS = 5, 9
BUDGET = Budget(zeros=0.95, updates=UPDATES)
RAMP = BUDGET.first_update + UPDATES // 10
HELD = L1(1e-4)
Variant = tuple[Penalty | Budget | None, int, float | None, bool]  # the rule, updates made, hold_zeros, native kernels
VARIANTS: dict[str, Variant] = {
    "AdamW": (None, 0, None, True),
    "L1, held": (HELD, 0, 0.99, True),
    "ramp": (BUDGET, RAMP, None, True),
    "frozen": (BUDGET, BUDGET.freeze_update, None, True),
    "L1, held, plain": (HELD, 0, 0.99, False),
    "ramp, plain": (BUDGET, RAMP, None, False),
    "frozen, plain": (BUDGET, BUDGET.freeze_update, None, False),
}


def stepping(sizes: Sequence[int], variant: Variant) -> AdamW:
    """Return an optimizer of a network with gradients, attached to after so many updates."""
    rule, reached, hold_zeros, native = variant
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(before, after, bias=False) for before, after in pairwise(sizes)))
    optimizer = AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    if rule is not None:
        kernels = "auto" if native else False
        regularizer = Regularizer(model, rule, hold_zeros=hold_zeros, compile=kernels).attach(optimizer)
        regularizer.load_state_dict({"version": 1, "updates": [reached]})
        optimizer.regularizer = regularizer  # which has to live as long
    return optimizer


def measured(sizes: Sequence[int], rounds: int) -> list[list[str]]:
    """Return a row for each variant: nanoseconds per weight, and ratios to the L1 penalty of the same kind."""
    steps = {name: stepping(sizes, variant).step for name, variant in VARIANTS.items()}
    count = sum(before * after for before, after in pairwise(sizes))
    first = {name: 1e9 * seconds_of(step) / count for name, step in steps.items()}
    warm_up(steps.values(), WARM_UP)
    times = interleaved(steps, Limits(rounds, 300), clock=thread_time)
    rows = []
    for name, own in times.items():
        held = times["L1, held, plain" if name.endswith("plain") else "L1, held"]
        each = 1e9 * median(own) / count
        more = 1e9 * median(map(float.__sub__, own, times["AdamW"])) / count
        rows.append(
            [f"{count:,}", name, f"{each:.1f}", f"{more:.1f}", f"{ratios(own, held).median:.2f}", f"{first[name]:.1f}"]
        )
    return rows


def seconds_of(step: Step) -> float:
    """Return the time of one step."""
    before = thread_time()
    step()
    return thread_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    rows = measured(SMALL, 20 * arguments.rounds)
    for weights in arguments.weights:
        side = round((weights / LAYERS) ** 0.5)
        rows += measured([side] * (LAYERS + 1), arguments.rounds)
    print(surroundings(torch.device("cpu")))
    headings = ["weights", "step", "ns per weight", "more than AdamW", "of L1, held", "first of all"]
    print(table(headings, rows, right=[0, 2, 3, 4, 5]))


if __name__ == "__main__":
    main()
