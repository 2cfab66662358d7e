"""Tensors that are spread over machines (fully_shard, tensor parallel, meshes). The only file that knows DTensor.

Every machine charges its own piece of a parameter. Where the machines cut between groups, that is all there is to it.
Where they cut through groups, the groups' sums are added up over the machines that share them: one message carries
what all parameters ask in a round (`sums.py`). A penalty that needs more than sums gets the whole tensor, everywhere.

Which of the three it is, and how often machines talk, follows from shapes and placements, which all machines know, and
never from values or from which gradients are there: so none of them waits in vain.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from shrinkage.penalties import Penalty
from shrinkage.penalties.coupled import Part
from shrinkage.prox import wide
from shrinkage.sums import Result, Sums


def is_spread(tensor: object) -> bool:
    """Return whether `tensor` is a DTensor. Where nobody imported them there are none, and no need to import them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Any:
    """Return this machine's piece of a tensor, which shares its memory; what is not spread comes back as it is."""
    return tensor.to_local() if is_spread(tensor) else tensor


def whole(tensor: Any) -> Any:
    """Return the whole of a tensor; all machines that hold a piece have to call this."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def place_of(tensor: Any) -> tuple[int, ...]:
    """Return where in the mesh this machine's piece of a tensor lies: the same for copies, another for each piece.

    Nothing for what is not cut.
    """
    if not is_spread(tensor):
        return ()
    mesh = tensor.device_mesh
    coordinates = zip(mesh.get_coordinate() or (), tensor.placements, mesh.shape, strict=False)
    return tuple(at for at, placement, size in coordinates if size > 1 and not placement.is_replicate())


def spread(piece: Tensor, like: Any) -> Any:
    """Return the tensor whose piece on this machine is `piece`, cut as `like` is."""
    if not is_spread(like):
        return piece
    return type_of_spread().from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def piece_like(tensor: Any, like: Any) -> Tensor:
    """Return this machine's piece of `tensor`, a whole one or one that is spread, cut as `like` is."""
    if is_spread(tensor) or not is_spread(like):
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
    """Return this machine's piece of the gradient of `parameter`, which shares its memory.

    A gradient whose parts still have to be added up over machines is replaced by their sum.
    """
    grad: Any = parameter.grad
    if is_spread(grad) and grad.placements != parameter.placements:
        parameter.grad = grad = grad.redistribute(placements=parameter.placements)
    piece: Tensor | None = local(grad)
    return piece


def local_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an optimizer keeps of a parameter, as far as it belongs to this machine's piece."""
    return {name: local(value) for name, value in state.items()} if any(map(is_spread, state.values())) else state


@dataclass(frozen=True, eq=False)
class Family:
    """Groups that span parameters of one optimizer.

    Args:
        weights: what the charge of each group's norm is multiplied by, shape `(groups,)`.
        machines: the process groups over which sums have to be added up, one after the other.
    """

    weights: Tensor
    machines: tuple[Any, ...]


@dataclass(frozen=True)
class Crossing:
    """How the groups of one parameter cross machines, or other parameters.

    Args:
        shape: of the whole parameter.
        cut: the dimensions along which machines cut it.
        machines: the process groups over which sums have to be added up, one after the other.
        family: the groups, if they span other parameters.
        part: which of them this machine's piece has, then.
    """

    shape: tuple[int, ...]
    cut: tuple[int, ...]
    machines: tuple[Any, ...]
    family: Family | None = None
    part: Part | None = None


def crossing_of(penalty: Penalty, parameter: Any) -> Crossing | None:
    """Return how the groups of `parameter` cross machines; None if every machine can charge its piece by itself."""
    if not is_spread(parameter):
        return None
    mesh, shape, cuts = parameter.device_mesh, tuple(parameter.shape), cuts_of(parameter)
    free = penalty.cuts(shape)
    machines = tuple(mesh.get_group(index) for index, dim in cuts.items() if dim not in free)
    return Crossing(shape, tuple(sorted(set(cuts.values()))), machines) if machines else None


def cuts_of(parameter: Any) -> dict[int, int]:
    """Return the dimension of `parameter` that machines cut, by the dimension of the mesh along which they lie."""
    mesh = parameter.device_mesh
    return {
        index: placement.dim % len(parameter.shape)
        for index, placement in enumerate(parameter.placements)
        if mesh.size(index) > 1 and not placement.is_replicate()
    }


def machines_of(parameter: Any) -> tuple[Any, ...]:
    """Return the process groups whose machines hold different pieces of `parameter`."""
    return tuple(map(parameter.device_mesh.get_group, cuts_of(parameter))) if is_spread(parameter) else ()


