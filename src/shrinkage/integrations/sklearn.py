"""Estimators of scikit-learn that find which columns of a table matter: networks whose first layer has zero columns."""

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from shrinkage.errors import shown
from shrinkage.integrations.column_selector import ColumnSelector
from shrinkage.integrations.sparse_mlp import SparseMLP

try:
    import numpy as np
    from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.utils import column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import validate_data
except ImportError as error:
    raise ImportError("these estimators need scikit-learn: pip install scikit-learn") from error

__all__ = ["ColumnSelector", "SparseMLPClassifier", "SparseMLPRegressor"]

ARGUMENTS = """
    Args:
        n_features_to_select: how many columns are kept. None keeps the fewest whose loss on the rows held out is no
            worse than the best by more than its standard error, each measured after a refit.
        hidden_layer_sizes: the widths of the hidden layers, one at least.
        strengths: of the penalty, numbers > 0 that grow; or how many, spread from the small norms of columns of the
            dense network to three times the largest. Fewer are faster, more tell columns apart better.
        standardize: give each column mean 0 and standard deviation 1 first. The penalty compares columns, so columns of
            other scales are to be scaled here or before.
        batch_size: the most rows in one update; more rows are split into random parts of equal size.
        max_iter: the most updates of the dense fit, and of the last one. Both end earlier where the rows held out gain
            no more.
        iter_per_strength: updates at each strength.
        learning_rate: of Adam, in the dense fit and the last one.
        path_learning_rate: of SGD with momentum 0.9, along the strengths.
        validation_fraction: the share of rows held out, from 0 to less than 1. Of a share with fewer than ten rows, all
            rows serve for both.
        random_state: a number, a `numpy.random.RandomState`, or None, as everywhere in scikit-learn. torch's own random
            state is left as it was.

    Attributes:
        support_: which columns are kept, a boolean array; `get_support()` returns it too.
        feature_importances_: the strength at which each column left the path. Columns that left in one step are spread
            over it by their norms. 0 for constant columns.
        path_: the `Path`, which `plot()` draws, and `pictures.strength_paths`.
        module_: the network that predicts, in float32. It takes standardized columns, all of them.
        mean_: what is subtracted from each column.
        scale_: what each column is divided by after that.
        n_features_in_: how many columns there were; `feature_names_in_` their names, where a DataFrame was given.
        n_iter_: how many updates were made in all.
"""


class SparseMLPClassifier(ClassifierMixin, SparseMLP):
    __doc__ = f"""Classify by a network that reads few columns, and tell which.

    minimizes  mean cross entropy + strength * sum over columns j of MCP(||W_:j||),  W the weight of the first layer

    from weak to strong penalties, each fit beginning where the last one ended. Then the columns that are chosen are
    trained once more without the penalty, and the others are exactly zero.
{ARGUMENTS}        classes_: the labels, in the order of `predict_proba`.

    Raises:
        ValueError: in `fit`, if a parameter is out of its range, there are fewer than two classes, `X` is sparse or not
            finite, or training diverges.

    It also is a transformer, which keeps the chosen columns of a table, in a pipeline for example.

    Reference: Zhang (2010), "Nearly unbiased variable selection under minimax concave penalty"; Lemhadri et al. (2021),
    "LassoNet", section 3.3, for the way from dense to sparse.
    Columns that tell the same share what they tell: which of them are kept depends on `random_state`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 5))
    >>> y = np.where(X[:, 1] * X[:, 3] > 0, "same", "other")
    >>> classifier = SparseMLPClassifier(n_features_to_select=2, random_state=0).fit(X, y)
    >>> classifier.get_feature_names_out().tolist(), classifier.predict(X[:2]).tolist() == y[:2].tolist()
    (['x1', 'x3'], True)
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on `X`, shape `(rows, columns)`, and labels `y`, shape `(rows,)`."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {shown(self.classes_.item())}: a classifier needs two at least")
        losses = partial(nn.functional.cross_entropy, reduction="none")
        return self._fit(X, torch.as_tensor(codes), len(self.classes_), losses)

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, shape `(rows, classes)`."""
        return self._outputs(X).softmax(1).numpy()

    def predict(self, X: Any) -> Any:
        """Return the label with the highest probability, shape `(rows,)`."""
        best = self._outputs(X).argmax(1).numpy()
        return self.classes_[best]


class SparseMLPRegressor(RegressorMixin, MultiOutputMixin, SparseMLP):
    __doc__ = f"""Predict numbers by a network that reads few columns, and tell which.

    minimizes  mean squared error + strength * sum over columns j of MCP(||W_:j||),  W the weight of the first layer

    from weak to strong penalties, each fit beginning where the last one ended. Then the columns that are chosen are
    trained once more without the penalty, and the others are exactly zero. Targets are standardized inside.
{ARGUMENTS}        target_mean_: the mean of each target.
        target_scale_: its standard deviation.

    Raises:
        ValueError: in `fit`, if a parameter is out of its range, `X` is sparse or not finite, or training diverges.

    It also is a transformer, which keeps the chosen columns of a table, in a pipeline for example.

    Reference: as in `SparseMLPClassifier`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 5))
    >>> y = np.abs(X[:, 1]) + X[:, 3]
    >>> regressor = SparseMLPRegressor(n_features_to_select=2, random_state=0).fit(X, y)
    >>> regressor.get_feature_names_out().tolist(), regressor.score(X, y) > 0.9
    (['x1', 'x3'], True)
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on `X`, shape `(rows, columns)`, and numbers `y`, shape `(rows,)` or `(rows, targets)`."""
        X, y = validate_data(
            self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2, multi_output=True, y_numeric=True
        )
        y = np.asarray(y, dtype=np.float64)
        self.target_mean_, deviations = y.mean(0), y.std(0)
        self.target_scale_ = np.where(deviations > 0, deviations, 1.0)
        targets = torch.as_tensor((y - self.target_mean_) / self.target_scale_, dtype=torch.float32)
        return self._fit(X, targets.reshape(len(y), -1), y.size // len(y), squares)

    def predict(self, X: Any) -> Any:
        """Return the numbers predicted, of the shape of the targets."""
        outputs = self._outputs(X).numpy()
        return outputs.reshape(len(outputs), *self.target_mean_.shape) * self.target_scale_ + self.target_mean_


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each row, a mean over targets."""
    return (outputs - targets).square().mean(1)
