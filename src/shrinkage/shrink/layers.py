"""The numbers that ordinary layers compute with beside their weights, and what they become when weights are cut."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Shape = tuple[int, ...]
LayerRule = Callable[[Any, Mapping[str, Shape]], dict[str, Any]]


def linear(module: nn.Linear, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return {"out_features": shapes["weight"][0], "in_features": shapes["weight"][1]}


def convolution(module: _ConvNd, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Whole groups go, so that the size of a group stays."""
    outer, inner = shapes["weight"][:2]
    transposed = isinstance(module, _ConvTransposeNd)
    before = module.in_channels if transposed else module.out_channels
    groups = module.groups * outer // before if module.groups > 1 else 1
    if transposed:
        return {"in_channels": outer, "out_channels": inner * groups, "groups": groups}
    return {"in_channels": inner * groups, "out_channels": outer, "groups": groups}


def norm(module: _NormBase, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return {"num_features": next(shape[0] for shape in shapes.values() if shape)} if shapes else {}


def group_norm(module: nn.GroupNorm, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    channels = shapes["weight"][0]
    return {"num_channels": channels, "num_groups": module.num_groups * channels // module.num_channels}


def layer_norm(module: nn.LayerNorm | nn.RMSNorm, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return {"normalized_shape": shapes["weight"]}


def embedding(module: nn.Embedding | nn.EmbeddingBag, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return {"num_embeddings": shapes["weight"][0], "embedding_dim": shapes["weight"][1]}


def bilinear(module: nn.Bilinear, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return dict(zip(("out_features", "in1_features", "in2_features"), shapes["weight"], strict=True))


def prelu(module: nn.PReLU, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    return {"num_parameters": shapes["weight"][0]}


def transposed_linear(module: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The `Conv1D` of transformers: a linear layer whose weight is stored as inputs by outputs."""
    return {"nx": shapes["weight"][0], "nf": shapes["weight"][1]}


LAYERS: dict[type[nn.Module], LayerRule] = {
    nn.Linear: linear,
    _ConvNd: convolution,
    _NormBase: norm,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding,
    nn.Bilinear: bilinear,
    nn.PReLU: prelu,
}


def register_layer(layer: type[nn.Module], rule: LayerRule) -> None:
    """Tell which attributes of the modules of a class follow from the shapes of its parameters.

    Args:
        layer: the class; modules of classes derived from it are meant too.
        rule: called as `rule(module, shapes)` with the shapes of the module's own parameters and buffers after the cut,
            by name; returns the new values of attributes, by name.

    >>> import torch
    >>> from torch import nn
    >>> class Scale(nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.width, self.weight = width, nn.Parameter(torch.ones(width))
    >>> register_layer(Scale, lambda module, shapes: {"width": shapes["weight"][0]})
    """
    LAYERS[layer] = rule


def rule_of_layer(module: nn.Module) -> LayerRule | None:
    """Return the rule of the nearest class of `module` that has one."""
    for kind in type(module).__mro__:
        if kind in LAYERS:
            return LAYERS[kind]
        if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
            return transposed_linear
    return None


def layer_attributes(module: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the attributes of `module` that differ when its parameters and buffers have `shapes`."""
    rule = rule_of_layer(module)
    values = rule(module, shapes) if rule and shapes else {}
    return {name: value for name, value in values.items() if getattr(module, name) != value}
