"""What a penalty on activations adds to a forward and a backward pass: as a term in the loss, and by `Activities`."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.tables import Settings
from benchmarks.timing import extra, interleaved, warm_up
from shrinkage import L1, L2, Activities, Penalty
from shrinkage.tables import table

ALONE, TERM, OURS = "no penalty", "term in the loss", "Activities"
PENALTIES = (L1(1e-3), L2(1e-3))


@dataclass(frozen=True)
class Row:
    """The milliseconds of one variant, and those that the penalty adds in the same round."""

    penalty: str
    variant: str
    milliseconds: float
    added: float


@dataclass(frozen=True)
class Costs:
    """All variants, on activations of side x side behind a ReLU."""

    side: int
    rows: list[Row]

    def __str__(self) -> str:
        header = ["penalty", "variant", "ms", "ms added", "of the term's"]
        cells = []
        for row in self.rows:
            term = next(each.added for each in self.rows if each.penalty == row.penalty and each.variant == TERM)
            share = f"{row.added / term:.2f}" if row.variant == OURS else ""
            cells.append([row.penalty, row.variant, f"{row.milliseconds:.1f}", f"{row.added:.1f}", share])
        title = f"penalties on activations, {self.side}x{self.side} behind a ReLU, forward and backward"
        return f"{title}\n{table(header, cells, right=range(2, len(header)))}"


def passes(a: Tensor, penalty: Penalty) -> dict[str, Callable[[], None]]:
    """Return a forward and a backward pass without the penalty, with its term, and with `Activities`."""
    bare, penalized = nn.ReLU(), nn.ReLU()
    activities = Activities(penalized, {"": penalty})

    def run(relu: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        a.grad = None
        loss(relu(a)).backward()

    return {
        ALONE: lambda: run(bare, lambda h: h.sum()),
        TERM: lambda: run(bare, lambda h: h.sum() + penalty.value(h) / len(h)),
        OURS: lambda: run(penalized, lambda h: activities.mark(h.sum())),
    }


def measure_activities(side: int, settings: Settings) -> Costs:
    """Return what penalties on activations of side x side cost."""
    a = torch.randn(side, side, device=settings.device, requires_grad=True)
    rows = []
    for penalty in PENALTIES:
        steps = passes(a, penalty)
        warm_up(steps.values())
        times = interleaved(steps, settings.limits, settings.device, settings.clock)
        rows += [
            Row(type(penalty).__name__, name, 1e3 * median(own), 1e3 * extra(own, times[ALONE]))
            for name, own in times.items()
        ]
    return Costs(side, rows)
