"""`ColumnSelector`: the columns of a table that the first layer of any network reads."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn

from shrinkage.errors import shown
from shrinkage.integrations.column_order import column_norms, columns_in_order, importances
from shrinkage.integrations.kept_columns import KeepsColumns
from shrinkage.integrations.table_fits import on_columns, spread_strengths
from shrinkage.paths.path import Path
from shrinkage.paths.strengths import checked_strengths
from shrinkage.paths.warm_starts import path
from shrinkage.training.regularizer import Regularizer

try:
    import numpy as np
    from sklearn.base import clone
    from sklearn.utils.validation import validate_data
except ImportError as error:
    raise ImportError("this selector needs scikit-learn: pip install scikit-learn") from error


class ColumnSelector(KeepsColumns):
    """Keep the columns of a table that the first layer of a network reads: a skorch net, or a module of torch.

    A skorch net is copied and trained: once densely, then at one strength after another, each time for its `max_epochs`
    from where it stood at the last, by its own loss, optimizer and callbacks,

    minimizing  loss + strength * sum over columns j of MCP(||W_:j||),  W the weight of the first layer.

    A module of torch is trained already, with any penalty; its columns are read as they are.

    Args:
        network: a skorch net, or a module that is trained.
        n_features_to_select: how many columns are kept. None keeps what is not zero at the last of `strengths`, or in
            the module.
        strengths: for a skorch net: numbers > 0 that grow; or how many, spread over the norms of columns of the dense
            network, which needs `n_features_to_select`.
        layer: the name of the first layer, such as "encoder.0". None takes the first weight of the network that has a
            column per column of the table.

    Attributes:
        support_: which columns are kept, a boolean array; `get_support()` returns it too.
        feature_importances_: the strength at which each column left the path; of a module, the norms of its columns.
        path_: the `Path` of a skorch net, which `plot()` draws.
        network_: the skorch net as it is at the end of the path, or the module.
        n_features_in_: how many columns there were; `feature_names_in_` their names, where a DataFrame was given.

    Raises:
        ValueError: in `fit`, if a parameter is out of its range, or no weight has a column per column of the table.

    Columns of other scales are to be standardized before. The table goes to the network in float32.

    >>> import numpy as np, torch
    >>> layer = torch.nn.Linear(3, 2)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]]), "bias": torch.zeros(2)})
    >>> ColumnSelector(torch.nn.Sequential(layer, torch.nn.ReLU())).fit_transform(np.array([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 3.0]]
    """

    network_: Any

    def __init__(
        self,
        network: Any,
        *,
        n_features_to_select: int | None = None,
        strengths: int | Sequence[float] = 20,
        layer: str | None = None,
    ) -> None:
        self.network = network
        self.n_features_to_select = n_features_to_select
        self.strengths = strengths
        self.layer = layer

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train a skorch net on `X`, shape `(rows, columns)`, and `y`, as the net takes it; read a module."""
        X = validate_data(self, X, dtype=np.float32)
        wanted = self.n_features_to_select
        if wanted is not None and not 1 <= wanted <= X.shape[1]:
            raise ValueError(f"n_features_to_select must be None, or from 1 to {X.shape[1]}, got {shown(wanted)}")
        if isinstance(self.network, nn.Module):
            self.network_ = self.network
            norms = column_norms([self.network.state_dict()], self._weight(self.network))
            self.feature_importances_ = norms[0].double().numpy()
        else:
            strengths = None if isinstance(self.strengths, int) else checked_strengths(self.strengths)
            if strengths is None and wanted is None:
                raise ValueError("give n_features_to_select, or the strengths as a list, whose last one decides")
            norms = self._train(X, y, strengths)
        left = int((norms[-1] != 0).sum())
        chosen = columns_in_order(norms)[: left if wanted is None else wanted]
        self.support_ = np.isin(np.arange(X.shape[1]), chosen.numpy())
        return self

    def _train(self, X: Any, y: Any, strengths: Sequence[float] | None) -> torch.Tensor:
        """Train a copy of the net densely and along the strengths, and return the norms of columns at each of them."""
        net = self.network_ = clone(self.network).initialize()
        module, weight = net.module_, self._weight(net.module_)
        net.partial_fit(X, y)
        dense = module.get_parameter(weight).detach().cpu().clone()
        if strengths is None:
            strengths = spread_strengths(dense.norm(dim=0), int(self.strengths))  # type: ignore[arg-type]

        def fit(regularizer: Regularizer) -> None:
            regularizer.attach(net.optimizer_)
            net.partial_fit(X, y)

        def enough(so_far: Path) -> bool:
            return so_far[-1].groups - so_far[-1].zero_groups <= (self.n_features_to_select or 0)

        self.path_ = path(module, on_columns(weight), fit, strengths=strengths, stop=enough, progress=False)
        norms = column_norms([{weight: dense}, *(point.state for point in self.path_)], weight)
        self.feature_importances_ = importances(norms, [0.0, *self.path_.strengths]).numpy()
        return norms

    def _weight(self, module: nn.Module) -> str:
        """Return the name of the weight that reads the table."""
        columns = self.n_features_in_
        prefix = "" if self.layer is None else f"{self.layer}."
        for name, parameter in module.named_parameters():
            if name.startswith(prefix) and parameter.ndim == 2 and parameter.shape[1] == columns:
                return name
        where = "the network" if self.layer is None else f"its layer {self.layer!r}"
        raise ValueError(f"{where} has no weight of shape (outputs, {columns}), a column per column of the table")

    def _first_weight(self) -> str:
        return self._weight(self.network_.module_)
