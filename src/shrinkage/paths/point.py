"""`Point`: a model as it was fitted at one strength of a path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Point:
    """What a fit at one strength gave. Of joined paths, means over the paths.

    Args:
        strength: at which the model was fitted.
        zeros: how many of the penalized weights are exactly zero.
        size: how many there are. Smooth penalties give no zeros: weights that have one count only if all have.
        zero_groups: how many groups of penalized weights are zero as a whole.
        groups: how many there are, 0 if no penalty has groups.
        score: of the model; NaN without a function that gives it.
        error: the standard error of the score; NaN where one number tells none.
        updates: how many the fit made.
        state: the model's `state_dict`, full tensors on the CPU; empty where paths are joined.
        refit: the same of the refit that followed, if there was one.
    """

    strength: float
    zeros: float
    size: int
    zero_groups: float
    groups: int
    score: float
    error: float
    updates: float
    state: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    refit: "Point | None" = None

    @property
    def sparsity(self) -> float:
        """Share of penalized weights that are exactly zero."""
        return self.zeros / self.size if self.size else 0.0

    @property
    def empty(self) -> bool:
        """Whether nothing is left: all of the penalized weights are zero."""
        return self.size > 0 and self.zeros == self.size

    def tensor(self, name: str) -> Tensor:
        """Return one tensor of the state; raise `KeyError` or `ValueError` if there is none of this name."""
        if not self.state:
            raise ValueError("joined paths have no weights of their own: ask one of path.runs")
        found = self.state.get(name)
        if not isinstance(found, Tensor):
            raise KeyError(f"the model's state has no tensor {name!r}; it has {', '.join(self.state)}")
        return found

    def to_dict(self) -> dict[str, float]:
        """Return the numbers of the point, without its weights."""
        names = ("strength", "zeros", "size", "sparsity", "zero_groups", "groups", "score", "error", "updates")
        found = {name: getattr(self, name) for name in names}
        if self.refit is not None:
            found |= {"refit_score": self.refit.score, "refit_error": self.refit.error}
        return found
