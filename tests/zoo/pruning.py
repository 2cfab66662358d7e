"""Channels as torch-pruning couples them, for comparison, and what it makes of zeros in them."""

import warnings

import torch_pruning
from torch import Tensor, nn

from zoo.case import Case
from zoo.harness import Channel, Member, choose, difference, outputs, zero_

SCALED = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.PReLU)
TRANSPOSED = nn.modules.conv._ConvTransposeNd


def graph(model: nn.Module, arguments: tuple[Tensor, ...]) -> torch_pruning.DependencyGraph:
    """The dependency graph. Building it puts the model into evaluation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=arguments)


def groups(dependencies: torch_pruning.DependencyGraph) -> list[torch_pruning.dependency.Group]:
    """Its coupled layers that may be pruned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(dependencies.get_all_groups(root_module_types=(nn.modules.conv._ConvNd, nn.Linear)))


def channels(model: nn.Module, arguments: tuple[Tensor, ...]) -> list[Channel]:
    """Its channels that some layer reads.

    `NotImplementedError` where the indices of a layer are not those of its parameters.
    """
    dependencies = graph(model, arguments)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [channel for group in groups(dependencies) for channel in channels_of(group, dependencies, names)]
    return [channel for channel in found if read(channel)]


def read(channel: Channel) -> bool:
    """Whether a layer reads the channel; else it is an output of the model, for all that torch-pruning knows."""
    return any(member.role == "in" for member in channel)


def channels_of(
    group: torch_pruning.dependency.Group, dependencies: torch_pruning.DependencyGraph, names: dict[int, str]
) -> list[Channel]:
    """The channels of one group, by their index in the layer that it starts from."""
    members: dict[int, list[Member]] = {}
    for item in group.items:
        dependency = item.dep
        makes = dependencies.is_out_channel_pruning_fn(dependency.handler)
        indices: dict[int, list[int]] = {}
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            indices.setdefault(root, []).append(index)
        for parameter, dim, role in slices(dependency.target.module, makes):
            for root, own in indices.items():
                members.setdefault(root, []).append(Member(names[id(parameter)], dim, own, role))
    return [members[root] for root in sorted(members)]


def slices(layer: nn.Module | nn.Parameter, makes: bool) -> list[tuple[nn.Parameter, int, str]]:
    """Which dimensions of which parameters are a layer's outputs, or its inputs."""
    match layer:
        case nn.modules.conv._ConvNd() if layer.groups == layer.in_channels == layer.out_channels:
            found = [(layer.weight, 0, "out"), (layer.bias, 0, "out")]
        case nn.modules.conv._ConvNd() if layer.groups > 1:
            raise NotImplementedError(f"grouped convolution {layer}")
        case nn.modules.conv._ConvNd() | nn.Linear():
            dim = int(makes == isinstance(layer, TRANSPOSED))
            found = [(layer.weight, dim, "out"), (layer.bias, 0, "out")] if makes else [(layer.weight, dim, "in")]
        case nn.Embedding():
            found = [(layer.weight, 1, "out")]
        case nn.Parameter():
            raise NotImplementedError("a parameter of no layer")
        case _ if isinstance(layer, SCALED):
            found = [(getattr(layer, "weight", None), 0, "out"), (getattr(layer, "bias", None), 0, "out")]
        case _ if not list(layer.parameters()):
            found = []
        case _:
            raise NotImplementedError(f"{type(layer).__name__}")
    return [(parameter, dim, role) for parameter, dim, role in found if parameter is not None]


def error(case: Case, share: float = 0.35, seed: int = 0) -> float:
    """How far off a model is that torch-pruning made smaller, after everything in a share of its channels was zero.

    NaN where it couples nothing.
    """
    model = case.make()
    arguments, keywords = case.example()
    if keywords:
        raise NotImplementedError("keyword arguments")
    dependencies = graph(model, arguments)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = []
    for group in groups(dependencies):
        found = channels_of(group, dependencies, names)
        if len(found) > 1 and all(map(read, found)):
            indices = choose(range(len(found)), share, seed)
            zero_(model, [found[index] for index in indices], "all")
            chosen.append((group, sorted(indices)))
    expected = outputs(model, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for group, indices in chosen:
            group.prune(idxs=indices)
    return difference(expected, outputs(model, case)) if chosen else float("nan")


def verdict(case: Case) -> str:
    """The error of torch-pruning as a number, or why there is none."""
    try:
        return f"{error(case):.1e}"
    except Exception as problem:
        lines = str(problem).strip().splitlines()
        return f"{type(problem).__name__}: {lines[-1][:80] if lines else ''}"
