"""Plans of smaller models in the configuration of a Hugging Face model, which `from_pretrained` applies."""

import base64
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from torch import nn

from shrinkage.compression.plans.applying import applied
from shrinkage.compression.plans.noting import note_plans
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.tensors import Shape
from shrinkage.errors import PlanError, first_line, listed, warn_user
from shrinkage.integrations.fitted_plans import bare_names, fitted, without_adapters
from shrinkage.integrations.narrow_configs import narrow_numbers, numbers_in, take_numbers, write_numbers

try:
    import transformers
    from transformers import PreTrainedModel
    from transformers.quantizers.auto import (
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise ImportError("smaller models of it need transformers: pip install accelerate transformers") from error

# Where the module that registers it was not imported, transformers prints this name in a warning.
METHOD = "shrinkage, which `import shrinkage.integrations.transformers` makes known"

DENSE = "_numbers_of_dense_configuration"  # an attribute of models whose configuration has other numbers by now


class PlanEntry(QuantizationConfigMixin):
    """The entry `quantization_config` of a configuration: a plan as text, and the transformers that it was made with.

    It is where transformers looks for what changes the layers of a class. No weight is quantized. `reason` tells people
    why there is a plan, and no ordinary configuration.
    """

    def __init__(
        self, plan: str = "", transformers_version: str = transformers.__version__, reason: str = "", **_: Any
    ) -> None:
        self.quant_method: Any = METHOD
        self.plan = plan
        self.transformers_version = transformers_version
        self.reason = reason

    @classmethod
    def of(cls, plan: ShrinkPlan) -> Self:
        """Return the entry of `plan`, with the first n indices in place of the n that stay: a loader needs no more."""
        keep = {name: {dim: tuple(range(len(kept))) for dim, kept in dims.items()} for name, dims in plan.keep.items()}
        text = replace(plan, keep=keep).to_json()
        return cls(base64.b85encode(zlib.compress(text.encode(), 9)).decode())

    @property
    def shrink_plan(self) -> ShrinkPlan:
        """The plan.

        Raises PlanError if the text was damaged.
        """
        try:
            text = zlib.decompress(base64.b85decode(self.plan)).decode()
        except ValueError as error:
            raise self._damaged(error) from error
        except zlib.error as error:
            raise self._damaged(error) from error
        return ShrinkPlan.from_json(text)

    @staticmethod
    def _damaged(error: Exception) -> PlanError:
        return PlanError(
            "`quantization_config` of the model's config.json should hold a plan, and holds none that can be read "
            f"({first_line(error)}): save the model again"
        )


class PlanQuantizer(HfQuantizer):
    """Makes the model smaller that `from_pretrained` builds without numbers, before it reads any."""

    quantization_config: Any
    requires_calibration = False
    is_trainable = True
    is_qat_trainable = True
    is_compileable = True

    def is_serializable(self) -> bool:
        """Return that the model can be saved again."""
        return True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to be asked for as a way of quantizing."""
        if not self.pre_quantized:
            raise PlanError("a plan is no way of quantizing: load the dense model, and call `apply_plan` with it")

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        made_with = self.quantization_config.transformers_version
        plan = fitted(self.quantization_config.shrink_plan, model, f"transformers {made_with}")
        self.fitted = plan
        small = vars(applied(model, plan))
        vars(model).clear()  # transformers holds the model itself
        vars(model).update(small)
        if _release(made_with) != _release(transformers.__version__):
            warn_user(
                f"the model was saved with transformers {made_with}, and this is {transformers.__version__}: its code "
                "may compute with other numbers. If outputs differ or its first call fails, load it with that version"
            )

    def postprocess_model(self, model: Any, **kwargs: Any) -> None:
        """Leave an ordinary model of full precision, which knows its plan."""
        model.config.quantization_config = PlanEntry.of(self.fitted)
        model.config.quantization_config.reason = self.quantization_config.reason
        for name in ("hf_quantizer", "quantization_method"):
            vars(model).pop(name, None)
        model.is_quantized = False


def keep_plan(small: nn.Module, plan: ShrinkPlan) -> None:
    """Write the plan of a smaller model into its configuration, so that `from_pretrained` loads what it saves.

    `shrink` and `apply_plan` do so themselves, unless an ordinary configuration with other numbers gives the smaller
    model: then they write those. This function writes the plan in any case.

    Args:
        small: a `PreTrainedModel` that `shrink` or `apply_plan` made. If the model that they were given was smaller
            already, the plans are composed.
        plan: what made it.

    Loading needs `import shrinkage.integrations.transformers` before. The configuration of the dense model stays as it
    is.

    Raises:
        PlanError: the model is quantized, or the plan cuts a buffer that is not saved.
        TypeError: `small` is no `PreTrainedModel`.

    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    >>> dense = BertModel(BertConfig(vocab_size=16, **sizes))
    >>> from shrinkage import apply_plan
    >>> layer, kept = "encoder.layer.0", (0, 3)
    >>> up = {f"{layer}.intermediate.dense.{name}": {0: kept} for name in ("weight", "bias")}
    >>> keep = {**up, f"{layer}.output.dense.weight": {1: kept}}
    >>> small = apply_plan(dense, ShrinkPlan.of(dense, keep))
    >>> small.config.intermediate_size  # it needs no plan
    2
    >>> keep_plan(small, ShrinkPlan.of(dense, keep))
    >>> small.config.intermediate_size
    8
    """
    if not isinstance(small, PreTrainedModel):
        raise TypeError(f"expected a PreTrainedModel, found {type(small).__name__}: save others with `save_smaller`")
    plan, rename = without_adapters(plan, small), bare_names(small)
    unsaved = plan.keep.keys() - {rename(name) for name in small.state_dict()}
    if unsaved:
        raise PlanError(
            f"{listed(sorted(unsaved))} {'are buffers' if len(unsaved) > 1 else 'is a buffer'} that the plan cuts and "
            "that `save_pretrained` does not save: use `save_smaller`"
        )
    write_numbers(small.config, vars(small).pop(DENSE, {}))
    known = getattr(small.config, "quantization_config", None)
    if known is not None and not isinstance(known, PlanEntry):
        raise PlanError("the configuration has a `quantization_config` already: shrink the model before quantizing it")
    if known is not None:
        earlier = known.shrink_plan
        if not _is_of_smaller(plan, earlier):
            return  # the entry tells of it already
        plan = _as_it_is(earlier, plan.shapes).then(plan)
    if plan.keep or plan.biases or plan.attributes:
        small.config.quantization_config = PlanEntry.of(plan)


def _is_of_smaller(plan: ShrinkPlan, earlier: ShrinkPlan) -> bool:
    """Return whether `plan` is of the model that `earlier` makes, and not of a dense one."""
    lengths = {(name, dim): len(kept) for name, dims in earlier.keep.items() for dim, kept in dims.items()}
    return all(f"{path}.bias" in plan.shapes for path in earlier.biases) and all(
        plan.shapes[name][dim] == length for (name, dim), length in lengths.items() if name in plan.shapes
    )


def _as_it_is(plan: ShrinkPlan, shapes: Mapping[str, Shape]) -> ShrinkPlan:
    """Return `plan` of a model that has `shapes` by now: other heads, or more words, than the one that was cut."""
    known = {
        name: tuple(
            plan.shapes[name][dim] if dim in plan.keep.get(name, {}) else size for dim, size in enumerate(shape)
        )
        for name, shape in shapes.items()
    }
    keep = {name: dims for name, dims in plan.keep.items() if name in known}
    scales = {name: scale for name, scale in plan.scales.items() if name in known}
    return replace(plan, shapes=known, keep=keep, scales=scales)


def _release(version: str) -> list[str]:
    return re.findall(r"\d+", version)[:2]


if METHOD not in AUTO_QUANTIZER_MAPPING:  # a module that is loaded anew
    register_quantizer(METHOD)(PlanQuantizer)
if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(METHOD)(PlanEntry)


def _note(small: nn.Module, plan: ShrinkPlan) -> None:
    """Keep the plan of a model that was made smaller, as an ordinary configuration if one fits; warn if it cannot."""
    vars(small).pop(DENSE, None)  # of the model that was cut
    try:
        keep_plan(small, plan)
    except PlanError as error:
        warn_user(f"`from_pretrained` will not load what `save_pretrained` of the smaller model writes: {error}")
        return
    config: Any = small.config
    entry = getattr(config, "quantization_config", None)
    if entry is None:
        return
    narrow = narrow_numbers(small, entry.shrink_plan)
    if isinstance(narrow, str):
        entry.reason = narrow
        return
    numbers, fresh = narrow
    vars(small)[DENSE] = numbers_in(config, numbers)
    write_numbers(config, numbers)
    take_numbers(small, fresh)
    del config.quantization_config


note_plans(PreTrainedModel, _note)