def part_here(part: Part, parameter: Any, machines: Sequence[Any]) -> Part:
    """Return which groups this machine's piece of `parameter` has, and whether it counts where `machines` add up.

    What several of them hold, the first counts.
    """
    own = {each.group_name for each in machines_of(parameter)}
    counts = all(each.group_name in own or dist.get_rank(each) == 0 for each in machines)
    if not is_spread(parameter):
        return replace(part, counts=counts)
    copy = sys.modules["torch.distributed.tensor"].Replicate()
    along = [copy if cuts_of(parameter).get(i) != part.dim else each for i, each in enumerate(parameter.placements)]
    column = part.groups.view([-1 if dim == part.dim else 1 for dim in range(parameter.dim())])
    numbers = type_of_spread().from_local(column, parameter.device_mesh, [copy] * len(along), run_check=False)
    own = local(numbers.redistribute(placements=along)).reshape(-1)
    return replace(part, groups=own, first=None, counts=counts)


def piece_penalty(penalty: Penalty, like: Any) -> Penalty:
    """Return `penalty` as it charges this machine's piece of a parameter."""
    return penalty.with_tensors(partial(piece_like, like=like)) if is_spread(like) else penalty


def whole_penalty(penalty: Penalty) -> Penalty:
    """Return `penalty` as it charges the whole of a parameter."""
    return penalty.with_tensors(whole)


def prox_across(penalty: Penalty, w: Any, step: float | Tensor, crossing: Crossing) -> Sums[Tensor]:
    """Return a computation of this machine's piece of the prox.

    Args:
        penalty: what is charged.
        w: the parameter.
        step: a number, or shaped like this machine's piece.
        crossing: how its groups cross machines.
    """
    piece = wide(local(w))
    computation = piece_penalty(penalty, w).prox_by_sums(piece, step, crossing.shape, crossing.cut)
    if computation is not None:
        return (yield from computation)
    steps = whole(spread(step, w)) if isinstance(step, Tensor) and step.dim() else step
    return piece_like(whole_penalty(penalty).prox(whole(spread(piece, w)), steps), w)


def gradient_across(penalty: Penalty, w: Any, crossing: Crossing) -> Sums[Tensor]:
    """Return a computation of this machine's piece of the gradient."""
    piece = wide(local(w))
    computation = piece_penalty(penalty, w).gradient_by_sums(piece, crossing.shape, crossing.cut)
    if computation is not None:
        return (yield from computation)
    return piece_like(whole_penalty(penalty).gradient(whole(spread(piece, w))), w)


def stays(penalty: Penalty, w: Any, average: Any, crossing: Crossing | None) -> Tensor:
    """Return where this machine's piece of `w` is zero and stationary for the gradient `average`."""
    if crossing is None:
        return piece_penalty(penalty, w).stays(wide(local(w)), local(average))
    return piece_like(whole_penalty(penalty).stays(wide(whole(w)), whole(average)), w)


def together(computations: Sequence[Sums[Result]], crossings: Sequence[Crossing]) -> list[Result]:
    """Run computations in step and return their results; one message a round carries what all of them ask.

    Args:
        computations: the same on all machines, in the same order.
        crossings: over which machines the sums of each are added up.
    """
    results: dict[int, Result] = {}
    asked: dict[int, Tensor] = {}

    def advance(index: int, sums: Tensor | None) -> None:
        try:
            asked[index] = next(computations[index]) if sums is None else computations[index].send(sums)
        except StopIteration as end:
            asked.pop(index, None)
            results[index] = end.value

    for index in range(len(computations)):
        advance(index, None)
    while asked:
        for index, sums in added_up(asked, crossings).items():
            advance(index, sums)
    return [results[index] for index in range(len(computations))]


def added_up(asked: Mapping[int, Tensor], crossings: Sequence[Crossing]) -> dict[int, Tensor]:
    """Return sums over machines, with one message per process group and type."""
    sums = dict(asked)
    groups = {machines.group_name: machines for index in asked for machines in crossings[index].machines}
    for name, machines in groups.items():
        members = [index for index in asked if any(each.group_name == name for each in crossings[index].machines)]
        for dtype in dict.fromkeys(sums[index].dtype for index in members):
            alike = [index for index in members if sums[index].dtype == dtype]
            message = torch.cat([sums[index].reshape(-1) for index in alike])
            dist.all_reduce(message, group=machines)
            parts = torch.split(message, [sums[index].numel() for index in alike])
            sums |= {index: part.view_as(sums[index]) for index, part in zip(alike, parts, strict=True)}
    return sums
