"""Adapters of peft: their layers and configurations hold the ranks of their matrices as numbers."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from shrinkage.compression.plans.tensors import joined

LORA = ("peft.tuners.lora.layer", "LoraLayer")
ADALORA = ("peft.tuners.adalora.layer", "AdaLoraLayer")
ANY_ADAPTER = ("peft.tuners.tuners_utils", "BaseTunerLayer")
WRAPPER = ("peft.utils.other", "AuxiliaryTrainingWrapper")


def update_ranks(model: nn.Module) -> None:
    """Write the ranks that the matrices of LoRA have into the layers and the configurations of `model`.

    An adapter that is saved is built anew from its configuration, with `rank_pattern` and `alpha_pattern` where layers
    differ. The scale of each layer, alpha / r, or alpha / sqrt(r) with `use_rslora`, stays what it was.
    """
    changed = set()
    for _, layer in _lora_layers(model):
        for adapter, rank in _ranks(layer).items():
            if rank != layer.r[adapter]:
                share = rank / layer.r[adapter]
                alpha = layer.lora_alpha[adapter] * (math.sqrt(share) if layer.use_rslora.get(adapter) else share)
                layer.r[adapter], layer.lora_alpha[adapter] = rank, _whole(alpha)
                changed.add(adapter)
    for owner, configuration in _configurations(model).values():
        for adapter in changed & configuration.keys():
            _write(owner, configuration[adapter], adapter)


def fixed_ranks(model: nn.Module) -> Iterator[str]:
    """Yield the dotted names of the modules and parameters of adapters other than LoRA that have numbers of a rank."""
    adapted: list[tuple[str, Any]] = [(p, m) for p, m in model.named_modules() if is_of(m, ANY_ADAPTER)]
    for path, layer in adapted:
        if layer.other_param_names and (not is_of(layer, LORA) or is_of(layer, ADALORA)):
            yield from (joined(path, name) for name in layer.adapter_layer_names)


def _write(owner: nn.Module, configuration: Any, adapter: str) -> None:
    """Write what the layers of `adapter` have into its `configuration`: the largest, and by name what differs."""
    found = {name: layer for name, layer in _lora_layers(owner) if adapter in layer.r}
    largest = max(found.values(), key=lambda layer: int(layer.r[adapter]))
    configuration.r, configuration.lora_alpha = largest.r[adapter], largest.lora_alpha[adapter]
    pairs = (("rank_pattern", configuration.r, "r"), ("alpha_pattern", configuration.lora_alpha, "lora_alpha"))
    for pattern, common, attribute in pairs:
        numbers = {name: getattr(layer, attribute)[adapter] for name, layer in found.items()}
        # The keys are regular expressions, each for a name or its end: "^" asks for the whole name.
        setattr(configuration, pattern, {f"^{name}": n for name, n in numbers.items() if n != common})


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, layer) for name, layer in model.named_modules() if is_of(layer, LORA) and not is_of(layer, ADALORA))


def _ranks(layer: Any) -> dict[str, int]:
    """Return the rank of each adapter of `layer`: the rows of the first of its two matrices."""
    matrices = {adapter: matrix.weight for adapter, matrix in layer.lora_A.items()} | dict(layer.lora_embedding_A)
    return {adapter: int(matrix.shape[0]) for adapter, matrix in matrices.items()}


def _configurations(model: nn.Module) -> dict[int, tuple[nn.Module, dict[str, Any]]]:
    """Return the configurations by adapter that modules of `model` hold, each with the innermost that holds it.

    The names of layers in a configuration are those in the model that was given to peft.
    """
    found: dict[int, tuple[nn.Module, dict[str, Any]]] = {}
    for module in model.modules():
        configuration = vars(module).get("peft_config")
        if isinstance(configuration, dict):
            found[id(configuration)] = module, configuration
    return found


def _whole(number: float) -> float:
    """Return `number` as an integer where it is one."""
    return int(number) if float(number).is_integer() else number


def is_of(module: nn.Module, name: tuple[str, str]) -> bool:
    """Return whether `module` is of the class of that module and name, which is not imported here."""
    return any((cls.__module__, cls.__name__) == name for cls in type(module).__mro__)
