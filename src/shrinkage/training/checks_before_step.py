"""What is refused before a step."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.distributed.flat_parameters import check_flat_shard
from shrinkage.errors import AttachmentError, MetricError, ParameterError
from shrinkage.optimizers.introspection import group_indices, is_captured
from shrinkage.optimizers.registry import Metric, check_decoupled, check_spread, known_metric
from shrinkage.penalties.membership import coupled_of
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan
from shrinkage.training.penalized import PenalizedParameter


def check_kept(before: Sequence[PenalizedParameter], now: Sequence[PenalizedParameter], optimizer: Optimizer) -> None:
    """Raise `AttachmentError` if `optimizer` holds a parameter that was penalized and is not in the model any more."""
    covered = {place for target in now for place in target.places}
    held = group_indices(optimizer)
    for target in before:
        if target.stale and id(target.parameter) in held and covered.isdisjoint(target.places):
            raise AttachmentError(
                f"{target.name!r} of shape {tuple(target.parameter.shape)} was replaced in the model, but this "
                f"{type(optimizer).__name__} still updates the parameter that was there; make the optimizer from the "
                "parameters of the model as it is now, and attach to that"
            )


def check_native(targets: Sequence[PenalizedParameter]) -> None:
    """Raise `AttachmentError` if a parameter is on a CPU and there are no native kernels."""
    from shrinkage.execution import native_build

    if any(target.parameter.device.type == "cpu" for target in targets) and native_build.reason_for_none() is not None:
        raise AttachmentError(
            f"compile=True asks for native kernels on the CPU, and there are none: {native_build.reason_for_none()}; "
            'with compile="auto" the same steps are computed by torch, which takes longer'
        )


def check_captured(targets: Iterable[PenalizedParameter], *, averaged: bool) -> None:
    """Raise `AttachmentError` if a CUDA graph is recorded whose replays would repeat what should change."""
    for target in targets:
        later = f"until={target.until}" if target.until else "a scheduled strength"
        frozen = later if target.changes else "hold_zeros=" if averaged else f"every={target.every}"
        if (target.changes or averaged or target.every > 1) and is_captured(target.parameter):
            raise AttachmentError(
                f"{target.name!r} of shape {tuple(target.parameter.shape)} is penalized with {frozen}, and a CUDA "
                "graph that is recorded now would repeat this step as it is, without Python: use a strength that is a "
                "number, or leave optimizer.step() out of the graph"
            )


def check_gradients(targets: Sequence[PenalizedParameter]) -> None:
    """Raise `ParameterError` if a penalty is to be added to a sparse gradient, or a parameter was flattened."""
    for target in targets:
        name, parameter = target.name, target.parameter
        check_flat_shard(name, parameter, target.penalty)
        if target.how != "gradient":
            continue
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ParameterError(
                f"the gradient of {name!r} of shape {tuple(parameter.shape)} is sparse: its optimizer updates only the "
                "rows that a batch touched, and a penalty in the gradient penalizes all of them; choose "
                'how="proximal" or how="decoupled", which penalize all rows after the step, or build the layer with '
                "sparse=False"
            )


def check_added_once(added: Iterable[PenalizedParameter]) -> None:
    """Raise `AttachmentError` if there is a gradient to which its penalty was added already."""
    for target in added:
        raise AttachmentError(
            f"add_gradients_() has been called on this gradient of {target.name!r} of shape "
            f"{tuple(target.parameter.shape)} already; call it once per update, after the last backward(). After a "
            "step that was left out, optimizer.zero_grad(set_to_none=True) makes new gradients"
        )


def check_unscaled(added: Iterable[PenalizedParameter]) -> None:
    """Raise `AttachmentError` if there is a gradient that still carries the loss scale, but its penalty does not."""
    for target in added:
        raise AttachmentError(
            f"add_gradients_() has been called on the gradient of {target.name!r} of shape "
            f"{tuple(target.parameter.shape)} while it was multiplied by the loss scale; call "
            "scaler.unscale_(optimizer) before it"
        )


def check_together(model: nn.Module, plan: Plan, optimizer: Optimizer) -> None:
    """Raise `AttachmentError` if coupled parameters are split between optimizers."""
    families = [[e.name for e in entries] for entries in plan.families() if coupled_of(entries[0].penalty) is not None]
    families += [[e.name for e in planned.entries] for planned in plan.budgets if planned.budget.coupled]
    held = {each.name: each.parameter for each in named_parameters(model)} if families else {}
    stepped = group_indices(optimizer)
    for names in families:
        trained = [name for name in names if takes_gradient(held.get(name))]
        inside = [name for name in trained if id(held[name]) in stepped]
        outside = [name for name in trained if id(held[name]) not in stepped]
        if inside and outside:
            raise AttachmentError(
                f"{inside[0]!r} and {outside[0]!r} share groups, and this optimizer steps the first only; groups that "
                "span parameters are penalized in one step: give them to one optimizer, or leave one out of the groups"
            )


def check_steps(targets: Iterable[PenalizedParameter], optimizer: Optimizer) -> None:
    """Raise if a penalty needs a step of `optimizer` that is not known, or that it does not make."""
    for target in targets:
        if target.how in ("decoupled", "cautious"):
            smooth = target.penalty.smooth
            check_decoupled(target.name, target.how, smooth, optimizer, optimizer.param_groups[target.group])
        check_moved(target, known_metric(optimizer), optimizer)
        if target.how != "gradient":
            group_sharding = target.group_sharding is not None
            check_spread(target.name, target.parameter, target.how, optimizer, group_sharding=group_sharding)


def check_moved(target: PenalizedParameter, metric: Metric | None, optimizer: Optimizer) -> None:
    """Raise `MetricError` if `optimizer` moves another tensor than a parameter whose groups span others."""
    iterates = metric is not None and metric.iterate is not None
    if target.how != "gradient" and coupled_of(target.penalty) is not None and iterates:
        raise MetricError(
            f"{target.name!r} of shape {tuple(target.parameter.shape)} shares groups with other parameters, and "
            f'{type(optimizer).__name__} moves other tensors, which parameters follow; choose how="gradient"'
        )


def takes_gradient(parameter: Tensor | None) -> bool:
    """Return whether there is a parameter that takes a gradient."""
    return parameter is not None and parameter.requires_grad
