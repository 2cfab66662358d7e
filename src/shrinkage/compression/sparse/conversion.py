"""Linear layers with many zeros become sparse ones where that is faster, and ordinary ones again."""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.inputs import positional
from shrinkage.compression.calls.latency import Calls, seconds_of_calls, watched
from shrinkage.compression.copying.copies import copy_of, plain, warn_of_hooks
from shrinkage.compression.copying.shared_memory import check_reads_own
from shrinkage.compression.sparse.sparse_linear import REAL, SparseLinear
from shrinkage.errors import SparseFormatError, shown
from shrinkage.penalties.value_objects import ByFields, value_class
from shrinkage.selection.parametrized import computed_weights
from shrinkage.tables import Table, in_html, shape_text

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class LayerChoice(NamedTuple):
    """What became of one linear layer.

    Attributes:
        shape: of its weight, or None where it has none yet.
        zeros: share of its weights that are zero, or None likewise.
        dense, sparse: seconds of its calls for the example inputs, or None where they were not measured.
        kept_because: why it is dense still; empty where it was converted.
    """

    name: str
    shape: tuple[int, ...] | None
    zeros: float | None
    dense: float | None = None
    sparse: float | None = None
    kept_because: str = ""


@value_class
class SparseReport(ByFields):
    """The result for each linear layer of a model. Prints as a table."""

    layers: tuple[LayerChoice, ...]

    @property
    def converted(self) -> tuple[str, ...]:
        """Names of the layers that were converted."""
        return tuple(layer.name for layer in self.layers if not layer.kept_because)

    def __str__(self) -> str:
        return str(self._part())

    def _repr_html_(self) -> str:
        return in_html([self._part()])

    def _part(self) -> str | Table:
        if not self.layers:
            return "the model has no nn.Linear, and other layers have no sparse format: nothing was converted"
        header = ["layer", "weight", "zeros", "dense ms", "sparse ms", "times as fast", "now"]
        return Table(header, [_cells(layer) for layer in self.layers], range(2, 6))


class Sparsified(NamedTuple):
    """A model with layers in a sparse format, and a report on each layer."""

    model: nn.Module
    report: SparseReport


def to_sparse(
    model: nn.Module,
    *,
    keep_if_faster: bool = True,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    min_sparsity: float = 0.7,
) -> Sparsified:
    """Return a copy of the model in which linear layers with many zeros are `SparseLinear`, where that is faster.

    A layer is converted if it is an `nn.Linear`, not of a class derived from it, shares its parameters with nobody, has
    no hooks and no parametrization, at least `min_sparsity` of its weights are zero and, if `keep_if_faster`, the
    sparse layer takes less time than the dense one for the inputs that it gets when the model is called, in evaluation
    mode and without gradients: medians of rounds in turns, on this process, with the number of threads and the batch
    size of now. With example inputs, the outputs of both models are compared.

    Args:
        model: stays as it is.
        keep_if_faster: measure, which needs `example_inputs`. Otherwise all layers with enough zeros are converted.
        example_inputs: the model's positional arguments, a tuple of them or a single one. The size of their batch
            should be that of later use: at 90 % zeros a layer can be 4 times as fast at 16 rows, and 2 times at 128.
        example_kwargs: keyword arguments of the model.
        min_sparsity: from 0 to 1. Below 0.7 or so nothing is gained in float32, whatever the batch.

    Returns:
        A pair of the `model` and a `report`, which prints as a table: what was converted, the times, and why the others
        were not.

    Raises:
        ValueError: `keep_if_faster` without example inputs, or a `min_sparsity` that is no share.
        SparseFormatError: the outputs differ by more than rounding: the model looks at the class of its layers, or
            gives other outputs at each call.
        ShrinkError: a copy would compute with layers of the model itself, by global variables, which a call shows.

    Outputs are those of the dense model up to the rounding of sums in another order. `state_dict` has other keys; save
    that of `to_dense(model)`, which fits the model's class.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> _ = model[0].weight.data.masked_fill_(torch.rand(64, 64) < 0.9, 0.0)
    >>> small, report = to_sparse(model, keep_if_faster=False)
    >>> [type(layer).__name__ for layer in small], report.converted
    (['SparseLinear', 'ReLU', 'Linear'], ('0',))
    """
    if not 0 <= min_sparsity <= 1:
        raise ValueError(f"min_sparsity must be a share from 0 to 1, got {shown(min_sparsity)}")
    if keep_if_faster and example_inputs is None and example_kwargs is None:
        raise ValueError("to measure what is faster, example_inputs are needed; or pass keep_if_faster=False")
    call = (() if example_inputs is None else positional(example_inputs), dict(example_kwargs or {}))
    checked = any(call)
    if checked:
        check_reads_own(plain(model), call)
    shared = shared_parameters(model)
    layers = [(layer, examined(name, layer, shared, min_sparsity)) for name, layer in linear_layers(model)]
    eligible = [choice.name for _, choice in layers if not choice.kept_because]
    expected, calls = watched(model, eligible, call) if checked else ([], {})
    choices: list[LayerChoice] = []
    replaced: dict[nn.Module, nn.Module] = {}
    for layer, choice in layers:
        if choice.name in eligible:
            sparse = SparseLinear.from_linear(layer)
            choice = _measured(choice, layer, sparse, calls[choice.name]) if keep_if_faster else choice
            if not choice.kept_because:
                replaced[layer] = sparse
        choices.append(choice)
    result, report = copy_of(model, replaced), SparseReport(tuple(choices))
    if checked and not all(map(_equal_but_for_rounding, expected, watched(result, [], call)[0])):
        raise SparseFormatError(
            f"with {', '.join(report.converted)} sparse, the outputs for the example inputs changed by more than "
            "rounding: the model looks at the class of its layers, or gives other outputs at each call; convert single "
            "layers with SparseLinear.from_linear"
        )
    warn_of_hooks(model)
    return Sparsified(result, report)


