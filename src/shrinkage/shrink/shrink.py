"""From exact zeros to a physically smaller model with the same outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shrinkage.errors import ShrinkError, shown
from shrinkage.shrink.attempts import TRIALS, Attempts
from shrinkage.shrink.caches import caches_of, emptied
from shrinkage.shrink.checks import check_not_packed
from shrinkage.shrink.comparison import Checks
from shrinkage.shrink.copies import plain, warn_of_hooks, with_own_state
from shrinkage.shrink.fold import readings
from shrinkage.shrink.graph import Coupling, call_failed, couple
from shrinkage.shrink.inputs import positional
from shrinkage.shrink.plan import ShrinkPlan
from shrinkage.shrink.reads import check_reads_own
from shrinkage.shrink.removal import Removal, zero_channels
from shrinkage.shrink.summary import KeptZeros, ShrinkReport, compared
from shrinkage.shrink.tensors import tensors_of
from shrinkage.shrink.verify import left_as_it_was

DIFFERENT = "outputs differ, or the model fails, when they are taken out"
UNTRIED = "outputs differ without channels that {} trials did not find, so that these stay as well"


@dataclass(frozen=True, eq=False, repr=False)
class Shrunk:
    """A smaller model with the outputs of a dense one, the plan that makes it from its class, and a report."""

    model: nn.Module
    plan: ShrinkPlan
    report: ShrinkReport

    def __repr__(self) -> str:
        before, after = self.report.before.parameters, self.report.after.parameters
        return f"Shrunk({type(self.model).__name__}, {before:,} to {after:,} parameters)"

    def __str__(self) -> str:
        return str(self.report)


def shrink(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    atol: float = 1e-5,
    round_to: int = 1,
    verify: bool = True,
    pin: Sequence[str] = (),
) -> Shrunk:
    """Return a smaller model with the outputs of `model`: channels that are zero, or that nobody reads, are taken out.

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

    Which channels are one and the same follows from the operators of `torch.export`; what an operator without a rule
    touches stays. A channel whose weights are zero but that puts out a constant is taken out where the biases behind it
    can take the constant up. What depends on an input is no constant, whatever numbers the example has there.

    Raises:
        ShrinkError: the parameters hold no numbers (the meta device), the model can not be called with the example
            inputs or not be copied, a copy would compute with layers of the model itself (global variables), it puts
            out nothing that could be compared, or `round_to` or `pin` make no sense.
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
    args, kwargs = positional(example_inputs), dict(example_kwargs or {})
    model = plain(model)
    _check(model, round_to)
    with left_as_it_was(model):
        check_reads_own(model, (args, kwargs))
        coupling = couple(model, args, example_kwargs=kwargs, pin=pin)
        try:
            found, products, needs = readings(coupling.traces, tensors_of(with_own_state(model)))
            checks = Checks.of(model, (args, kwargs), atol) if verify else Checks(atol)
        except ShrinkError:
            raise
        except Exception as failure:
            raise call_failed(model, failure) from failure
        attempts = Attempts(coupling, found, products, model, round_to, checks)
        choice, error, refusal = attempts.settled()
        removal, small, plan = attempts.compared(choice)
        kept = _kept(coupling, removal, model, choice.held, attempts.untried, refusal)
        with left_as_it_was(small):
            report = compared(model, small, plan, (args, kwargs), error, kept, coupling, checks.unvaried)
    warn_of_hooks(model, stacklevel=2)
    return Shrunk(small, plan, report)


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


def _kept(
    coupling: Coupling, removal: Removal, model: nn.Module, held: Tensor, untried: Tensor, refusal: str
) -> list[KeptZeros]:
    """Return the zero channels that stay, by parameter and reason."""
    counts: dict[tuple[str, str], int] = {}
    caches = caches_of(emptied(with_own_state(model)))
    for root, (name, _) in zero_channels(coupling, model).items():
        if removal.gone[root] or coupling.pinned.get(root, "").startswith("looked up by index"):
            continue  # rows of a table that are zero, such as that of the padding, are as they should be
        reason = coupling.pinned.get(root) or removal.reasons.get(root)
        if held[root]:
            reason = refusal or (UNTRIED.format(TRIALS) if untried[root] else DIFFERENT)
        if reason and any(phrase in reason for phrase in (DIFFERENT, "not used by any", "of fixed length")):
            kept = [cache for cache in caches if name.startswith(cache.rpartition(".")[0])]
            reason += f"; `{kept[0]}` keeps tensors of an earlier call" if kept else ""
        key = (name, reason or "needed by other channels, as the last one of its axis, or for a round number")
        counts[key] = counts.get(key, 0) + 1
    return [KeptZeros(name, count, reason) for (name, reason), count in counts.items()]
