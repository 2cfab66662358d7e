"""torchlayers' `L1` and `L2`, for code that was written with them.

They keep the calling convention, and act as that package's documentation says: the derivative of the penalty is added
to the gradient, for any layer of the model and not only the first, once per update whatever the number of accumulated
batches, and not divided by a loss scale. The module comes back itself instead of in a wrapper, so `state_dict` keys
stay as they are. A parameter takes one penalty: nesting `L1` in `L2` is an error; use `shrinkage.ElasticNet`.
"""

import glob
from typing import TypeVar

from torch import nn

from shrinkage.penalties import convex
from shrinkage.training.regularize import regularize

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def L1(module: ModuleType, weight_decay: float, name: str | None = None) -> ModuleType:
    """Add weight_decay * sign(w) to the gradient of the module's parameters whose names contain `name`.

    Args:
        module: any module, with all its submodules.
        weight_decay: >= 0, loss units per unit of |w|.
        name: part of the parameters' dotted names; None penalizes all of them.

    Raises:
        SelectionError: no parameter has such a name.
        ValueError: `weight_decay` is negative or not finite.

    >>> import torch
    >>> layer = L1(torch.nn.Linear(30, 10), weight_decay=1e-5, name="weight")
    """
    return regularize(module, convex.L1(weight_decay), parameter=containing(name), how="gradient")


def L2(module: ModuleType, weight_decay: float, name: str | None = None) -> ModuleType:
    """Add weight_decay * w to the gradient of the module's parameters whose names contain `name`.

    Args:
        module: any module, with all its submodules.
        weight_decay: >= 0, loss units per unit of w^2 / 2.
        name: part of the parameters' dotted names; None penalizes all of them.

    Raises:
        SelectionError: no parameter has such a name.
        ValueError: `weight_decay` is negative or not finite.

    >>> import torch
    >>> layer = L2(torch.nn.Linear(30, 10), weight_decay=1e-5)
    """
    return regularize(module, convex.L2(weight_decay), parameter=containing(name), how="gradient")


def containing(name: str | None) -> str:
    """Return a glob for all names that contain `name`.

    >>> containing("weight"), containing(None)
    ('*weight*', '*')
    """
    return "*" if name is None else f"*{glob.escape(name)}*"
