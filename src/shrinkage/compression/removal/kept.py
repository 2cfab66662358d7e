"""Zero channels that stay, and why."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shrinkage.compression.copying.caches import caches_of, emptied
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.compression.dataflow.dependence import packet_of
from shrinkage.compression.dataflow.gates import NORMS, PRODUCTS, arguments_of
from shrinkage.compression.plans.tensors import joined, zero_slices
from shrinkage.compression.removal.analysis import Analysis
from shrinkage.compression.removal.bisection import TRIALS, Attempts
from shrinkage.compression.removal.removable import Removal
from shrinkage.compression.removal.summary import KeptZeros
from shrinkage.compression.tracing.disjoint_sets import distinct
from shrinkage.compression.tracing.export import sources
from shrinkage.compression.tracing.held import held_by_computed
from shrinkage.compression.tracing.parameter_axes import Axis
from shrinkage.selection.parametrized import computed_weights

DIFFERENT = "outputs differ, or the model fails, when they are removed"
UNTRIED = "outputs differ without channels that {} trials did not find, so that these stay as well"
UNREAD = "read by zeros alone, but "
SHARED = "belongs to channels that other weights make too"


def kept_zeros(attempts: Attempts, removal: Removal, held: Tensor, refusal: str) -> list[KeptZeros]:
    """Return the zero channels that stay, by parameter and reason; `refusal` is that of those that are `held`."""
    analysis, pinned = attempts.analysis, attempts.analysis.coupling.pinned
    zero = {root: name for root, (name, _) in zero_channels(analysis).items()}
    zero |= {root: name for root, name in zero_scales(analysis).items() if root not in zero}
    zero |= {root: name for root, name in computed_zeros(analysis).items() if root not in zero}
    unread = {root: name for root, name in unread_channels(analysis).items() if root not in zero}
    zero |= unread
    counts: dict[tuple[str, str], int] = {}
    caches = caches_of(analysis.model) and caches_of(emptied(with_own_state(analysis.model)))
    for root, name in zero.items():
        if removal.gone[root] or pinned.get(root, "").startswith("looked up by index"):
            continue  # rows of a table that are zero, such as that of the padding, are as they should be
        reason = pinned.get(root) or removal.reasons.get(root, SHARED)
        reason = UNREAD + reason if root in unread else reason
        if held[root]:
            reason = refusal or (UNTRIED.format(TRIALS) if attempts.untried[root] else DIFFERENT)
        if any(phrase in reason for phrase in (DIFFERENT, "not used by any", "of fixed length")):
            cached = [cache for cache in caches if name.startswith(joined(cache.rpartition(".")[0], ""))]
            reason += f"; `{cached[0]}` keeps tensors of an earlier call" if cached else ""
        counts[name, reason] = counts.get((name, reason), 0) + 1
    return [KeptZeros(name, count, reason) for (name, reason), count in counts.items()]


def zero_channels(analysis: Analysis) -> dict[int, Axis]:
    """Return the channels whose weights are all zero in every parameter that makes them, each with one such axis."""
    coupling, count = analysis.coupling, analysis.coupling.labels.count
    made, live = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    where: dict[int, Axis] = {}
    for (name, dim), channels in coupling.axes.items():
        tensor = analysis.tensors[name]
        makes = dim == coupling.making_axis(name) and (name, dim) not in coupling.measured
        if not isinstance(tensor, nn.Parameter) or tensor.dim() < 2 or not makes:
            continue
        rows = coupling.telling(name, dim)
        channels, zero = channels[rows.start : rows.stop], zero_slices(tensor, dim).cpu()[rows.start : rows.stop]
        made[channels] = True
        live[channels[~zero]] = True
        for root in distinct(channels[zero]).tolist():
            where.setdefault(root, (name, dim))
    return {root: axis for root, axis in where.items() if made[root] and not live[root]}


def zero_scales(analysis: Analysis) -> dict[int, str]:
    """Return the channels that a zero scale multiplies, of a branch or of a norm, each with the parameter's name."""
    coupling, where = analysis.coupling, dict[int, str]()
    for (subgraph, trace), each in zip(coupling.traces, analysis.needs, strict=True):
        for (user, node), mask in each.zeros.known.items():
            scales = packet_of(user) in PRODUCTS or (
                packet_of(user) in NORMS and arguments_of(user).get("weight") is node
            )
            channels = trace.values.get(node)
            if not scales or not mask.any() or channels is None:
                continue
            names = [subgraph.owned[one] for one in sources(node) if one in subgraph.owned]
            name = next((one for one in names if isinstance(analysis.tensors[one], nn.Parameter)), None)
            for factor in channels.factors if name else ():
                zero = mask.expand(channels.shape)
                labels = coupling.labels.find(factor.expand(channels.shape))
                for root in sorted({*distinct(labels[zero]).tolist()} - {*distinct(labels[~zero]).tolist()}):
                    where.setdefault(root, str(name))
    return where


