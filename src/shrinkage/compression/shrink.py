"""From exact zeros to a physically smaller model with the same outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from shrinkage.compression.calls.inputs import positional
from shrinkage.compression.copying.copies import plain, warn_of_hooks
from shrinkage.compression.plans.checks import check_not_packed
from shrinkage.compression.plans.noting import noted
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.compression.removal.summary import ShrinkReport
from shrinkage.diagnostics.zero_layers import CAUSE, CONSTANT, WHOLE
from shrinkage.errors import ShrinkError, shown, warn_user
from shrinkage.penalties.value_objects import value_class


@value_class
class Shrunk:
    """A smaller model with the outputs of a dense one, the plan that makes it from its class, and a report."""

    model: nn.Module
    plan: ShrinkPlan
    report: ShrinkReport

    def __repr__(self) -> str:
        before, after = self.report.before.parameters, self.report.after.parameters
        dead = any(WHOLE in text for text in self.report.collapsed)
        what = ", whose outputs no longer depend on the inputs" if dead else ""
        return f"Shrunk({type(self.model).__name__}, {before:,} to {after:,} parameters{what})"

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def shrink(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    atol: float = 1e-5,
    round_to: int = 1,
    verify: bool = True,
    pin: Sequence[str] = (),
    uniform: bool = False,
) -> Shrunk:
    """Return a smaller model with the outputs of `model`: channels that are zero or unused are removed.

    Args:
        model: stays as it is. Its outputs in evaluation mode are kept.
        example_inputs: a tuple of the positional arguments of a call of `model`, or the only one.
        example_kwargs: the keyword arguments of that call.
        atol: how much outputs may differ, relative to the largest number of the tensor that they are in. Models of half
            precision are compared in single precision, and may differ by their last digit.
        round_to: axes that are cut keep a multiple of this number of channels, zero ones if need be.
        verify: compare the outputs of both models on the example, on other numbers like it, on one more sample and on
            shorter inputs. What makes a difference is found, left in place and reported, and so are inputs of which
            the model takes no other numbers.
        pin: dotted names of modules or parameters that are not cut.
        uniform: layers of a kind, whose names differ by numbers alone, keep as many channels as the one that needs most
            of them, zero ones if need be, so that one width in a configuration can say how many.

    Which channels are one and the same follows from the operators of `torch.export`; what an operator without a rule
    touches stays. A channel whose weights are zero but that puts out a constant is removed where the biases behind it
    can take the constant up. What depends on an input is no constant, whatever numbers the example has there. A branch
    that is multiplied by an exact zero goes, although the zero could still learn.

    Where outputs no longer depend on the inputs, because all that comes from them meets zeros, a `UserWarning` says so,
    and so does the first line of the report: that is no smaller model but one that has collapsed.

    Raises:
        ShrinkError: the parameters hold no numbers (the meta device), the model cannot be called with the example
            inputs or not be copied, a copy would compute with layers of the model itself (global variables), it puts
            out nothing that could be compared, or `round_to` or `pin` make no sense. Without `verify`: the smaller
            model fails.
        TypeError: `model` is no module.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     model[0].weight[1] = 0
    >>> shrink(model, torch.randn(5, 4)).model
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )

    Exact up to the order of sums, in evaluation mode, for calls like the example: with the same flags and numbers that
    are no tensors, and a mask if and only if the example has one. In training mode the statistics of a batch can differ
    where a constant was folded into a bias before a batch norm. Tensors that modules keep of earlier calls are emptied
    where changing the mode, or moving the model, does that; others are compared as they are.
    """
    # Not imported before it is needed: analysis is a sixth of what the package would import.
    from shrinkage.compression.removal.smaller import made_smaller

    args, kwargs = positional(example_inputs), dict(example_kwargs or {})
    model = plain(model)
    _check(model, round_to)
    small, plan, report = made_smaller(
        model, (args, kwargs), pin=pin, atol=atol, round_to=round_to, verify=verify, uniform=uniform
    )
    for text in (each for each in report.collapsed if CONSTANT in each):
        warn_user(f"{text}. {CAUSE}")
    warn_of_hooks(model)
    return Shrunk(noted(small, plan), plan, report)


def _check(model: nn.Module, round_to: int) -> None:
    check_not_packed(model)
    if not isinstance(round_to, int) or round_to < 1:
        raise ShrinkError(f"expected round_to to be a whole number of 1 or more, found {shown(round_to)}")
    empty = [name for name, tensor in tensors_of(model).items() if tensor.is_meta]
    if empty:
        raise ShrinkError(
            f"`{empty[0]}` is on the meta device and holds no numbers, so that none is zero: load the weights first,"
            " or use `apply_plan` with a plan that exists"
        )
