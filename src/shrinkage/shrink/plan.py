"""The plan of a smaller model: which channels of its class stay, as JSON, and applied to a fresh model."""

import base64
import copy
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from shrinkage.errors import PlanError
from shrinkage.shrink.export import joined, tensors_of
from shrinkage.shrink.layers import layer_attributes

VERSION = 1
Keep = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True)
class ShrinkPlan:
    """How a smaller model follows from the class of a dense one.

    Args:
        shapes: the shape of every parameter and buffer of the dense model, by dotted name.
        keep: for each parameter or buffer that is cut, the indices that stay, in order, by dimension.
        biases: dotted names of layers that get a bias that they did not have.
        attributes: new values of attributes of modules, by dotted name.
        version: of the format.

    A plan holds no weights and is applied without data and without tracing; as JSON it goes beside the weights.

    >>> from torch import nn
    >>> plan = ShrinkPlan.of(nn.Linear(4, 3), {"weight": {0: (0, 2)}, "bias": {0: (0, 2)}})
    >>> apply_plan(nn.Linear(4, 3), ShrinkPlan.from_json(plan.to_json()))
    Linear(in_features=4, out_features=2, bias=True)
    """

    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    keep: Keep = field(repr=False)
    biases: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    version: int = VERSION

    @classmethod
    def of(
        cls, model: nn.Module, keep: Keep, *, biases: Sequence[str] = (), attributes: Mapping[str, Any] | None = None
    ) -> Self:
        """Return the plan that keeps `keep` of `model`, with the attributes of ordinary layers filled in."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
        plan = cls(shapes, {name: dict(dims) for name, dims in keep.items()}, tuple(biases), {})
        found: dict[str, Any] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            own = [name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]]
            after = {name: plan.shape_after(joined(path, name)) for name in own}
            found |= {joined(path, name): value for name, value in layer_attributes(module, after).items()}
        return cls(shapes, plan.keep, plan.biases, {**(attributes or {}), **found})

    @property
    def fingerprint(self) -> str:
        """A hash of the names and shapes of the dense model."""
        listed = json.dumps(sorted((name, list(shape)) for name, shape in self.shapes.items()))
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    def shape_after(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter or buffer of the smaller model."""
        kept = self.keep.get(name, {})
        return tuple(len(kept[dim]) if dim in kept else size for dim, size in enumerate(self.shapes[name]))

    def to_json(self) -> str:
        """Return the plan as text, small enough for the header of a file of weights."""
        keep = {name: {dim: _packed(kept) for dim, kept in dims.items()} for name, dims in self.keep.items()}
        masks = sorted({mask for dims in keep.values() for mask in dims.values()})
        content = {
            "version": self.version,
            "torch": str(torch.__version__),
            "fingerprint": self.fingerprint,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "indices": masks,
            "keep": {name: {dim: masks.index(mask) for dim, mask in dims.items()} for name, dims in keep.items()},
            "biases": list(self.biases),
            "attributes": dict(self.attributes),
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the plan that `to_json` made.

        Raises PlanError for text that is no plan, one that was damaged, and one of a newer format.
        """
        try:
            content = json.loads(text)
            version = content["version"]
        except (ValueError, TypeError, KeyError) as error:
            raise PlanError(f"expected the JSON of a plan, as `ShrinkPlan.to_json` gives it, found {text[:40]!r}") from error
        if version != VERSION:
            raise PlanError(f"expected a plan of format {VERSION}, found {version}: update shrinkage to read it")
        try:
            indices = [_unpacked(mask) for mask in content["indices"]]
            keep = {
                name: {int(dim): indices[number] for dim, number in dims.items()}
                for name, dims in content["keep"].items()
            }
            shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
            attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in content["attributes"].items()}
            plan = cls(shapes, keep, tuple(content["biases"]), attributes)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, zlib.error) as error:
            raise PlanError(f"the plan is damaged ({type(error).__name__}: {error}): save it again") from error
        if plan.fingerprint != content.get("fingerprint"):
            raise PlanError("the plan is damaged (its fingerprint does not fit its shapes): save it again")
        return plan

    def __str__(self) -> str:
        before = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        after = sum(torch.Size(self.shape_after(name)).numel() for name in self.shapes)
        return f"ShrinkPlan: {len(self.keep)} of {len(self.shapes)} tensors are cut, {before:,} numbers become {after:,}"


def _packed(kept: Sequence[int]) -> str:
    """Return sorted indices as text: the compressed bits of their mask."""
    mask = bytearray(kept[-1] // 8 + 1 if kept else 0)
    for index in kept:
        mask[index // 8] |= 1 << index % 8
    return base64.b85encode(zlib.compress(bytes(mask), 9)).decode()


def _unpacked(text: str) -> tuple[int, ...]:
    mask = zlib.decompress(base64.b85decode(text))
    return tuple(8 * place + bit for place, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1)


def apply_plan(model: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Return the smaller model that `plan` makes of `model`, a dense model of the plan's class.

    Args:
        model: stays as it is; may be on the meta device, and then so is the result.
        plan: as `shrink` returned it, or read with `ShrinkPlan.from_json`.

    The weights that stay are copied, those that go never are. Tied parameters stay tied; modes, devices, dtypes,
    `requires_grad` and hooks are kept, gradients are not. A bias that is new starts at zero.

    Raises PlanError if `model` is not of the class that the plan was made for, listing what differs.

    >>> from torch import nn
    >>> plan = ShrinkPlan.of(nn.Linear(4, 3, bias=False), {"weight": {0: (0, 2)}})
    >>> apply_plan(nn.Linear(4, 3, bias=False), plan).weight.shape
    torch.Size([2, 4])
    """
    tensors = tensors_of(model)
    _check(tensors, plan)
    memo: dict[int, Any] = {}
    for name, tensor in tensors.items():
        if name in plan.keep and id(tensor) not in memo:
            memo[id(tensor)] = _cut(tensor, plan.keep[name])
    small = copy.deepcopy(model, memo)
    for parameter in small.parameters():
        parameter.grad = None
    for path in plan.biases:
        layer = small.get_submodule(path)
        weight = layer.get_parameter("weight")
        layer.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)
    for name, value in plan.attributes.items():
        path, _, attribute = name.rpartition(".")
        setattr(small.get_submodule(path), attribute, value)
    return small


