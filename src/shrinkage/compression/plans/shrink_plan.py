"""The plan of a smaller model: which indices of its class's tensors stay, and as JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from math import prod
from typing import Any, Self

import torch
from torch import nn

from shrinkage.compression.copying.copies import plain
from shrinkage.compression.plans.attention import heads_left
from shrinkage.compression.plans.checks import (
    check_attributes,
    check_biases,
    check_can_be_cut,
    check_follows,
    check_keep,
    check_scales,
    check_values,
)
from shrinkage.compression.plans.index_text import decoded, encoded, hashed, tuples
from shrinkage.compression.plans.layers import widths_left
from shrinkage.compression.plans.normed_weights import cut_along
from shrinkage.compression.plans.numbers_in_code import CodeNumbers, numbers_in_turn
from shrinkage.compression.plans.sized_modules import check_numbers
from shrinkage.compression.plans.sizes import Tables, tables_from, tables_in_turn
from shrinkage.compression.plans.tensors import (
    Keep,
    Scale,
    Shape,
    composed,
    joined,
    layer_of,
    saved_shapes,
    shape_of_cut,
    tensors_of,
)
from shrinkage.compression.plans.tied import all_scales, scales_in_turn, under_all_names
from shrinkage.errors import PlanError
from shrinkage.penalties.pickling import found_at_former_place
from shrinkage.penalties.value_objects import ByFields, value_class
from shrinkage.tables import shape_text, table

VERSION = 4
READABLE = (1, 2, 3, VERSION)  # the first one has no sizes, the second no scales, and the third no numbers in code


@found_at_former_place
@value_class
class ShrinkPlan(ByFields):
    """The plan of a smaller model: which indices of each tensor of the dense model stay.

    A plan holds no weights, and is applied without data and without tracing. As JSON it goes beside the weights, into a
    checkpoint or the header of a safetensors file. `shrink` returns one; `ShrinkPlan.of` makes one by hand.

    Args:
        shapes: the shape of every parameter and saved buffer of the dense model, by dotted name.
        keep: the indices that stay, in rising order, by dimension, by name, for each tensor that is cut.
        biases: dotted names of layers that get a bias, which the dense ones do not have.
        attributes: new values of attributes of modules, by dotted name: numbers, strings, or tuples of them.
        torch_version: of the torch that the plan was made with, for the record.
        version: of the format.
        sizes: what the code of modules asks for as numbers, in `view` or `split`, and what is right instead, by dotted
            name, in tables that correct it one after the other.
        scales: by dotted name the factor of a parameter that is multiplied, and what the code adds to it before.
        numbers: in the code of modules, by dotted name: the name of a method, a number in it, and the one in its place.

    Raises:
        PlanError: indices that do not rise, none at all, or beyond the tensor that they are of.

    >>> plan = ShrinkPlan.of(nn.Linear(4, 3), {"weight": {0: (0, 2)}, "bias": {0: (0, 2)}})
    >>> print(plan)
    layer        weight  becomes  numbers  become
    -----------  ------  -------  -------  ------
    (the model)     3x4      2x4       15      10
    all                                15      10
    >>> ShrinkPlan.from_json(plan.to_json()) == plan
    True
    """

    shapes: Mapping[str, Shape] = field(repr=False)
    keep: Keep = field(repr=False)
    biases: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    torch_version: str = str(torch.__version__)
    version: int = VERSION
    sizes: Mapping[str, Tables] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)
    numbers: Mapping[str, CodeNumbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_keep(self.shapes, self.keep)
        check_values(self.attributes)
        check_scales(self.shapes, self.scales)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        keep: Mapping[str, Mapping[int, Sequence[int]]],
        *,
        biases: Sequence[str] = (),
        attributes: Mapping[str, Any] | None = None,
        scales: Mapping[str, Scale] | None = None,
        numbers: Mapping[str, CodeNumbers] | None = None,
    ) -> Self:
        """Return the plan that keeps `keep` of `model`, a dense one.

        What ordinary layers know of their widths is filled in (`register_layer` tells it of others), and tied
        parameters are cut under all of their names. What `attributes` says goes before that. The lengths of a weight
        norm and the vectors of a spectral norm are cut along with the directions, or the original, of their weight.

        Raises:
            PlanError: indices as above; a tensor that is cut in two ways, computed from others in another way, lazy,
                sparse, or spread over processes; a group of channels that is cut in two; a layer that has a bias or can
                have none.
        """
        model = plain(model)
        tensors = tensors_of(model)
        chosen = cut_along(model, tensors, under_all_names(tensors, keep))
        plan = cls(saved_shapes(model, chosen), chosen, tuple(biases), scales=all_scales(tensors, scales or {}))
        check_can_be_cut(model, tensors, chosen)
        check_biases(model, plan.biases)
        heads_left(model, chosen)
        widths = widths_left(model, chosen)
        check_attributes(model, {**widths, **(attributes or {})})
        check_numbers(model, numbers or {})
        return replace(plan, attributes={**widths, **(attributes or {})}, numbers=numbers or {})

    @property
    def fingerprint(self) -> str:
        """A hash of the names and shapes of the dense model's tensors."""
        return hashed(self.shapes)

    def shape_after(self, name: str) -> Shape:
        """Return the shape of the smaller model's parameter or buffer called `name`."""
        return shape_of_cut(self.shapes[name], self.keep.get(name, {}))

    def then(self, second: Self) -> Self:
        """Return the plan that does at once what this one does to the dense model, and `second` to the smaller one.

        Raises:
            PlanError: `second` is not of the model that this plan makes.

        >>> first = ShrinkPlan.of(nn.Linear(4, 3, bias=False), {"weight": {0: (0, 2)}})
        >>> second = ShrinkPlan.of(nn.Linear(4, 2, bias=False), {"weight": {0: (1,)}})
        >>> first.then(second).keep
        {'weight': {0: (2,)}}
        """
        new = {joined(path, "bias") for path in self.biases}
        check_follows(second.shapes, second.keep, {name: self.shape_after(name) for name in self.shapes}, new)
        return type(self)(
            shapes={**{name: shape for name, shape in second.shapes.items() if name not in new}, **self.shapes},
            keep=composed(self.keep, {name: dims for name, dims in second.keep.items() if name not in new}),
            biases=(*self.biases, *second.biases),
            attributes={**self.attributes, **second.attributes},
            sizes=tables_in_turn(self.sizes, second.sizes),
            scales=scales_in_turn(self.scales, second.scales),
            numbers={
                path: numbers_in_turn(self.numbers.get(path, ()), second.numbers.get(path, ()))
                for path in {**self.numbers, **second.numbers}
            },
        )

    def to_json(self) -> str:
        """Return the plan as one line of JSON: by tensor its shape and, by dimension, which mask of `masks` it keeps.

        A mask is the bits of the indices, compressed by deflate and written in base 85 (`base64.b85decode`).
        """
        cuts = {name: self.keep.get(name, {}) for name in self.shapes}
        masks = {kept: encoded(kept) for dims in cuts.values() for kept in dims.values()}
        numbers = {kept: number for number, kept in enumerate(masks)}
        content = {
            "version": self.version,
            "torch": self.torch_version,
            "fingerprint": self.fingerprint,
            "masks": list(masks.values()),
            "tensors": {
                name: [list(self.shapes[name]), {str(dim): numbers[kept] for dim, kept in dims.items()}]
                for name, dims in cuts.items()
            },
            "biases": list(self.biases),
            "attributes": dict(self.attributes),
            "sizes": dict(self.sizes),
            "scales": dict(self.scales),
            "numbers": dict(self.numbers),
        }
        return json.dumps({**content, "checksum": hashed(content)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the plan that `to_json` wrote.

        Raises:
            PlanError: `text` is no plan, is damaged, or has another format.
        """
        try:
            content = dict(json.loads(text))
            version, checksum = content["version"], content.pop("checksum", None)
        except (ValueError, TypeError, KeyError) as error:
            raise PlanError(
                f"expected what ShrinkPlan.to_json() wrote, found {str(text)[:40]!r} ({type(error).__name__})"
            ) from error
        if version not in READABLE:
            raise PlanError(
                f"the plan has format {version!r}, and this shrinkage reads formats 1 to {VERSION}: update it"
            )
        if checksum != hashed(content):
            raise PlanError("the plan was damaged or edited after to_json() wrote it: take it from its source again")
        masks = [decoded(mask) for mask in content["masks"]]
        tensors = content["tensors"].items()
        shapes = {name: tuple(shape) for name, (shape, _) in tensors}
        keep = {name: {int(dim): masks[number] for dim, number in dims.items()} for name, (_, dims) in tensors if dims}
        attributes = {name: tuples(value) for name, value in content["attributes"].items()}
        sizes = tables_from(content.get("sizes", {}))
        scales = {name: (factor, offset) for name, (factor, offset) in content.get("scales", {}).items()}
        numbers = {path: tuples(own) for path, own in content.get("numbers", {}).items()}
        biases, made_with = tuple(content["biases"]), content["torch"]
        return cls(shapes, keep, biases, attributes, made_with, sizes=sizes, scales=scales, numbers=numbers)

    def __str__(self) -> str:
        rows = []
        for layer in dict.fromkeys(layer_of(name) for name in self.shapes if name in self.keep):
            names = [name for name in self.shapes if layer_of(name) == layer]
            largest = max((name for name in names if name in self.keep), key=lambda name: prod(self.shapes[name]))
            shapes = shape_text(self.shapes[largest]), shape_text(self.shape_after(largest))
            rows.append([layer or "(the model)", *shapes, *self._counts(names)])
        rows.append(["all", "", "", *self._counts(self.shapes)])
        parts = [table(["layer", "weight", "becomes", "numbers", "become"], rows, right=range(1, 5))]
        if self.biases:
            parts.append("new biases, not in these numbers: " + ", ".join(self.biases))
        listed = {layer_of(name) for name in self.keep}  # layers whose widths the table tells
        others = {name: value for name, value in self.attributes.items() if layer_of(name) not in listed}
        if others:
            parts.append("attributes: " + ", ".join(f"{name} = {value}" for name, value in others.items()))
        if self.sizes:
            parts.append("sizes corrected in the code of: " + ", ".join(path or "the model" for path in self.sizes))
        if self.numbers:
            own = [(path, *each) for path, several in self.numbers.items() for each in several]
            texts = [f"{before:g} in {joined(path, method)} by {after:g}" for path, method, before, after in own]
            parts.append("numbers replaced in code: " + ", ".join(texts))
        if self.scales:
            parts.append("multiplied: " + ", ".join(f"{name} by {scale[0]:.6g}" for name, scale in self.scales.items()))
        return "\n\n".join(parts)

    def _counts(self, names: Iterable[str]) -> tuple[str, str]:
        """Return how many numbers the tensors called `names` hold before and after, as text."""
        pairs = [(prod(self.shapes[name]), prod(self.shape_after(name))) for name in names]
        return f"{sum(before for before, _ in pairs):,}", f"{sum(after for _, after in pairs):,}"
