"""What estimators that keep columns of a table share: the mask of columns, and a picture of the path."""

from typing import Any

from shrinkage.penalties.groups import Columns

try:
    from sklearn.base import BaseEstimator
    from sklearn.feature_selection import SelectorMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError("these estimators need scikit-learn: pip install scikit-learn") from error

READABLE = 20  # names in a legend


class KeepsColumns(SelectorMixin, BaseEstimator):
    """An estimator that keeps the columns of a table that the first layer of a network reads."""

    def _get_support_mask(self) -> Any:
        """Return which columns are kept; scikit-learn asks for it in `get_support`, `transform` and others."""
        check_is_fitted(self)
        return self.support_

    def _first_weight(self) -> str:
        """Return the name of the weight that reads the table."""
        raise NotImplementedError

    def plot(self) -> Any:
        """Draw the norm of each column's weights over the strength, and return the figure of matplotlib.

        A column is left out where its line reaches zero. The legend names the columns that are kept, twenty at most.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: there is no path, as the network is a module that was trained before.
            ImportError: matplotlib is not installed.
        """
        check_is_fitted(self)
        if not hasattr(self, "path_"):
            raise ValueError(
                f"{type(self).__name__} only read a {type(self.network_).__name__}: there is no path to draw; give it "
                "a skorch net, or draw feature_importances_"
            )
        try:
            from shrinkage.pictures.strength_paths import path_coefficients
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install matplotlib") from error
        names = getattr(self, "feature_names_in_", [f"x{number}" for number in range(self.n_features_in_)])
        kept = self.support_ if self.support_.sum() <= READABLE else [False] * len(names)
        # matplotlib leaves names that begin with _ out of a legend
        labels = [str(name) if each else f"_{name}" for name, each in zip(names, kept, strict=True)]
        figure = path_coefficients(self.path_, self._first_weight(), Columns(), labels=labels)
        figure.axes[0].set_title("At which strength does each column leave?")
        figure.axes[0].set_ylabel("norm of the column's weights")
        return figure
