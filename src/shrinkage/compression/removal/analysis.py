"""What the graphs of a model tell about its channels: who reads them, and which of them are constant."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.inputs import varied
from shrinkage.compression.calls.modes import process_as_it_was
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.compression.dataflow.gates import Zeros
from shrinkage.compression.dataflow.liveness import Needs
from shrinkage.compression.dataflow.random_runs import RUNS, Stimulus
from shrinkage.compression.plans.tensors import joined, selected, tensors_of, zero_slices
from shrinkage.compression.tracing.channels import axes_of
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.compression.tracing.export import Subgraph
from shrinkage.compression.tracing.trace import Contraction, Sum, Trace


class Reading(NamedTuple):
    """What a contraction reads.

    `constants` has one entry per channel that is summed over: its value where that is the same whatever the model's
    inputs and weights before it are, NaN elsewhere. `weight` is what the channels are multiplied with. It is `empty`
    where the example gives it nothing to read. `needed` are the rows of the weight that the outputs depend on; None
    stands for all. `rows` are the labels of its rows, if known.
    """

    subgraph: Subgraph
    contraction: Contraction
    constants: Tensor
    weight: Tensor
    empty: bool
    needed: Tensor | None = None
    rows: Tensor | None = None

    @property
    def name(self) -> str:
        """The dotted name of the weight, or of the module that computes it."""
        owned = self.subgraph.owned
        stack = self.contraction.node.meta.get("nn_module_stack") or {}
        paths = [path for path, _ in stack.values()] or [""]
        return owned.get(self.contraction.weight) or joined(self.subgraph.path, paths[-1])

    def rows_first(self) -> Tensor:
        """Return the weight as rows by channels, what is behind them (a kernel) summed."""
        rank = self.weight.dim()
        order = [self.contraction.rows % rank, self.contraction.weight_axis % rank]
        weight = self.weight.permute(*order, *(axis for axis in range(rank) if axis not in order))
        return weight.flatten(2).double().sum(2) if rank > 2 else weight.double()

    def reads(self, rows: Tensor | None = None) -> Tensor:
        """Return for each channel whether any of the needed `rows` (all, if None) of the weight has an entry for it."""
        if rows is None or self.needed is None:
            rows = self.needed if rows is None else rows
        else:
            rows = rows & self.needed
        weight = self.weight if rows is None else selected(self.weight, self.contraction.rows, rows)
        return ~zero_slices(weight, self.contraction.weight_axis)


class Summed(NamedTuple):
    """For a sum that is needed: which of its channels are zero on one side, so that the sum does without them."""

    sum: Sum
    zero: Tensor


class Analysis(NamedTuple):
    """All that decides which channels of `model` are removed, measured once.

    `readings` are the contractions of all graphs, `sums` the other sums over channels, and `needs` tells for each graph
    what its outputs depend on. `tensors` are the parameters and buffers of the model by name.
    """

    model: nn.Module
    coupling: Coupling
    readings: Sequence[Reading]
    sums: Sequence[Summed]
    needs: Sequence[Needs]
    tensors: Mapping[str, Tensor]


def analyzed(model: nn.Module, coupling: Coupling) -> Analysis:
    """Run the graphs of `model` with noise in place of all that depends on the data, and return what that tells."""
    readings: list[Reading] = []
    sums: list[Summed] = []
    all_needs: list[Needs] = []
    tensors = tensors_of(with_own_state(model))
    for subgraph, trace in coupling.traces:
        stimulus = Stimulus(subgraph, trace)
        with process_as_it_was(), torch.no_grad():
            stimulus.run(
                [subgraph.arguments(tensors, varied(subgraph.leaves, number)) for number in range(1 + len(RUNS))]
            )
        weights = {node: seen.weight for node, seen in stimulus.seen.items()}
        needs = Needs(subgraph.program.graph, trace, Zeros(trace, stimulus.known, stimulus.uniform), weights)
        readings += [
            Reading(subgraph, c, *stimulus.seen[c.node], needs.rows_of(c), _rows(coupling, trace, c))
            for c in trace.contractions
        ]
        sums += [Summed(each, stimulus.zeros[each]) for each in trace.sums if needs.include(each.node)]
        all_needs.append(needs)
    return Analysis(model, coupling, readings, sums, all_needs, tensors_of(model))


def _rows(coupling: Coupling, trace: Trace, contraction: Contraction) -> Tensor | None:
    """Return the labels of the rows of a weight, a parameter or computed from some; None where they are not its own."""
    rows = trace.values[contraction.weight].along(contraction.rows)
    return None if rows is None or len(axes_of(rows)) > 1 else coupling.labels.find(rows.reshape(-1))
