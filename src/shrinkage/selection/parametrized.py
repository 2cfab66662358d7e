"""Weights that a module computes from other parameters: what computes them, and what can be penalized instead."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

NORMS = (
    "a zero in {0!r}, the norms, makes its row of the weight zero, and the scale of {1!r} plays no part; where a row "
    "of that is zero, the row of the weight is 0/0"
)
SCALE_FREE = (
    "its zeros are zeros of the weight, but its scale is divided out again; where all of it is zero, the weight is 0/0"
)
ORTHOGONAL = "its zeros are not zeros of the weight, which stays orthogonal whatever is penalized"
MASKED = "the mask stays in force, and torch.nn.utils.prune.remove leaves the zeros of both in the weight"
UNKNOWN = "whether its zeros are zeros of the weight is up to what computes that"


class Divisor(NamedTuple):
    """The parameter by whose norm a computed weight is divided: by that of each slice along `dim`, of all if None."""

    source: str
    dim: int | None

    def slices(self, tensor: Tensor) -> Tensor:
        """Return `tensor` as a matrix, of whose rows there is a norm each."""
        return tensor.reshape(1, -1) if self.dim is None else tensor.movedim(self.dim, 0).flatten(1)

    def vanishes(self, tensor: Tensor) -> bool:
        """Return whether a norm of `tensor` is 0, so that the weight is NaN."""
        return tensor.numel() > 0 and bool((self.slices(tensor) == 0).all(1).any())


class Vectors(NamedTuple):
    """The buffers by which spectral norm measures a weight: entries per index along `dim`, and per entry of a slice."""

    left: str
    right: str
    dim: int


class Computed(NamedTuple):
    """A weight that is no parameter.

    Args:
        attribute: its name in the module.
        by: what computes it.
        sources: names in the module of the parameters that it is computed from.
        meaning: what it means to penalize them; {0!r} and {1!r} stand for their names.
        divisor: the one whose norm it is divided by, None if there is none.
        vectors: buffers that measure the norm, None if there are none.
    """

    attribute: str
    by: str
    sources: tuple[str, ...]
    meaning: str
    divisor: Divisor | None = None
    vectors: Vectors | None = None

    @property
    def lengths(self) -> str | None:
        """The source that gives the norm back to what was divided by its own; None if there is none."""
        others = [name for name in self.sources if self.divisor is not None and name != self.divisor.source]
        return others[0] if others else None


def computed_weights(module: nn.Module) -> Iterator[Computed]:
    """Yield the weights that `module` computes from parameters of its own."""
    if "parametrizations" in module._modules and parametrize.is_parametrized(module):  # asked of every module
        for attribute, chain in module.get_submodule("parametrizations").named_children():
            links = list(chain.children())
            sources = tuple(f"parametrizations.{attribute}.{name}" for name, _ in chain.named_parameters())
            by = " and ".join(type(link).__name__.removeprefix("_") for link in links)
            if len(links) == 1:
                (link,) = links
                vectors = vectors_of(link, f"parametrizations.{attribute}.0")
                yield Computed(attribute, by, sources, meaning_of(link), divisor_of(link, sources), vectors)
            else:
                yield Computed(attribute, by, sources, UNKNOWN)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            norms, directions = f"{hook.name}_g", f"{hook.name}_v"
            divisor = Divisor(directions, None if hook.dim in (None, -1) else hook.dim)
            yield Computed(hook.name, "torch.nn.utils.weight_norm", (norms, directions), NORMS, divisor)
        elif isinstance(hook, SpectralNorm):
            source = f"{hook.name}_orig"
            vectors = Vectors(f"{hook.name}_u", f"{hook.name}_v", hook.dim)
            by, divisor = "torch.nn.utils.spectral_norm", Divisor(source, None)
            yield Computed(hook.name, by, (source,), SCALE_FREE, divisor, vectors)
        elif isinstance(hook, prune.BasePruningMethod):
            yield Computed(hook._tensor_name, "torch.nn.utils.prune", (f"{hook._tensor_name}_orig",), MASKED)


def meaning_of(link: nn.Module) -> str:
    """Return what it means to penalize the parameters behind a parametrization."""
    if isinstance(link, parametrizations._WeightNorm):
        return NORMS
    if isinstance(link, parametrizations._SpectralNorm):
        return SCALE_FREE
    return ORTHOGONAL if isinstance(link, parametrizations._Orthogonal) else UNKNOWN


def divisor_of(link: nn.Module, sources: tuple[str, ...]) -> Divisor | None:
    """Return by the norm of which of the `sources` a parametrization divides."""
    if isinstance(link, parametrizations._WeightNorm):
        return Divisor(sources[1], None if link.dim in (None, -1) else link.dim)
    return Divisor(sources[0], None) if isinstance(link, parametrizations._SpectralNorm) else None


def vectors_of(link: nn.Module, path: str) -> Vectors | None:
    """Return the buffers by which the parametrization at `path` measures the norm of a weight."""
    if not isinstance(link, parametrizations._SpectralNorm) or not list(link.buffers()):
        return None
    dim: Any = link.dim
    return Vectors(f"{path}._u", f"{path}._v", dim)
