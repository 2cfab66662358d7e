"""Averaged gradients, by which it is decided whether a weight that is exactly zero may leave zero.

The gradient of one batch is noisy: it pushes weights out of zero that the gradient of all data would hold there, and
the next proximal step brings back only some of them. A weight, or group, that is zero before a step is set back to zero
after it as long as 0 is stationary for the running average of its gradient (`Penalty.stays`). Solutions stay
solutions: at one, the average is the gradient, and holds exactly the zeros that belong there.
"""

from collections.abc import Mapping, Sequence
from ctypes import c_float
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from shrinkage.distributed.dtensor import local, spread
from shrinkage.errors import listed
from shrinkage.optimizers.adaptive_step import Number, item_if_on_cpu
from shrinkage.proximal.precision import at_least_float32
from shrinkage.selection.how import decides
from shrinkage.training.penalized import PenalizedParameter


class Average(NamedTuple):
    """A running sum of gradients with decaying weights, and the sum of the weights: a number, or 0-dim on a device."""

    total: Tensor
    weight: Number

    def fits(self, w: Tensor) -> bool:
        """Return whether gradients of `w` can go into this average, as far as `w` has a shape."""
        return is_lazy(w) or self.total.shape == w.shape


class Source(Protocol):
    """What has the averages of some parameters, until somebody asks for them."""

    def averages(self) -> Mapping[str, Average]:
        """Return them by name, as they are now."""


