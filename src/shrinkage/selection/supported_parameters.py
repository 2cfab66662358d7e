"""Which parameters can be penalized: real, with an element for each of their places, and computed from no others."""

import torch
from torch import Tensor, nn

from shrinkage.errors import ParameterError
from shrinkage.selection.named_parameters import NamedParameter

COMPLEX = (
    "keep it as torch.view_as_real(...) in a parameter of its own with one dimension more, in which "
    "GroupLasso(strength, Kernels(), weigh_by_size=False) penalizes the modulus of each number of a matrix, or "
)
REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def check_parameter(name: str, tensor: Tensor) -> None:
    """Raise `ParameterError` unless `tensor` is real floating point with an element for each of its places."""
    lazy = nn.parameter.is_lazy(tensor)
    what = f"{name!r} of shape {'lazy' if lazy else tuple(tensor.shape)}"
    if tensor.dtype not in REAL:
        ways = "" if not tensor.is_complex() else COMPLEX
        raise ParameterError(
            f"{what} has type {tensor.dtype}; only real floating-point parameters of 16 bits or more can be penalized: "
            f"{ways}put {{{name!r}: None}} before the rule that selects it"
        )
    if not lazy and tensor.layout == torch.strided and 0 in strides_of_several(tensor):
        raise ParameterError(
            f"{what} is expanded: several of its places share one element, which cannot be written one by one; "
            f"keep the tensor from before expand() as the parameter, or put {{{name!r}: None}} before the rule"
        )


def is_frozen(parameter: nn.Parameter | None) -> bool:
    """Return whether there is a parameter that takes no gradient."""
    return parameter is not None and not parameter.requires_grad


def strides_of_several(tensor: Tensor) -> list[int]:
    """Return the strides of the dimensions along which `tensor` has several elements."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def check_not_computed(candidate: NamedParameter) -> None:
    """Raise `ParameterError` if `candidate` is a weight that its module computes from other parameters."""
    computed = candidate.computed
    if computed is not None:
        prefix = candidate.name.removesuffix(candidate.attribute)
        own = [prefix + source for source in computed.sources]
        raise ParameterError(
            f"{candidate.name!r} is not a parameter: {computed.by} computes it from {' and '.join(map(repr, own))}, so "
            f"writing zeros into it would be lost; penalize that instead ({computed.meaning.format(*own)}), or put "
            f"{{{candidate.name!r}: None}} before the rule that selects it"
        )
