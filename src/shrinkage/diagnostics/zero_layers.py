"""Layers that are zero as a whole, by the names and shapes of their weights: they ignore their inputs."""

import re
from collections.abc import Iterable, Sequence

NAMED = 3
RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?(?![a-z])")
SCORES = re.compile(r"[qk]_proj_weight")  # of MultiheadAttention: where these are zero, it takes plain means
CAUSE = "The strength is probably too large: train on from an earlier checkpoint with a smaller one."
INPUTS = "the inputs"
CONSTANT = f"no longer depends on {INPUTS}"
WHOLE = f"what the model puts out {CONSTANT}"


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


def in_backticks(names: Sequence[str]) -> str:
    """Return some of `names` in words.

    >>> in_backticks(["a", "b", "c", "d", "e"])
    '`a`, `b`, `c` and 2 others'
    """
    first = ", ".join(f"`{name}`" for name in names[:NAMED])
    rest = len(names) - NAMED
    return first if rest <= 0 else f"{first} and {rest} other{'s' if rest > 1 else ''}"


def dead_layers(zeros: Iterable[tuple[str, Sequence[int], bool]]) -> tuple[str, ...]:
    """Return the names of the weights that are zero as a whole and keep their layer from what enters.

    A recurrent layer lives while one of its directions reads what enters, whatever its other weights are.

    Args:
        zeros: of each tensor its name, its shape, and whether all of it is zero.

    >>> directions = ("weight_ih_l0", "weight_ih_l0_reverse")
    >>> [dead_layers((name, (8, 4), name in zero) for name in directions) for zero in (directions[:1], directions)]
    [(), ('weight_ih_l0', 'weight_ih_l0_reverse')]
    """
    known = [each for each in zeros if 0 not in each[1] and is_layer_weight(*each[:2])]
    directions: dict[tuple[str, str], set[str]] = {}
    silent: dict[tuple[str, str], set[str]] = {}
    for name, _, all_zero in known:
        if recurrent := RECURRENT.search(name):
            layer, direction = _layer_of(recurrent), recurrent[3] or ""
            directions.setdefault(layer, set()).add(direction)
            if all_zero and recurrent[1] != "hh":
                silent.setdefault(layer, set()).add(direction)

    def cuts(name: str) -> bool:
        recurrent = RECURRENT.search(name)
        if recurrent is None:
            return SCORES.search(name) is None
        layer = _layer_of(recurrent)
        return recurrent[1] != "hh" and silent.get(layer) == directions[layer]

    return tuple(name for name, _, all_zero in known if all_zero and cuts(name))


def _layer_of(recurrent: re.Match[str]) -> tuple[str, str]:
    """Return the module and the number of the layer that a weight of a recurrent module belongs to."""
    return recurrent.string[: recurrent.start()], recurrent[2] or ""


def undefined_first(names: Sequence[str]) -> list[str]:
    """Return what is said of zeros that make a computed weight NaN, if there are any."""
    text = "the weight is divided by a norm of this, which is 0, and is NaN"
    return [f"{in_backticks(names)}: {text}. {CAUSE}"] if names else []


def told_first(names: Sequence[str]) -> list[str]:
    """Return what is said first of layers that are zero, if there are any."""
    verb = "is" if len(names) == 1 else "are"
    text = "zero as a whole: what the layer puts out no longer depends on what enters"
    return [f"{in_backticks(names)} {verb} {text}. {CAUSE}"] if names else []
