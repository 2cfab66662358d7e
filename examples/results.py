"""What a comparison found: rows of a table, the same numbers as JSON, and what they say in sentences."""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import shrinkage
from comparison import BUDGET, DENSE, SCRATCH, Outcome, Settings, Task
from digits.timing import one_thread
from shrinkage.compression.calls.cost import byte_count, multiply_adds, parameter_count
from shrinkage.compression.calls.latency import medians_in_turns
from shrinkage.tables import table

ROUNDS = 200
SECONDS = 20.0  # after so long no further round of timing begins


@dataclass(frozen=True)
class Row:
    """One variant: the quality of each seed, and means over the seeds of what the models need.

    `nonzero` counts the parameters that are not zero. `multiply_adds` and `milliseconds` are those of one call with the
    example inputs.
    """

    variant: str
    qualities: tuple[float, ...]
    parameters: float
    nonzero: float
    multiply_adds: float
    bytes: float
    milliseconds: float

    @property
    def quality(self) -> float:
        """Mean over the seeds."""
        return mean(self.qualities)

    @property
    def quality_text(self) -> str:
        """Mean and standard deviation over the seeds."""
        spread = f" ± {stdev(self.qualities):.2f}" if len(self.qualities) > 1 else ""
        return f"{self.quality:.2f}{spread}"

    @property
    def cells(self) -> list[str]:
        """What the table shows."""
        return [
            self.variant,
            self.quality_text,
            f"{self.parameters:,.0f}",
            f"{self.nonzero:,.0f}",
            f"{self.multiply_adds / 1e6:.2f}",
            f"{self.bytes / 1e3:,.0f}",
            f"{self.milliseconds:.2f}",
        ]


@torch.inference_mode()
def called(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of a model in evaluation mode, with nothing around the call that would count in its time."""
    return model(inputs)


def measure(task: Task, outcomes: Sequence[Outcome]) -> list[Row]:
    """Measure all models, those of all seeds in turns."""
    call = (task.inputs,), {}
    with one_thread():
        calls = [partial(called, outcome.model, task.inputs) for outcome in outcomes]
        seconds = medians_in_turns(calls, torch.device("cpu"), rounds=ROUNDS, seconds=SECONDS)
    rows = []
    for variant in dict.fromkeys(outcome.variant for outcome in outcomes):
        own = [(outcome, time) for outcome, time in zip(outcomes, seconds, strict=True) if outcome.variant == variant]
        models = [outcome.model for outcome, _ in own]
        rows.append(
            Row(
                variant,
                tuple(outcome.test for outcome, _ in own),
                mean(map(parameter_count, models)),
                mean(map(nonzero_count, models)),
                mean(multiply_adds(model, call)[""] for model in models),
                mean(map(byte_count, models)),
                1000 * mean(time for _, time in own),
            )
        )
    return rows


def nonzero_count(model: nn.Module) -> int:
    """Return how many parameters are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def table_of(task: Task, rows: Sequence[Row]) -> str:
    """Return the table as text."""
    shape = "x".join(map(str, task.inputs.shape))
    header = ["", task.unit, "parameters", "not zero", "M multiply-adds", "kB", f"ms per call of {shape}"]
    return table(header, [row.cells for row in rows], right=range(1, len(header)))


def findings(task: Task, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the numbers say."""
    by_name = {row.variant: row for row in rows}
    dense, ours, small = by_name[DENSE], by_name[BUDGET], by_name[SCRATCH]
    others = [row for row in rows if row.variant not in (DENSE, BUDGET)]
    return [
        f"The budget leaves {dense.nonzero / ours.nonzero:.1f} times fewer parameters that are not zero and "
        f"{dense.multiply_adds / ours.multiply_adds:.1f} times fewer multiply-adds, and a call takes "
        f"{dense.milliseconds / ours.milliseconds:.1f} times less time, than the dense model; {task.unit}: "
        f"{ours.quality_text} against {dense.quality_text}.",
        *(f"Budget and {other.variant}: {verdict(task, ours, other)}." for other in others),
        f"Dense and scratch: {verdict(task, dense, small)}.",
        *at_the_cut(outcomes),
    ]


def verdict(task: Task, ours: Row, other: Row) -> str:
    """Return which of two variants is better, judged by the differences seed by seed."""
    sign = 1 if task.higher_is_better else -1
    gains = [sign * (one - two) for one, two in zip(ours.qualities, other.qualities, strict=True)]
    better = ours.variant if mean(gains) > 0 else other.variant
    by = f"{better} is better by {abs(mean(gains)):.2f}"
    if len(gains) == 1:
        return f"{by}; one seed does not tell how much of that is chance"
    error = stdev(gains) / math.sqrt(len(gains))
    if abs(mean(gains)) <= 2 * error:
        return f"no difference that {len(gains)} seeds can tell ({abs(mean(gains)):.2f} ± {error:.2f})"
    return f"{by} ± {error:.2f} (standard error over {len(gains)} seeds)"


def at_the_cut(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the moment of becoming smaller did to the models, a line for each variant that has one."""
    lines = []
    for variant in dict.fromkeys(outcome.variant for outcome in outcomes if outcome.cut):
        cuts = [outcome.cut for outcome in outcomes if outcome.variant == variant and outcome.cut is not None]
        before, after = mean(cut.validation_before for cut in cuts), mean(cut.validation_after for cut in cuts)
        lines.append(f"When {variant} becomes smaller, it goes from {before:.2f} to {after:.2f} on validation data.")
    return lines


def as_dict(task: Task, settings: Settings, outcomes: Sequence[Outcome], rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything as numbers, text, lists and dictionaries, ready for JSON."""
    return {
        "task": task.name,
        "unit": task.unit,
        "settings": asdict(settings),
        "versions": {
            "shrinkage": shrinkage.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": {"training": torch.get_num_threads(), "latency": 1},
        "call": list(task.inputs.shape),
        "rows": [{**asdict(row), "quality": row.quality} for row in rows],
        "trained": [
            {
                "variant": each.variant,
                "seed": each.seed,
                "validation": each.validation,
                "test": each.test,
                "parameters": parameter_count(each.model),
                "cut": asdict(each.cut) if each.cut else None,
            }
            for each in outcomes
        ],
        "findings": findings(task, rows, outcomes),
    }


def write(path: Path, numbers: dict[str, Any]) -> None:
    """Write the numbers as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=2) + "\n")
