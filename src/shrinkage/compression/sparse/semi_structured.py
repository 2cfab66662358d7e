"""The 2:4 format of NVIDIA's tensor cores: two of each four neighbours in a row are stored, and where they stand."""

from collections.abc import Sequence, Set

import torch
from torch import Tensor, nn

from shrinkage.compression.copying.copies import copy_of, warn_of_hooks
from shrinkage.compression.sparse.conversion import (
    LayerChoice,
    SparseReport,
    Sparsified,
    examined,
    linear_layers,
    shared_parameters,
)
from shrinkage.errors import SparseFormatError

ROWS, COLUMNS = 32, 64  # multiples that both libraries behind torch take


def to_semi_structured(model: nn.Module) -> Sparsified:
    """Return a copy of the model whose linear layers have weights in the 2:4 format, where that is possible.

    A layer is converted if its weight is on a CUDA device, in float16 or bfloat16, has a multiple of 32 rows and of 64
    columns, and at most two weights of each four neighbours in a row are not zero; `NofM(2, 4)` makes it so. The format
    is torch's, `torch.sparse.to_sparse_semi_structured`, and still a prototype there. `state_dict` has other tensors:
    save that of the dense model.

    Args:
        model: stays as it is.

    Returns:
        A pair of the `model` and a `report`, which prints as a table and says why the other layers were left alone.

    Raises:
        SparseFormatError: no layer can be converted; the message has the reason for each.

    Whether it is faster depends on the sizes: layers of 1000 features and batches of 1000 rows begin to gain.

    >>> to_semi_structured(nn.Linear(64, 32))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    shrinkage.errors.SparseFormatError: no linear layer can be stored in the 2:4 format; ... a CUDA device
    """
    shared = shared_parameters(model)
    choices = [_examined(name, layer, shared) for name, layer in linear_layers(model)]
    report = SparseReport(tuple(choices))
    if not report.converted:
        reasons = "; ".join(f"{choice.name or 'the model'}: {choice.kept_because}" for choice in choices)
        raise SparseFormatError(f"no linear layer can be stored in the 2:4 format; {reasons or 'the model has none'}")
    warn_of_hooks(model)
    result = copy_of(model, {})
    for name in report.converted:
        layer = result.get_submodule(name)
        weight = layer.get_parameter("weight").detach().contiguous()
        layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight), requires_grad=False)
    return Sparsified(result, report)


def _examined(name: str, layer: nn.Linear, shared: Set[int]) -> LayerChoice:
    """Return what is known of a layer."""
    choice = examined(name, layer, shared, 0.0)
    return choice if choice.kept_because else choice._replace(kept_because=_weight_obstacle(layer.weight.detach()))


def _weight_obstacle(weight: Tensor) -> str:
    """Return why a weight cannot be stored in the 2:4 format where it is; empty if it can."""
    if weight.device.type != "cuda":
        return f"its weight is on {weight.device}, move the model to a CUDA device"
    capability = torch.cuda.get_device_capability(weight.device)
    cusparselt = torch.backends.cusparselt.is_available()
    reason = semi_structured_obstacle(weight.shape, weight.dtype, capability, cusparselt=cusparselt)
    if not reason and not is_two_of_four(weight):
        reason = "more than two of four neighbours in a row are not zero, train or project with NofM(2, 4)"
    return reason


def semi_structured_obstacle(
    shape: Sequence[int], dtype: torch.dtype, capability: tuple[int, int], *, cusparselt: bool
) -> str:
    """Return why torch cannot store a weight in the 2:4 format on a device; empty if it can.

    >>> semi_structured_obstacle((48, 64), torch.float16, (8, 0), cusparselt=True)
    'its shape is 48x64, which has to be a multiple of 32x64'
    """
    if capability < (8, 0):
        return f"the device has compute capability {capability[0]}.{capability[1]}, 8.0 or more is needed"
    if capability >= (9, 0) and not cusparselt:
        return f"this torch has no cuSPARSELt, which compute capability {capability[0]}.{capability[1]} needs"
    if dtype == torch.float32:
        return "its type is torch.float32, which would be rounded to TF32, use float16 or bfloat16"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"its type is {dtype}, use float16 or bfloat16"
    if shape[0] % ROWS or shape[1] % COLUMNS or 0 in shape:
        return f"its shape is {shape[0]}x{shape[1]}, which has to be a multiple of {ROWS}x{COLUMNS}"
    return ""


def is_two_of_four(weight: Tensor) -> bool:
    """Return whether at most two of each four neighbours in a row of `(rows, columns)` are not zero.

    >>> is_two_of_four(torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 3.0, 4.0]]))
    True
    """
    return weight.shape[-1] % 4 == 0 and bool(((weight != 0).reshape(-1, 4).sum(1) <= 2).all())
