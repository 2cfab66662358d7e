"""Tensors that are sharded over processes (fully_shard, tensor parallel, meshes): what is asked of a DTensor.

Each process penalizes its own shard of a parameter. What holds for groups that are cut is in `group_sharding.py`.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def is_dtensor(tensor: object) -> bool:
    """Return whether `tensor` is a DTensor. If `torch.distributed.tensor` was never imported, there can be none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Any:
    """Return this process's shard of a tensor, which shares its memory; a plain tensor comes back as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Any) -> Any:
    """Return the full tensor; all processes that hold a shard have to call this."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def place_of(tensor: Any) -> tuple[int, ...]:
    """Return where in the mesh this process's shard of a tensor lies; empty for a plain tensor.

    Replicas of one shard have the same place.
    """
    if not is_dtensor(tensor):
        return ()
    mesh = tensor.device_mesh
    coordinates = zip(mesh.get_coordinate() or (), tensor.placements, mesh.shape, strict=False)
    return tuple(at for at, placement, size in coordinates if size > 1 and not placement.is_replicate())


def spread(shard: Tensor, like: Any) -> Any:
    """Return the tensor whose shard on this process is `shard`, distributed as `like` is."""
    if not is_dtensor(like):
        return shard
    return type_of_spread().from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def shard_like(tensor: Any, like: Any) -> Tensor:
    """Return this process's shard of `tensor`, full or distributed, cut as `like` is."""
    if is_dtensor(tensor) or not is_dtensor(like):
        shard: Tensor = local(tensor)
        return shard
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
    """Return this process's shard of the gradient of `parameter`, which shares its memory.

    A gradient whose sum over processes is still pending is replaced by that sum.
    """
    grad: Any = parameter.grad
    if is_dtensor(grad) and grad.placements != parameter.placements:
        parameter.grad = grad = grad.redistribute(placements=parameter.placements)
    shard: Tensor | None = local(grad)
    return shard


def local_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an optimizer keeps of this process's shard of a parameter."""
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
