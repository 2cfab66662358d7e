"""Ordinary configurations of smaller models: other numbers in place of a plan, where one width fits all layers."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.results import tensors_in
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.tensors import Shape, joined, kind_of_layer, saved_shapes

# What configurations call the widths of their layers, which code has defaults for where there is none, and their counts
# of heads. Any other number that is as long as what was cut may be a width too.
WIDTHS = (
    *("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff", "mlp_dim", "hidden_dim"),
)
HEADS = (
    *("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "num_kv_heads"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)
STREAM = ("hidden_size", "d_model", "n_embd")  # the width of a residual stream, by which code may divide
CLOSE = 1e-4  # of the largest output

Numbers = Mapping[tuple[str, str], float]  # by the part of a configuration and the name there


def narrow_numbers(small: Any, plan: ShrinkPlan) -> tuple[dict[tuple[str, str], float], Any] | str:
    """Return the numbers with which the configuration of the dense model makes one like `small`, and that model.

    Args:
        small: a `PreTrainedModel`, with the configuration of the dense one.
        plan: what made it.

    The model is on the meta device. If there are no such numbers, it is said why: layers of a kind have several widths,
    or the code takes a width from elsewhere.
    """
    cuts = _cuts(plan)
    if isinstance(cuts, str):
        return cuts
    wanted = _all_shapes(small)
    numbers: dict[tuple[str, str], float] = {}
    wrong = _wrong(_built(small, numbers), wanted)
    while wrong:
        trials = [{**numbers, place: value} for place, value in _candidates(small.config, cuts) if place not in numbers]
        scored = [(_wrong(_built(small, trial), wanted), number) for number, trial in enumerate(trials)]
        best, number = min(scored, default=(wrong, 0))
        if best >= wrong:
            return _why_not(_built(small, numbers), wanted)
        wrong, numbers = best, trials[number]
    changes = cuts | {(_number(small.config, *place), value) for place, value in numbers.items()}
    numbers = _with_size_of_heads(small, _with_eps(small, plan, numbers))
    fresh = _built(small, numbers)
    texts = ", ".join(f"{joined(part, name)}={value}" for (part, name), value in numbers.items())
    if fresh is None or not _is_valid(fresh.config):
        return f"transformers does not accept {texts}"
    if not _same_numbers(small, fresh, changes):
        return f"modules have numbers that do not follow from {texts or 'the configuration'}"
    if not numbers:
        return "no number of the configuration changes"
    computed_with = any(name not in WIDTHS for _, name in numbers)
    if computed_with and not _same_outputs(small, numbers):
        return f"with {texts} its code computes something else, or it could not be called to see that"
    return numbers, fresh


def write_numbers(config: Any, numbers: Mapping[tuple[str, str], Any]) -> None:
    """Write numbers into a configuration, by the part of it and the name there."""
    for (part, name), value in numbers.items():
        setattr(getattr(config, part) if part else config, name, value)


def numbers_in(config: Any, places: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """Return what a configuration has at `places`."""
    return {place: _number(config, *place) for place in places}


def _number(config: Any, part: str, name: str) -> Any:
    return getattr(getattr(config, part) if part else config, name, None)


def _cuts(plan: ShrinkPlan) -> set[tuple[int, int]] | str:
    """Return the lengths before and after of all that is cut, or why no configuration has them."""
    if plan.biases:
        return f"{plan.biases[0]!r} has a bias that the dense model does not have"
    first: dict[tuple[str, Shape], str] = {}
    for name, shape in plan.shapes.items():
        other = first.setdefault((kind_of_layer(name), shape), name)
        if plan.shape_after(other) != plan.shape_after(name):
            return f"{other!r} is {plan.shape_after(other)}, and {name!r} {plan.shape_after(name)}"
    return {(plan.shapes[name][dim], len(kept)) for name, dims in plan.keep.items() for dim, kept in dims.items()}


def _candidates(config: Any, cuts: set[tuple[int, int]]) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield numbers of `config` that may have changed, by what lengths became."""
    parts = ["", *(name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is not None)]
    for part in parts:
        owner = getattr(config, part) if part else config
        numbers = {name: value for name, value in vars(owner).items() if type(value) is int}
        known = {name: getattr(owner, name) for name in (*WIDTHS, *HEADS, *STREAM) if hasattr(owner, name)}
        for name, value in (known | numbers).items():
            if name in HEADS and type(value) is int:
                sizes = {(before // value, after) for before, after in cuts if before % value == 0}
                found = {after // size for size, after in sizes if after % size == 0}
            else:  # where there is no number, the code has a default
                found = {after for before, after in cuts if value in (before, None)}
            yield from (((part, name), number) for number in sorted(found) if number and number != value)


def _built(small: Any, numbers: Numbers) -> Any:
    """Return a model without numbers of the class of `small`, made from its configuration with other `numbers`."""
    config = copy.deepcopy(small.config)
    try:
        write_numbers(config, _with_size_of_heads(small, numbers))
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return type(small)(config)
    except Exception:  # Whatever a configuration or a model does with numbers that do not fit.
        return None


def _is_valid(config: Any) -> bool:
    """Return whether transformers saves and reads `config`: it may ask for a width that is a multiple of the heads."""
    try:
        return bool(type(config).from_dict(config.to_dict()))
    except Exception:  # Errors of huggingface_hub, which are of no common class.
        return False


def _with_eps(small: Any, plan: ShrinkPlan, numbers: Numbers) -> dict[tuple[str, str], float]:
    """Return `numbers`, and the one that all norms add which `plan` changes, where the configuration has that."""
    values = {value for value in plan.attributes.values() if type(value) is float}
    fresh, found = _built(small, numbers), dict(numbers)
    if len(values) != 1 or fresh is None:
        return found
    paths = [name.rpartition(".") for name, value in plan.attributes.items() if value in values]
    before = {getattr(fresh.get_submodule(path), attribute, None) for path, _, attribute in paths}
    for name, value in vars(small.config).items():
        if "eps" in name and type(value) is float and before == {value}:
            found["", name] = next(iter(values))
    return found


def _with_size_of_heads(small: Any, numbers: Numbers) -> dict[tuple[str, str], float]:
    """Return `numbers`, and with other heads or another stream also the size of a head, which may follow from them."""
    sizes = {module.head_dim for module in small.modules() if isinstance(getattr(module, "head_dim", None), int)}
    others = {part for part, name in numbers if name in (*HEADS, *STREAM)}
    parts = {part for part in others if _number(small.config, part, "head_dim") is None}
    return {**numbers, **{(part, "head_dim"): size for part in parts for size in sizes if len(sizes) == 1}}


def _why_not(model: nn.Module | None, wanted: Mapping[str, Shape]) -> str:
    """Return which tensor of `model` has another shape than `wanted`."""
    found = {} if model is None else _all_shapes(model)
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    what = f"{wrong[0]!r} is {wanted[wrong[0]]}, and would be {found.get(wrong[0], 'absent')}"
    return f"{what}, whatever number of the configuration changes"


def _all_shapes(model: nn.Module) -> dict[str, Shape]:
    return saved_shapes(model, {name for name, _ in model.named_buffers()})


def _wrong(model: nn.Module | None, wanted: Mapping[str, Shape]) -> float:
    """Return how many tensors of `model` have other shapes than `wanted`; infinity where their names differ."""
    found = {} if model is None else _all_shapes(model)
    return sum(found[name] != wanted[name] for name in wanted) if found.keys() == wanted.keys() else float("inf")


def take_numbers(small: nn.Module, fresh: nn.Module) -> None:
    """Write into the modules of `small` the numbers that it keeps without reading them, as `fresh` has them."""
    for path, module in small.named_modules():
        for name, value in vars(fresh.get_submodule(path)).items():
            if type(value) in (int, float) and name in vars(module):
                setattr(module, name, value)


def _same_numbers(small: nn.Module, fresh: nn.Module, changes: set[tuple[Any, float]]) -> bool:
    """Return whether modules of both have the same numbers, but for those that `small` keeps without reading them."""
    others = dict(fresh.named_modules())
    for path, module in small.named_modules():
        if path not in others or type(others[path]) is not type(module):
            return False
        for name, value in vars(module).items():
            other = vars(others[path]).get(name)
            if type(value) in (int, float) and other != value and (value, other) not in changes:
                return False
    return True


@torch.no_grad()
def _same_outputs(small: Any, numbers: Numbers) -> bool:
    """Return whether a model with other `numbers` and the weights of `small` computes the same, if that can be told."""
    config = copy.deepcopy(small.config)
    write_numbers(config, numbers)
    try:
        inputs = _inputs(small)
        with torch.random.fork_rng(devices=[]):
            made = type(small)(config).to(small.device, small.dtype)
        made.load_state_dict(small.state_dict())
        pairs = [tensors_in(model.eval()(**inputs)) for model in (copy.deepcopy(small), made)]
    except Exception:  # Whatever a model asks for beside its main input.
        return False
    return all(
        one.shape == other.shape and bool((one - other).abs().max() <= CLOSE * one.abs().max())
        for one, other in zip(*pairs, strict=True)
        if one.is_floating_point()
    )


def _inputs(model: Any) -> dict[str, Tensor]:
    """Return an input for `model`: words or images."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        images = torch.randn(2, config.num_channels, height, width, generator=generator)
        return {"pixel_values": images.to(model.device, model.dtype)}
    words = torch.randint(config.get_text_config().vocab_size, (2, 9), generator=generator)
    return {"input_ids": words.to(model.device)}
