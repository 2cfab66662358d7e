"""Tensors that are spread over processes (fully_shard, tensor parallel, meshes). The only file that knows DTensor.

Every process penalizes its own piece of a parameter. Where the processes cut between groups, that is all there is to
it. Where they cut through groups, the groups' sums are added up over the processes that share them: one message carries
what all parameters ask in a round (`reductions.py`). A penalty that needs more than sums gets the whole tensor,
everywhere.

Which of the three it is, and how often processes talk, follows from shapes and placements, which all processes know,
and never from values or from which gradients are there: so none of them waits in vain.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def is_dtensor(tensor: object) -> bool:
    """Return whether `tensor` is a DTensor. Where nobody imported them there are none, and no need to import them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Any:
    """Return this process's piece of a tensor, which shares its memory; what is not spread comes back as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Any) -> Any:
    """Return the whole of a tensor; all processes that hold a piece have to call this."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def place_of(tensor: Any) -> tuple[int, ...]:
    """Return where in the mesh this process's piece of a tensor lies: the same for copies, another for each piece.

    Nothing for what is not cut.
    """
    if not is_dtensor(tensor):
        return ()
    mesh = tensor.device_mesh
    coordinates = zip(mesh.get_coordinate() or (), tensor.placements, mesh.shape, strict=False)
    return tuple(at for at, placement, size in coordinates if size > 1 and not placement.is_replicate())


def spread(piece: Tensor, like: Any) -> Any:
    """Return the tensor whose piece on this process is `piece`, cut as `like` is."""
    if not is_dtensor(like):
        return piece
    return type_of_spread().from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def shard_like(tensor: Any, like: Any) -> Tensor:
    """Return this process's piece of `tensor`, a whole one or one that is spread, cut as `like` is."""
    if is_dtensor(tensor) or not is_dtensor(like):
        piece: Tensor = local(tensor)
        return piece
    module = sys.modules["torch.distributed.tensor"]
    copies = [module.Replicate()] * like.device_mesh.ndim
    copied = module.DTensor.from_local(tensor, like.device_mesh, copies, run_check=False)
    cut: Tensor = copied.redistribute(placements=like.placements).to_local()
    return cut


def put_shards_back(model: nn.Module) -> None:
    """Let FSDP's modules hold their shards, which an evaluation leaves gathered: the optimizer has the shards."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported here: it takes long, and is seldom needed
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def type_of_spread() -> Any:
    """Return the class DTensor."""
    return sys.modules["torch.distributed.tensor"].DTensor


def local_gradient(parameter: Any) -> Tensor | None:
    """Return this process's piece of the gradient of `parameter`, which shares its memory.

    A gradient whose parts still have to be added up over processes is replaced by their sum.
    """
    grad: Any = parameter.grad
    if is_dtensor(grad) and grad.placements != parameter.placements:
        parameter.grad = grad = grad.redistribute(placements=parameter.placements)
    piece: Tensor | None = local(grad)
    return piece


def local_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an optimizer keeps of a parameter, as far as it belongs to this process's piece."""
    return {name: local(value) for name, value in state.items()} if any(map(is_dtensor, state.values())) else state


def cuts_of(parameter: Any) -> dict[int, int]:
    """Return the dimension of `parameter` that processes cut, by the dimension of the mesh along which they lie."""
    mesh = parameter.device_mesh
    return {
        index: placement.dim % len(parameter.shape)
        for index, placement in enumerate(parameter.placements)
        if mesh.size(index) > 1 and not placement.is_replicate()
    }


def process_groups_of(parameter: Any) -> tuple[Any, ...]:
    """Return the process groups whose processes hold different shards of `parameter`."""
    return tuple(map(parameter.device_mesh.get_group, cuts_of(parameter))) if is_dtensor(parameter) else ()
