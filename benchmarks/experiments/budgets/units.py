"""What goes: single weights, or channels. Every method of pruning needs the same few operations of them."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.experiments.budgets.training import Run
from magnitude import magnitudes, without
from shrinkage import L1, Budget, CoupledChannels, GroupLasso, Penalty, Regularizer, Rule, shrink
from shrinkage.compression.calls.cost import parameter_count
from shrinkage.penalties.group_choice import chosen
from shrinkage.selection.channel_budgets import channel_target


class Unit(Protocol):
    """What goes, and how many of it."""

    def budget(self, **options: Any) -> Budget:
        """Return the budget that asks for as many zeros, or for as few parameters."""

    def penalty(self, strength: float) -> Penalty:
        """Return the penalty that makes zeros of this kind."""

    def sizes(self) -> Tensor:
        """Return by what magnitude pruning ranks, a number for each."""

    def cut(self, scores: Tensor, ramp: float) -> None:
        """Set those with the lowest scores to zero, for so much of the way to the target, from 0 to 1."""

    def hold(self) -> Regularizer:
        """Return a regularizer by which zeros stay, as `freeze_zeros` does, which refuses a layer without weights."""

    def parameters(self) -> int:
        """Return how many parameters a small model from the start has, at most."""

    def finished(self) -> nn.Module:
        """Return the trained model, without what is gone if it can be left out."""


class Weights(Unit):
    """Single weights of all layers but norms and embeddings, ranked together.

    Args:
        run: whose model they are of.
        share: of them are zero in the end.
    """

    def __init__(self, run: Run, share: float) -> None:
        self._run, self._share = run, share
        self.matrices: dict[str, nn.Parameter] = matrices(run.model)
        self.count = sum(each.numel() for each in self.matrices.values())

    def budget(self, **options: Any) -> Budget:
        return Budget(zeros=self._share, updates=self._run.task.updates, **options)

    def penalty(self, strength: float) -> Penalty:
        return L1(strength)

    def sizes(self) -> Tensor:
        return torch.cat([each.detach().abs().flatten() for each in self.matrices.values()])

    @torch.no_grad()
    def cut(self, scores: Tensor, ramp: float) -> None:
        order = torch.where(self.sizes() == 0, -torch.inf, scores)
        stays = torch.ones_like(order)
        stays[order.topk(self.zeros(ramp), largest=False).indices] = 0.0
        parts = torch.split(stays, [each.numel() for each in self.matrices.values()])
        for each, mask in zip(self.matrices.values(), parts, strict=True):
            each.mul_(mask.view_as(each))

    def zeros(self, ramp: float = 1.0) -> int:
        """Return how many are zero after so much of the way."""
        return math.ceil(self._share * ramp * self.count - 1e-9)

    def hold(self) -> Regularizer:
        return Regularizer(self._run.model, Rule(L1(0.0), until=0))

    def parameters(self) -> int:
        return parameter_count(self._run.model) - self.zeros()

    def finished(self) -> nn.Module:
        return self._run.model


class Channels(Unit):
    """Channels, neurons and heads, of which so many go that at most a share of the parameters is left.

    Args:
        run: whose model they are of.
        share: of all parameters that go.
    """

    def __init__(self, run: Run, share: float) -> None:
        self._run = run
        self._parameters = math.floor((1 - share) * parameter_count(run.model) + 1e-9)
        self.coupled = CoupledChannels(run.model, run.data.inputs)
        shapes = {name: each.shape for name, each in run.model.named_parameters()}
        self.target = channel_target(self.budget(), self.coupled, shapes, shapes)
        self._gone = torch.zeros(self.coupled.count, dtype=torch.bool)

    def budget(self, **options: Any) -> Budget:
        return Budget(parameters=self._parameters, updates=self._run.task.updates, groups=self.coupled, **options)

    def penalty(self, strength: float) -> Penalty:
        return GroupLasso(strength, self.coupled)

    def sizes(self) -> Tensor:
        return magnitudes(self._run.model, self.coupled)

    def cut(self, scores: Tensor, ramp: float) -> None:
        gone = self._gone | (self.sizes() == 0)
        self._gone = chosen(self.target.stock, scores, gone, self.target.goal(ramp), last=ramp >= 1)
        state = without(self._run.model, self.coupled, self._gone.nonzero().flatten().tolist()).state_dict()
        self._run.model.load_state_dict(state)

    def hold(self) -> Regularizer:
        return Regularizer(self._run.model, Rule(GroupLasso(0.0, self.coupled), until=0))

    def parameters(self) -> int:
        return self._parameters

    def finished(self) -> nn.Module:
        return shrink(self._run.model, self._run.data.inputs).model


UNITS: dict[str, Callable[[Run, float], Unit]] = {"weights": Weights, "channels": Channels}


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that a rule without a selector names, by name."""
    return {entry.name: model.get_parameter(entry.name) for entry in Regularizer(model, L1(0.0)).plan}
