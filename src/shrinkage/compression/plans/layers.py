"""The numbers that ordinary layers compute with beside their weights, and what they become when weights are cut."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from shrinkage.compression.plans.normed_weights import is_normed
from shrinkage.compression.plans.tensors import Keep, Shape, joined, own_tensors, shape_of_cut
from shrinkage.errors import PlanError, shown
from shrinkage.selection.parametrized import computed_weights

Shapes = Mapping[str, Shape]
LayerRule = Callable[[Any, Shapes], Mapping[str, Any]]
NOTHING: Mapping[str, Mapping[int, Sequence[int]]] = MappingProxyType({})


def linear(layer: nn.Linear, shapes: Shapes) -> dict[str, Any]:
    """The weight is (outputs, inputs)."""
    return dict(zip(("out_features", "in_features"), shapes["weight"], strict=True))


def convolution(layer: _ConvNd, shapes: Shapes, *, evenly: bool = False) -> dict[str, Any]:
    """The weight is (outputs, inputs of one group, ...), or (inputs, outputs of one group, ...) if transposed.

    Groups go as a whole, or all lose as many channels `evenly`.
    """
    first, second = shapes["weight"][:2]
    ends = ("in_channels", "out_channels") if isinstance(layer, _ConvTransposeNd) else ("out_channels", "in_channels")
    groups = layer.groups if evenly else groups_left(layer, layer.groups, getattr(layer, ends[0]), first)
    return {ends[0]: first, ends[1]: second * groups, "groups": groups, "kernel_size": tuple(shapes["weight"][2:])}


EVENLY: LayerRule = partial(convolution, evenly=True)


def batch_norm(layer: _NormBase, shapes: Shapes) -> dict[str, Any]:
    """Its tensors have one number per channel, but for the count of batches, which has no dimension."""
    (channels, *_) = max(shapes.values())
    return {"num_features": channels}


def group_norm(layer: nn.GroupNorm, shapes: Shapes) -> dict[str, Any]:
    """The weight has one number per channel."""
    (channels,) = shapes["weight"]
    return {
        "num_channels": channels,
        "num_groups": groups_left(layer, layer.num_groups, layer.num_channels, channels),
    }


def layer_norm(layer: nn.LayerNorm | nn.RMSNorm, shapes: Shapes) -> dict[str, Any]:
    """The weight has the shape that is normalized."""
    return {"normalized_shape": shapes["weight"]}


def embedding(layer: nn.Embedding | nn.EmbeddingBag, shapes: Shapes) -> dict[str, Any]:
    """The weight is (entries, features)."""
    return dict(zip(("num_embeddings", "embedding_dim"), shapes["weight"], strict=True))


def bilinear(layer: nn.Bilinear, shapes: Shapes) -> dict[str, Any]:
    """The weight is (outputs, inputs of one kind, inputs of the other)."""
    return dict(zip(("out_features", "in1_features", "in2_features"), shapes["weight"], strict=True))


def prelu(layer: nn.PReLU, shapes: Shapes) -> dict[str, Any]:
    """The weight has one number per channel, or one for all."""
    return {"num_parameters": shapes["weight"][0]}


def recurrent(layer: nn.RNNBase, shapes: Shapes) -> dict[str, Any]:
    """The first weight is (gates * hidden, inputs), the second (gates * hidden, states that are fed back)."""
    (rows, inputs), (_, states) = shapes["weight_ih_l0"], shapes["weight_hh_l0"]
    gates = layer.get_parameter("weight_ih_l0").shape[0] // layer.hidden_size
    projected = {"proj_size": states} if layer.proj_size else {}
    return {"input_size": inputs, "hidden_size": rows // gates, **projected}


def recurrent_cell(layer: nn.RNNCellBase, shapes: Shapes) -> dict[str, Any]:
    """The weights are (gates * hidden, inputs) and (gates * hidden, hidden)."""
    return {"input_size": shapes["weight_ih"][1], "hidden_size": shapes["weight_hh"][1]}


def attention(layer: nn.MultiheadAttention, shapes: Shapes) -> dict[str, Any]:
    """The weights of queries, keys and values are (heads * head_dim, inputs), one below the other or each by itself."""
    packed = "in_proj_weight" in shapes
    queries, keys, values = (shapes["in_proj_weight" if packed else f"{name}_proj_weight"] for name in "qkv")
    rows = queries[0] // 3 if packed else queries[0]
    heads = max(1, rows // layer.head_dim)  # a single one may be smaller
    return {"embed_dim": queries[1], "kdim": keys[1], "vdim": values[1], "num_heads": heads}


def transposed_linear(layer: nn.Module, shapes: Shapes) -> dict[str, Any]:
    """The `Conv1D` of transformers, a linear layer whose weight is (inputs, outputs)."""
    return dict(zip(("nx", "nf"), shapes["weight"], strict=True))


_rules: dict[type[nn.Module], LayerRule] = {
    nn.Linear: linear,
    _ConvNd: convolution,
    _NormBase: batch_norm,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding,
    nn.Bilinear: bilinear,
    nn.PReLU: prelu,
    nn.RNNBase: recurrent,
    nn.RNNCellBase: recurrent_cell,
    nn.MultiheadAttention: attention,
}


def register_layer(layer_class: type[nn.Module], rule: LayerRule) -> None:
    """Register which attributes of a class of layers follow from the shapes of their parameters.

    Args:
        layer_class: a class of modules; it speaks for classes derived from it that have no rule of their own.
        rule: a function of a layer and the new shapes of its own parameters and buffers, by name, that returns the new
            values of attributes, by name: numbers, strings, or tuples of them. The layer is still the dense one.

    Without a rule, a layer of an unknown class keeps all of its attributes.

    Raises:
        TypeError: `layer_class` is no class of modules, or `rule` is no function.

    >>> import torch
    >>> class Scale(nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.width, self.factor = width, nn.Parameter(torch.ones(width))
    >>> register_layer(Scale, lambda layer, shapes: {"width": shapes["factor"][0]})
    >>> layer_attributes(Scale(8), {"factor": (5,)})
    {'width': 5}
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
        raise TypeError(f"layer_class must be a subclass of torch.nn.Module, got {shown(layer_class)}")
    if not callable(rule):
        raise TypeError(f"rule must be a function of (layer, shapes), got {shown(rule)}")
    _rules[layer_class] = rule


def rule_of_layer(layer: nn.Module) -> LayerRule | None:
    """Return the rule of the nearest class of `layer` that has one."""
    for cls in type(layer).__mro__:
        if cls in _rules:
            return _rules[cls]
        if (cls.__module__, cls.__name__) == ("transformers.pytorch_utils", "Conv1D"):  # which is not imported here
            return transposed_linear
    return None


def layer_attributes(
    layer: nn.Module, shapes: Shapes, kept: Mapping[str, Mapping[int, Sequence[int]]] = NOTHING
) -> dict[str, Any]:
    """Return the new values of the attributes of `layer` that change.

    Args:
        layer: a module as it is before.
        shapes: the new shapes of its own parameters and buffers, by name.
        kept: which indices of them stay, by name and dimension, as in a plan; where entries of an embedding go, its
            `padding_idx` moves along.

    Raises:
        PlanError: a group of a convolution or of a `GroupNorm` is cut in two.

    >>> layer_attributes(nn.Conv2d(8, 8, 3, groups=8), {"weight": (5, 1, 3, 3), "bias": (5,)})
    {'out_channels': 5, 'in_channels': 5, 'groups': 5}
    """
    rule, rows = rule_of_layer(layer), kept.get("weight", {}).get(0)
    if isinstance(layer, _ConvNd) and rule is convolution and rows:
        count = layer.in_channels if isinstance(layer, _ConvTransposeNd) else layer.out_channels
        rule = EVENLY if _cut_evenly(rows, count, layer.groups) else rule
    values = dict(rule(layer, shapes)) if rule is not None and shapes else {}
    if rows is not None and isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.padding_idx is not None:
        values["padding_idx"] = list(rows).index(layer.padding_idx) if layer.padding_idx in rows else None
    return {name: value for name, value in values.items() if getattr(layer, name) != value}


def outputs_of(layer: nn.Module) -> int | None:
    """Return the size of the bias that `layer` has or could have; None if it is of no kind that may lack one."""
    if isinstance(layer, nn.Linear | nn.Bilinear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _ConvNd) else None


def groups_left(layer: nn.Module, groups: int, before: int, after: int) -> int:
    """Return how many of `groups` groups of channels are left where `after` of `before` channels are, and no part."""
    size = before // groups
    if groups > 1 and after % size:
        raise PlanError(
            f"{layer} has {groups} groups of {size} channels, which stay or go as a whole; {after} of {before} "
            "channels would be left: keep a multiple of the size of a group"
        )
    return after // size if groups > 1 else 1


def _cut_evenly(rows: Sequence[int], count: int, groups: int) -> bool:
    """Return whether each of the `groups` of `count` rows keeps as many of them, and none all.

    >>> _cut_evenly([0, 2, 4, 6], 8, 2), _cut_evenly([0, 1, 2, 3], 8, 2), _cut_evenly([0, 1, 4], 8, 2)
    (True, False, False)
    """
    size = count // groups
    left = Counter(row // size for row in rows)
    return len(left) == groups and len(set(left.values())) == 1 and left[0] < size


def widths_left(model: nn.Module, keep: Keep) -> dict[str, Any]:
    """Return the attributes of ordinary layers that change, by dotted name."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own = {name: (name, tensor) for name, tensor in own_tensors(module).items()}
        for each in computed_weights(module):
            if each.divisor is not None and is_normed(module, each):
                own[each.attribute] = each.divisor.source, module.get_parameter(each.divisor.source)
        kept = {name: keep[joined(path, place)] for name, (place, _) in own.items() if joined(path, place) in keep}
        if kept:
            shapes = {name: shape_of_cut(tuple(tensor.shape), kept.get(name, {})) for name, (_, tensor) in own.items()}
            changed = layer_attributes(module, shapes, kept)
            found |= {joined(path, name): value for name, value in changed.items()}
    return found
