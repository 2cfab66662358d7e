"""`Path`: the points of a path, what to choose of them, and several paths joined."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from shrinkage.errors import listed, shown
from shrinkage.paths.joined import check_joined, joined
from shrinkage.paths.point import Point
from shrinkage.paths.states import load_state
from shrinkage.penalties.groups import Groups
from shrinkage.penalties.value_objects import value_class
from shrinkage.tables import Table, in_html


@value_class
class Path(Sequence[Point]):
    """The points of a path, in the order in which they were fitted. Prints as a table, also in notebooks.

    Args:
        points: one per strength.
        maximize: whether a higher score is better.
        runs: the paths that this one joins, if it does.

    `path` returns one. `len`, indices, slices and loops are those of a sequence of `Point`s. `pandas.DataFrame(rows())`
    is a table of pandas. `shrinkage.pictures.strength_paths` draws pictures.

    >>> from shrinkage.paths.point import Point
    >>> scores = {0.1: (1.05, 0.1), 0.2: (1.0, 0.1), 0.4: (1.08, 0.1), 0.8: (2.0, 0.1)}
    >>> found = Path(tuple(Point(s, 5 * s, 4, 0, 0, *score, 10) for s, score in scores.items()))
    >>> print(found)
    strength  zeros           score  error  updates  choice
    --------  -----  -------  -----  -----  -------  ------------------
         0.1    0.5   12.50%   1.05    0.1       10
         0.2      1   25.00%      1    0.1       10  best
         0.4      2   50.00%   1.08    0.1       10  one standard error
         0.8      4  100.00%      2    0.1       10
    >>> found.best.strength, found.one_standard_error.strength
    (0.2, 0.4)
    """

    points: tuple[Point, ...]
    maximize: bool = False
    runs: tuple["Path", ...] = ()

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> "Path": ...
    def __getitem__(self, index: int | slice) -> "Point | Path":
        """Return a point, or the path of a slice of the points."""
        if not isinstance(index, slice):
            return self.points[index]
        return replace(self, points=self.points[index], runs=tuple(run[index] for run in self.runs))

    @property
    def strengths(self) -> list[float]:
        """The strengths of the points."""
        return [point.strength for point in self]

    @property
    def best(self) -> Point:
        """The point with the best score; of equal ones, that of the greatest strength.

        Raises:
            ValueError: no point has a finite score.
        """
        return min(self._scored(), key=lambda point: (self.loss(point), -point.strength))

    @property
    def one_standard_error(self) -> Point:
        """The point of the greatest strength whose score is no worse than the best by more than its standard error.

        score(point) <= score(best) + error(best), or >= score(best) - error(best) where a higher score is better

        Raises:
            ValueError: no point has a finite score, or the best has no error.

        Reference: Breiman, Friedman, Olshen, Stone (1984), "Classification and regression trees", section 3.4.3;
        `lambda.1se` of glmnet.
        """
        best = self.best
        if not math.isfinite(best.error):
            raise ValueError(
                "the best score has no standard error: let score return a tensor, one loss per example, or join the "
                "paths of several folds with Path.together"
            )
        within = (point for point in self._scored() if self.loss(point) <= self.loss(best) + best.error)
        return max(within, key=lambda point: point.strength)

    @property
    def refits(self) -> "Path":
        """The path of the refits, with scores and weights of their own.

        Raises:
            ValueError: there were none.
        """
        points = tuple(point.refit for point in self if point.refit is not None)
        if len(points) < len(self) or not points:
            raise ValueError("the path has no refits: give path(..., refit=fit)")
        return replace(self, points=points, runs=tuple(run.refits for run in self.runs))

    def loss(self, point: Point) -> float:
        """Return the score of a point, or its negative if a higher one is better."""
        return -point.score if self.maximize else point.score

    def _scored(self) -> list[Point]:
        """Return the points with a finite score."""
        found = [point for point in self if math.isfinite(point.score)]
        if not found:
            raise ValueError("no point of the path has a finite score: give path(..., score=...), see its docstring")
        return found

    def at(self, strength: float | Point) -> Point:
        """Return the point at a strength, or at that of a point of another path.

        Raises:
            KeyError: the path has no such point.
        """
        wanted = strength.strength if isinstance(strength, Point) else strength
        for point in self:
            if point is strength or point.strength == wanted:
                return point
        raise KeyError(f"the path has no point at strength {shown(wanted)}; it has {listed(map(str, self.strengths))}")

    def load(self, model: nn.Module, strength: float | Point) -> Point:
        """Give `model` the weights and buffers of the point at a strength, and return the point.

        A choice made on joined folds is loaded from the path of all data: `whole.load(model, folds.best)`.

        Raises:
            KeyError: the path has no such point.
            ValueError: this is a join of several paths.
        """
        point = self.at(strength)
        if not point.state:
            raise ValueError("joined paths have no weights of their own: load from one of path.runs, or of all data")
        load_state(model, point.state)
        return point

    def coefficients(self, name: str) -> Tensor:
        """Return one tensor of the model's state at all points, shape `(points, *shape)`.

        Raises:
            KeyError: the state has no such tensor.
            ValueError: this is a join of several paths.
        """
        return torch.stack([point.tensor(name) for point in self])

    def frequency(self, name: str, groups: Groups | None = None) -> Tensor:
        """Return in which share of the joined paths each weight is not zero, shape `(points, *shape)`.

        Args:
            name: a tensor of the model's state.
            groups: count groups that are not zero as a whole, such as `Columns()`; shape `(points, groups)`.

        Paths of random halves of the data give stability selection: what is not zero in at least 0.6 of them at some
        strength, `(frequency(name).amax(0) >= 0.6)`, is selected.

        Raises:
            KeyError: the state has no such tensor.
            GroupError: the tensor does not fall into the groups.

        Reference: Meinshausen and Bühlmann (2010), "Stability selection", eq. 7.
        """
        total: Tensor | None = None
        runs = self.runs or (self,)
        for run in runs:
            there = torch.stack([selected(point.tensor(name), groups) for point in run]).double()
            total = there if total is None else total.add_(there)
        if total is None:
            raise ValueError("the path has no points")
        return total / len(runs)

    @staticmethod
    def together(paths: Sequence["Path"], weights: Sequence[float] | None = None) -> "Path":
        """Join paths along the same strengths, of folds or of resampled data: mean scores, and their standard errors.

        score = sum of w s / sum of w,   error = sqrt( sum of w (s - score)^2 / sum of w / (K - 1) ),   K paths

        Args:
            paths: two at least, each of a model of its own. Where one ended earlier, the others are cut there.
            weights: one number > 0 per path, such as the size of its fold (glmnet); left out, all are 1 (LassoCV).

        Raises:
            ValueError: fewer than two paths, other strengths or another direction of scores, or wrong weights.

        Reference: Friedman, Hastie, Tibshirani (2010), "Regularization paths for generalized linear models via
        coordinate descent", section 2.5, and `cvm` and `cvsd` of glmnet.
        """
        runs = tuple(paths)
        sizes = [1.0] * len(runs) if weights is None else [float(each) for each in weights]
        check_joined([run.strengths for run in runs], {run.maximize for run in runs}, sizes)
        count = min(map(len, runs))
        runs = tuple(run[:count] for run in runs)
        points = tuple(joined([run[index] for run in runs], sizes) for index in range(count))
        return Path(points, runs[0].maximize, runs)

    def rows(self) -> list[dict[str, float]]:
        """Return the numbers of each point, for `pandas.DataFrame` or a file."""
        return [point.to_dict() for point in self]

    def to_dict(self) -> dict[str, Any]:
        """Return the path as numbers, lists and dictionaries, ready for JSON; what is not finite is None."""
        rows = [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in self.rows()]
        chosen = {name: point.strength for name, point in self.choices().items()}
        return {"maximize": self.maximize, "points": rows, "choices": chosen}

    def choices(self) -> dict[str, Point]:
        """Return the points that a rule chooses, as far as there are scores and errors for it."""
        if not any(math.isfinite(point.score) for point in self):
            return {}
        found = {"best": self.best}
        return found | ({"one standard error": self.one_standard_error} if math.isfinite(found["best"].error) else {})

    def _parts(self) -> list[str | Table]:
        """Return what is printed; a column in which nothing stands is left out."""
        header = ["strength", "zeros", "", "zero groups", "score", "error", "refit", "error", "updates", "choice"]
        choices = self.choices()
        rows = []
        for point in self:
            refit = point.refit
            groups = f"{point.zero_groups:.4g} of {point.groups}" if point.groups else ""
            after = ["", ""] if refit is None else [number(refit.score), number(refit.error)]
            chosen = ", ".join(name for name, each in choices.items() if each is point)
            numbers = [f"{point.strength:.4g}", f"{point.zeros:g}", f"{100 * point.sparsity:.2f}%", groups]
            numbers += [number(point.score), number(point.error), *after, f"{point.updates:g}", chosen]
            rows.append(numbers)
        kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
        shown = [header[column] for column in kept]
        cells = [[row[column] for column in kept] for row in rows]
        joined = [f"{len(self.runs)} paths joined"] if self.runs else []
        return [*joined, Table(shown, cells, range(len(shown) - ("choice" in shown))), *self._at_ends()]

    def _at_ends(self) -> list[str]:
        """Return what is said of choices at an end of the strengths, beyond which there may be better ones."""
        lines = []
        for name, point in self.choices().items() if len(self) > 1 else ():
            if point.strength == max(self.strengths) and point.zeros < point.size:
                lines.append(f"{name}: the greatest strength, which leaves weights; add greater ones")
            if name == "best" and 0 < point.strength == min(self.strengths):
                lines.append(f"{name}: the smallest strength; begin with smaller ones, or with 0")
        return lines

    def __repr__(self) -> str:
        return "\n".join(map(str, self._parts()))

    def _repr_html_(self) -> str:
        return in_html(self._parts())


def selected(tensor: Tensor, groups: Groups | None) -> Tensor:
    """Return which elements of a tensor, or which groups, are not zero."""
    return tensor != 0 if groups is None else groups.view(tensor != 0).any(1)


def number(value: float) -> str:
    """Return a number of the printed table, nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.4g}"