def _check(tensors: Mapping[str, Tensor], plan: ShrinkPlan) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != dict(plan.shapes):
        if all(shapes.get(name) == plan.shape_after(name) for name in plan.shapes):
            raise PlanError("the model is the smaller one already: apply a plan to a dense model of the same class")
        names = [name for name in {**plan.shapes, **shapes} if shapes.get(name) != plan.shapes.get(name)]
        listed = "; ".join(f"`{n}`: {plan.shapes.get(n, 'none')} expected, {shapes.get(n, 'none')} found" for n in names[:3])
        raise PlanError(
            f"the model is not of the class that the plan was made for, {len(names)} tensors differ ({listed}):"
            " build it with the arguments of the dense model"
        )
    for name, dims in plan.keep.items():
        for dim, kept in dims.items():
            if name not in shapes or not 0 <= dim < len(shapes[name]) or not kept or kept[-1] >= shapes[name][dim]:
                raise PlanError(f"the plan keeps {len(kept)} indices along dimension {dim} of `{name}`, which it can not")


def _cut(tensor: Tensor, dims: Mapping[int, tuple[int, ...]]) -> Tensor:
    """Return a copy of `tensor` with the indices that stay; a parameter if it is one."""
    cut = tensor.detach()
    for dim, kept in dims.items():
        cut = cut.index_select(dim, torch.tensor(kept, dtype=torch.long, device=cut.device))
    if not isinstance(tensor, nn.Parameter):
        return cut
    parameter = nn.Parameter(cut, requires_grad=tensor.requires_grad)
    parameter.__dict__.update(copy.copy(tensor.__dict__))
    return parameter
