"""A linear layer that stores and multiplies its non-zero weights alone.

The weight is in CSR, compressed sparse rows: row i has the values `values[crow[i]:crow[i + 1]]` in the columns
`col[crow[i]:crow[i + 1]]`. Plain tensors in the layer and operators of their own, in place of a parameter of a sparse
layout, are what `deepcopy`, `state_dict`, safetensors, `torch.compile` and `torch.export` take.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.compression.sparse.csr import NARROW, autocast_type, silence_beta, sparse_linear
from shrinkage.errors import SparseFormatError, first_line
from shrinkage.penalties.pickling import found_at_former_place

MOST = 2**31 - 1  # indices are int32, which makes products up to twice as fast as int64
REAL = NARROW | {torch.float32, torch.float64}


@found_at_former_place
class SparseLinear(nn.Module):
    """A linear layer, y = x W' + b, that stores only the nonzero weights.

    Args:
        in_features, out_features: as in `nn.Linear`.
        nonzeros: how many weights are stored. They are 0 until `load_state_dict` gives them values and places; a layer
            with weights is made by `from_linear`.
        bias: whether there is one.
        device, dtype: of the values and the bias; float16, bfloat16, float32 or float64.

    Attributes:
        crow: `(out_features + 1,)`, int32; where in `values` each row begins.
        col: `(nonzeros,)`, int32; the column of each value.
        values: `(nonzeros,)`, a parameter: training moves the weights that are there, and the others stay zero.
        bias: `(out_features,)`, a parameter or None.

    The input is `(*, in_features)`, the output `(*, out_features)`, with any dimensions in front, in the type of the
    values; under autocast in that of autocast. On a CPU, float16 and bfloat16 are multiplied in float32, which a dense
    layer of these types may well beat.

    Raises:
        SparseFormatError: there are more than 2^31 - 1 non-zero weights, or the type is another.
        ValueError, TypeError: an input has other features or another type than the layer.

    A zero times an infinite or NaN input is 0 here, and NaN in a dense layer. There are no second derivatives.

    >>> linear = nn.Linear(3, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> sparse = SparseLinear.from_linear(linear)
    >>> sparse
    SparseLinear(in_features=3, out_features=2, bias=False, density=0.1667)
    >>> sparse(torch.ones(4, 3))[0]
    tensor([2., 0.], grad_fn=<SelectBackward0>)
    """

    crow: Tensor
    col: Tensor
    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        nonzeros: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_storable(nonzeros, in_features * out_features, dtype)
        self.in_features = in_features
        self.out_features = out_features
        begins = torch.arange(out_features + 1, device=device) * in_features
        places = torch.arange(nonzeros, device=device) % max(in_features, 1)
        self.register_buffer("crow", begins.clamp_(max=nonzeros).int())
        self.register_buffer("col", places.int())
        self.values = nn.Parameter(torch.zeros(nonzeros, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "SparseLinear":
        """Return the layer with the weights of `linear` that are not zero, and copies of them.

        Args:
            linear: of real floating-point type; -0.0 is a zero, NaN is not.

        Raises:
            SparseFormatError: as above.
        """
        weight = linear.weight.detach()
        present = weight != 0
        rows, columns = present.nonzero(as_tuple=True)
        made = cls(
            linear.in_features,
            linear.out_features,
            nonzeros=len(rows),
            bias=linear.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        made.crow[1:] = present.sum(1).cumsum(0)
        made.col = columns.int()
        made.values = nn.Parameter(weight[rows, columns], requires_grad=linear.weight.requires_grad)
        if made.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        return made.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return the ordinary layer, with copies of the weights bit for bit, and +0.0 for every zero."""
        made = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta", dtype=self.values.dtype
        )
        made.weight = nn.Parameter(self.weight.detach(), requires_grad=self.values.requires_grad)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return made.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight, `(out_features, in_features)`, made anew: for code that looks at it, not to be written."""
        rows = torch.repeat_interleave(self.crow.diff().long())
        dense = self.values.new_zeros(self.out_features, self.in_features)
        return dense.index_put((rows, self.col.long()), self.values)

    @property
    def density(self) -> float:
        """Share of the weights that are stored."""
        size = self.in_features * self.out_features
        return self.values.numel() / size if size else 0.0

    def forward(self, input: Tensor) -> Tensor:
        """Return input W' + b, `(*, out_features)`."""
        factors: tuple[Tensor, Tensor, Tensor | None] = (input, self.values, self.bias)
        dtype = autocast_type(input)
        if dtype is not None and input.dtype != torch.float64:
            factors = (input.to(dtype), self.values.to(dtype), None if self.bias is None else self.bias.to(dtype))
        x, values, bias = factors
        result: Tensor = sparse_linear(x, self.crow, self.col, values, bias, self.in_features)
        return result

    def extra_repr(self) -> str:
        """Return what stands between the brackets of the layer's text."""
        features = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{features}, bias={self.bias is not None}, density={self.density:.4g}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load, as torch has each module do; the last of the rest is the list of what is wrong."""
        saved = [state_dict[prefix + name] for name in ("crow", "col", "values") if prefix + name in state_dict]
        obstacle = self._obstacle(*saved) if len(saved) == 3 else None  # what is missing, torch tells
        if obstacle is None:
            super()._load_from_state_dict(state_dict, prefix, *rest)
        else:
            rest[-1].append(f"{prefix.removesuffix('.') or 'the layer'}: {obstacle}")

    def _obstacle(self, crow: Tensor, col: Tensor, values: Tensor) -> str | None:
        """Return why tensors that were saved cannot be loaded: a product reads memory where they point to."""
        if len(values) != len(self.values):
            return (
                f"{len(values)} non-zero weights were saved, and this layer stores {len(self.values)}; load into "
                f"SparseLinear({self.in_features}, {self.out_features}, nonzeros={len(values)}, ...), or save "
                "to_dense(model).state_dict(), which fits the ordinary model"
            )
        if values.is_meta:
            return None
        silence_beta()
        shape = (self.out_features, self.in_features)
        try:
            torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=True)
        except RuntimeError as error:
            return f"what was saved is no CSR matrix of {shape[0]}x{shape[1]}: {first_line(error)}"
        return None


def check_storable(nonzeros: int, size: int, dtype: torch.dtype) -> None:
    """Raise `SparseFormatError` unless so many of `size` weights of this type can be stored."""
    if dtype not in REAL:
        raise SparseFormatError(f"expected weights in float16, bfloat16, float32 or float64, got {dtype}")
    if not 0 <= nonzeros <= min(size, MOST):
        raise SparseFormatError(
            f"expected at most {min(size, MOST)} of {size} weights to be non-zero, got {nonzeros}; indices are 32-bit"
        )
