"""The calls by which a smaller model is compared with a dense one, and how much its outputs differ."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map_only

from shrinkage.compression.calls.inputs import VARIANTS, Call, other_lengths, taken_apart, varied
from shrinkage.compression.calls.outputs import difference, outputs, outputs_of_copy
from shrinkage.compression.copying.caches import caches_of, emptied
from shrinkage.compression.copying.copies import copy_of, with_own_state
from shrinkage.errors import ShrinkError

HALF = (torch.float16, torch.bfloat16)
ROUNDINGS = 8  # of a number of half precision by which outputs may differ, where they cannot be computed in single
Known = tuple[Call, list[Tensor]]


class Checks(NamedTuple):
    """Calls of the dense model and what it puts out, in single precision if `single`; outputs may differ by `atol`.

    `unvaried` are the names of inputs that have the example's numbers in all of them; `training` has the shapes of what
    a model that is in training mode puts out there, if it can be called so.
    """

    atol: float
    single: bool = False
    known: tuple[Known, ...] = ()
    unvaried: tuple[str, ...] = ()
    training: tuple[torch.Size, ...] | None = None

    @classmethod
    def of(cls, model: nn.Module, call: Call, atol: float, *, example_alone: bool = False) -> "Checks":
        """Return the outputs of `model` for `call`, which it must take, and for those like it that it takes.

        Those like it are left out for the `example_alone`. Raises ShrinkError if `call` puts out no tensors.
        """
        model = emptied(with_own_state(model)) if caches_of(model) else model
        halves = {tensor.dtype for tensor in model.parameters() if tensor.dtype in HALF}
        rounding = max((torch.finfo(dtype).eps for dtype in halves), default=0.0)
        if halves:
            try:  # Biases that take constants up are off by a rounding.
                return cls._of(
                    copy_of(model, {}).float(), _in_single(call), max(atol, rounding), example_alone, single=True
                )
            except Exception:  # Whatever code does that insists on half precision.
                atol = max(atol, ROUNDINGS * rounding)
        return cls._of(model, call, atol, example_alone)

    @classmethod
    def _of(cls, model: nn.Module, call: Call, atol: float, alone: bool, *, single: bool = False) -> "Checks":
        if alone:
            return cls(atol, single, ((call, outputs(model, call)),))
        trials = Trials(model, call)
        trials.made()
        unvaried = _named(model, call, trials.unvaried)
        return cls(atol, single, tuple(trials.known), unvaried, _shapes_in_training(model, call))

    def error(self, small: nn.Module) -> float:
        """Return the largest difference of the outputs of `small` from those that are known; infinity if it fails.

        After one that does not pass, the others are not asked for. NaN if there are none to compare with.
        """
        if not self.known:
            return math.nan
        small = copy_of(small, {}).float() if self.single else small
        if self.training is not None and _shapes_in_training(small, self.known[0][0]) != self.training:
            return float("inf")
        worst = 0.0
        for call, known in self.known:
            try:
                worst = max(worst, difference(known, outputs(small, call)))
            except Exception:  # Whatever a model's code does on lengths it did not expect.
                return float("inf")
            if not self.accept(worst):
                break
        return worst

    def accept(self, error: float) -> bool:
        """Return whether an `error` passes; the NaN of outputs that were not compared does."""
        return not error > self.atol


def _shapes_in_training(model: nn.Module, call: Call) -> tuple[torch.Size, ...] | None:
    """Return the shapes of the outputs of a model that is in training mode, as it is; None if it is not, or fails.

    Numbers are not compared there, which drops and the statistics of batches change.
    """
    if any(module.training for module in model.modules()):
        with suppress(Exception):  # Of a batch of one, say.
            return tuple(tensor.shape for tensor in outputs_of_copy(with_own_state(model), call))
    return None


def _in_single(call: Call) -> Call:
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.float() if tensor.dtype in HALF else tensor, call)
    return args, kwargs


@dataclass(eq=False)
class Trials:
    """Calls like `call`, one after the other: those that `model` takes are `known`, with what it puts out.

    `unvaried` are the places, among the leaves of the call, of inputs that are the same in all calls that it took.
    """

    model: nn.Module
    call: Call
    known: list[Known] = field(default_factory=list, init=False)
    unvaried: set[int] = field(default_factory=set, init=False)
    on_host: nn.Module | None = field(default=None, init=False)

    def made(self) -> None:
        """Make the calls.

        First other numbers in all inputs at once. What the model does not take like that is tried input by input: more
        numbers where the example has one only, then with single entries that are a little larger or smaller.
        """
        self.leaves, self.rebuilt = taken_apart(self.call)
        self.known.append((self.call, outputs(self.model, self.call)))
        if not self.known[0][1]:
            raise ShrinkError(
                f"the {type(self.model).__name__} puts out no tensors that could be compared: return some, alone, in"
                " tuples, dictionaries or dataclasses, or pass verify=False"
            )
        self.unvaried = {place for place, leaf in enumerate(self.leaves) if _has_numbers(leaf)}
        for number in range(1 if any(map(_has_an_order, self.leaves)) else 2, VARIANTS):
            if not self._takes(varied(self.leaves, number, upcast=True)):
                self._takes(varied(self.leaves, number))
        for place in sorted(self.unvaried):
            others = _candidates(self.leaves[place]) if isinstance(self.leaves[place], Tensor) else ()
            any(self._takes(self._only(place, other)) for other in others)
        for args, kwargs in other_lengths(*self.call):
            self._known((args, kwargs))

    def _only(self, place: int, other: Tensor) -> list[Any]:
        return [other if number == place else leaf for number, leaf in enumerate(self.leaves)]

    def _takes(self, leaves: Sequence[Any]) -> bool:
        """Return whether the model takes a call with these inputs, which is known then."""
        changed = {
            place
            for place, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and not _same(leaf, self.leaves[place])
        }
        if not changed or not self._runs_on_host(leaves) or not self._known(self.rebuilt(leaves)):
            return False
        self.unvaried -= changed
        return True

    def _known(self, call: Call) -> bool:
        """Return whether the model takes a call and puts out numbers where it does for the example."""
        with suppress(Exception):  # Whatever a model's code does with numbers and lengths it did not expect.
            result = outputs(self.model, call)
            if _any_nan(result) <= _any_nan(self.known[0][1]):
                self.known.append((call, result))
                return True
        return False

    def _runs_on_host(self, leaves: Sequence[Any]) -> bool:
        """Return whether whole numbers are indices that exist, which an accelerator would stop at for good."""
        if not any(_goes_beyond(old, new) for old, new in zip(self.leaves, leaves, strict=True)):
            return True
        try:
            if self.on_host is None:
                self.on_host = copy_of(self.model, {}).cpu()
            outputs(self.on_host, self.rebuilt([leaf.cpu() if isinstance(leaf, Tensor) else leaf for leaf in leaves]))
        except Exception:  # The model, or its code, may not run there at all.
            return False
        return True


def _has_numbers(leaf: Any) -> bool:
    """Return whether `leaf` is a tensor with entries, or an object that holds one."""
    if isinstance(leaf, Tensor):
        return bool(leaf.numel())
    held = [*leaf] if isinstance(leaf, tuple) else list(getattr(leaf, "__dict__", {}).values())
    return any(isinstance(each, Tensor) for each in tree_leaves(held))


def _has_an_order(leaf: Any) -> bool:
    """Return whether the first variant of `leaf` is another one than the next, which are drawn anew."""
    if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or not leaf.numel():
        return True
    return not leaf.is_floating_point() or not leaf.isfinite().all() or bool((leaf == leaf.reshape(-1)[0]).all())


def _candidates(leaf: Tensor) -> Iterator[Tensor]:
    """Yield other numbers for one input: all drawn, then single ones a step away, as lengths and offsets need them."""
    for number in range(1, VARIANTS):
        for upcast in (True, False):
            yield varied([leaf], number, upcast=upcast)[0]
    if leaf.layout != torch.strided or leaf.is_complex() or leaf.dtype == torch.bool:
        return
    for step in (-1, 1):
        for place in sorted({leaf.numel() - 1, leaf.numel() // 2, 0}, reverse=True):
            other = leaf.detach().clone().contiguous()
            other.view(-1)[place] += step
            yield other
        yield leaf.detach() + step


def _goes_beyond(known: Any, drawn: Any) -> bool:
    """Return whether numbers on an accelerator are larger or smaller than those that the model was seen to take."""
    if not isinstance(known, Tensor) or not known.numel() or known.device.type == "cpu" or known.is_complex():
        return False
    return bool(drawn.max() > known.max()) or bool(drawn.min() < known.min())


def _same(one: Tensor, other: Tensor) -> bool:
    if one.layout != torch.strided:
        return one is other
    return torch.equal(one, other)


def _any_nan(tensors: Sequence[Tensor]) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in tensors if tensor.is_floating_point() or tensor.is_complex())


def _named(model: nn.Module, call: Call, places: set[int]) -> tuple[str, ...]:
    """Return the names of inputs by their place among the leaves of a call, as the model's signature has them."""
    if not places:
        return ()
    args, kwargs = call
    names = [f"argument {number}" for number in range(len(args))]
    with suppress(ValueError, TypeError):  # of code without a signature
        kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        known = [each.name for each in signature(model.forward).parameters.values() if each.kind in kinds]
        names[: len(known)] = known[: len(names)]
    named = {**dict(zip(names, args, strict=True)), **kwargs}
    labels = []
    for name, value in named.items():
        for path, leaf in tree_flatten_with_path(value)[0]:
            labels += [f"{name}{keystr(path)}"] * len(taken_apart(leaf)[0])
    return tuple(dict.fromkeys(labels[place] for place in sorted(places)))
