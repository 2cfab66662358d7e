"""What the networks for scikit-learn share: parameters, checks, the rows held out, and the fit along strengths."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from shrinkage.errors import shown
from shrinkage.integrations.column_order import column_norms, columns_in_order, importances, last_state_with
from shrinkage.integrations.kept_columns import KeepsColumns
from shrinkage.integrations.table_fits import FIRST, Fitting, Table, perceptron, spread_strengths, weights_of
from shrinkage.paths.fits import mean_and_error
from shrinkage.paths.path import Path
from shrinkage.paths.point import Point
from shrinkage.paths.states import load_state
from shrinkage.paths.strengths import checked_strengths
from shrinkage.penalties.groups import Columns
from shrinkage.penalties.schedules import check_positive

try:
    import numpy as np
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("these estimators need scikit-learn: pip install scikit-learn") from error

FEWEST = 10  # rows held out; where there would be fewer, all rows serve for both


class SparseMLP(KeepsColumns):
    """What the classifier and the regressor share."""

    def __init__(
        self,
        *,
        n_features_to_select: int | None = None,
        hidden_layer_sizes: Sequence[int] = (100,),
        strengths: int | Sequence[float] = 20,
        standardize: bool = True,
        batch_size: int = 2048,
        max_iter: int = 600,
        iter_per_strength: int = 120,
        learning_rate: float = 1e-3,
        path_learning_rate: float = 0.05,
        validation_fraction: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.n_features_to_select = n_features_to_select
        self.hidden_layer_sizes = hidden_layer_sizes
        self.strengths = strengths
        self.standardize = standardize
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.iter_per_strength = iter_per_strength
        self.learning_rate = learning_rate
        self.path_learning_rate = path_learning_rate
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _fit(self, X: Any, y: Tensor, outputs: int, losses: Callable[[Tensor, Tensor], Tensor]) -> Self:
        """Train on a table that is checked, and on targets as the loss takes them."""
        strengths = self._check(X.shape[1])
        generator = check_random_state(self.random_state)
        told = self._scale(X)
        x = self._inputs(X).float()
        rows, held = self._split(y, generator)
        table = Table(x[rows], y[rows], x[held], y[held], losses)
        lengths = self.batch_size, self.max_iter, self.iter_per_strength
        fitting = Fitting(table, *lengths, self.learning_rate, self.path_learning_rate)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.randint(np.iinfo(np.int32).max)))
            self._select(perceptron(self.hidden_layer_sizes, outputs, told), fitting, strengths)
        return self

    def _select(self, model: nn.Module, fitting: Fitting, strengths: int | Sequence[float]) -> None:
        """Train a network densely, then along the strengths, and then with the columns that are chosen."""
        wanted = self.n_features_to_select
        updates = fitting.to_early_stop(model)
        dense, whole = weights_of(model), dense_point(model, fitting.table)
        if isinstance(strengths, int):
            strengths = spread_strengths(dense[FIRST].norm(dim=0), strengths)
        found = fitting.along(model, strengths, least=wanted or 1, refit=wanted is None)
        norms = column_norms([dense, *(point.state for point in found)], FIRST)
        if not norms.isfinite().all():
            raise ValueError(
                "training diverged: the weights are not finite; give standardize=True, or a path_learning_rate of less "
                f"than {shown(self.path_learning_rate)}"
            )
        chosen = columns_in_order(norms)[: wanted or sparsest(whole, found)]
        start = last_state_with(norms, chosen)
        load_state(model, found[start - 1].state if start else dense)
        updates += fitting.with_columns(model, chosen)
        self.path_ = found
        self.feature_importances_ = importances(norms, [0.0, *found.strengths]).numpy()
        self.support_ = np.isin(np.arange(norms.shape[1]), chosen.numpy())
        self.n_iter_ = updates + sum(int(point.updates) for point in found)
        self.module_ = model.eval().requires_grad_(False)

    def _check(self, columns: int) -> int | list[float]:
        """Raise what is wrong about the parameters, and return the strengths, or how many."""
        name, wanted, share = type(self).__name__, self.n_features_to_select, self.validation_fraction
        if wanted is not None and not (is_count(wanted) and wanted <= columns):
            raise ValueError(f"{name}: n_features_to_select must be None, or from 1 to {columns}, got {shown(wanted)}")
        for parameter in ("batch_size", "max_iter", "iter_per_strength"):
            if not is_count(getattr(self, parameter)):
                raise ValueError(
                    f"{name}: {parameter} must be a whole number > 0, got {shown(getattr(self, parameter))}"
                )
        for parameter in ("learning_rate", "path_learning_rate"):
            check_positive(name, parameter, getattr(self, parameter))
        widths = self.hidden_layer_sizes
        if not (isinstance(widths, Sequence) and widths and all(map(is_count, widths))):
            raise ValueError(
                f"{name}: hidden_layer_sizes must be whole numbers > 0, such as (100,), got {shown(widths)}"
            )
        if not 0 <= share < 1:
            raise ValueError(f"{name}: validation_fraction must be from 0 to less than 1, got {shown(share)}")
        if is_count(self.strengths):
            return int(self.strengths)  # type: ignore[arg-type]
        strengths = checked_strengths(self.strengths)  # type: ignore[arg-type]
        if strengths != sorted(set(strengths)) or strengths[0] == 0:
            raise ValueError(f"{name}: strengths must be > 0 and grow, got {shown(self.strengths)}")
        return strengths

    def _scale(self, X: Any) -> Tensor:
        """Find means and scales of the columns, and return which are not constant."""
        if not self.standardize:
            self.mean_, self.scale_ = np.zeros(X.shape[1]), np.ones(X.shape[1])
            return torch.ones(X.shape[1], dtype=torch.bool)
        told = (X != X[0]).any(0)
        self.mean_ = np.where(told, X.mean(0, dtype=np.float64), X[0])  # means of constants are rounded
        self.scale_ = np.where(told, X.std(0, dtype=np.float64), 1.0)
        return torch.as_tensor(told)

    def _inputs(self, X: Any) -> Tensor:
        """Return what the network takes, in float64."""
        return torch.as_tensor((X - self.mean_) / self.scale_, dtype=torch.float64)

    def _split(self, y: Tensor, generator: Any) -> tuple[Tensor, Tensor]:
        """Return which rows to train on, and which are held out: by classes, as far as there are enough of each."""
        rows = torch.arange(len(y))
        count = round(self.validation_fraction * len(y))
        if count < FEWEST:
            return rows, rows
        classes = y if not y.is_floating_point() else None
        if classes is not None:
            each = classes.bincount()
            classes = classes if int(each.min()) > 1 and min(count, len(y) - count) >= len(each) else None
        train, held = train_test_split(rows.numpy(), test_size=count, random_state=generator, stratify=classes)
        return torch.as_tensor(train), torch.as_tensor(held)

    def _outputs(self, X: Any) -> Any:
        """Return what the network says, computed in float64: rows do not depend on what else is in the table."""
        check_is_fitted(self)
        x = self._inputs(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
        weights = {name: weight.double() for name, weight in self.module_.named_parameters()}
        with torch.no_grad():
            return torch.func.functional_call(self.module_, weights, (x,))

    def _first_weight(self) -> str:
        return FIRST


def dense_point(model: nn.Module, table: Table) -> Point:
    """Return what the dense network is on the rows held out, as the point of a path at strength 0."""
    there = Columns().norms(model.get_parameter(FIRST).detach()) != 0
    score, error = mean_and_error(table.held_losses(model))
    return Point(0.0, 0, 0, int((~there).sum()), len(there), score, error, 0)


def sparsest(whole: Point, found: Path) -> int:
    """Return how many columns the sparsest has that the rows held out cannot tell from the best.

    Args:
        whole: the dense network.
        found: the path from it, with refits.
    """
    refits = [point.refit for point in found if point.refit is not None and not point.empty]
    compared = Path((whole, *refits))
    chosen = compared.one_standard_error if math.isfinite(compared.best.error) else compared.best
    return int(chosen.groups - chosen.zero_groups)


def is_count(value: object) -> bool:
    """Return whether a parameter is a whole number > 0, of Python or of numpy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0
