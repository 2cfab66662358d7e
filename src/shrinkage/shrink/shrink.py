"""From exact zeros to a physically smaller model with the same outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.errors import PlanError, ShrinkError
from shrinkage.shrink.attributes import changed_attributes
from shrinkage.shrink.fold import Reading, Target, readings, target_of
from shrinkage.shrink.graph import Coupling, couple
from shrinkage.shrink.plan import ShrinkPlan, apply_plan
from shrinkage.shrink.removal import Removal, kept_indices, removable, zero_channels
from shrinkage.shrink.summary import KeptZeros, ShrinkReport, compared
from shrinkage.shrink.tensors import tensors_of
from shrinkage.shrink.verify import Call, calls, difference, outputs


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller model with the outputs of a dense one, the plan that makes it from its class, and a report."""

    model: nn.Module
    plan: ShrinkPlan
    report: ShrinkReport

    def __str__(self) -> str:
        return str(self.report)


def shrink(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    atol: float = 1e-5,
    round_to: int = 1,
    verify: bool = True,
    pin: Sequence[str] = (),
) -> Shrunk:
    """Return a smaller model with the outputs of `model`: channels that are zero, or that nobody reads, are taken out.

    Args:
        model: stays as it is. Its outputs in evaluation mode are kept.
        example_inputs: a tuple of the positional arguments of a call of `model`, or the only one.
        example_kwargs: the keyword arguments of that call.
        atol: how much outputs may differ, relative to the largest number of the tensor that they are in.
        round_to: axes that are cut keep a multiple of this number of channels, zero ones if need be.
        verify: compare the outputs of both models on the example, on other numbers like it and on one more sample. What
            makes a difference is found, left in place and reported.
        pin: dotted names of modules or parameters that are not cut.

    Which channels are one and the same follows from the operators of `torch.export`; what an operator without a rule
    touches stays. A channel whose weights are zero but that puts out a constant is taken out where the biases behind it
    can take the constant up.

    Raises ShrinkError if the parameters hold no numbers (the meta device), or `round_to` is not positive.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     model[0].weight[1] = 0
    >>> shrink(model, torch.randn(5, 4)).model
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )

    Exact up to the order of sums, in evaluation mode; in training mode the statistics of a batch can differ where a
    constant was folded into a bias before a batch norm.
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    kwargs = dict(example_kwargs or {})
    model = _plain(model)
    _check(model, round_to)
    coupling = couple(model, args, example_kwargs=kwargs, pin=pin)
    found, products = readings(coupling.traces, tensors_of(model))
    several = list(_working(model, calls(args, kwargs)))
    checks = [(call, outputs(model, call)) for call in several] if verify else []
    held = torch.zeros(coupling.labels.count, dtype=torch.bool)

    def attempt(held: Tensor) -> tuple[Removal, nn.Module, ShrinkPlan, float]:
        removal = removable(coupling, found, products, model, round_to, held)
        try:
            small, plan = _built(coupling, found, removal, model)
        except PlanError:
            return removal, model, ShrinkPlan.of(model, {}), float("inf")
        return removal, small, plan, _error(small, checks)

    removal, small, plan, error = attempt(held)
    if error > atol:
        held = _culprits(coupling, removal.gone, held, lambda trial: attempt(trial)[3] <= atol)
        removal, small, plan, error = attempt(held)
    kept = _kept(coupling, removal, model, held)
    return Shrunk(small, plan, compared(model, small, plan, several[0], error, kept, coupling))


def _plain(model: nn.Module) -> nn.Module:
    """Return the module behind a compiled one or one that is trained on several machines."""
    from torch._dynamo import OptimizedModule  # not imported before it is needed: it takes long

    inner = {OptimizedModule: "_orig_mod", nn.parallel.DistributedDataParallel: "module", nn.DataParallel: "module"}
    for kind, name in inner.items():
        if isinstance(model, kind):
            return _plain(model.get_submodule(name))
    return model


def _check(model: nn.Module, round_to: int) -> None:
    if round_to < 1:
        raise ShrinkError(f"expected round_to of 1 or more, found {round_to}")
    empty = [name for name, tensor in tensors_of(model).items() if tensor.is_meta]
    if empty:
        raise ShrinkError(
            f"`{empty[0]}` is on the meta device and holds no numbers, so that none is zero: load the weights first,"
            " or use `apply_plan` with a plan that exists"
        )


def _kept(coupling: Coupling, removal: Removal, model: nn.Module, held: Tensor) -> list[KeptZeros]:
    """Return the zero channels that stay, by parameter and reason."""
    counts: dict[tuple[str, str], int] = {}
    for root, (name, _) in zero_channels(coupling, model).items():
        if removal.gone[root]:
            continue
        reason = coupling.pinned.get(root) or removal.reasons.get(root)
        if held[root]:
            reason = "outputs differ, or the model fails, when they are taken out"
        key = (name, reason or "needed by other channels, as the last one of its axis, or for a round number")
        counts[key] = counts.get(key, 0) + 1
    return [KeptZeros(name, count, reason) for (name, reason), count in counts.items()]


def _working(model: nn.Module, several: Iterator[Call]) -> Iterator[Call]:
    """Yield the calls that `model` can take; the first one it must."""
    for number, call in enumerate(several):
        try:
            outputs(model, call)
        except Exception:
            if number == 0:
                raise
            continue
        yield call


def _error(small: nn.Module, checks: Sequence[tuple[Call, list[Tensor]]]) -> float:
    """Return the largest difference of the outputs of `small` from those that are known; infinity if it fails."""
    worst = 0.0
    for call, known in checks:
        try:
            worst = max(worst, difference(known, outputs(small, call)))
        except Exception:  # Whatever a model's code does on lengths it did not expect.
            return float("inf")
    return worst


def _built(
    coupling: Coupling, found: Sequence[Reading], removal: Removal, model: nn.Module
) -> tuple[nn.Module, ShrinkPlan]:
    """Return the smaller model, its constants folded, and the plan of it."""
    keep = kept_indices(coupling, removal.gone)
    shifts = _shifts(coupling, found, removal.gone, model)
    plan = ShrinkPlan.of(
        model,
        keep,
        biases=tuple(target.path for target in shifts if not target.exists),
        attributes=changed_attributes(coupling, model, removal.gone),
    )
    small = apply_plan(model, plan)
    for target, shift in shifts.items():
        bias = small.get_parameter(target.name)
        kept = keep.get(target.name, keep.get(f"{target.path}.weight", {}) if not target.exists else {}).get(0)
        shift = shift if kept is None else shift[list(kept)]
        with torch.no_grad():
            bias.copy_((bias.double() + shift.to(bias.device)).to(bias.dtype))
    return small, plan


def _shifts(coupling: Coupling, found: Sequence[Reading], gone: Tensor, model: nn.Module) -> dict[Target, Tensor]:
    """Return what the constants that go add to each bias."""
    shifts: dict[Target, Tensor] = {}
    for reading in found:
        labels = coupling.labels.find(reading.contraction.labels)
        if not len(labels):
            continue
        folded = gone[labels] & (reading.constants.nan_to_num() != 0)
        target = target_of(reading, found, model)
        if isinstance(target, Target) and folded.any():
            constants = torch.where(folded, reading.constants.nan_to_num(), 0.0)
            shifts[target] = reading.rows_first() @ constants.to(reading.weight.device)
    return {target: shift for target, shift in shifts.items() if (shift != 0).any()}


def _culprits(coupling: Coupling, gone: Tensor, held: Tensor, fine: Callable[[Tensor], bool]) -> Tensor:
    """Return `held` with those of the channels `gone` that make a difference, found by halving."""
    units: list[Tensor] = []
    taken = held.clone()
    for axis in sorted(coupling.axes, key=lambda axis: axis in coupling.consumed):
        channels = coupling.axes[axis]
        fresh = channels[gone[channels] & ~taken[channels]]
        if len(fresh):
            units.append(fresh)
            taken[fresh] = True

    def holding_all_but(accepted: Sequence[Tensor]) -> Tensor:
        trial = held | gone
        for unit in accepted:
            trial[unit] = False
        return trial

    def sift(part: list[Tensor], accepted: list[Tensor]) -> list[Tensor]:
        if not part or fine(holding_all_but([*accepted, *part])):
            return part
        if len(part) == 1:
            return []
        middle = len(part) // 2
        left = sift(part[:middle], accepted)
        return left + sift(part[middle:], accepted + left)

    result = holding_all_but(sift(units, []))
    return result if fine(result) else held | gone