def to_dense(model: nn.Module) -> nn.Module:
    """Return a copy of the model in which every `SparseLinear` is an `nn.Linear` again, with the same weights.

    The weights are the same bit for bit, but for the sign of zeros, which are +0.0. This is the model to save, to train
    with all of its weights, and to export to ONNX, which has no sparse products.

    Args:
        model: stays as it is.

    >>> sparse = SparseLinear.from_linear(nn.Linear(3, 2))
    >>> to_dense(nn.Sequential(sparse))
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    warn_of_hooks(model)
    return copy_of(model, {m: m.to_linear() for m in model.modules() if isinstance(m, SparseLinear)})


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of `model`, each under its first name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def examined(name: str, layer: nn.Linear, shared: Set[int], min_sparsity: float) -> LayerChoice:
    """Return what is known of a layer before any measurement."""
    weight = own_weight(layer)
    shape = None if weight is None else tuple(weight.shape)
    zeros = None if weight is None or weight.is_meta else float((weight == 0).float().mean())
    reason = obstacle(layer, shared)
    if not reason and zeros is not None and not zeros >= min_sparsity:
        reason = f"fewer than {min_sparsity:.0%} zeros"
    return LayerChoice(name, shape, zeros, kept_because=reason)


def own_weight(layer: nn.Linear) -> nn.Parameter | None:
    """Return the weight of `layer` if it is a parameter of its own and has values."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    return None if weight is None or nn.parameter.is_lazy(weight) else weight


def shared_parameters(model: nn.Module) -> Set[int]:
    """Return the identities of the parameters that several modules hold, or one of them under several names."""
    held = [id(p) for m in model.modules() for _, p in m.named_parameters(recurse=False, remove_duplicate=False)]
    return {identity for identity, count in Counter(held).items() if count > 1}


def obstacle(layer: nn.Linear, shared: Set[int]) -> str:
    """Return why a sparse layer cannot take the place of `layer`, if these parameters are shared; empty if it can."""
    computed = next(computed_weights(layer), None)
    if computed is not None:
        return f"{computed.by} computes its {computed.attribute}"
    if type(layer) is not nn.Linear:
        return f"of a class of its own, {type(layer).__name__}"
    weight = own_weight(layer)
    if type(weight) is not nn.Parameter or weight.layout != torch.strided or weight.is_meta:
        return "its weight is no ordinary tensor with values"
    if weight.dtype not in REAL:
        return f"its type is {weight.dtype}"
    if any(vars(layer)[hooks] for hooks in HOOKS):
        return "it has hooks"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if not shared.isdisjoint(map(id, layer.parameters())):
        return "shares a parameter with another layer"
    return ""


def _measured(choice: LayerChoice, dense: nn.Linear, sparse: SparseLinear, calls: Calls) -> LayerChoice:
    """Return the choice between two layers by the time that they take for the calls that there were."""
    if not calls:
        return choice._replace(kept_because="not called with the example inputs")
    dense_time, sparse_time = seconds_of_calls((dense, sparse), calls)
    reason = "" if sparse_time < dense_time else "not faster"
    return choice._replace(dense=dense_time, sparse=sparse_time, kept_because=reason)


def _equal_but_for_rounding(expected: Tensor, found: Tensor) -> bool:
    """Return whether half of the digits are the same, relative to the largest number."""
    if expected.shape != found.shape or not expected.is_floating_point():
        return torch.equal(expected, found)
    scale = expected.abs().nan_to_num(0.0, posinf=0.0).amax() if expected.numel() else 0.0
    limit = float(scale) * torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(found, expected, rtol=0.0, atol=limit, equal_nan=True)


def _cells(layer: LayerChoice) -> list[str]:
    """Return the row of one layer in the printed report."""
    times = ["", "", ""]
    if layer.dense is not None and layer.sparse is not None:
        times = [f"{1e3 * layer.dense:.3g}", f"{1e3 * layer.sparse:.3g}", f"{layer.dense / layer.sparse:.2f}"]
    zeros = "" if layer.zeros is None else f"{layer.zeros:.1%}"
    shape = "" if layer.shape is None else shape_text(layer.shape)
    now = f"dense: {layer.kept_because}" if layer.kept_because else "sparse"
    return [layer.name or "the model", shape, zeros, *times, now]
