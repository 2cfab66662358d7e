"""From exact zeros to a physically smaller model with the same outputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.shrink.attributes import changed_attributes
from shrinkage.shrink.export import tensors_of
from shrinkage.shrink.fold import Reading, Target, readings, target_of
from shrinkage.shrink.graph import Coupling, couple
from shrinkage.shrink.plan import ShrinkPlan, apply_plan
from shrinkage.shrink.removal import Removal, kept_indices, removable
from shrinkage.shrink.verify import Call, calls, difference, outputs


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller model with the outputs of a dense one, the plan that makes it from its class, and a report."""

    model: nn.Module
    plan: ShrinkPlan
    error: float
    culprits: tuple[str, ...]
    coupling: Coupling
    removal: Removal


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
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    kwargs = dict(example_kwargs or {})
    coupling = couple(model, args, example_kwargs=kwargs, pin=pin)
    found, products = readings(coupling.traces, tensors_of(model))
    checks = [(call, outputs(model, call)) for call in _working(model, calls(args, kwargs))] if verify else []
    held = torch.zeros(coupling.labels.count, dtype=torch.bool)

    def attempt(held: Tensor) -> tuple[Removal, nn.Module, ShrinkPlan, float]:
        removal = removable(coupling, found, products, model, round_to, held)
        small, plan = _built(coupling, found, removal, model)
        return removal, small, plan, _error(small, checks)

    removal, small, plan, error = attempt(held)
    culprits: list[str] = []
    if error > atol:
        held, culprits = _culprits(coupling, removal.gone, held, lambda trial: attempt(trial)[3] <= atol)
        removal, small, plan, error = attempt(held)
    return Shrunk(small, plan, error, tuple(culprits), coupling, removal)


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


def _shifts(
    coupling: Coupling, found: Sequence[Reading], gone: Tensor, model: nn.Module
) -> dict[Target, Tensor]:
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


def _culprits(coupling: Coupling, gone: Tensor, held: Tensor, fine: Any) -> tuple[Tensor, list[str]]:
    """Return `held` with the channels that make a difference, found by halving, and the names of their axes."""
    units: dict[tuple[str, int], Tensor] = {}
    taken = held.clone()
    for (name, dim), channels in coupling.axes.items():
        fresh = channels[gone[channels] & ~taken[channels]]
        if (name, dim) not in coupling.consumed and len(fresh):
            units[name, dim] = fresh
            taken[fresh] = True
    names: list[str] = []

    def sift(part: list[tuple[str, int]], accepted: list[tuple[str, int]]) -> list[tuple[str, int]]:
        trial = held | gone
        for unit in [*accepted, *part]:
            trial[units[unit]] = False
        if fine(trial):
            return part
        if len(part) == 1:
            names.append(part[0][0])
            return []
        middle = len(part) // 2
        left = sift(part[:middle], accepted)
        return left + sift(part[middle:], accepted + left)

    accepted = sift(list(units), []) if units else []
    result = held | gone
    for unit in accepted:
        result[units[unit]] = False
    return result, names
