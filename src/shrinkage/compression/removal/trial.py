"""Whether a model computes the same without channels as with zeros in their place."""

from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.comparison import Checks
from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.calls.outputs import outputs, random_states_noted
from shrinkage.compression.copying.copies import copy_of
from shrinkage.compression.plans.normed_weights import lengths_of, multiply_lengths_, ratio
from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.compression.removal.channel_kinds import without
from shrinkage.compression.removal.lockstep import Lockstep
from shrinkage.compression.tracing.coupling import Coupling
from shrinkage.errors import PlanError

DIFFERENT = 1e-4  # of the largest output: more than sums in another order make, less than a wrong scale does


@dataclass(eq=False)
class Trial:
    """A removal of the channels `gone` from `model`, for `call`.

    `unchanged` are the attributes that keep their numbers. `problem` tells in words what was wrong with the last try.
    Only the shapes of outputs count where a call draws random numbers: without some channels it draws others. `last`
    has the channels that were set to zero last, what the model puts out then, and whether it draws.
    """

    coupling: Coupling
    model: nn.Module
    call: Call
    gone: Tensor
    unchanged: frozenset[str] = frozenset()
    problem: str = field(default="", init=False)
    last: tuple[Tensor, Checks, bool] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.lockstep = Lockstep(self.model, self.coupling, self.call)

    def possible(self) -> bool:
        """Return whether the model can be called: not if it is on the meta device, and its inputs are not."""
        for called in (lambda: self._with_zeros(self.gone), lambda: outputs(self.model, self.call)):
            with suppress(Exception):  # Whatever a model's code does where there are no numbers, or zeros.
                called()
                return True
        return False

    def fits(self, held: Tensor | None = None, unchanged: frozenset[str] | None = None, *, sized: bool = False) -> bool:
        """Return whether the model computes the same without those of the channels that are not `held`.

        Attributes that are `unchanged` keep their numbers. If `sized`, sizes in code are corrected.
        """
        gone = self.gone if held is None else self.gone & ~held
        kept = self.unchanged if unchanged is None else unchanged
        self.problem = "the model fails"
        try:
            small = without(gone, self.coupling, self.model, kept, self.lockstep if sized else None)
            error = self._error(small, *self._with_zeros(gone))
        except PlanError as refusal:
            self.problem = str(refusal)
            return False
        except Exception:  # Whatever a model's code does with other widths than it expects.
            return False
        if error < inf:
            self.problem = "" if error <= DIFFERENT else "the model puts out other numbers"
        return error <= DIFFERENT

    def _with_zeros(self, gone: Tensor) -> tuple[Checks, bool]:
        """Return what the model with zeros puts out, and whether it draws; once for the same channels."""
        if self.last is None or not torch.equal(self.last[0], gone):
            dense = with_zeros(self.model, self.coupling, gone)
            states = random_states_noted(dense)
            checks = Checks.of(dense, self.call, DIFFERENT, example_alone=True)
            self.last = gone, checks, not all(map(torch.equal, states[0], states[-1]))
        return self.last[1:]

    def _error(self, small: nn.Module, checks: Checks, drawing: bool) -> float:
        """Return by how much outputs differ; infinity where the smaller model fails, or shapes do."""
        if drawing or any(tensor.is_meta for tensor in small.parameters()):
            shapes = [[x.shape for x in each] for each in (outputs(small, self.call), checks.known[0][1])]
            return 0.0 if shapes[0] == shapes[1] else inf
        error = checks.error(small)
        return 0.0 if checks.accept(error) else error


def with_zeros(model: nn.Module, coupling: Coupling, gone: Tensor) -> nn.Module:
    """Return a copy of `model` in which whatever makes the channels `gone` is zero, and whatever reads them."""
    tensors, zeroed = tensors_of(model), dict[Tensor, Tensor]()
    for (name, dim), channels in coupling.axes.items():
        old, which = tensors[name], gone[channels]
        if which.any() and isinstance(old, nn.Parameter) and (name, dim) not in coupling.measured:
            new = zeroed.setdefault(old, nn.Parameter(old.detach().clone(), requires_grad=False))
            with torch.no_grad():
                new.index_fill_(dim, which.nonzero().flatten().to(new.device), 0.0)
    done: set[Tensor] = set()
    for name, directions, divisor in lengths_of(model):
        whole, lengths = tensors[directions], tensors[name]
        if whole in zeroed and lengths not in done:  # other entries of the weight are as before
            done.add(lengths)
            new = zeroed.setdefault(lengths, nn.Parameter(lengths.detach().clone(), requires_grad=False))
            multiply_lengths_(new, zeroed[whole], ratio(divisor, whole, zeroed[whole]).reshape(new.shape))
    return copy_of(model, {old: zeroed.get(old, old) for old in model.parameters()})
