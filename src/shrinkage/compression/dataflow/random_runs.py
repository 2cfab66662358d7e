"""A graph runs with noise in place of what its inputs and weights make, to tell what is constant whatever they are."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from shrinkage.compression.calls.inputs import truths
from shrinkage.compression.dataflow.aliasing import in_shared_memory, is_random, last_uses
from shrinkage.compression.dataflow.constancy import changing, constants_along, differing, zeros_along
from shrinkage.compression.dataflow.dependence import called, dependent, is_structural, moves
from shrinkage.compression.dataflow.gates import KnownZeros, averaged, compact, noted
from shrinkage.compression.dataflow.values import Value, is_dense, is_stirrable
from shrinkage.compression.plans.tensors import selected, zero_slices
from shrinkage.compression.tracing.export import Subgraph
from shrinkage.compression.tracing.trace import Contraction, Sum, Trace, mutates

# The logarithms of the sizes of the noise in each run, and between which signs: what lets one through shows in a run.
RUNS = (
    ((3.0, 6.0), (0.0, 1.0)),
    ((3.0, 6.0), (-1.0, 0.0)),
    ((3.0, 6.0), (-1.0, 1.0)),
    ((-3.0, 3.0), (-1.0, 1.0)),
)
TILE = 65537  # numbers of noise that are drawn, and repeated: a prime, so that no shape repeats them in step


class Seen(NamedTuple):
    """What a contraction reads, as in `Reading`."""

    constants: Tensor
    weight: Tensor
    empty: bool


class Stimulus:
    """Run a graph for the example, and in step with it with noise in place of what depends on the inputs.

    Which elements do follows from operator to operator, not from the numbers that inputs happen to have: one that is
    all zeros is no constant. Noise stands for what every weight gives, except for its rows that read nothing, and for
    numbers that depend on the inputs and are still the same in all runs. Of operators that neither move elements nor
    compute each by itself, what changes with the noise is what depends on the inputs.
    """

    def __init__(self, subgraph: Subgraph, trace: Trace) -> None:
        self.subgraph, self.module = subgraph, subgraph.program.graph_module
        self.contractions = {contraction.node: contraction for contraction in trace.contractions}
        self.sums: dict[fx.Node, list[Sum]] = {}
        for each in trace.sums:
            self.sums.setdefault(each.node, []).append(each)
        self.lookups = set(trace.lookups)
        self.shared = in_shared_memory(self.module.graph)
        self.generators = [torch.Generator().manual_seed(number) for number in range(len(RUNS))]
        self.values: dict[fx.Node, Value] = {}
        self.trace = trace
        self.known: KnownZeros = {}
        self.seen: dict[fx.Node, Seen] = {}
        self.zeros: dict[Sum, Tensor] = {}
        self.uniform: set[fx.Node] = set()

    def run(self, given: Sequence[Sequence[Any]]) -> None:
        """Run all nodes; `given` has what the placeholders take for the example, then in each of `RUNS`."""
        inputs, placeholders = set(self.subgraph.inputs()), zip(*given, strict=True)
        finished = last_uses(self.module.graph)
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._placed(node, list(next(placeholders)), node in inputs)
            elif node.op == "get_attr":
                self.values[node] = alike(reduce(getattr, str(node.target).split("."), self.module))
            elif node.op == "call_function":
                self.values[node] = self._value(node)
            for done in finished.get(node, ()):
                self.values.pop(done, None)

    def _placed(self, node: fx.Node, runs: list[Any], is_input: bool) -> Value:
        if not isinstance(runs[0], Tensor):
            return Value(runs)
        if node in self.shared:
            runs = [run.clone() for run in runs]
        return self._stirred(node, runs, True if is_input else None)

    def _value(self, node: fx.Node) -> Value:
        """Return what a node gives, and note what it reads if it is a contraction."""
        operands = {operand: self.values[operand] for operand in node.all_input_nodes}
        self.known |= {(node, one): compact(operands[one].runs[0] == 0).cpu() for one in noted(self.trace, node)}
        if node.target is getitem:
            (several,) = operands.values()
            place: Any = node.args[1]
            mask = several.depends[place] if isinstance(several.depends, list) else several.depends
            return Value([run[place] for run in several.runs], mask)
        for each in self.sums.get(node, ()):
            self._note_sum(each)
        if node in self.contractions:
            live = self._note_reading(node, self.contractions[node])
            if not mutates(node):
                return self._contracted(node, self.contractions[node], live)
        if node in self.lookups:
            return self._looked_up(node, operands[node.all_input_nodes[0]].runs[0])
        if self._averages_the_same(node):
            self.uniform.add(node)
        if all(value.is_free for value in operands.values()) and node not in self.shared and not is_random(node):
            return alike(self._result(node, 0))
        known = is_structural(node) and all(is_dense(value.runs[0]) for value in operands.values())
        given = {each: (value.runs[0], value.depends) for each, value in operands.items()}
        mask = dependent(node, given) if known else None
        runs, failed = self._results(node)
        if not known or is_random(node):
            seen = changing(runs, untold=failed or _sees_too_few(node, operands.values()))
            mask = seen if mask is None else seen | mask
        elif node not in self.shared and _is_rounded(runs[0], operands.values()):
            runs = alike(runs[0]).runs  # noise makes whole numbers that are no index of anything
        return self._stirred(node, runs, mask)

    def _result(self, node: fx.Node, number: int) -> Any:
        return called(node, lambda operand: self.values[operand].runs[number])

    def _results(self, node: fx.Node) -> tuple[list[Any], bool]:
        """Return what a node gives in each run, and whether it failed in one: that of the example stands there then."""
        runs, failed = [self._result(node, 0)], False
        for number in range(1, 1 + len(RUNS)):
            try:
                runs.append(self._result(node, number))
            except Exception:  # Whatever operators do with numbers that they did not expect.
                failed = True
                written = self.values[node.all_input_nodes[0]].runs if mutates(node) else None
                runs.append(tree_map_only(Tensor, torch.clone, runs[0]))
                if written is not None:
                    runs[-1] = written[number].copy_(written[0])
        return runs, failed

    def _note_reading(self, node: fx.Node, contraction: Contraction) -> Tensor:
        """Note what a contraction reads, and return which of its rows read something that is no constant."""
        data, weight = self.values[contraction.data], self.values[contraction.weight].runs[0]
        constants = constants_along(data, contraction.axis)
        self.seen[node] = Seen(constants, weight, data.runs[0].numel() == 0)
        return live_rows(contraction, weight, ~constants.isnan())

    def _looked_up(self, node: fx.Node, table: Tensor) -> Value:
        """Return noise in place of what is looked up in the columns of `table` that are not zero."""
        result, live = self._result(node, 0), ~zero_slices(table, -1)
        if isinstance(result, Tensor):
            return self._replaced(node, alike(result).runs, -1, live)
        first, *others = result  # of bags: what else comes are places
        rows = self._replaced(node, alike(first).runs, -1, live)
        return Value([[run, *others] for run in rows.runs], [rows.depends, *(True for _ in others)])

    def _contracted(self, node: fx.Node, contraction: Contraction, live: Tensor) -> Value:
        """Return noise in place of what the rows give that are `live`."""
        data = self.values[contraction.data].runs
        sides = (contraction.data, contraction.weight)
        others = [self.values[each] for each in node.all_input_nodes if each not in sides]
        # Whole numbers are places, such as where the rows of an expert end: a row of zeros gives zeros at all of them.
        others = [value for value in others if not value.is_free and is_stirrable(value.runs[0])]
        still = zero_lines(self.values[contraction.data], contraction)
        if not others and all(run.shape == data[0].shape for run in data):
            return self._replaced(node, alike(self._result(node, 0)).runs, contraction.out, live, still=still)
        runs, failed = self._results(node)
        mask = changing(runs, untold=failed or _sees_too_few(node, others)) if others else None
        return self._replaced(node, runs, contraction.out, live, mask, still)

    def _replaced(
        self, node: fx.Node, runs: list[Tensor], axis: int, live: Tensor, others: Tensor | None = None,
        still: Tensor | None = None,
    ) -> Value:  # fmt: skip
        """Return `runs` with noise where the index along `axis` is `live`, and that along the rest is not `still`.

        `others` depend on the inputs too.
        """
        rank = runs[0].dim()
        if len(live) == runs[0].shape[axis]:
            live = live.to(runs[0].device).reshape([-1 if other == axis % rank else 1 for other in range(rank)])
        else:
            live = torch.ones((1,) * rank, dtype=torch.bool, device=runs[0].device)
        live = live if still is None else live & ~still
        stirred = [torch.where(live, self._noise(run, number), run) for number, run in enumerate(runs[1:])]
        return self._stirred(node, [runs[0], *stirred], live if others is None else live | others)

    def _note_sum(self, of: Sum) -> None:
        """Note which channels that are summed over are zero on one side, whatever the inputs are."""
        zeros = [zeros_along(self.values[side], axis).cpu() for side, axis in of.sides]
        self.zeros[of] = torch.stack([zero.repeat(len(of.labels) // len(zero)) for zero in zeros]).any(0)

    def _averages_the_same(self, node: fx.Node) -> bool:
        """Return whether the values of attention are the same at all positions, whatever the inputs are."""
        averages = averaged(node)
        if averages is None:
            return False
        value = self.values[averages]
        free = value.is_free or (isinstance(value.depends, Tensor) and not value.depends.any())
        return free and not differing(value.runs[0], [-2]).any()

    def _stirred(self, node: fx.Node, runs: list[Any], masks: Any) -> Value:
        """Return a value of which nothing that depends on the inputs is the same in all runs."""
        if isinstance(runs[0], tuple | list):
            several = masks if isinstance(masks, tuple | list) else [masks] * len(runs[0])
            parts = [self._stirred(node, [run[place] for run in runs], mask) for place, mask in enumerate(several)]
            return Value(
                [[part.runs[number] for part in parts] for number in range(len(runs))], [part.depends for part in parts]
            )
        example = runs[0]
        if not isinstance(example, Tensor) or not is_dense(example):
            return Value(runs, None if masks is None else True)
        if masks is None and node not in self.shared:
            return Value(runs)
        same = next((each for each in node.all_input_nodes if self.values[each].runs[0] is example), None)
        if same is not None and not mutates(node):  # as a dropout gives it that drops nothing
            return self.values[same]
        if not moves(node) or not isinstance(masks, Tensor):
            fresh = torch.zeros_like(example, dtype=torch.bool)
            masks = fresh if masks is None else fresh.logical_or_(torch.as_tensor(masks, device=example.device))
        if mutates(node):
            masks = self.values[node.all_input_nodes[0]].depends.copy_(masks)
        return Value(runs if moves(node) else self._unfrozen(node, runs, masks), masks)

    def _unfrozen(self, node: fx.Node, runs: list[Tensor], mask: Tensor) -> list[Tensor]:
        """Return `runs` with noise for the elements of `mask` that are the same in all of them."""
        example, others = runs[0], runs[1:]
        if not is_stirrable(example):
            return runs
        frozen = mask.clone()
        for run in others:
            frozen &= run == example if run.shape == example.shape else False
            if not frozen.any():
                return runs
        for number, run in enumerate(others):
            noise = truths(example, number) if example.dtype == torch.bool else self._noise(example, number)
            if run.shape == example.shape:
                stirred = torch.where(frozen, noise, run)
                others[number] = run.copy_(stirred) if mutates(node) else stirred
        return [example, *others]

    def _noise(self, like: Tensor, number: int) -> Tensor:
        """Return noise of the kind of a run, in the shape of `like`."""
        (low, high), signs = RUNS[number]
        count = like.numel()
        drawn = torch.empty(min(count, TILE)).uniform_(*signs, generator=self.generators[number])
        tile = drawn.abs().mul_(high - low).add_(low).exp_().copysign_(drawn)
        return tile.repeat(count // max(len(tile), 1) + 1)[:count].view(like.shape).to(like)


def alike(value: Any) -> Value:
    """Return a value that is the same in all runs."""
    return Value([value] * (1 + len(RUNS)))


def _is_rounded(value: Any, operands: Iterable[Value]) -> bool:
    """Return whether `value` are whole numbers that were computed from others that are not."""
    if not isinstance(value, Tensor) or is_stirrable(value):
        return False
    others = [each.runs[0] for each in operands if not each.is_free]
    return any(is_stirrable(other) and other.dtype != torch.bool for other in others)


def _sees_too_few(node: fx.Node, operands: Iterable[Value]) -> bool:
    """Return whether the runs cannot tell what depends on the inputs.

    An operator may see too few of all whole numbers that could be put in. What is no operator of torch may do anything.
    """
    whole = any(not value.is_free and not is_stirrable(value.runs[0]) for value in operands)
    return whole or getattr(node.target, "_schema", None) is None


def zero_lines(data: Value, contraction: Contraction) -> Tensor | None:
    """Return at which places a weight that multiplies from the left meets zeros alone, whatever the inputs are.

    So does a matrix that mixes the nodes of a graph, or tokens: channels that are zero stay so. None for other weights.
    """
    from_the_left = contraction.rows == contraction.axis == contraction.out == -2  # filters have their rows in front
    if not from_the_left or data.depends is True:
        return None
    zero: Tensor = data.runs[0] == 0
    known = zero if data.depends is None else zero & ~data.depends
    return known.all(-2, keepdim=True)


def live_rows(contraction: Contraction, weight: Tensor, blind: Tensor) -> Tensor:
    """Return for each row of `weight` whether it reads a channel that is not `blind`."""
    if len(blind) == weight.shape[contraction.weight_axis]:
        weight = selected(weight, contraction.weight_axis, ~blind)
    return ~zero_slices(weight, contraction.rows)
