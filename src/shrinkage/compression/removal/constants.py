"""The biases that take up the constants of removed channels."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.plans.tensors import joined
from shrinkage.compression.removal.analysis import Analysis
from shrinkage.compression.tracing.export import Subgraph
from shrinkage.compression.tracing.trace import Contraction, Trace


class Target(NamedTuple):
    """The bias that takes up the constants that a contraction no longer reads: of the module `path`, named `name`."""

    path: str
    name: str
    exists: bool


def target_of(model: nn.Module, subgraph: Subgraph, trace: Trace, contraction: Contraction) -> Target | str:
    """Return where the constants of a contraction can go, or in words why they cannot."""
    owned = subgraph.owned
    if contraction.padded:
        return "where zeros at the border make it depend on the position"
    if contraction.bias is not None:
        name = owned.get(contraction.bias)
        alike = [other for other in trace.contractions if other.bias is contraction.bias]
        alone = len(alike) == len(contraction.bias.users) and all(other.weight is contraction.weight for other in alike)
        return Target(name.rpartition(".")[0], name, True) if name and alone else "whose bias serves other weights too"
    path, _, local = owned.get(contraction.weight, "").rpartition(".")
    operator: Any = contraction.node.target
    takes_bias = any(argument.name == "bias" for argument in operator._schema.arguments)
    module = model.get_submodule(path) if local == "weight" and takes_bias else None
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return Target(path, joined(path, "bias"), False)
    return "which has no bias that could take it up"


def shifts(analysis: Analysis, gone: Tensor) -> dict[Target, Tensor]:
    """Return what the constants of the channels `gone` add to each bias."""
    found: dict[Target, Tensor] = {}
    traces = dict(analysis.coupling.traces)
    for reading in analysis.readings:
        labels = analysis.coupling.labels.find(reading.contraction.labels)
        if not len(labels):
            continue
        folded = gone[labels] & (reading.constants.nan_to_num() != 0)
        target = target_of(analysis.model, reading.subgraph, traces[reading.subgraph], reading.contraction)
        if isinstance(target, Target) and folded.any():
            constants = torch.where(folded, reading.constants.nan_to_num(), 0.0)
            shift = reading.rows_first() @ constants.to(reading.weight.device)
            found[target] = shift if reading.needed is None else shift * reading.needed.to(shift.device)
    return {target: shift for target, shift in found.items() if (shift != 0).any()}
