"""Which parameters of a layer are its weights: `weight`, and what recurrent and attention layers have in its place."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

RECURRENT = ("weight_ih*", "weight_hh*", "weight_hr*")  # of RNN, LSTM and GRU, of every layer and direction; of cells
PROJECTIONS = ("in_proj_weight", "[qkv]_proj_weight")  # of MultiheadAttention
BEHIND = ("_orig", "_g", "_v")  # how pruning, weight norm and spectral norm end what they compute a weight from
OUTPUT = "out_proj"  # the layer inside of MultiheadAttention, which has a weight of its own


def is_matrix(attribute: str) -> bool:
    """Return whether a parameter of this name is the weight of a recurrent or an attention layer.

    >>> is_matrix("weight_hh_l0_reverse"), is_matrix("k_proj_weight"), is_matrix("weight"), is_matrix("bias_k")
    (True, True, False, False)
    """
    named = any(fnmatchcase(attribute, glob) for glob in (*RECURRENT, *PROJECTIONS))
    return named and not attribute.endswith(BEHIND)


def is_weight(attribute: str) -> bool:
    """Return whether a layer's own parameter of this name is one of its weights."""
    return attribute in ("weight", f"{OUTPUT}.weight") or is_matrix(attribute)


def weights_of(layer: nn.Module, own: Iterator[str]) -> tuple[str, ...]:
    """Return globs on the names of the weights of `layer`, whose `own` parameters are called so; at least one.

    >>> weights_of(nn.GRU(2, 3), iter(["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])), weights_of(nn.ReLU(), iter([]))
    (('weight_ih*', 'weight_hh*'), ('weight',))
    """
    names = list(own)
    globs = ("weight", *RECURRENT, *PROJECTIONS)
    found = tuple(glob for glob in globs if any(fnmatchcase(name, glob) for name in names))
    output = (f"{OUTPUT}.weight",) if isinstance(layer, nn.MultiheadAttention) else ()
    return (*found, *output) or ("weight",)
