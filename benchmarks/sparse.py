"""Sparse linear layers against dense ones, over batches and shares of zeros."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import nn

from benchmarks.memory import require
from benchmarks.skipping import SkippedError
from benchmarks.tables import Settings
from benchmarks.timing import Spread, interleaved, ratios
from shrinkage import SparseLinear
from shrinkage.tables import table

BATCHES = (1, 16, 128)
ZEROS = (0.8, 0.9, 0.95, 0.99)
DENSE = "dense"


@dataclass(frozen=True)
class Point:
    """One batch and share of zeros: what both layers take, and the dense one's time by the sparse one's."""

    batch: int
    zeros: float
    dense_milliseconds: float
    sparse_milliseconds: float
    speedup: Spread


@dataclass
class SparseLayers:
    """All batches and shares of zeros, on one square float32 layer without gradients."""

    side: int
    rounds: int = 0
    points: list[Point] = field(default_factory=list)
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped:
            return f"sparse layers: skipped, {self.skipped}"
        header = ["batch", "zeros", "dense ms", "sparse ms", "times as fast", "quartiles"]
        rows = [
            [
                str(point.batch),
                f"{point.zeros:.0%}",
                f"{point.dense_milliseconds:.2f}",
                f"{point.sparse_milliseconds:.2f}",
                f"{point.speedup.median:.1f}",
                f"{point.speedup.lower:.1f} to {point.speedup.upper:.1f}",
            ]
            for point in self.points
        ]
        title = f"SparseLinear and nn.Linear, {self.side}x{self.side}, at most {self.rounds} rounds"
        return f"{title}\n{table(header, rows, right=range(len(header)))}"


def layers(side: int, zeros: Sequence[float], device: torch.device) -> dict[str, nn.Module]:
    """Return a dense layer, and sparse ones by their share of zeros, under the texts of these."""
    dense = nn.Linear(side, side, device=device).requires_grad_(False)
    uniform = torch.rand(side, side, device=device)
    found: dict[str, nn.Module] = {DENSE: dense}
    for share in zeros:
        masked = copy.deepcopy(dense)
        masked.weight.masked_fill_(uniform < share, 0.0)
        found[str(share)] = SparseLinear.from_linear(masked)
    return found


def measure_sparse(side: int, settings: Settings) -> SparseLayers:
    """Return how much faster sparse layers of side x side are."""
    try:
        require(16 * side * side, settings.device)
    except SkippedError as error:
        return SparseLayers(side, skipped=str(error))
    result = SparseLayers(side)
    found = layers(side, ZEROS, settings.device)
    for batch in BATCHES:
        x = torch.randn(batch, side, device=settings.device)
        steps = {name: lambda layer=layer, x=x: layer(x) for name, layer in found.items()}
        for step in steps.values():
            step()
        times = interleaved(steps, settings.limits, settings.device, settings.clock)
        dense = times.pop(DENSE)
        result.rounds = max(result.rounds, len(dense))
        for share in ZEROS:
            own = times[str(share)]
            spread = ratios(dense, own)
            result.points.append(Point(batch, share, 1e3 * median(dense), 1e3 * median(own), spread))
    return result
