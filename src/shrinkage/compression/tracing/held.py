"""Parameters and buffers that are never cut, and why: pinned, computed from others, of a rank in a configuration."""

import difflib
from collections.abc import Sequence

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from shrinkage.compression.plans.normed_weights import is_normed
from shrinkage.compression.plans.tensors import joined, tensors_of
from shrinkage.compression.removal.adapters import fixed_ranks
from shrinkage.errors import ShrinkError, shown
from shrinkage.selection.parametrized import computed_weights


def held(model: nn.Module, pin: Sequence[str]) -> dict[str, str]:
    """Return the parameters and buffers that are never cut, each with its reason."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        reason = held_by_computed(module)
        if reason:
            found |= {joined(path, name): reason for name in tensors_of(module)}
    names = tensors_of(model)
    for path in fixed_ranks(model):
        found |= dict.fromkeys((name for name in names if name.startswith(f"{path}.")), ADAPTER)
    for pattern in [pin] if isinstance(pin, str) else pin:
        pinned = [name for name in names if name == pattern or name.startswith(f"{pattern}.")]
        if not pinned:
            near = difflib.get_close_matches(pattern, [*names, *dict(model.named_modules())], n=3)
            raise ShrinkError(
                f"pin names {shown(pattern)}, which is no module or parameter of the model; nearest: {near}"
            )
        found |= dict.fromkeys(pinned, "pinned by you")
    return found


def held_by_computed(module: nn.Module) -> str:
    """Return why the tensors of `module` stay, if it computes weights from them; empty if it does not."""
    others = [each for each in computed_weights(module) if not is_normed(module, each)]
    if others and is_parametrized(module):
        return "behind a parametrization: remove it first, with torch.nn.utils.parametrize.remove_parametrizations"
    by = {each.attribute: each.by for each in others if each.by in COMPUTED}
    if not by:
        return ""
    first, *more = by
    return COMPUTED[by[first]].format(first) + "".join(f", and the same for {name!r}" for name in more)


COMPUTED = {
    "torch.nn.utils.prune": "pruned by a mask: make it permanent, with torch.nn.utils.prune.remove(module, {0!r})",
    "torch.nn.utils.weight_norm": "computed anew at each call: make it a parameter first, with remove_weight_norm",
    "torch.nn.utils.spectral_norm": "computed anew at each call: make it a parameter first, with remove_spectral_norm",
}
ADAPTER = "of an adapter of peft whose configuration has its rank: merge it first, or use LoRA"