class Averages:
    """The averaged gradient of each penalized parameter, by name.

    Args:
        decay: how much of the average stays at each update, 0 to 1: 0.99 averages over about 100 updates.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._known: dict[str, Average] = {}
        self._source: Source | None = None  # has newer ones
        self._next: dict[str, Average] = {}
        self._next_source: Source | None = None
        self._lent = self._lent_meanwhile = True

    def __getstate__(self) -> dict[str, Any]:
        known = self._averages  # a copy has no source
        self._lend()
        return {**vars(self), "_known": known, "_next": {}, "_next_source": None}

    @property
    def lent(self) -> bool:
        """Whether somebody else may have one of the tensors."""
        return self._lent

    def _lend(self) -> None:
        """Note that somebody else may have the tensors from now on."""
        self._lent = self._lent_meanwhile = True

    @property
    def _averages(self) -> dict[str, Average]:
        """All of them, as nobody else has newer ones from here on."""
        if self._source is not None:
            self._known |= self._source.averages()
            self._source = None
        return self._known

    @_averages.setter
    def _averages(self, averages: dict[str, Average]) -> None:
        self._known, self._source = averages, None

    def of(self, name: str) -> Average | None:
        """Return the average of a parameter, if one is kept."""
        return self._averages.get(name)

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Average the gradients of these parameters, by name, and of no others; their averages are saved from now on.

        A state_dict that is loaded in place, as distributed checkpoints are, finds them before the first step too. A
        parameter that was replaced by one of another shape starts anew.
        """
        self._averages = {
            name: own if own is not None and own.fits(w) else nothing_averaged(w)
            for name, w in weights.items()
            for own in [self._averages.get(name)]
            if own is not None or not is_lazy(w)
        }

    def go_on_from(self, other: "Averages") -> None:
        """Start where the averages of the same parameters in `other` are."""
        for name, own in self._averages.items():
            found = other._averages.get(name)
            if found is not None and found.total.shape == own.total.shape:
                self._averages[name] = found
        self._lend()
        other._lend()

    def check(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise `ValueError` unless `state` has the averages of these parameters, all of them if any."""
        for name, average in state.items():
            found = {part: tuple(tensor.shape) for part, tensor in average.items()}
            own = self._averages.get(name)
            shape = found.get("total") if own is None else tuple(own.total.shape)
            if found != {"total": shape, "weight": ()}:
                raise ValueError(
                    f"the averaged gradient of {name!r} consists of {found}; expected the parameter's shape {shape} as "
                    "its total, and a weight of shape (). One that was saved before shrink() needs the plan: "
                    "load_state_dict(state, plan=small.plan)"
                )
        missing = sorted(self._averages.keys() - state.keys())
        if state and missing:
            raise ValueError(
                f"the state holds averaged gradients of {listed(sorted(state))} and none of {listed(missing)}: the "
                "process that saved it does not step those (ZeroRedundancyOptimizer); save and load "
                "Regularizer.state_dict() in every process"
            )

    def update(self, name: str, grad: Tensor, overflow: Tensor | None = None) -> Tensor:
        """Return the average with one more gradient in it, unless `overflow` is 1: the sum over the sum of weights.

        It is 0 before the first gradient that counts. What is taken in stays only if `commit` follows.
        """
        like, grad = grad, local(grad).to(at_least_float32(grad.dtype))
        total, weight = self._averages.get(name) or nothing_averaged(like)
        total = local(total).to(grad)
        next_total, next_weight = total.lerp(grad, 1 - self.decay), following_weight(weight, 1 - self.decay, total)
        if overflow is not None:  # the gradient is then infinite or NaN
            next_total = torch.where(overflow > 0, total, next_total)
            old, new = (torch.as_tensor(each, dtype=total.dtype, device=total.device) for each in (weight, next_weight))
            next_weight = torch.where(overflow > 0, old, new)
        self._next[name] = Average(spread(next_total, like), next_weight)
        average: Tensor = spread(next_total / above_zero(next_weight, total), like)
        return average

    def take_in(self, averages: Mapping[str, Average]) -> None:
        """Let averages with one more gradient in them follow, by name, if `commit` does."""
        self._next |= averages

    def take_in_from(self, source: Source) -> None:
        """Let the averages that a source has then follow, if `commit` does; they are asked for when somebody does."""
        self._next_source, self._lent_meanwhile = source, False

    def is_source(self, source: Source) -> bool:
        """Return whether a source has all averages, and nobody else may have one of its tensors."""
        return self._source is source and not self._lent

    def commit(self) -> None:
        """Keep what was taken in: the update has happened."""
        if self._next_source is not None:
            self._source, self._next_source, self._lent = self._next_source, None, self._lent_meanwhile
        elif self._next:
            self._averages |= self._next
            self._lent = self._lent and len(self._next) < len(self._averages)
            self._next = {}

    def discard(self) -> None:
        """Forget what was taken in for an update that did not happen."""
        self._next, self._next_source = {}, None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the averages as tensors."""
        self._lend()
        found = {
            name: {"total": total, "weight": torch.as_tensor(weight, dtype=total.dtype)}
            for name, (total, weight) in self._averages.items()
        }
        self._averages = {name: Average(**each) for name, each in found.items()}  # they may be loaded in place
        return found

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from `state_dict`."""
        self._lend()
        self._averages = {name: Average(**average) for name, average in state.items()}


def averaged(targets: Sequence[PenalizedParameter]) -> dict[str, Tensor]:
    """Return the parameters whose averaged gradients decide about their zeros, by name."""
    return {target.name: target.parameter for target in targets if decides(target.penalty, target.how)}


def following_weight(weight: Number, share: float, like: Tensor) -> Number:
    """Return the sum of weights with one more in it, rounded to the type of `like`."""
    number = item_if_on_cpu(weight)
    if isinstance(number, Tensor):
        return number.to(like).lerp(number.new_ones((), dtype=like.dtype), share)
    following = number + share * (1 - number)
    return c_float(following).value if like.dtype is torch.float32 else following


def above_zero(weight: Number, like: Tensor) -> Number:
    """Return a sum of weights that can be divided by."""
    tiny = torch.finfo(like.dtype).tiny
    return weight.clamp_min(tiny) if isinstance(weight, Tensor) else max(weight, tiny)


def nothing_averaged(like: Tensor) -> Average:
    """Return the average of no gradient, of a parameter or gradient of the shape of `like`."""
    shard = local(like.detach())
    zeros = torch.zeros_like(shard, dtype=at_least_float32(shard.dtype), memory_format=torch.contiguous_format)
    return Average(spread(zeros, like.detach()), zeros.new_zeros(()))
