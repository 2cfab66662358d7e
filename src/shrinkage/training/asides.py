"""Budgets of single weights, and of groups inside of a parameter: the dense weights that are kept aside.

Between two steps a parameter holds the weights that stay, and its aside those that were cut. Before a step they come
back, where the parameter is exactly zero: restoring twice does no harm, and what a training loop writes into weights
stays. The optimizer moves dense weights along gradients of the sparse model. After the step all are ranked anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from shrinkage.distributed.counts import ShardPlace, shard_place_of, summed
from shrinkage.distributed.dtensor import is_dtensor, local, shard_like, spread, whole
from shrinkage.errors import AttachmentError, ParameterError, listed, warn_user
from shrinkage.execution import native_build
from shrinkage.execution.kept_aside import cut_all_, move_, restore_all_
from shrinkage.execution.native_ranking import Library
from shrinkage.execution.ranking_window import counting, expected, ranked
from shrinkage.optimizers.introspection import is_captured
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.groups import Whole
from shrinkage.proximal.ranking import Layers, Thresholds, below, floors, patterns_of, thresholds
from shrinkage.selection.planned_budgets import sizes_of
from shrinkage.training.budgets import Ranking
from shrinkage.training.penalized import RankedParameter
from shrinkage.training.progress import BudgetProgress, LayerProgress, Phase


class Ranked(NamedTuple):
    """What the last ranking found: what was to be zero, what stays of each layer, the zeros, and how many changed.

    The last two are on the device; what changed is not known of shards, nor of the first ranking after a resumption.
    """

    wanted: int
    least: Sequence[int]
    found: Thresholds
    zeros: Tensor
    changed: Tensor | None


class Asides(Ranking):
    """One budget of single weights, or of groups inside of a parameter, in one optimizer.

    Args:
        budget: for the weights of all parameters together.
        kernels: rank and cut by native kernels where there are some; the result is the same.
    """

    keeps_aside = True

    def __init__(self, budget: Budget, *, kernels: bool = True) -> None:
        self.budget = budget
        self._kernels = kernels
        self._parameters: Sequence[RankedParameter] = ()
        self._shard_places: list[ShardPlace] = []
        self._sizes: list[int] = []  # the number of groups of each parameter
        self._members: list[int] = []  # and of the weights of each group
        self._asides: dict[str, Tensor] = {}  # of this process's shards, by name
        self._ranked: Ranked | None = None
        self._last: list[Thresholds] = []  # of the last two rankings
        self._told = False

    @property
    def _count(self) -> int:
        return sum(size * each for size, each in zip(self._sizes, self._members, strict=True))

    @property
    def _library(self) -> Library:
        return native_build.library() if self._kernels else None

    def keep(self, parameters: Sequence[RankedParameter]) -> None:
        self._parameters = [each for each in parameters if not each.lazy]
        self._ranked, self._last = None, []
        self._sizes, self._members = sizes_of(self.budget, [tuple(each.parameter.shape) for each in self._parameters])
        self._shard_places = [shard_place_of(each.parameter, self.budget.groups) for each in self._parameters]
        shapes = {each.name: shard_of(each).shape for each in self._parameters}
        self._asides = {name: own for name, own in self._asides.items() if shapes.get(name) == own.shape}

    def check(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, LBFGS):
            raise AttachmentError(
                "LBFGS evaluates the loss several times per step, at weights of which some are kept aside; use another "
                "optimizer, or groups=CoupledChannels(...)"
            )

    def before(self, update: int) -> None:
        if update == self.budget.first_update:
            self._check_started()
        for each in self._parameters:
            if is_captured(each.parameter):
                raise AttachmentError(
                    f"{each.name!r} of shape {tuple(each.parameter.shape)} has a Budget, and a CUDA graph that is "
                    "recorded now would repeat this step as it is, without Python: leave optimizer.step() out of it"
                )
        asides = [(shard_of(each), self._asides.get(each.name)) for each in self._parameters]
        restore_all_([(w, aside.to(w.device)) for w, aside in asides if aside is not None], self._library)

    def read_gradients(self, update: int, optimizer: Optimizer) -> None:
        for each in self._parameters:
            if each.parameter.grad is not None and each.parameter.grad.layout != torch.strided:
                raise ParameterError(
                    f"the gradient of {each.name!r} of shape {tuple(each.parameter.shape)} is sparse: rows that no "
                    "batch touched would be ranked by the sizes they began with; build the layer with sparse=False, or "
                    f"put {{{each.name!r}: None}} before the rule"
                )

    def between(self, update: int) -> None:
        if self.budget.first_update <= update < self.budget.freeze_update:
            self._cut(update)

    def after(self, update: int, *, made: bool) -> None:
        if self.budget.first_update <= update <= self.budget.freeze_update:
            self._cut(update)
        if update >= self.budget.freeze_update:
            self._asides = {}
        if update >= self.budget.last_update and not self._told:
            self._told = True
            self._tell_of_floors()

    def _check_started(self) -> None:
        """Raise `ParameterError` if a parameter is all zero where the ramp begins."""
        for each in self._parameters:
            if not (is_dtensor(each.parameter) or bool(each.parameter.detach().any())):
                raise ParameterError(
                    f"{each.name!r} of shape {tuple(each.parameter.shape)} is zero everywhere when the ramp of "
                    f"{self.budget} begins, so that it would never be trained; put {{{each.name!r}: None}} before the "
                    "rule"
                )

    def _cut(self, update: int) -> None:
        """Rank the dense weights, and move those that are to be zero after so many updates aside."""
        if not self._parameters:
            return
        wanted = self.budget.zeros_at(update, self._count)
        least = floors(self._sizes, self._members, self._count - wanted, self.budget.least)
        ws = list(map(shard_of, self._parameters))
        sizes = [self._sizes_in(i, w) for i, w in enumerate(ws)]
        device = ws[0].device
        layers = Layers(
            sizes,
            torch.tensor(self._members, device=device),
            torch.tensor(least, device=device),
            [(shard.number, shard.at) for shard in self._shard_places],
        )
        left, across = self._count - wanted, [shard.process_groups for shard in self._shard_places]
        before, fresh = self._ranked, not self._asides
        if any(across):
            found = summed(thresholds(layers, left, counting(self._library)), across)
        else:
            found = ranked(layers, left, expected(self._last) if ws[0].is_cpu else (), self._library)
            self._last = [found, *self._last[:1]]
        back = self._move(ws, sizes, found)
        zeros = self._count - (found.stay * layers.members).sum()
        known = not any(across) and (fresh or before is not None)
        changed = zeros - (0 if before is None else before.zeros) + 2 * back if known else None
        self._ranked = Ranked(wanted, least, found, zeros, changed)

    def _move(self, ws: Sequence[Tensor], sizes: Sequence[Tensor], found: Thresholds) -> int | Tensor:
        """Cut all parameters; return how many of their weights came back."""
        names = [each.name for each in self._parameters]
        for name, w in zip(names, ws, strict=True):
            if name not in self._asides:
                self._asides[name] = torch.zeros_like(w)
        pairs = [(w, self._asides[name]) for name, w in zip(names, ws, strict=True)]
        if self.budget.groups is None:
            return cut_all_(pairs, found, self._library)
        gone = [below(patterns_of(own), found.patterns[i], found.ties[i]) for i, own in enumerate(sizes)]
        return sum(move_(*pair, self._spread(i, gone[i], pair[0])) for i, pair in enumerate(pairs))

    def _sizes_in(self, i: int, w: Tensor) -> Tensor:
        """Return what is ranked of a shard: the sizes of single weights, or the root mean squares of groups."""
        groups = self.budget.groups
        if groups is None:
            return w.reshape(-1)
        held = whole(self._parameters[i].parameter.detach()) if self._shard_places[i].gathered else w
        sizes: Tensor = groups.norms(held) / self._members[i] ** 0.5
        return sizes

    def _spread(self, i: int, gone: Tensor, w: Tensor) -> Tensor:
        """Return which weights of a shard are in groups that go."""
        parameter, groups = self._parameters[i].parameter, self.budget.groups or Whole()
        if not self._shard_places[i].gathered:
            return groups.spread(gone, tuple(w.shape))
        return shard_like(groups.spread(gone, tuple(parameter.shape)), parameter)

    def _tell_of_floors(self) -> None:
        """Warn of layers that keep more than the common threshold leaves them, at the end of the ramp."""
        names = [name for name, layer in self._layers().items() if layer.bound]
        if names:
            warn_user(
                f"{self.budget}: {listed(names)} would lose more if it were for sizes alone, and what the floor "
                f"least={self.budget.least:g} keeps there goes elsewhere"
            )

    def _layers(self) -> dict[str, LayerProgress]:
        """Return what stays of each layer, in weights."""
        if self._ranked is None:
            return {}
        least, found = self._ranked.least, self._ranked.found
        rows = zip(found.stay.tolist(), self._sizes, self._members, least, found.bound.tolist(), strict=True)
        return {
            each.name: LayerProgress(stay * m, size * m, low * m, bound)
            for each, (stay, size, m, low, bound) in zip(self._parameters, rows, strict=True)
        }

    def progress(self, update: int) -> BudgetProgress:
        budget, layers = self.budget, self._layers()
        target = budget.zeros_at(budget.last_update, self._count)
        wanted = reached = changed = None
        if self._ranked is not None:
            wanted, reached = self._ranked.wanted, int(self._ranked.zeros)
            changed = None if self._ranked.changed is None else int(self._ranked.changed)
        phase: Phase = "frozen" if update >= budget.freeze_update else "held"
        phase = "waiting" if update < budget.first_update else "ramp" if update < budget.last_update else phase
        return BudgetProgress(
            update, budget.updates, phase, "zeros", wanted, reached, target, self._count, changed, None, layers
        )

    def state_dict(self, update: int) -> dict[str, Any]:
        if update >= self.budget.freeze_update:
            return {}
        # Before the ramp there are zeros: a state that is loaded in place, as distributed checkpoints are, needs them.
        found = {}
        for each in self._parameters:
            aside = self._asides.get(each.name)
            own = torch.zeros_like(shard_of(each)) if aside is None else aside.clone()
            found[each.name] = spread(own, each.parameter.detach())
        return {"asides": found, "until": self.budget.freeze_update, "of": self.budget.updates}

    def check_state(self, state: Mapping[str, Any], update: int) -> None:
        saved = sorted(state.get("asides", {}))
        missing = [each.name for each in self._parameters if each.name not in saved]
        if saved and missing and update < self.budget.freeze_update:
            raise ValueError(
                f"the state holds what was kept aside of {listed(saved)} and nothing of {listed(missing)}: the process "
                "that saved it does not step those (ZeroRedundancyOptimizer); save and load "
                "Regularizer.state_dict() in every process"
            )
        shapes = {each.name: tuple(each.parameter.shape) for each in self._parameters}
        for name, aside in state.get("asides", {}).items():
            if name in shapes and tuple(aside.shape) != shapes[name]:
                raise ValueError(
                    f"what is kept aside of {name!r} has shape {tuple(aside.shape)}, the parameter {shapes[name]}; one "
                    "that was saved before shrink() cannot be loaded after it"
                )

    def load_state_dict(self, state: Mapping[str, Any], update: int) -> None:
        self._ranked, self._last = None, []
        self._asides = {}
        budget, asides = self.budget, state.get("asides", {})
        if not budget.first_update < update < budget.freeze_update:
            return
        for each in self._parameters:
            if each.name in asides:
                self._asides[each.name] = local(asides[each.name]).to(shard_of(each), copy=True)
        missing = [each.name for each in self._parameters if each.name not in self._asides]
        if missing:
            warn_user(
                f"the state holds nothing that {budget} kept aside of {listed(missing)}, at update {update:,} of "
                f"{budget.updates:,}: weights that are cut begin at 0; load the optimizer's state, or "
                "Regularizer.state_dict(), which hold it"
            )


def shard_of(ranked: RankedParameter) -> Tensor:
    """Return what this process holds of a parameter; it shares its memory."""
    shard: Tensor = local(ranked.parameter.detach())
    return shard
