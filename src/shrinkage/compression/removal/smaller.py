"""How a model is made smaller: follow it, choose what goes, compare the outputs, and report."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from shrinkage.compression.calls.comparison import Checks
from shrinkage.compression.calls.cost import costs
from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.calls.outputs import left_as_it_was
from shrinkage.compression.copying.copies import hooked_parameters
from shrinkage.compression.copying.shared_memory import check_reads_own
from shrinkage.compression.dataflow.collapse import collapsed
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.tensors import layer_of
from shrinkage.compression.removal.analysis import analyzed
from shrinkage.compression.removal.bisection import Attempts
from shrinkage.compression.removal.kept import kept_zeros
from shrinkage.compression.removal.summary import KeptZeros, LayerSummary, ShrinkReport
from shrinkage.compression.tracing.coupling import Coupling, call_failed, couple
from shrinkage.errors import ShrinkError
from shrinkage.selection.unregistered import unregistered


def made_smaller(
    model: nn.Module,
    call: Call,
    *,
    pin: Sequence[str],
    atol: float,
    round_to: int,
    verify: bool,
    uniform: bool = False,
) -> tuple[nn.Module, ShrinkPlan, ShrinkReport]:
    """Return the smaller model, the plan that makes it from `model`, and the report; arguments as in `shrink`."""
    args, kwargs = call
    with left_as_it_was(model):
        check_reads_own(model, call)
        coupling = couple(model, args, example_kwargs=kwargs, pin=pin)
        try:
            analysis = analyzed(model, coupling)
            checks = Checks.of(model, call, atol) if verify else Checks(atol)
        except ShrinkError:
            raise
        except Exception as failure:
            raise call_failed(model, failure) from failure
        attempts = Attempts(analysis, call, round_to, checks, uniform)
        choice, error, refusal = attempts.settled()
        removal, small, plan = attempts.compared(choice)
        kept = kept_zeros(attempts, removal, choice.held, refusal)
        texts = collapsed(coupling.traces, analysis.needs)
        with left_as_it_was(small), _failing_in_words(verify):
            return small, plan, _report(model, small, plan, call, error, kept, coupling, checks.unvaried, texts)


@contextmanager
def _failing_in_words(verify: bool) -> Iterator[None]:
    """Raise `ShrinkError` where the smaller model fails."""
    try:
        yield
    except ShrinkError:
        raise
    except Exception as failure:
        advice = "" if verify else ": let verify be True, which finds what makes it fail and leaves that in place"
        raise ShrinkError(f"the smaller model fails with {type(failure).__name__}, {failure}{advice}") from failure


def _report(
    model: nn.Module, small: nn.Module, plan: ShrinkPlan, call: Call, error: float, kept: Sequence[KeptZeros],
    coupling: Coupling, unvaried: tuple[str, ...], collapsed: tuple[str, ...],
) -> ShrinkReport:  # fmt: skip
    """Return the report on `small`, which `plan` made of `model`."""
    tensors: dict[str, list[str]] = {}
    for name in plan.keep:
        tensors.setdefault(layer_of(name), []).append(name)
    (before, after), (dense, cut) = costs([model, small], call, list(tensors))
    layers = [
        LayerSummary(
            layer, {name: (plan.shapes[name], plan.shape_after(name)) for name in names}, dense[layer], cut[layer]
        )
        for layer, names in tensors.items()
    ]
    return ShrinkReport(
        before,
        after,
        error,
        tuple(layers),
        tuple(kept),
        dict(coupling.unknown),
        dict(coupling.unexported),
        coupling.uncalled,
        unvaried,
        hooked_parameters(model),
        unregistered(model),
        collapsed,
    )