def computed_zeros(analysis: Analysis) -> dict[int, str]:
    """Return the channels whose row is zero in a weight that is no parameter but computed from some, as by a mask."""
    coupling, where = analysis.coupling, dict[int, str]()
    traces = dict(coupling.traces)
    for reading in analysis.readings:
        node, owned = reading.contraction.weight, reading.subgraph.owned
        rows = traces[reading.subgraph].values[node].along(reading.contraction.rows)
        names = [owned[one] for one in sources(node) if one in owned]
        name = next((one for one in names if isinstance(analysis.tensors[one], nn.Parameter)), None)
        zero = zero_slices(reading.weight, reading.contraction.rows).cpu()
        if node in owned or name is None or rows is None or rows.numel() != len(zero):
            continue
        for root in distinct(coupling.labels.find(rows.reshape(-1)[zero])).tolist():
            where.setdefault(root, name)
    return where


def unread_channels(analysis: Analysis) -> dict[int, str]:
    """Return the channels that zeros alone read, and that only weights computed from others hold.

    Each comes with a parameter of the module that has to be changed first: a mask of a bias holds the channels of its
    layer, a mask along the columns of a weight those of the layer before, and a spectral norm those of its rows.
    """
    coupling = analysis.coupling
    seen, read = (torch.zeros(coupling.labels.count, dtype=torch.bool) for _ in range(2))
    readers = [(each.contraction.labels, each.reads().cpu()) for each in analysis.readings]
    data = set().union(*(trace.from_data for _, trace in coupling.traces))  # a norm of a weight reads no channels
    readers += [(each.sum.labels, ~each.zero.cpu()) for each in analysis.sums if each.sum.node in data]
    for channels, live in readers:
        labels = coupling.labels.find(channels)
        if len(labels):
            seen[labels] = True
            read[labels[live]] = True
    last = coupling.labels.reasons(last=True)
    held = {path: held_by_computed(module) for path, module in analysis.model.named_modules()}
    where: dict[int, str] = {}
    for path, module in analysis.model.named_modules():
        for name in [joined(path, one) for each in computed_weights(module) for one in each.sources]:
            for dim in range(analysis.tensors[name].dim()):
                channels, free = coupling.axes[name, dim], not held[path] and (name, dim) in coupling.summed
                for root in distinct(channels[seen[channels] & ~read[channels]]).tolist():
                    why = coupling.pinned.get(root, "")
                    if why == held[path] and (free or (why and _is_within(last[root], held))):
                        where.setdefault(root, name)
    return where


def _is_within(reason: str, held: Mapping[str, str]) -> bool:
    """Return whether `reason` is one of `held`, by path, or an operator inside of one of these modules gives it."""
    place = reason.partition(", in `")[2].removesuffix("`")
    return reason in held.values() or any(
        why and path and f"{place}.".startswith(f"{path}.") for path, why in held.items()
    )
