"""Each rule alone, without its optimizer, on one large tensor: against the time that its bytes take in a copy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from torch.optim import Optimizer

from benchmarks.skipping import SkippedError
from benchmarks.tables import COPY, Settings
from benchmarks.timing import Spread, Step, interleaved
from benchmarks.variants import STRENGTH, Variant
from benchmarks.work import Work
from shrinkage.tables import table


@dataclass(frozen=True)
class Kernel:
    """One rule: what it takes, and that by what a copy of its bytes takes in the same round."""

    name: str
    bytes_per_weight: int
    milliseconds: float
    gigabytes_per_second: float
    ratio: Spread


@dataclass
class Kernels:
    """All rules on one square tensor."""

    side: int
    rounds: int = 0
    copy_rate: float = 0.0
    kernels: list[Kernel] = field(default_factory=list)
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped:
            return f"kernels: skipped, {self.skipped}"
        header = ["rule alone", "bytes", "ms", "GB/s", "to copy", "quartiles"]
        rows = [
            [
                kernel.name,
                str(kernel.bytes_per_weight),
                f"{kernel.milliseconds:.2f}",
                f"{kernel.gigabytes_per_second:.1f}",
                f"{kernel.ratio.median:.2f}",
                f"{kernel.ratio.lower:.2f} to {kernel.ratio.upper:.2f}",
            ]
            for kernel in self.kernels
        ]
        title = f"{self.side}x{self.side} weights, {self.rounds} rounds, copy {self.copy_rate / 1e9:.1f} GB/s"
        return f"{title}\n{table(header, rows, right=range(1, len(header)))}"


def rule_alone(optimizer: Optimizer) -> Step:
    """Return what a regularizer does around a step of the optimizer, as if it had just made one."""
    before = list(optimizer._optimizer_step_pre_hooks.values())
    after = list(optimizer._optimizer_step_post_hooks.values())

    def step() -> None:
        for hook in (*before, *after):
            hook(optimizer, (), {})

    return step


def measure_kernels(variants: Sequence[Variant], side: int, settings: Settings) -> Kernels:
    """Return what each rule takes on a tensor of side x side weights."""
    try:
        work = Work.of([(side, side)], settings.device)
    except SkippedError as error:
        return Kernels(side, skipped=str(error))
    steps = {}
    for variant in variants:
        trial = variant.make(work, STRENGTH)
        trial.step()
        steps[variant.name] = rule_alone(trial.optimizer)
        steps[variant.name]()
    times = interleaved({**steps, COPY: work.copy}, settings.limits, settings.device, settings.clock)
    copied = times.pop(COPY)
    result = Kernels(side, len(copied), 8 * work.weights / median(copied))
    for variant in variants:
        moved, own = variant.bytes_per_weight or 0, times[variant.name]
        spread = Spread.of([time / (moved / 8 * copy) for time, copy in zip(own, copied, strict=True)])
        rate = moved * work.weights / median(own) / 1e9
        result.kernels.append(Kernel(variant.name, moved, 1e3 * median(own), rate, spread))
    return result
