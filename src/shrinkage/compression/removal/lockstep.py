"""Sizes that a model's code asks for, and those that are right: a smaller model runs in step with the graph."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from shrinkage.compression.calls.inputs import Call, other_lengths
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.compression.plans.sized_modules import correct_sizes_, with_text_changed
from shrinkage.compression.plans.sizes import (
    FILL,
    FILLING,
    NEW,
    REPEAT,
    SLICE,
    SPLIT,
    SPLIT_WITH_SIZES,
    UNFLATTEN,
    Asked,
    Correction,
    Table,
    Tables,
    corrected,
    table_of,
)
from shrinkage.compression.plans.tensors import joined
from shrinkage.compression.removal.recording import Right, Shape, Step, complete, recorded
from shrinkage.compression.tracing.channels import Channels
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.compression.tracing.disjoint_sets import distinct
from shrinkage.compression.tracing.export import lines
from shrinkage.compression.tracing.trace import Trace, path_of, shapes_of
from shrinkage.errors import PlanError

aten = torch.ops.aten
OPERATORS: dict[Any, str] = {
    aten.view: "view",
    aten.reshape: "reshape",
    aten.expand: "expand",
    aten.repeat: REPEAT,
    aten.unflatten: UNFLATTEN,
    aten.split: SPLIT,
    aten.split_with_sizes: SPLIT,
    aten.slice: SLICE,
    **{getattr(aten, name): FILL for name in sorted(FILLING - {NEW})},
}


class Lengths(NamedTuple):
    """How many channels lie along an axis, how many of them are left, and whether any of them can go."""

    dense: int
    left: int
    free: bool


@dataclass(eq=False)
class Lockstep:
    """The graphs of `model` beside its code, for a `call`: which sizes the code asks for, and of what."""

    model: nn.Module
    coupling: Coupling
    call: Call

    def corrections(self, small: nn.Module, gone: Tensor) -> dict[str, Tables]:
        """Return what has to be corrected in the code of `small`, which has no channels that are `gone`, by module.

        Empty where `small` fails even so. Raises PlanError if the code asks for one size and means two lengths.
        """
        try:
            right = [self._right(*each, gone) for each in self._steps]
            seen = recorded(small, self.call, right)
        except Exception:  # Whatever a model's code does with other widths than it expects.
            return {}
        if [step.name for step in seen] != [step.name for step, *_ in self._steps]:
            return {}
        found: dict[str, dict[Correction, None]] = defaultdict(dict)
        wanted: list[list[int] | None] = []
        for place, (step, sizes) in enumerate(zip(seen, right, strict=True)):
            wanted.append(None if sizes is None or _comes_to(step, sizes) else complete(step.asked, sizes))
            if sizes is not None and wanted[-1] is not None:
                found[step.path][self._correction(place, step, sizes, gone)] = None
        for step, (varying, _) in zip(seen, self._varying, strict=True):
            for path in step.paths or ("",):
                _check_takes_no_places(step, varying, path, found.get(path, ()))
        _check_means_one(seen, wanted, {path: table_of(tuple(each)) for path, each in found.items()})
        in_text = {path: (tuple(each._replace(in_text=True) for each in table),) for path, table in found.items()}
        enough = self._enough(small, in_text, right)
        return {path: in_text[path] if path in enough else (tuple(table),) for path, table in found.items()}

    def _enough(self, small: nn.Module, tables: Mapping[str, Tables], right: Sequence[Right | None]) -> set[str]:
        """Return the dotted names of the modules whose `tables` need to correct calls in their forward's text alone."""
        copy = with_own_state(small)
        correct_sizes_(copy, tables)
        enough = with_text_changed(copy)
        for step, sizes in zip(recorded(copy, self.call, right), right, strict=True):
            if sizes is not None and not _comes_to(step, sizes):
                enough.discard(step.path)
        return enough

    @cached_property
    def _steps(self) -> list[tuple[Step, Any, Any]]:
        """The steps of the dense model, each with the channels that its tensor and its output have in a graph."""
        queues = self._nodes()
        forms: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        found = []
        for step in recorded(self.model, self.call):
            queue = queues[step.path, step.name]
            form = step.path, step.shape, step.asked
            nodes = [node for node, _ in (queue if step.name == SLICE else queue[:1])]
            place = next((place for place, node in enumerate(nodes) if _comes_from(node, step)), None)
            if place is not None:
                node, trace = queue.pop(place)
                data: Any = None if step.name == FILL else node.args[0]
                forms[form] = trace.values.get(data), trace.values.get(node)
            found.append((step, *forms.get(form, (None, None))))
        return found

    def _nodes(self) -> dict[tuple[str, str], list[tuple[fx.Node, Trace]]]:
        """Return the nodes of the graphs that come from sizes in code, in order, by module and operator."""
        names = {module: path for path, module in reversed(list(self.model.named_modules(remove_duplicate=False)))}
        found: dict[tuple[str, str], list[tuple[fx.Node, Trace]]] = defaultdict(list)
        for subgraph, trace in self.coupling.traces:
            for node in subgraph.program.graph.nodes:
                name = OPERATORS.get(getattr(node.target, "overloadpacket", None))
                if name:
                    inside = path_of(node).partition("@")[0]  # of the n-th call of a module
                    path = joined(subgraph.path, inside) if inside else subgraph.path
                    found[names[self.model.get_submodule(path)], name].append((node, trace))
        return found

    @cached_property
    def _varying(self) -> list[tuple[set[int], list[set[int]]]]:
        """For each step the axes of its tensor, and those of its outputs, whose lengths are others in other calls."""
        own = [step for step, *_ in self._steps]
        found: list[tuple[set[int], list[set[int]]]] = [(set(), [set() for _ in step.outputs]) for step in own]
        for call in other_lengths(*self.call):
            try:
                others = recorded(self.model, call)
            except Exception:  # Whatever a model's code does on lengths that it did not expect.
                continue
            if [step.name for step in others] == [step.name for step in own]:
                for (ins, outs), step, other in zip(found, own, others, strict=True):
                    ins |= _differing(step.shape, other.shape)
                    for axes, *shapes in zip(outs, step.outputs, other.outputs, strict=False):
                        axes |= _differing(*shapes)
        return found

    def _lengths(self, channels: Any, gone: Tensor) -> dict[int, Lengths]:
        """Return for each axis along which channels lie how many these are."""
        found = {}
        for factor in channels.factors if isinstance(channels, Channels) else ():
            labels = self.coupling.labels.find(factor)
            free = any(root not in self.coupling.pinned for root in distinct(labels).tolist())
            for axis, length in enumerate(factor.shape):
                if length > 1:
                    found[axis] = Lengths(length, int((~lines(gone[labels], axis).all(1)).sum()), free)
        return found

    def _right(self, step: Step, data: Any, value: Any, gone: Tensor) -> Right | None:
        """Return the sizes that are right without the channels `gone`; None for those that any number is right for."""
        axis = step.asked.axis
        if step.name == SLICE:
            factor = data.along(axis) if isinstance(data, Channels) else None
            if factor is None or factor.numel() > factor.shape[axis] or min(step.asked.sizes) < 0:
                return None
            if step.asked.sizes == (0, 1):  # which channel it is may not matter
                return None
            left = ~gone[self.coupling.labels.find(factor.reshape(-1))]
            return [place if place >= len(left) else int(left[:place].sum()) for place in step.asked.sizes]
        if step.name == SPLIT:
            if axis not in self._lengths(data, gone) or not isinstance(value, tuple):
                return None
            parts = [(self._lengths(part, gone), shape[axis]) for part, shape in zip(value, step.outputs, strict=True)]
            return [lengths[axis].left if axis in lengths else dense for lengths, dense in parts]
        lengths, first = self._lengths(value, gone), max(axis, 0)
        count = len(step.asked.sizes)
        if step.name == REPEAT:  # the numbers of copies are lengths along axes of length 1 alone
            shape = (1,) * (count - len(step.shape)) + step.shape
            lengths = {place: length for place, length in lengths.items() if shape[place] == 1}
        return [lengths[first + place].left if first + place in lengths else None for place in range(count)]

    def _correction(self, place: int, step: Step, right: Right, gone: Tensor) -> Correction:
        """Return what makes the sizes that `step`, the one at `place`, asks for those that are `right`."""
        dense, data, value = self._steps[place]
        varying, (outputs, *_) = self._varying[place]
        asked, rank, axis = step.asked, len(step.shape), step.asked.axis
        lengths = self._lengths(data, gone)
        inputs = tuple(
            (each, step.shape[each])
            for each, (before, left, free) in sorted(lengths.items())
            if free and each not in varying and (before, left) == (dense.shape[each], step.shape[each])
        )
        if step.name in (SPLIT, SLICE):
            return Correction(asked.call, axis, rank, ((axis, step.shape[axis]),), asked.sizes, tuple(right))
        first, after = max(axis, 0), self._lengths(value, gone)
        known, given, products = list[int | None](), list[int | None](), list[int]()
        for number, (was, now) in enumerate(zip(asked.sizes, right, strict=True)):
            any_size = was != -1 and (now is None or (was == now and not after[first + number].free))
            common = 1
            if not any_size and was != -1 and first + number in outputs:
                products.append(number)
                common = gcd(was, now or 1)
            known.append(None if any_size else was // common)
            given.append(None if any_size else -1 if was == -1 or now is None else now // common)
        return Correction(asked.call, axis, rank, inputs, tuple(known), tuple(given), tuple(products))


def _comes_from(node: fx.Node, step: Step) -> bool:
    """Return whether a call that asks for sizes may be what `node` is."""
    if step.name == SLICE:
        source: Any = node.args[0]
        if node.args[1:] != (step.asked.axis, *step.asked.sizes) or shapes_of(source) != [step.shape]:
            return False
    return shapes_of(node) == step.outputs


def _differing(one: Shape, other: Shape) -> set[int]:
    return {axis for axis, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]}


def _comes_to(step: Step, right: Right) -> bool:
    """Return whether what a step asks for comes to what is right."""
    sizes = complete(step.asked, right)
    if step.asked.call != SPLIT:
        return list(step.asked.sizes) == list(sizes)
    length, size = step.shape[step.asked.axis], step.asked.sizes[0]
    return sum(sizes) == length and [min(size, length - start) for start in range(0, length, size)] == list(sizes)


def _check_takes_no_places(step: Step, varying: set[int], path: str, corrections: Iterable[Correction]) -> None:
    """Raise `PlanError` if `step` takes parts of places as of channels: there may be as many of both in a call."""
    asked, rank = step.asked, len(step.shape)
    for each in corrections:
        if asked.axis in varying and each[:3] == (asked.call, asked.axis, rank) and each.asked == asked.sizes:
            raise PlanError(_two_lengths(path, asked))


def _two_lengths(path: str, asked: Asked) -> str:
    size = ", ".join(map(str, asked.sizes))
    return f"the code of `{path or 'the model'}` asks for the size {size} and means two lengths"


def _check_means_one(steps: Sequence[Step], wanted: Sequence[list[int] | None], tables: Mapping[str, Table]) -> None:
    """Raise `PlanError` if a table corrects a call otherwise than is `wanted`, in the code of its module or below."""
    for step, sizes in zip(steps, wanted, strict=True):
        asked = step.asked
        for depth, path in enumerate(reversed(step.paths or ("",))):
            given = corrected(tables.get(path, {}), step.shape, asked)
            if given != (None if depth else sizes):
                raise PlanError(_two_lengths(path, asked))
            if given is not None:
                call = SPLIT_WITH_SIZES if asked.call == SPLIT else asked.call
                asked = asked._replace(call=call, sizes=tuple(given))
