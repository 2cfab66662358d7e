"""`freeze_zeros`: what is zero now stays zero."""

from collections.abc import Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from shrinkage.distributed.dtensor import whole
from shrinkage.errors import ParameterError, shown
from shrinkage.penalties.convex import L1
from shrinkage.penalties.grouped import GroupLasso
from shrinkage.penalties.groups import Groups
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.rules import Rule
from shrinkage.selection.selectors import Selector
from shrinkage.training.regularizer import Regularizer

Chosen = Groups | Mapping[Selector, Groups | None]


def freeze_zeros(model: nn.Module, groups: Chosen | None = None) -> Regularizer:
    """Return a regularizer that penalizes nothing, and by which what is zero in a model stays exactly zero.

    minimizes  loss,  over the weights that are not zero now

    Under any optimizer, with momentum, weight decay, closures, half precision and shards. In each step the gradients at
    zeros are 0, and zeros are written back after it. No mask is kept or saved: the zeros in the weights are the mask.
    So a weight that becomes zero later stays zero too.

    Args:
        model: with zeros, of a penalty or of pruning.
        groups: groups that stay zero as a whole, such as `Rows()` or `CoupledChannels(model, inputs)`, while single
            zeros in other groups may move; or a mapping from selectors (see `Rule`) to groups, or to None for single
            weights. Left out, single weights in the weight matrices of all layers but norms and embeddings.

    Raises:
        TypeError: `groups` is neither.
        ParameterError: a parameter that takes a gradient is zero everywhere, as LoRA's B is at first: nothing could be
            trained.
        SelectionError: a selector matches nothing, or never applies.
        GroupError: a parameter does not fall into the groups.

    `attach` makes it act. A rule of another regularizer does the same from an update on: `Rule(..., until=update)`.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[0.0, 1.0]])})
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    >>> freeze_zeros(layer).attach(optimizer)
    Regularizer: 1 parameter, attached to SGD
    parameter  shape  groups  penalty  strength  how
    ---------  -----  ------  -------  --------  ----------
    weight     1x2    -       -        -         zeros stay
    >>> layer(torch.ones(2)).sum().backward()
    >>> optimizer.step()
    >>> layer.weight.tolist()
    [[0.0, 0.5]]
    """
    chosen = groups if isinstance(groups, Mapping) else {None: groups}
    regularizer = Regularizer(model, [held(selector, each) for selector, each in chosen.items()])
    planned = {name for entry in regularizer.plan for name in (entry.name, *entry.aliases)}
    for candidate in named_parameters(model):
        if candidate.name in planned and candidate.parameter is not None:
            check_not_zero(candidate.name, candidate.parameter)
    return regularizer


def held(selector: Selector | None, groups: object) -> Rule:
    """Return the rule by which zeros of elements, or of groups, stay from the start."""
    if not (groups is None or isinstance(groups, Groups)):
        raise TypeError(
            "freeze_zeros() takes groups such as Rows(), or a mapping from selectors to groups, or to None for single "
            f"weights; got {shown(groups)}"
        )
    return Rule(L1(0.0) if groups is None else GroupLasso(0.0, groups), selector, until=0)


def check_not_zero(name: str, parameter: nn.Parameter) -> None:
    """Raise `ParameterError` if all that could be trained of a parameter is zero."""
    if is_lazy(parameter) or parameter.is_meta or not parameter.requires_grad or not parameter.numel():
        return
    if not bool(whole(parameter.detach() != 0).any()):
        raise ParameterError(
            f"{name!r} of shape {tuple(parameter.shape)} is zero everywhere: nothing of it could be trained. Name the "
            "parameters whose zeros stay, such as freeze_zeros(model, {nn.Conv2d: None})"
        )
