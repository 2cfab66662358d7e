"""One budget of groups that span parameters, in one optimizer: which channels go, and when.

Before each step the effect of every group on the loss is estimated, and averaged. On the ramp, at every tenth update,
the groups with the least effect for their price go. Those that will go soon shrink a little after each step, and those
that are gone are made zero after each step, so that any optimizer can step in between.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shrinkage.distributed.all_reduce import run_all
from shrinkage.distributed.dtensor import local, local_gradient, process_groups_of
from shrinkage.distributed.group_sharding import membership_here
from shrinkage.errors import warn_user
from shrinkage.execution.scaled_groups import ScaledSlices, scale_slices_
from shrinkage.optimizers.overflow import overflow_of
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.coupled_groups import NONE
from shrinkage.penalties.coupled_norms import norms_of, products_of, split_by
from shrinkage.penalties.group_choice import chosen
from shrinkage.penalties.membership import Membership, membership_in, padded
from shrinkage.proximal.reductions import Reduction
from shrinkage.selection.channel_budgets import ChannelTarget
from shrinkage.training.penalized import RankedParameter
from shrinkage.training.progress import BudgetProgress, LayerProgress, Phase, Unit

EVERY = 10  # updates from one look to the next
HORIZON = 0.1  # of all updates: how long before it goes a group begins to shrink
REST = 2.0  # a group that goes at the end of the horizon has shrunk by exp(-REST)
DECAY = 0.95  # of the mean of squared effects
SLACK = 0.02  # of the target; more is worth a warning
FREE, DUE, GONE = range(3)
UNITS: Mapping[str, Unit] = {"elements": "zeros", "parameters": "parameters", "multiply-adds": "multiply-adds"}


class ChannelRanking:
    """The ranking of groups that span parameters; see `Ranking`.

    Args:
        budget: which is to be met.
        target: what it chooses from, and how much is left in the end.
    """

    keeps_aside = False

    def __init__(self, budget: Budget, target: ChannelTarget) -> None:
        self.budget = budget
        self._target = target
        self._horizon = max(1, round(HORIZON * budget.updates))
        count = len(target.stock.kinds)
        self._state = torch.zeros(count, dtype=torch.uint8)
        self._mean = torch.zeros(count)
        self._changed: int | None = None
        self._looked: int | None = None  # so many updates were made at the last look
        self._parameters: Sequence[RankedParameter] = ()
        self._parts: list[Membership] = []
        self._process_groups: tuple[Any, ...] = ()
        self._slices: list[ScaledSlices] = []

    def keep(self, parameters: Sequence[RankedParameter]) -> None:
        """Rank these parameters from now on."""
        groups = {each.group_name: each for one in parameters for each in process_groups_of(one.parameter)}
        self._parameters, self._process_groups = parameters, tuple(groups.values())
        coupled = self._target.coupled
        parts = [membership_in(coupled, each.name, each.parameter.device) for each in parameters]
        pairs = zip(parts, parameters, strict=True)
        self._parts = [membership_here(part, each.parameter, self._process_groups) for part, each in pairs]
        self._mark()

    def check(self, optimizer: Optimizer) -> None:
        """Any optimizer will do: it steps on the gradients of the model as it is."""

    def before(self, update: int) -> None:
        """Nothing is kept aside."""

    def between(self, update: int) -> None:
        """Nothing is kept aside."""

    def read_gradients(self, update: int, optimizer: Optimizer) -> None:
        """Average the squared effect of each group: how the loss changes to first order if the group goes."""
        if update >= self.budget.last_update or self.budget.score != "effect" or not self._parameters:
            return
        grads = [dense(local_gradient(each.parameter)) for each in self._parameters]
        effects = self._summed(products_of(self._parts, self._ws(), grads))
        scale, overflow = getattr(optimizer, "grad_scale", None), overflow_of(optimizer)
        squares = (effects if scale is None else effects / scale.to(effects.device)).square()
        self._mean = self._mean.to(squares.device)
        mean = self._mean.lerp(squares.to(self._mean.dtype), 1 - DECAY)
        self._mean = mean if overflow is None else torch.where(overflow.to(mean.device) > 0, self._mean, mean)

    def after(self, update: int, *, made: bool) -> None:
        """Look which groups go, shrink those that are due, and hold at zero what is gone."""
        if not made or not self._parameters:
            return
        first, last = self.budget.first_update, self.budget.last_update
        if first <= update <= last and ((update - first) % EVERY == 0 or update == last):
            self._look(update)
        if self._slices:
            scale_slices_(self._slices, self._ws(), math.exp(-REST / self._horizon))

    def _look(self, update: int) -> None:
        """Decide which groups are gone, and which are due within the horizon."""
        last = self.budget.last_update
        stock, scores = self._target.stock, self._scores()
        before = self._state == GONE
        gone = chosen(stock, scores, before, self._goal(update), last=update == last)
        due = chosen(stock, scores, gone, self._goal(min(update + self._horizon, last)))
        self._state = torch.where(gone, GONE, torch.where(due, DUE, FREE)).to(torch.uint8)
        self._changed, self._looked = int((gone & ~before).sum()), update
        self._mark()
        if update == last:
            self._warn(stock.left(gone))

    def _goal(self, update: int) -> int:
        return self._target.goal(self.budget.ramp(update))

    def _scores(self) -> Tensor:
        """Return the score of each group, on the host: the lowest go first."""
        if self.budget.score == "size":
            return self._summed(norms_of(self._parts, split_by(self._parts, self._ws()))).cpu()
        return self._mean.cpu().double().sqrt() / self._target.stock.prices()

    def _summed(self, computation: Reduction[Tensor]) -> Tensor:
        """Return sums of groups over all processes that hold shards of them."""
        return run_all([computation], [self._process_groups])[0]

    def _ws(self) -> list[Tensor]:
        """Return this process's shards."""
        return [local(each.parameter.detach()) for each in self._parameters]

    def _mark(self) -> None:
        """Find the slices of what is gone or due."""
        zero, smaller = (padded(self._state == which, False) for which in (GONE, DUE))
        found = [ScaledSlices.of(part, zero, smaller) for part in self._parts]
        self._slices = found if bool((self._state != FREE).any()) else []

    def _warn(self, left: int) -> None:
        """Warn where the target is missed by much, or the last channel of a kind keeps others from staying."""
        target, slack = self._target.target, self._target.target - left
        if slack > SLACK * target:
            warn_user(
                f"{self.budget} leaves {left:,} {self._target.unit}, {slack:,} fewer than it may: one channel less "
                "would have been too few"
            )
        bound = [name for name, layer in self._layers().items() if layer.bound]
        if bound:
            warn_user(
                f"{self.budget} leaves a single channel of its kind in {', '.join(bound)}; more cannot go there, and "
                "went elsewhere"
            )

    def progress(self, update: int) -> BudgetProgress:
        """Return how far it has come, as of the last look."""
        budget, target = self.budget, self._target
        phase: Phase = "ramp" if update < budget.last_update else "done"
        whole, unit = target.stock.whole, UNITS[target.unit]
        looked = None if self._looked is None else (self._goal(self._looked), target.stock.left(self._state == GONE))
        numbers = (*(looked or (None, None)), target.target)
        if unit == "zeros":  # what is zero, not what is left
            numbers = tuple(None if number is None else whole - number for number in numbers)
        wanted, reached, in_the_end = numbers
        return BudgetProgress(
            update,
            budget.updates,
            "waiting" if update < budget.first_update else phase,
            unit,
            wanted,
            reached,
            in_the_end or 0,
            whole,
            self._changed,
            None if looked is None else int((self._state == DUE).sum()),
            {} if looked is None else self._layers(),
        )

    def _layers(self) -> dict[str, LayerProgress]:
        """Return how many channels of each kind stay, by the layer that makes them."""
        stock, coupled = self._target.stock, self._target.coupled
        names, kinds = dict[int, str](), stock.kinds.tolist()
        for name in coupled.names:
            for group in coupled.slices(name).groups:
                if group != NONE:
                    names.setdefault(kinds[group], name.rpartition(".")[0] or name)
        gone = stock.counts((self._state == GONE).nonzero().flatten())
        found: dict[str, LayerProgress] = {}
        for kind, layer in sorted(names.items()):
            of = int((stock.kinds == kind).sum())
            most = stock.most[kind]
            key = layer if layer not in found else f"{layer} ({kind})"
            found[key] = LayerProgress(of - gone[kind], of, of - most, 0 < most == gone[kind])
        return found

    def state_dict(self, update: int) -> dict[str, Any]:
        """Return one byte for each group, and until the last look the mean of squared effects."""
        state = {"channels": self._state.clone()}
        return state if update >= self.budget.last_update else {**state, "effects": self._mean.clone()}

    def check_state(self, state: Mapping[str, Any], update: int) -> None:
        """Raise `ValueError` unless `state` is of as many groups."""
        found = len(state.get("channels", self._state))
        if found != len(self._state):
            raise ValueError(f"the state has {found} channels, and {self.budget} ranks {len(self._state)}")

    def load_state_dict(self, state: Mapping[str, Any], update: int) -> None:
        """Go on from `state`; what is due is not computed anew, so that it stays so until the next look."""
        if "channels" in state:
            self._state = state["channels"].cpu().clone()
            self._mean = state.get("effects", self._mean).clone()
            first, last = self.budget.first_update, self.budget.last_update
            looks = (min(update, last) - first) // EVERY * EVERY + first
            self._looked = None if update < first or not update else last if update >= last else looks
            self._mark()


def dense(gradient: Tensor | None) -> Tensor | None:
    """Return a gradient without a sparse layout."""
    return gradient.to_dense() if gradient is not None and gradient.layout != torch.strided else gradient
