"""Layers that are zero as a whole, by the names and shapes of their weights: they put out a constant."""

from collections.abc import Iterable, Sequence

NAMED = 3
CAUSE = "The strength is probably too large: train on from an earlier checkpoint with a smaller one."


def is_layer_weight(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor is a matrix or a filter of a layer, from its name.

    What is added, such as a table of positions, has another name. The second factor of LoRA starts at zero.

    >>> [is_layer_weight(name, (4, 3)) for name in ("0.weight", "rnn.weight_hh_l0", "q.lora_B.default.weight", "token")]
    [True, True, False, False]
    """
    parts = name.lower().split(".")
    return (
        len(shape) > 1 and any("weight" in part for part in parts[-2:]) and not any("lora_" in part for part in parts)
    )


def listed(names: Sequence[str]) -> str:
    """Return some of `names` in words.

    >>> listed(["a", "b", "c", "d", "e"])
    '`a`, `b`, `c` and 2 others'
    """
    first = ", ".join(f"`{name}`" for name in names[:NAMED])
    rest = len(names) - NAMED
    return first if rest <= 0 else f"{first} and {rest} other{'s' if rest > 1 else ''}"


def dead_layers(zeros: Iterable[tuple[str, Sequence[int], bool]]) -> tuple[str, ...]:
    """Return the names of the layers' weights that are zero as a whole, of names, shapes, and whether all is zero."""
    return tuple(
        name for name, shape, all_zero in zeros if all_zero and 0 not in shape and is_layer_weight(name, shape)
    )


def told_first(names: Sequence[str]) -> list[str]:
    """Return what is said first of layers that are zero, if there are any."""
    verb = "is" if len(names) == 1 else "are"
    return [f"{listed(names)} {verb} zero as a whole: what the layer puts out is a constant. {CAUSE}"] if names else []
