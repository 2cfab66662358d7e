"""Weights that a module computes from other parameters: what computes them, and what can be penalized instead."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

NORMS = "a zero in {0!r}, the norms, makes its row of the weight zero, and the scale of {1!r} plays no part"
SCALE_FREE = "its zeros are zeros of the weight, but its scale is divided out again"
ORTHOGONAL = "its zeros are not zeros of the weight, which stays orthogonal whatever is penalized"
MASKED = "the mask stays in force, and torch.nn.utils.prune.remove leaves the zeros of both in the weight"
UNKNOWN = "whether its zeros are zeros of the weight is up to what computes that"


class Computed(NamedTuple):
    """A weight that is no parameter.

    Args:
        attribute: its name in the module.
        by: what computes it.
        sources: names in the module of the parameters that it is computed from.
        meaning: what it means to penalize them; {0!r} and {1!r} stand for their names.
    """

    attribute: str
    by: str
    sources: tuple[str, ...]
    meaning: str


def computed_weights(module: nn.Module) -> Iterator[Computed]:
    """Yield the weights that `module` computes from parameters of its own."""
    if parametrize.is_parametrized(module):
        for attribute, chain in module.get_submodule("parametrizations").named_children():
            links = list(chain.children())
            sources = tuple(f"parametrizations.{attribute}.{name}" for name, _ in chain.named_parameters())
            by = " and ".join(type(link).__name__.removeprefix("_") for link in links)
            yield Computed(attribute, by, sources, meaning_of(links[0]) if len(links) == 1 else UNKNOWN)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield Computed(hook.name, "torch.nn.utils.weight_norm", (f"{hook.name}_g", f"{hook.name}_v"), NORMS)
        elif isinstance(hook, SpectralNorm):
            yield Computed(hook.name, "torch.nn.utils.spectral_norm", (f"{hook.name}_orig",), SCALE_FREE)
        elif isinstance(hook, prune.BasePruningMethod):
            yield Computed(hook._tensor_name, "torch.nn.utils.prune", (f"{hook._tensor_name}_orig",), MASKED)


def meaning_of(link: nn.Module) -> str:
    """Return what it means to penalize the parameters behind a parametrization."""
    if isinstance(link, parametrizations._WeightNorm):
        return NORMS
    if isinstance(link, parametrizations._SpectralNorm):
        return SCALE_FREE
    return ORTHOGONAL if isinstance(link, parametrizations._Orthogonal) else UNKNOWN
