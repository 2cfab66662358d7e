"""Penalties of the distance to a reference, such as the weights a model was pretrained with."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from shrinkage.errors import GroupError, ParameterError, SelectionError, shown
from shrinkage.penalties.base import Description, Penalty
from shrinkage.penalties.budget import reason
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.value_objects import value_class
from shrinkage.proximal import precision
from shrinkage.proximal.reductions import Reduction

Reference = Tensor | Mapping[str, Tensor]


@value_class
class Toward(Penalty):
    """Penalize the distance to a reference: fine-tuning that stays near the pretrained weights, or returns to them.

    R(w) = penalty(w - reference)

    `Toward(L2(strength))` is L2-SP. `Toward(L1(strength))` lets a weight move only if the data asks for it; all
    others are exactly the reference.

    Args:
        penalty: the penalty of the difference.
        reference: a tensor of the parameter's shape; a state_dict, in which the parameter is found by its name; None
            for the parameters as they are when the `Regularizer` is made.
        saved: keep the reference in `Regularizer.state_dict()`, as is done with one that was taken from the model.

    Raises:
        TypeError: `penalty` is not a penalty, or `reference` is something else.
        SelectionError: when resolved, if the state_dict lacks the parameter.
        ParameterError: when resolved, if the parameter is lazy and the reference is to be taken from it.
        GroupError: when resolved, if the reference has another shape.

    Reference: Li, Grandvalet and Davoine (2018), "Explicit inductive bias for transfer learning with convolutional
    networks", eq. 2.

    >>> from shrinkage import L1
    >>> Toward(L1(1.0), torch.tensor([2.0, 2.0])).prox(torch.tensor([5.0, 2.5]), step=1.0)
    tensor([4., 2.])
    """

    penalty: Penalty
    reference: Reference | None = None
    _: KW_ONLY
    saved: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty):
            raise TypeError(
                f"Toward: expected a penalty such as L2(1e-3), got {shown(self.penalty)}{reason(self.penalty)}"
            )
        if not (self.reference is None or isinstance(self.reference, Tensor | Mapping)):
            raise TypeError(f"Toward: reference must be a tensor, a state_dict or None, got {shown(self.reference)}")
        if isinstance(self.reference, Tensor):  # it may be the very parameter that is going to move
            object.__setattr__(self, "reference", self.reference.detach().clone())

    @property
    def smooth(self) -> bool:
        return self.penalty.smooth

    @property
    def explicit(self) -> bool:
        return self.penalty.explicit

    @property
    def holds_zeros(self) -> bool:
        """Whether the penalty holds zeros: here, weights at the reference."""
        return self.penalty.holds_zeros

    def slope(self, shape: Sequence[int]) -> float:
        return self.penalty.slope(shape)

    def origin(self, w: Tensor) -> Tensor:
        """Return the reference, moved by where the penalty itself draws to."""
        reference = self._reference(w)
        return reference + self.penalty.origin(w)

    def value(self, w: Tensor) -> Tensor:
        return self.penalty.value(w - self._reference(w))

    def gradient(self, w: Tensor) -> Tensor:
        return self.penalty.gradient(w - self._reference(w))

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        """Return the reference plus the penalty's prox of the difference; what does not move comes back bit for bit."""
        difference = precision.upcast(w) - self._reference(precision.upcast(w))
        return self._moved(w, difference, self.penalty.prox(difference, step))

    def prox_by_sums(
        self, w: Tensor, step: float | Tensor, shape: Sequence[int], cut: Collection[int] = ()
    ) -> Reduction[Tensor] | None:
        """Return the reference plus the penalty's."""
        difference = precision.upcast(w) - self._reference(precision.upcast(w))
        computation = self.penalty.prox_by_sums(difference, step, shape, cut)
        return None if computation is None else self._moved_by_sums(w, difference, computation)

    def gradient_by_sums(self, w: Tensor, shape: Sequence[int], cut: Collection[int] = ()) -> Reduction[Tensor] | None:
        return self.penalty.gradient_by_sums(w - self._reference(w), shape, cut)

    def _moved_by_sums(self, w: Tensor, difference: Tensor, computation: Reduction[Tensor]) -> Reduction[Tensor]:
        return self._moved(w, difference, (yield from computation))

    def _moved(self, w: Tensor, difference: Tensor, moved: Tensor) -> Tensor:
        upcast = precision.upcast(w)
        return torch.where(moved == difference, upcast, self._reference(upcast) + moved).to(w.dtype)

    def residual(self, w: Tensor, grad: Tensor) -> Tensor:
        return self.penalty.residual(w - self._reference(w), grad)

    @property
    def zero_groups(self) -> Groups | None:
        return self.penalty.zero_groups

    def nonzero(self, w: Tensor) -> Tensor:
        """Return where the difference is not 0."""
        return self.penalty.nonzero(w - self._reference(w))

    def stays(self, w: Tensor, average: Tensor) -> Tensor:
        """Return where the difference is 0 and stationary."""
        return self.penalty.stays(w - self._reference(w), average)

    def strength_max(self, grad: Tensor) -> Tensor:
        """Return the penalty's: the least strength at which the reference is stationary."""
        return self.penalty.strength_max(grad)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `GroupError` unless the penalty and the reference take `shape`."""
        self.penalty.check_shape(shape)
        if isinstance(self.reference, Tensor) and tuple(self.reference.shape) != tuple(shape):
            raise GroupError(f"the reference has shape {tuple(self.reference.shape)}, the parameter {tuple(shape)}")

    def cuts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Cut as the penalty does, and the reference alike."""
        return self.penalty.cuts(shape)

    def with_tensors(self, take: Callable[[Tensor], Tensor]) -> "Toward":
        reference = take(self.reference) if isinstance(self.reference, Tensor) else self.reference
        return Toward(self.penalty.with_tensors(take), reference, saved=self.saved)

    def describe(self, shape: Sequence[int] | None) -> Description:
        penalty, strength, groups = self.penalty.describe(shape)
        return Description(f"{penalty} toward reference", strength, groups)

    def bound(self, name: str, parameter: Tensor) -> "Toward":
        """Return the same with the reference of one parameter, on its device and in its type."""
        reference = self.reference
        if isinstance(reference, Mapping):
            if name not in reference:
                held = ", ".join(list(reference)[:3])
                raise SelectionError(f"the reference of {self} has no {name!r} of the model; it has {held} ...")
            reference = reference[name]
        if is_lazy(parameter):
            if reference is None:
                raise ParameterError(
                    f"{name!r} is lazy, so it has no value yet that {self} could take as its reference; run one "
                    "forward pass first"
                )
            return self
        source = parameter if reference is None else reference
        if not isinstance(source, Tensor):
            raise TypeError(f"Toward: the reference of {name!r} must be a tensor, got {shown(source)}")
        saved = self.saved or self.reference is None
        kept = source.detach().to(parameter.device, parameter.dtype)
        return Toward(self.penalty.bound(name, parameter), kept, saved=saved)

    def _reference(self, w: Tensor) -> Tensor:
        """Return the reference of a parameter."""
        if not isinstance(self.reference, Tensor):
            raise TypeError(f"{self} has no reference tensor yet: a Regularizer looks it up for each parameter")
        return self.reference.to(w.dtype)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Toward):
            return NotImplemented
        one, two = self.reference, other.reference
        same = torch.equal(one, two) if isinstance(one, Tensor) and isinstance(two, Tensor) else one is two
        return self.penalty == other.penalty and same

    def __hash__(self) -> int:
        return hash((Toward, self.penalty))

    def __repr__(self) -> str:
        reference = "the model as it is" if self.reference is None else f"<{type(self.reference).__name__}>"
        return f"Toward({self.penalty!r}, {reference})"
