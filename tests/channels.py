"""The channels of a model that can go, as the zoo's harness takes them."""

from typing import Any

import torch
from torch import nn

from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.compression.tracing.coupling import couple
from zoo.harness import Member


def free_channels(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[list[Member]]:
    """Return all channels that nothing pins, each with what makes it and what reads it."""
    coupling = couple(model, arguments, example_kwargs=keywords)
    found: dict[int, list[Member]] = {}
    tensors = tensors_of(model)
    for (name, dim), channels in coupling.axes.items():
        if not isinstance(tensors[name], nn.Parameter):
            continue
        reads = (name, dim) in coupling.consumed or (name, dim) in coupling.measured  # a direction makes no zero
        role = "in" if reads else "out"
        order = torch.argsort(channels, stable=True)
        roots, counts = channels[order].unique_consecutive(return_counts=True)
        for root, indices in zip(roots.tolist(), order.split(counts.tolist()), strict=True):
            if root not in coupling.pinned:
                found.setdefault(root, []).append(Member(name, dim, indices.tolist(), role))
    return list(found.values())
