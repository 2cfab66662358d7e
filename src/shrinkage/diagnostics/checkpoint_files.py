"""Where in a checkpoint the weights are: programs save a state_dict alone, or under a name beside other things."""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from shrinkage.errors import listed

# Names under which programs keep the weights that they train; averages, teachers and the like have others.
MAIN = {
    "model",
    "model_state",
    "model_state_dict",
    "module",
    "net",
    "net_state_dict",
    "network",
    "network_state_dict",
    "params",
    "parameters",
    "state_dict",
    "weights",
}
OPTIMIZERS = re.compile(r"optim(i[sz]er|s?$|s?_)")  # beginnings of names under which their states are
TOP = "."  # the key of what stands in a file without a name
DEEPEST = 6  # a pickle may hold itself


def state_dicts(content: object, key: str = TOP, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every state_dict inside of `content` with its key: the names that lead there, joined by dots.

    A state_dict is a mapping that holds floating-point tensors with at least one dimension; at the top, where nothing
    inside is one, any tensors. What an optimizer keeps is none.
    """
    if depth > DEEPEST or not isinstance(content, Mapping | list | tuple) or belongs_to_optimizer(content):
        return
    found = False
    for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        if not (isinstance(name, str) and (name.endswith("_extra_state") or OPTIMIZERS.match(name))):
            for inner in state_dicts(value, str(name) if key == TOP else f"{key}.{name}", depth + 1):
                found = True
                yield inner
    tensors = tensors_of(content)
    if any(each.is_floating_point() and each.dim() for each in tensors.values()) or (
        tensors and key == TOP and not found
    ):
        yield key, tensors


def belongs_to_optimizer(content: object) -> bool:
    """Return whether `content` is the state_dict of an optimizer."""
    return isinstance(content, Mapping) and "param_groups" in content


def tensors_of(content: object) -> dict[str, Tensor]:
    """Return the tensors that stand in a mapping under names."""
    items = content.items() if isinstance(content, Mapping) else ()
    return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}


def chosen(content: object, key: str | None = None) -> tuple[str, dict[str, Tensor], list[str]]:
    """Return the key of the state_dict in `content` that is meant, the state_dict, and the keys of the others.

    Args:
        content: a checkpoint, or a state_dict.
        key: the entry that is meant; left out, the only one, or the only one with a name that models go by.

    Raises:
        ValueError: there is no state_dict, none under `key`, or several of equal rank.
    """
    found = dict(state_dicts(content))
    if not found:
        raise ValueError(f"does not hold a state_dict (names with tensors), but {described(content)}")
    inside = [name for name in found if key is None or name == key or name.startswith(f"{key}.")]
    if not inside:
        known = "is a state_dict itself" if list(found) == [TOP] else f"it has {listed(found)}"
        raise ValueError(f"has no state_dict under the key {key!r}: {known}")
    meant = key if key in inside else inside[0] if len(inside) == 1 else main(inside)
    return meant, found[meant], [name for name in found if name != meant]


def main(keys: Sequence[str]) -> str:
    """Return the one of several keys that names a model; raise `ValueError` if none or several do."""
    models = [key for key in keys if key.rpartition(".")[2] in MAIN]
    least = min((key.count(".") for key in models), default=0)
    nearest = [key for key in models if key.count(".") == least]
    if len(nearest) != 1:
        raise ValueError(f"holds {len(keys)} state_dicts, {listed(keys)}: say which by its key")
    return nearest[0]


def entries_instead(content: object) -> list[str]:
    """Return the keys of the state_dicts that a checkpoint holds; none if it is a state_dict itself."""
    keys = [key for key, _ in state_dicts(content)]
    inside = [key for key in keys if key != TOP]
    return inside if len(inside) == len(keys) or any(key.rpartition(".")[2] in MAIN for key in inside) else []


def described(content: object) -> str:
    """Return what `content` is, for an error message; of a mapping, its first entries too."""
    if not isinstance(content, Mapping):
        return f"an object of type {type(content).__name__}"
    entries = listed(map(str, content))
    return f"a {type(content).__name__} with the entries {entries}" if entries else f"an empty {type(content).__name__}"
