"""Channels that come to a weight as a constant although all that makes them is zero: groups of the weights instead."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from shrinkage.compression.calls.modes import process_as_it_was
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.compression.dataflow.constancy import apart, constants_along, zeros_along
from shrinkage.compression.dataflow.values import Value, is_dense
from shrinkage.compression.plans.normed_weights import divided_axes
from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.compression.removal.constants import Target, target_of
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.compression.tracing.export import Subgraph, lines, sources
from shrinkage.compression.tracing.parameter_axes import Axis

Makers = Mapping[Axis, Tensor]


class Reader(NamedTuple):
    """A sum over the channels `labels`, which lie along an axis of each of `sides`: pairs of a node and an axis.

    The `weight` that reads them is None where there is none. A bias may be there that `takes` constants up, one for
    all calls of a layer.
    """

    subgraph: Subgraph
    node: fx.Node
    sides: tuple[tuple[fx.Node, int], ...]
    labels: Tensor
    weight: fx.Node | None
    takes: Target | None = None


@dataclass(eq=False)
class ReadingGroups:
    """Which channels go when nobody reads them, rather than when they are zero.

    The groups of those in `which` are columns of the weights along `axes`, all that read them; those in `held` can be
    in no group at all.
    """

    which: Tensor
    held: Tensor
    axes: dict[Axis, Tensor] = field(default_factory=dict)

    def includes(self, axis: Axis, channels: Tensor) -> Tensor:
        """Return for each of the `channels` whether the entries along `axis` that belong to it are in its group."""
        return torch.ones_like(channels, dtype=torch.bool) if axis in self.axes else ~self.which[channels]


def reading_groups(coupling: Coupling, model: nn.Module, free: Makers, roots: set[int]) -> ReadingGroups:
    """Return which of the channels `roots`, made along the axes of `free`, go when nobody reads them.

    A channel whose weights are zero may still be a constant, as behind a sigmoid or the functions of a
    Kolmogorov-Arnold network, and come to a weight that has no bias to take that up: `shrink` would keep it. It goes
    when the weights that read it are zero. A weight is in groups along one axis only. So where it also makes channels,
    these go in the same way, and so on; if some weight cannot be in such a group, the first of them are in none.
    """
    nothing = torch.zeros(coupling.labels.count, dtype=torch.bool)
    found = ReadingGroups(nothing.clone(), nothing.clone())
    if any(tensor.is_meta for tensor in model.parameters()):
        return found
    candidates = nothing.clone()
    candidates[sorted(roots)] = True
    readers = readers_of(coupling, model)
    loud = not_silent(coupling, model, free, candidates, readers)
    for channels in free.values() if loud.any() else ():
        seeds = nothing.clone()
        seeds[channels] = loud[channels] & ~found.held[channels] & ~found.which[channels]
        if seeds.any():
            closed = read_alone(coupling, model, free, candidates, readers, seeds)
            if closed is None:
                found.held |= seeds
            else:
                found.which |= closed.which
                found.axes |= closed.axes
    return found


def readers_of(coupling: Coupling, model: nn.Module) -> list[Reader]:
    """Return who reads channels that can go, in all graphs of `model`."""
    found = []
    for subgraph, trace in coupling.traces:
        for each in trace.contractions:
            labels = coupling.labels.find(each.labels)
            target = target_of(model, subgraph, trace, each)
            takes = target if isinstance(target, Target) else None
            found.append(Reader(subgraph, each.node, ((each.data, each.axis),), labels, each.weight, takes))
        for summed in trace.sums:
            weight = next((node for node, _ in summed.sides if node not in trace.from_data), None)
            found.append(Reader(subgraph, summed.node, summed.sides, coupling.labels.find(summed.labels), weight))
    return [each for each in found if len(each.labels)]


def not_silent(coupling: Coupling, model: nn.Module, free: Makers, which: Tensor, readers: Sequence[Reader]) -> Tensor:
    """Return those of the channels in `which` that a reader needs although all that makes them is zero.

    A weight that its norm divides is not zero as a whole: its last channel is looked at by itself.
    """
    divided = divided_axes(model, tensors_of(model))
    alone = torch.zeros_like(which)
    for axis in (axis for axis, channels in free.items() if axis in divided and bool(which[channels].all())):
        alone[free[axis].max()] = True
    found = _needed(coupling, model, free, which & ~alone, readers)
    return found | _needed(coupling, model, free, alone, readers) if alone.any() else found


def _needed(coupling: Coupling, model: nn.Module, free: Makers, which: Tensor, readers: Sequence[Reader]) -> Tensor:
    tensors = tensors_of(with_own_state(model))
    zeroed: dict[int, Tensor] = {}
    for (name, dim), channels in free.items():
        rows = coupling.telling(name, dim)
        places = [place for place in which[channels].nonzero().flatten().tolist() if place in rows]
        index = torch.tensor(places, dtype=torch.long, device=tensors[name].device)
        zeroed[id(tensors[name])] = tensors[name].detach().index_fill(dim, index, 0.0)
    given = {name: zeroed.get(id(tensor), tensor) for name, tensor in tensors.items()}
    found = torch.zeros_like(which)
    for subgraph, _ in coupling.traces:
        own = [each for each in readers if each.subgraph is subgraph and bool(which[each.labels].any())]
        if own:
            with process_as_it_was(), torch.no_grad():
                run = Watch(subgraph, own)
                run.run(*subgraph.arguments(given, subgraph.leaves), enable_io_processing=False)
            for labels in (*run.needed, *run.unlike()):
                found[labels] = True
    return found & which


class Watch(fx.Interpreter):
    """Runs a graph, and notes the labels of the channels that are `needed` where its `readers` sum over them."""

    def __init__(self, subgraph: Subgraph, readers: Sequence[Reader]) -> None:
        super().__init__(subgraph.program.graph_module)
        self.readers: dict[fx.Node, list[Reader]] = {}
        for each in readers:
            self.readers.setdefault(each.node, []).append(each)
        self.needed: list[Tensor] = []
        self.taken: dict[Target, list[tuple[Tensor, Tensor]]] = {}

    def unlike(self) -> Iterator[Tensor]:
        """Yield the channels that put another constant into a bias at one call of its layer than at another."""
        for (labels, first), *others in self.taken.values():
            for _, constants in others:
                yield labels[apart(constants, first) & ~constants.isnan() & ~first.isnan()]

    def run_node(self, n: fx.Node) -> Any:
        """Return what `n` gives."""
        for reader in self.readers.get(n, ()):
            fine = torch.zeros(len(reader.labels), dtype=torch.bool)
            for node, axis in reader.sides:
                idle = _left_out(self.env[node], axis, reader.takes is not None)
                fine |= idle.repeat(len(fine) // len(idle))
            self.needed.append(reader.labels[~fine])
            if reader.takes is not None:
                ((node, axis),) = reader.sides
                known = constants_along(Value([self.env[node]]), axis).cpu()
                self.taken.setdefault(reader.takes, []).append((reader.labels, known))
        return super().run_node(n)


def _left_out(value: Any, axis: int, takes: bool) -> Tensor:
    """Return which indices along `axis` of a value are zero, or constant if a bias `takes` that up, or not known."""
    if not is_dense(value) or not value.is_floating_point() or not value.numel():
        return torch.ones(value.shape[axis], dtype=torch.bool)
    unknown = ~lines(value, axis).isfinite().all(1)  # a norm of zeros alone is no number
    fine = ~constants_along(Value([value]), axis).isnan() if takes else zeros_along(Value([value]), axis)
    return (fine | unknown).cpu()


def read_alone(
    coupling: Coupling, model: nn.Module, free: Makers, candidates: Tensor, readers: Sequence[Reader], seeds: Tensor
) -> ReadingGroups | None:
    """Return the fewest channels with `seeds` that can all go when nobody reads them; None if there are none."""
    tensors, first = tensors_of(model), dict[int, str]()
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)  # tied parameters are known by it
    found = ReadingGroups(seeds.clone(), torch.zeros_like(seeds))
    while True:
        before = int(found.which.sum())
        for reader in (each for each in readers if bool(found.which[each.labels].any())):
            owned, read_by = reader.subgraph.owned, sources(reader.weight) if reader.weight else ()
            names = {first[id(tensors[owned[one]])] for one in read_by if one in owned}
            axes = [
                axis
                for axis in coupling.consumed - coupling.measured
                if axis[0] in names and bool(torch.isin(coupling.axes[axis], reader.labels).all())
            ]
            if not axes or not all(tensors[name].requires_grad for name, _ in axes):
                return None
            found.axes |= {axis: coupling.axes[axis] for axis in axes}
        along = {name: dim for name, dim in found.axes}
        if len(along) < len(found.axes):
            return None
        for (name, dim), channels in free.items():
            if along.get(name, dim) != dim:
                found.which[channels[candidates[channels]]] = True
        if int(found.which.sum()) == before:
            return found
