"""The constants that channels put out, and the biases that take them up once the channels are gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from shrinkage.shrink.export import Piece, lines
from shrinkage.shrink.inputs import varied
from shrinkage.shrink.tensors import joined, zero_slices
from shrinkage.shrink.trace import Contraction, Trace

SPREAD = 1e-5  # relative; sums of the same numbers in another order differ by less
# The logarithms of the sizes of the noise in each run, and between which signs: what lets one through shows in a run.
RUNS = (
    ((3.0, 6.0), (0.0, 1.0)),
    ((3.0, 6.0), (-1.0, 0.0)),
    ((3.0, 6.0), (-1.0, 1.0)),
    ((-3.0, 3.0), (-1.0, 1.0)),
)
TILE = 65537  # numbers of noise that are drawn, and repeated: a prime, so that no shape repeats them in step


@dataclass(frozen=True, eq=False)
class Reading:
    """What a contraction reads.

    `constants` has one entry per channel that is summed over: its value where that is the same whatever the model's
    inputs and weights before it are, NaN elsewhere. `weight` is what the channels are multiplied with. It is `empty`
    where there was nothing to read in one of the runs.
    """

    piece: Piece
    contraction: Contraction
    constants: Tensor
    weight: Tensor
    empty: bool

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
        """Return for each channel whether any of the `rows` (all, if None) of the weight has an entry for it."""
        weight = self.weight if rows is None else selected(self.weight, self.contraction.rows, rows)
        return ~zero_slices(weight, self.contraction.weight_axis)


@dataclass(frozen=True, eq=False)
class Products:
    """For a contraction of two activations: which of its channels are zero in one of them."""

    contraction: Contraction
    zero: Tensor


class Seen(NamedTuple):
    """What a contraction reads in a run, as in `Reading`."""

    constants: Tensor
    weight: Tensor
    empty: bool


class Stimulus(fx.Interpreter):
    """Run a graph with noise in place of the output of every weight, except of those rows that read nothing.

    What is constant then does not depend on the data, nor on the weights that made the noise: a channel that a ReLU
    happens to silence on a few inputs is not taken for a constant. `blind` gives, for contractions by their node, the
    channels that are known to be constant and may be read.
    """

    def __init__(self, piece: Piece, trace: Trace, blind: Mapping[fx.Node, Tensor], run: int) -> None:
        super().__init__(piece.program.graph_module)
        self.contractions = {contraction.node: contraction for contraction in trace.contractions}
        self.products = {contraction.node: contraction for contraction in trace.products}
        self.lookups = set(trace.lookups)
        self.blind = blind
        self.sizes, self.signs = RUNS[run]
        self.generator = torch.Generator().manual_seed(run)
        self.seen: dict[fx.Node, Seen] = {}
        self.zeros: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, note what it reads, and put noise in place of what it gives."""
        contraction = self.contractions.get(n) or self.products.get(n)
        if contraction is None:
            result = super().run_node(n)
            if n in self.lookups:
                return self._noise(result, -1, ~zero_slices(self.env[n.all_input_nodes[0]], -1))
            return result
        data, weight = self.env[contraction.data], self.env[contraction.weight]
        if n in self.products:
            self.zeros[n] = zero_slices(data, contraction.axis) | zero_slices(weight, contraction.weight_axis)
            return super().run_node(n)
        self.seen[n] = Seen(_constants(data, contraction.axis), weight, data.numel() == 0)
        self.env[contraction.data] = data.nan_to_num()  # so that a row of zeros makes zeros of noise that overflowed
        result = super().run_node(n)
        self.env[contraction.data] = data
        return self._noise(result, contraction.out, live_rows(contraction, weight, self.blind.get(n)))

    def _noise(self, result: Tensor, axis: int, live: Tensor) -> Tensor:
        """Return `result` with noise where the index along `axis` is `live`."""
        count = result.numel()
        drawn = torch.empty(min(count, TILE)).uniform_(*self.signs, generator=self.generator)
        low, high = self.sizes
        tile = drawn.abs().mul_(high - low).add_(low).exp_().copysign_(drawn)
        noise = tile.repeat(count // max(len(tile), 1) + 1)[:count].view(result.shape)
        shape = [-1 if other == axis % result.dim() else 1 for other in range(result.dim())]
        return torch.where(live.reshape(shape), noise.to(result), result)


def live_rows(contraction: Contraction, weight: Tensor, blind: Tensor | None) -> Tensor:
    """Return for each row of `weight` whether it reads a channel that is not `blind`."""
    if blind is not None and len(blind) == weight.shape[contraction.weight_axis]:
        weight = selected(weight, contraction.weight_axis, ~blind)
    return ~zero_slices(weight, contraction.rows)


def selected(weight: Tensor, dim: int, which: Tensor) -> Tensor:
    """Return the indices of `weight` along `dim` that are wanted; itself, not a copy, if all of them are."""
    return weight if which.all() else weight.index_select(dim, which.nonzero().reshape(-1).to(weight.device))


def _constants(data: Tensor, axis: int) -> Tensor:
    """Return the value at each index along `axis` where it is the same at all places, NaN elsewhere."""
    values = lines(data, axis)
    if not data.is_floating_point() or values.shape[1] == 0:
        return torch.full((len(values),), float("nan"), dtype=torch.double)
    low, high = values.amin(1).double(), values.amax(1).double()
    same = high - low <= SPREAD * torch.maximum(low.abs(), high.abs())
    return torch.where(same, (low + high) / 2, float("nan"))


def readings(
    traces: Sequence[tuple[Piece, Trace]], tensors: Mapping[str, Tensor]
) -> tuple[list[Reading], list[Products]]:
    """Return what every contraction of the graphs reads, measured with noise for all that depends on the data."""
    found: list[Reading] = []
    products: list[Products] = []
    for piece, trace in traces:
        blind: dict[fx.Node, Tensor] = {}
        while True:
            seen, zeros = _measured(piece, trace, tensors, blind)
            known = {node: ~read.constants.isnan() | blind.get(node, False) for node, read in seen.items()}
            same = all(
                torch.equal(
                    live_rows(contraction, seen[contraction.node].weight, blind.get(contraction.node)),
                    live_rows(contraction, seen[contraction.node].weight, known[contraction.node]),
                )
                for contraction in trace.contractions
            )
            if same:
                break
            blind = known
        found += [Reading(piece, c, *seen[c.node]) for c in trace.contractions]
        products += [Products(c, zeros[c.node]) for c in trace.products]
    return found, products


def _measured(
    piece: Piece, trace: Trace, tensors: Mapping[str, Tensor], blind: Mapping[fx.Node, Tensor]
) -> tuple[dict[fx.Node, Seen], dict[fx.Node, Tensor]]:
    """Return the constants and weights of the contractions, and the zeros of the products, alike in all runs."""
    seen: dict[fx.Node, Seen] = {}
    zeros: dict[fx.Node, Tensor] = {}
    for number in range(len(RUNS)):
        stimulus = _stimulated(piece, trace, tensors, blind, number)
        for node, read in stimulus.seen.items():
            if node in seen:
                before, now = seen[node].constants, read.constants
                agree = (before - now).abs() <= SPREAD * torch.maximum(before.abs(), now.abs())
                same = torch.where(agree, before, float("nan"))
                read = Seen(same, read.weight, read.empty or seen[node].empty)
            seen[node] = read
        for node, zero in stimulus.zeros.items():
            zeros[node] = zeros.get(node, torch.ones_like(zero)) & zero
    return seen, zeros


def _stimulated(
    piece: Piece, trace: Trace, tensors: Mapping[str, Tensor], blind: Mapping[fx.Node, Tensor], number: int
) -> Stimulus:
    """Return the stimulus after a run, with inputs as they are if the graph refuses others."""
    for variant in (number, 0):
        stimulus = Stimulus(piece, trace, blind, number)
        try:
            with torch.no_grad():
                stimulus.run(*piece.arguments(tensors, varied(piece.leaves, variant)))
            break
        except Exception:  # Whatever operators do with indices that they did not expect.
            if variant == 0:
                raise
    return stimulus


@dataclass(frozen=True)
class Target:
    """The bias that takes up the constants that a contraction no longer reads: of the module `path`, named `name`."""

    path: str
    name: str
    exists: bool


def target_of(reading: Reading, others: Sequence[Reading], model: nn.Module) -> Target | str:
    """Return where the constants of a contraction can go, or in words why they can not."""
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
