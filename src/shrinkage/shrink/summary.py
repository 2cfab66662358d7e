"""What shrinking a model saved, and which zero channels are still there and why: numbers that print as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shrinkage.shrink.graph import Coupling
from shrinkage.shrink.measure import medians_in_turns
from shrinkage.shrink.plan import ShrinkPlan
from shrinkage.shrink.tensors import tensors_of
from shrinkage.shrink.verify import Call, outputs
from shrinkage.tables import shape_text, table

ADVICE = {
    "zeros at the border": "charge the scale and shift of the norm too: the constant is then zero",
    "no bias that could": "use a layer with a bias attribute, such as nn.Linear, or charge what makes the constant too",
    "normalized over": "the width of a residual stream stays: charge neurons and heads instead",
    "mean over": "the width of a residual stream stays: charge neurons and heads instead",
    "without a rule": "tell what the operator does to channels with `coupling_rule`",
    "not used by any": "call the module by its forward method, with inputs that `torch.export` can follow",
    "differ": "give the length as -1 or as an integer attribute of the module where the code has a number",
    "size of a head": "charge heads as a whole",
    "MultiheadAttention": "write attention with nn.Linear layers and `view(..., -1, head_size)`",
}


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """A parameter or buffer that lost channels: its shape before and after."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeptZeros:
    """Zero channels of one parameter that are still there, why, and what can be done about it."""

    name: str
    channels: int
    reason: str

    @property
    def advice(self) -> str:
        """What to do about it, in words; empty where there is nothing to do."""
        return next((advice for phrase, advice in ADVICE.items() if phrase in self.reason), "")


@dataclass(frozen=True, slots=True)
class ShrinkReport:
    """What shrinking saved; pairs are before and after.

    `multiply_adds` are those of one call with the example inputs, half of the floating-point operations that torch
    counts; `latency` is the median time of such a call in seconds, measured in turns; `error` the largest difference of
    the outputs, relative to the largest output, over all inputs that were compared.
    """

    parameters: tuple[int, int]
    size: tuple[int, int]
    multiply_adds: tuple[int, int]
    latency: tuple[float, float]
    error: float
    layers: tuple[LayerSummary, ...]
    kept: tuple[KeptZeros, ...]
    unknown_operators: Mapping[str, int]
    not_exported: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, lists, numbers and strings."""
        return asdict(self) | {"kept": [asdict(kept) | {"advice": kept.advice} for kept in self.kept]}

    def __str__(self) -> str:
        parts = [_totals(self)]
        if self.layers:
            rows = [[layer.name, shape_text(layer.before), shape_text(layer.after)] for layer in self.layers]
            parts.append(table(["parameter", "before", "after"], rows, right=[1, 2]))
        if self.kept:
            rows = [[kept.name, str(kept.channels), kept.reason, kept.advice] for kept in self.kept]
            parts.append(table(["zero channels that stay", "count", "because", "what to do"], rows, right=[1]))
        if self.unknown_operators:
            parts.append("operators without a rule: " + ", ".join(map(str, self.unknown_operators)))
        parts += [f"`{path or 'the model'}` was not exported: {error}" for path, error in self.not_exported.items()]
        return "\n\n".join(parts)


def _totals(report: ShrinkReport) -> str:
    rows = [
        ["parameters", *(f"{n:,}" for n in report.parameters), _ratio(*report.parameters)],
        ["bytes", *(f"{n:,}" for n in report.size), _ratio(*report.size)],
        ["multiply-adds", *(f"{n:,}" for n in report.multiply_adds), _ratio(*report.multiply_adds)],
        ["milliseconds", *(f"{seconds * 1e3:.3g}" for seconds in report.latency), _ratio(*report.latency)],
    ]
    rows = [row for row in rows if row[1] not in ("0", "nan")]
    text = table(["", "before", "after", "ratio"], rows, right=[1, 2, 3])
    return f"{text}\n\nlargest relative difference of the outputs: {report.error:.1e}"


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.2f}" if after else "-"


def parameter_count(model: nn.Module) -> int:
    """Return the number of entries of the parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def byte_count(model: nn.Module) -> int:
    """Return the bytes of the parameters and buffers, tied ones counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def multiply_adds(model: nn.Module, call: Call) -> int:
    """Return the multiply-adds of one call of `model`."""
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations}  # torch counts 0
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        outputs(model, call)
    return int(counter.get_total_flops()) // 2


def attention_operations(queries: torch.Size, keys: torch.Size, values: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Return the floating-point operations of attention by the shapes of its inputs; masked ones count too, as on GPUs.

    >>> attention_operations(torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 7, 4]), torch.Size([1, 2, 7, 4]))
    1120
    """
    batch, heads, length, size = queries
    return 2 * batch * heads * length * keys[-2] * (size + values[-1])


def compared(
    model: nn.Module, small: nn.Module, plan: ShrinkPlan, call: Call, error: float, kept: Sequence[KeptZeros],
    coupling: Coupling,
) -> ShrinkReport:  # fmt: skip
    """Return the report on `small`, which `plan` made of `model`."""
    layers = [LayerSummary(name, plan.shapes[name], plan.shape_after(name)) for name in plan.keep]
    return ShrinkReport(
        (parameter_count(model), parameter_count(small)),
        (byte_count(model), byte_count(small)),
        (multiply_adds(model, call), multiply_adds(small, call)),
        latencies(model, small, call),
        error,
        tuple(layers),
        tuple(kept),
        dict(coupling.unknown),
        dict(coupling.unexported),
    )


def latencies(model: nn.Module, small: nn.Module, call: Call) -> tuple[float, float]:
    """Return the median time of a call of both models in seconds, measured in turns."""
    device = next((tensor.device for tensor in tensors_of(model).values()), torch.device("cpu"))
    before, after = medians_in_turns([partial(outputs, each, call) for each in (model, small)], device, seconds=0.5)
    return before, after
