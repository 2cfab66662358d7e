"""The parameters and buffers of a model by dotted name, and smaller copies of them."""

import re
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shrinkage.errors import PlanError

Shape = tuple[int, ...]
Keep = Mapping[str, Mapping[int, tuple[int, ...]]]
Scale = tuple[float, float]  # a factor, and what is added before it is applied and subtracted after
AS_IT_IS: Scale = (1.0, 0.0)


def joined(path: str, name: str) -> str:
    """Return the dotted name of `name` in the module at `path`.

    >>> joined("0.body", "weight"), joined("", "weight")
    ('0.body.weight', 'weight')
    """
    return f"{path}.{name}" if path else name


def layer_of(name: str) -> str:
    """Return the dotted name of the layer whose tensor has the dotted `name`, also where it is parametrized.

    >>> layer_of("0.weight"), layer_of("0.parametrizations.weight.0._u"), layer_of("weight")
    ('0', '0', '')
    """
    layer, parametrized, _ = f".{name}".partition(".parametrizations.")
    return (layer if parametrized else layer.rpartition(".")[0])[1:]


def kind_of_layer(name: str) -> str:
    """Return a dotted name without the numbers of layers: those of one kind have it in common.

    >>> kind_of_layer("layers.3.mlp.fc1.weight"), kind_of_layer("0.weight")
    ('layers.*.mlp.fc1.weight', '*.weight')
    """
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of `model` under all of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of `module` itself, none of its children's."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def saved_shapes(model: nn.Module, others: Container[str] = ()) -> dict[str, Shape]:
    """Return the shapes of what the state_dict of `model` holds, and of the buffers besides that are in `others`.

    Buffers that are not saved are often made anew with the sizes of the last batch.

    Raises:
        PlanError: a parameter or buffer is lazy.
    """
    unsaved = {
        joined(path, name)
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    shapes = {}
    for name, tensor in tensors_of(model).items():
        if is_lazy(tensor):
            raise PlanError(f"{name!r} is lazy and has no shape yet: call the model once before")
        if name not in unsaved or name in others:
            shapes[name] = tuple(tensor.shape)
    return shapes


def cut(tensor: Tensor, dims: Mapping[int, Sequence[int]]) -> Tensor:
    """Return a copy of `tensor` that holds the indices `dims[dim]` along each `dim`, in the same order of memory.

    >>> cut(torch.arange(6).reshape(2, 3), {0: (1,), 1: (0, 2)})
    tensor([[3, 5]])
    """
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])  # what is selected comes out contiguous
    result = tensor.detach().permute(order)
    for dim, kept in dims.items():
        result = result.index_select(order.index(dim), torch.tensor(kept, dtype=torch.long, device=tensor.device))
    return result.permute([order.index(dim) for dim in range(tensor.dim())])


def zero_slices(tensor: Tensor, dim: int) -> Tensor:
    """Return for each index along `dim` whether all entries there are zero, without a copy of `tensor`.

    >>> zero_slices(torch.tensor([[0.0, 1.0], [0.0, -2.0]]), 1)
    tensor([ True, False])
    """
    if tensor.layout != torch.strided:
        return _zero_slices_of_sparse(tensor, dim)
    if tensor.is_complex():
        return zero_slices(torch.view_as_real(tensor.resolve_conj()), dim % tensor.dim())
    rest = [other for other in range(tensor.dim()) if other != dim % tensor.dim()]
    if not rest:
        return tensor == 0
    if not tensor.numel():
        return torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    return (tensor.amax(rest) == 0) & (tensor.amin(rest) == 0)


def _zero_slices_of_sparse(tensor: Tensor, dim: int) -> Tensor:
    known = tensor.detach().to_sparse(layout=torch.sparse_coo).coalesce()
    if known.sparse_dim() < known.dim():  # which has dense dimensions, too
        return zero_slices(known.to_dense(), dim)
    zero = torch.ones(known.shape[dim], dtype=torch.bool, device=known.device)
    zero[known.indices()[dim % known.dim()][known.values() != 0]] = False
    return zero


def selected(weight: Tensor, dim: int, which: Tensor) -> Tensor:
    """Return the indices of `weight` along `dim` that are wanted; itself, not a copy, if all of them are."""
    return weight if which.all() else weight.index_select(dim, which.nonzero().reshape(-1).to(weight.device))


def scaled(tensor: Tensor, scale: tuple[float | Tensor, float]) -> Tensor:
    """Return `tensor` times a factor, rounded once; where the code adds an offset, it is that sum which is multiplied.

    >>> scaled(torch.tensor([0.0, 1.0]), (1.5, 1.0))
    tensor([0.5000, 2.0000])
    """
    factor, offset = scale
    return ((tensor.double() + offset) * factor - offset).to(tensor.dtype)


def copied(tensor: Tensor, dims: Mapping[int, Sequence[int]], scale: Scale | None = None) -> Tensor:
    """Return a copy of what `dims` keeps of `tensor` as what that is, a parameter or a buffer, with its attributes."""
    smaller = cut(tensor, dims) if dims else tensor.detach().clone()
    smaller = smaller if scale is None else scaled(smaller, scale)
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    vars(smaller).update(vars(tensor))
    return smaller


def shape_of_cut(shape: Shape, dims: Mapping[int, Sequence[int]]) -> Shape:
    """Return the shape of what `cut` makes of a tensor of `shape`."""
    return tuple(len(dims[dim]) if dim in dims else size for dim, size in enumerate(shape))


def composed(first: Keep, second: Keep) -> Keep:
    """Return which indices stay where `second` is cut from what `first` leaves.

    >>> composed({"weight": {0: (1, 4, 6)}}, {"weight": {0: (0, 2), 1: (3,)}})
    {'weight': {0: (1, 6), 1: (3,)}}
    """
    keep = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        before = keep.setdefault(name, {})
        before |= {dim: tuple(before[dim][i] for i in kept) if dim in before else kept for dim, kept in dims.items()}
    return keep
