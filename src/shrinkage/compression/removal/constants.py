"""The constants that channels put out, and the biases that take them up once the channels are gone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.inputs import varied
from shrinkage.compression.calls.modes import process_as_it_was
from shrinkage.compression.dataflow.gates import Zeros
from shrinkage.compression.dataflow.liveness import Needs
from shrinkage.compression.dataflow.random_runs import RUNS, Stimulus
from shrinkage.compression.plans.tensors import joined, selected, zero_slices
from shrinkage.compression.tracing.export import Piece
from shrinkage.compression.tracing.trace import Contraction, Trace


class Reading(NamedTuple):
    """What a contraction reads.

    `constants` has one entry per channel that is summed over: its value where that is the same whatever the model's
    inputs and weights before it are, NaN elsewhere. `weight` is what the channels are multiplied with. It is `empty`
    where the example gives it nothing to read. `needed` are the rows of the weight that the outputs depend on; None
    stands for all.
    """

    piece: Piece
    contraction: Contraction
    constants: Tensor
    weight: Tensor
    empty: bool
    needed: Tensor | None = None

    @property
    def name(self) -> str:
        """The dotted name of the weight, or of the module that computes it."""
        owned = self.piece.owned
        stack = self.contraction.node.meta.get("nn_module_stack") or {}
        paths = [path for path, _ in stack.values()] or [""]
        return owned.get(self.contraction.weight) or joined(self.piece.path, paths[-1])

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


class Products(NamedTuple):
    """For a contraction of two activations that is needed: which of its channels are zero in one of them."""

    contraction: Contraction
    zero: Tensor


def readings(
    traces: Sequence[tuple[Piece, Trace]], tensors: Mapping[str, Tensor]
) -> tuple[list[Reading], list[Products], list[Needs]]:
    """Return what every contraction of the graphs reads, measured with noise for all that depends on the data.

    The last are what the outputs of each graph depend on.
    """
    found: list[Reading] = []
    products: list[Products] = []
    all_needs: list[Needs] = []
    for piece, trace in traces:
        stimulus = Stimulus(piece, trace)
        with process_as_it_was(), torch.no_grad():
            stimulus.run([piece.arguments(tensors, varied(piece.leaves, number)) for number in range(1 + len(RUNS))])
        weights = {node: seen.weight for node, seen in stimulus.seen.items()}
        needs = Needs(piece.program.graph, trace, Zeros(trace, stimulus.known), weights)
        found += [Reading(piece, c, *stimulus.seen[c.node], needs.rows_of(c)) for c in trace.contractions]
        products += [Products(c, stimulus.zeros[c.node]) for c in trace.products if c.node in needs.of]
        all_needs.append(needs)
    return found, products, all_needs


class Target(NamedTuple):
    """The bias that takes up the constants that a contraction no longer reads: of the module `path`, named `name`."""

    path: str
    name: str
    exists: bool


def target_of(reading: Reading, others: Sequence[Reading], model: nn.Module) -> Target | str:
    """Return where the constants of a contraction can go, or in words why they cannot."""
    contraction, owned = reading.contraction, reading.piece.owned
    if contraction.padded:
        return "where zeros at the border make it depend on the position"
    if contraction.bias is not None:
        name = owned.get(contraction.bias)
        alike = [other for other in others if other.contraction.bias is contraction.bias]
        alone = len(alike) == len(contraction.bias.users) and all(
            other.contraction.weight is contraction.weight for other in alike
        )
        return Target(name.rpartition(".")[0], name, True) if name and alone else "whose bias serves other weights too"
    path, _, local = owned.get(contraction.weight, "").rpartition(".")
    operator: Any = contraction.node.target
    takes_bias = any(argument.name == "bias" for argument in operator._schema.arguments)
    module = model.get_submodule(path) if local == "weight" and takes_bias else None
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return Target(path, joined(path, "bias"), False)
    return "which has no bias that could take it up"
