"""Which channels can go: nobody reads them, or what they are read for is a constant that a bias can take up."""

from collections.abc import Mapping, Sequence
from math import lcm
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.dataflow.constancy import SPREAD
from shrinkage.compression.dataflow.random_runs import live_rows
from shrinkage.compression.plans.tensors import joined, layer_of, zero_slices
from shrinkage.compression.removal.analysis import Analysis, Reading
from shrinkage.compression.removal.constants import Target, target_of
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.compression.tracing.disjoint_sets import distinct
from shrinkage.compression.tracing.export import sources
from shrinkage.compression.tracing.parameter_axes import Axis
from shrinkage.compression.tracing.trace import Sum, name_of, path_of

UNIFORM = "stays so that all layers of its kind keep as many channels, as uniform asks"


class Removal(NamedTuple):
    """The channels that go, one truth value per label, and why others that put out constants stay, by label."""

    gone: Tensor
    reasons: Mapping[int, str]


def removable(analysis: Analysis, round_to: int, held: Tensor, uniform: bool = False) -> Removal:
    """Return the channels that can go without a change of the outputs.

    The largest set is sought in which every reader of a channel either has no weight for it in the rows that stay, or
    reads a constant that its bias can take up; all start in it, and those that fail leave it until none does. With
    `uniform`, all layers of a kind keep as many channels.
    """
    coupling = analysis.coupling
    stay = torch.ones(coupling.labels.count, dtype=torch.bool)
    for channels in coupling.axes.values():
        stay[channels] = False
    if coupling.pinned:
        stay[torch.tensor(list(coupling.pinned))] = True
    stay |= held
    reasons: dict[int, str] = {}
    constant = _foldable(analysis, reasons)
    while True:
        gone = _closed(analysis, constant, stay)
        short, why = _too_few(coupling, gone, round_to)
        for names in coupling.even:
            layer = names[0].rpartition(".")[0] or "the model"
            text = f"stays so that all layers and directions of `{layer}` have as many units"
            _as_many(coupling, gone, [(name, 0) for name in names], text, short, why)
        for axes in coupling.of_a_kind() if uniform else []:
            _as_many(coupling, gone, axes, UNIFORM, short, why)
        if not short.any():
            _explain_sums(analysis, reasons)
            _explain_the_rest(analysis, constant, ~gone, reasons)
            return Removal(gone, reasons)
        stay |= short
        reasons |= {root: text for root, text in why.items() if root not in reasons}


def _foldable(analysis: Analysis, reasons: dict[int, str]) -> list[Tensor]:
    """Return for each reading which of its channels are constants that can be folded, and note why others are not."""
    coupling, silent = analysis.coupling, _silent(analysis)
    traces = dict(coupling.traces)
    result = []
    values: dict[str, list[tuple[int, Tensor]]] = {}
    for number, reading in enumerate(analysis.readings):
        target = target_of(analysis.model, reading.subgraph, traces[reading.subgraph], reading.contraction)
        constants, labels = reading.constants, coupling.labels.find(reading.contraction.labels)
        if len(labels):
            constants = torch.where(silent[labels], constants, float("nan"))
        zero = constants == 0
        fine = zero if isinstance(target, str) else ~constants.isnan()
        if isinstance(target, Target):
            values.setdefault(target.name, []).append((number, constants))
        else:
            _explain(coupling, reading, ~constants.isnan() & ~zero, target, reasons)
        result.append(fine)
    for name, several in values.items():
        first = several[0][1]
        agree = torch.ones_like(first, dtype=torch.bool)
        for _, constants in several[1:]:
            agree &= (constants - first).abs() <= SPREAD * first.abs()
        for number, _ in several:
            result[number] = result[number] & agree
            _explain(
                coupling,
                analysis.readings[number],
                ~agree & ~analysis.readings[number].constants.isnan(),
                f"and another one elsewhere that `{name}` serves too",
                reasons,
            )
    return result


def _silent(analysis: Analysis) -> Tensor:
    """Return for each label whether something that makes its channel is zero.

    What else is the same in all runs is so by chance, as where a softmax leaves numbers that are too small to be any.
    """
    coupling = analysis.coupling
    silent = torch.zeros(coupling.labels.count, dtype=torch.bool)
    for (name, dim), channels in coupling.axes.items():
        tensor = analysis.tensors[name]
        if (name, dim) not in coupling.consumed and isinstance(tensor, nn.Parameter) and name not in coupling.biases:
            silent[channels[zero_slices(tensor, dim).cpu()]] = True
    for reading in analysis.readings:
        weight = reading.subgraph.owned.get(reading.contraction.weight)
        rows = reading.rows
        if weight is not None:
            rows = coupling.axes[weight, reading.contraction.rows % reading.weight.dim()]
        if rows is not None:
            live = live_rows(reading.contraction, reading.weight, ~reading.constants.isnan())
            silent[rows[~live.cpu()]] = True
    return silent


def _explain(coupling: Coupling, reading: Reading, which: Tensor, text: str, reasons: dict[int, str]) -> None:
    labels = reading.contraction.labels
    if len(labels) == len(which) and which.any():
        for root in coupling.labels.find(labels[which]).tolist():
            reasons.setdefault(root, f"puts a constant into `{reading.name or 'the model'}`, {text}")


