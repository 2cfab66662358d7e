"""What is refused before a step."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.distributed.flattened import check_piece
from shrinkage.errors import AttachmentError, MetricError, ParameterError
from shrinkage.optimizers.introspection import group_indices, is_captured
from shrinkage.optimizers.registry import Metric
from shrinkage.penalties.membership import coupled_of
from shrinkage.selection.plan import Plan
from shrinkage.selection.selectors import named_parameters
from shrinkage.training.penalized import Charge


def check_kept(before: Sequence[Charge], now: Sequence[Charge], optimizer: Optimizer) -> None:
    """Raise `AttachmentError` if `optimizer` holds a parameter that was charged and is not in the model any more."""
    covered = {place for charge in now for place in charge.places}
    held = group_indices(optimizer)
    for charge in before:
        if charge.stale and id(charge.parameter) in held and covered.isdisjoint(charge.places):
            raise AttachmentError(
                f"{charge.name!r} of shape {tuple(charge.parameter.shape)} was replaced in the model, but this "
                f"{type(optimizer).__name__} still updates the parameter that was there; make the optimizer from the "
                "parameters of the model as it is now, and attach to that"
            )


def check_captured(charges: Iterable[Charge], *, averaged: bool) -> None:
    """Raise `AttachmentError` if a CUDA graph is recorded whose replays would repeat what should change."""
    for charge in charges:
        scheduled = charge.penalty.scheduled
        frozen = "a scheduled strength" if scheduled else "entry=" if averaged else f"every={charge.every}"
        if (scheduled or averaged or charge.every > 1) and is_captured(charge.parameter):
            raise AttachmentError(
                f"{charge.name!r} of shape {tuple(charge.parameter.shape)} is charged with {frozen}, and a CUDA graph "
                "that is recorded now would repeat this step as it is, without Python: use a strength that is a "
                "number, or leave optimizer.step() out of the graph"
            )


def check_gradients(charges: Sequence[Charge]) -> None:
    """Raise `ParameterError` if a penalty is to be added to a sparse gradient, or a parameter was flattened."""
    for charge in charges:
        name, parameter = charge.name, charge.parameter
        check_piece(name, parameter, charge.penalty)
        if charge.how != "gradient":
            continue
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ParameterError(
                f"the gradient of {name!r} of shape {tuple(parameter.shape)} is sparse: its optimizer updates only the "
                "rows that a batch touched, and a penalty in the gradient charges all of them; choose "
                'how="proximal" or how="decoupled", which charge all rows after the step, or build the layer with '
                "sparse=False"
            )


def check_added_once(added: Iterable[Charge]) -> None:
    """Raise `AttachmentError` if there is a gradient to which its penalty was added already."""
    for charge in added:
        raise AttachmentError(
            f"add_gradients_() has been called on this gradient of {charge.name!r} of shape "
            f"{tuple(charge.parameter.shape)} already; call it once per update, after the last backward(). After a "
            "step that was left out, optimizer.zero_grad(set_to_none=True) makes new gradients"
        )


def check_unscaled(added: Iterable[Charge]) -> None:
    """Raise `AttachmentError` if there is a gradient that still carries the loss scale, but its penalty does not."""
    for charge in added:
        raise AttachmentError(
            f"add_gradients_() has been called on the gradient of {charge.name!r} of shape "
            f"{tuple(charge.parameter.shape)} while it was multiplied by the loss scale; call "
            "scaler.unscale_(optimizer) before it"
        )


def check_together(model: nn.Module, plan: Plan, optimizer: Optimizer) -> None:
    """Raise `AttachmentError` if `optimizer` steps a part of a family, and the rest takes gradients elsewhere."""
    families = [entries for entries in plan.families() if coupled_of(entries[0].penalty) is not None]
    held = {each.name: each.parameter for each in named_parameters(model)} if families else {}
    stepped = group_indices(optimizer)
    for entries in families:
        trained = [entry.name for entry in entries if takes_gradient(held.get(entry.name))]
        inside = [name for name in trained if id(held[name]) in stepped]
        outside = [name for name in trained if id(held[name]) not in stepped]
        if inside and outside:
            raise AttachmentError(
                f"{inside[0]!r} and {outside[0]!r} share groups, and this optimizer steps the first only; groups that "
                "span parameters are charged in one step, so give them to one optimizer, or leave one out of the groups"
            )


def check_moved(charge: Charge, metric: Metric | None, optimizer: Optimizer) -> None:
    """Raise `MetricError` if `optimizer` moves another tensor than a parameter whose groups span others."""
    iterates = metric is not None and metric.iterate is not None
    if charge.how != "gradient" and coupled_of(charge.penalty) is not None and iterates:
        raise MetricError(
            f"{charge.name!r} of shape {tuple(charge.parameter.shape)} shares groups with other parameters, and "
            f'{type(optimizer).__name__} moves other tensors, which parameters follow; choose how="gradient"'
        )


def takes_gradient(parameter: Tensor | None) -> bool:
    """Return whether there is a parameter that takes a gradient."""
    return parameter is not None and parameter.requires_grad