def _explain_the_rest(analysis: Analysis, constant: Sequence[Tensor], stay: Tensor, reasons: dict[int, str]) -> None:
    """Note for channels that stay without a reason so far who reads something of them that is no constant."""
    for reading, fine in zip(analysis.readings, constant, strict=True):
        labels = analysis.coupling.labels.find(reading.contraction.labels)
        if len(labels):
            missed = reading.reads(_rows(analysis.coupling, reading, stay)) & ~fine
            name = reading.name or "the model"
            text = f"is no constant where `{name}` reads it: it depends on the data or the position"
            if reading.empty:
                text = f"is read by `{name}`, which too few samples of the example reach to tell"
            for root in labels[missed].tolist():
                reasons.setdefault(root, text)


def _explain_sums(analysis: Analysis, reasons: dict[int, str]) -> None:
    """Note for channels that stay without a reason so far which sum reads them, where they are not zero."""
    data = set().union(*(trace.from_data for _, trace in analysis.coupling.traces))
    for summed in analysis.sums:
        node = summed.sum.node
        several = len(summed.sum.sides) > 1
        what = "a product" if several else f"`{name_of(node)}`"
        text = f"is not zero where {what} in `{path_of(node) or 'the model'}` sums over it"
        if several and node not in data and _with_buffers(analysis, summed.sum):
            layer = layer_of(joined(path_of(node), "")) or "the model"
            text = f"is not zero in a weight that a norm in `{layer}` measures"
        for root in analysis.coupling.labels.find(summed.sum.labels)[~summed.zero].tolist():
            reasons.setdefault(root, text)


def _with_buffers(analysis: Analysis, of: Sum) -> bool:
    """Return whether a sum is of products with buffers alone, as those are that a spectral norm keeps."""
    (owned,) = (subgraph.owned for subgraph, trace in analysis.coupling.traces if of in trace.sums)
    sides = [[analysis.tensors[owned[one]] for one in sources(node) if one in owned] for node, _ in of.sides]
    return any(side and not any(isinstance(each, nn.Parameter) for each in side) for side in sides)


def _closed(analysis: Analysis, constant: Sequence[Tensor], stay: Tensor) -> Tensor:
    """Return the largest set of channels outside of `stay` that no reader misses."""
    coupling, stay = analysis.coupling, stay.clone()
    while True:
        before = int(stay.sum())
        for reading, fine in zip(analysis.readings, constant, strict=True):
            labels = coupling.labels.find(reading.contraction.labels)
            if len(labels):
                missed = reading.reads(_rows(coupling, reading, stay)) & ~fine
                stay[labels[missed]] = True
        for summed in analysis.sums:
            stay[coupling.labels.find(summed.sum.labels)[~summed.zero]] = True
        if int(stay.sum()) == before:
            return ~stay


def _rows(coupling: Coupling, reading: Reading, stay: Tensor) -> Tensor | None:
    """Return which rows of the weight that is read stay; None, for all of them, where it is no parameter."""
    name = reading.subgraph.owned.get(reading.contraction.weight)
    if name is None:
        return None
    rank = reading.weight.dim()
    return stay[coupling.axes[name, reading.contraction.rows % rank]]


def _too_few(coupling: Coupling, gone: Tensor, round_to: int) -> tuple[Tensor, dict[int, str]]:
    """Return which channels have to stay after all, and why.

    Those of one per axis at least, and of a multiple of `round_to`, and of what an operator asks for.
    """
    back, why = torch.zeros_like(gone), dict[int, str]()
    for (name, dim), channels in coupling.axes.items():
        going = gone[channels]
        if not going.any():
            continue
        kept = int((~going).sum())
        step = lcm(round_to, coupling.multiples.get((name, dim), 1))
        asked = "round_to asks" if step == round_to else "products of the matrices of experts ask"
        wanted = min(-(-max(kept, 1) // step) * step, len(channels))
        for number, root in enumerate(channels[going][: wanted - kept].tolist(), kept):
            back[root] = True
            text = f"stays so that `{name}` has a multiple of {step} channels, as {asked}"
            why.setdefault(root, text if number else f"is the last one of `{name}`, which needs one: all others go")
    return back, why


def _as_many(
    coupling: Coupling, gone: Tensor, axes: Sequence[Axis], text: str, back: Tensor, why: dict[int, str]
) -> None:
    """Note which channels have to stay after all so that as many go along each of `axes`, and why: `text`."""
    several = [distinct(coupling.axes[axis][gone[coupling.axes[axis]]]) for axis in axes]
    for root in torch.cat([each[min(map(len, several)) :] for each in several]).tolist():
        back[root] = True
        why.setdefault(root, text)


def kept_indices(coupling: Coupling, gone: Tensor) -> dict[str, dict[int, tuple[int, ...]]]:
    """Return for each parameter and buffer that loses channels the indices that stay, by dimension."""
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for (name, dim), channels in coupling.axes.items():
        going = gone[channels]
        if going.any():
            keep.setdefault(name, {})[dim] = tuple((~going).nonzero().reshape(-1).tolist())
    return keep
