"""`Activities`: penalties on what layers put out, with no term in the loss."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shrinkage.diagnostics.side_effects import restored
from shrinkage.errors import ActivityError, SelectionError, shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.controlled import has_control
from shrinkage.penalties.membership import coupled_of
from shrinkage.penalties.toward import Toward
from shrinkage.selection.named_layers import LayerSelector, selected_layers
from shrinkage.selection.rules import check_penalty
from shrinkage.selection.selectors import selector_text
from shrinkage.tables import table
from shrinkage.training.activity_gradients import MarkedLoss, Passes, value_of
from shrinkage.training.activity_hooks import Hook, announce, withdraw


class Activities:
    """Penalizes what layers put out, in the backward pass of a loss that is marked.

    minimizes  loss + sum over calls of the selected layers of  R(output) / N,  with N the samples in the output

    The penalty is no part of the loss's number. Its derivative is added to the gradient that passes through an output.
    A marked loss tells what the loop multiplies it by (1 over the micro-batches, a loss scale, a share of the tokens),
    so gradients are those of the term in the loss.

    Args:
        model: the model whose layers put them out.
        rules: a mapping from selectors to penalties, the first match wins, None leaves alone. A selector is a glob on
            the dotted name of a layer ("encoder.*.relu"), a module class, a layer, or a function of (name, module). Any
            penalty that has a derivative. Penalties of groups see the output with its samples as rows: `Columns()` are
            units, or the channels of a convolution; `Rows()` are samples.
        samples: the number of leading dimensions that are samples: 1 for (N, units), as a loss that is averaged over
            the batch; 2 for (N, tokens, units), as one that is averaged over tokens; 0 for losses that are sums.
        clone: give the model a copy of each output, for models that write into outputs in place, as
            `nn.ReLU(inplace=True)` behind a penalized layer does. Without it, torch says that an output of
            ActivitiesOutput is modified in place.

    Raises:
        TypeError: `model` is no module, the rules are no mapping, a penalty or a selector is none.
        SelectionError: a rule matches no layer or never applies.
        ValueError: a penalty has no derivative to follow, or groups that name parameters; `samples` is no whole number
            >= 0.

    A call with several outputs is penalized by its first tensor of floating point numbers. A layer that is called twice
    is penalized twice. Calls under `no_grad` are not penalized. Copies of the model are not, unless its `Activities` is
    copied with it. torch.compile takes the hooks along if it compiles after this.

    >>> import torch
    >>> from shrinkage import L1
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> activities = Activities(model, {"1": L1(1e-3)})
    >>> x = torch.randn(16, 4)
    >>> activities.mark((model(x) - x).square().mean()).backward()
    >>> activities
    Activities: 1 layer
    layer  class  penalty  strength  groups
    -----  -----  -------  --------  ------
    1      ReLU   L1       0.001     -
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[LayerSelector, Penalty | None],
        *,
        samples: int = 1,
        clone: bool = False,
    ) -> None:
        check_rules(model, rules, samples)
        self._model, self._samples = model, samples
        self._layers = selected_layers(model, rules)
        if not self._layers:
            raise SelectionError("no rule penalizes a layer: all of them are None")
        self._passes = Passes()
        self._handles: list[RemovableHandle] = []
        for index, (layer, _) in enumerate(self._layers):
            hook = Hook(self._passes, index, layer.name, samples, clone)
            self._handles.append(layer.module.register_forward_hook(hook))
        self._begin()

    def mark(self, loss: Tensor, *, update: int | None = None) -> Tensor:
        """Return the same loss, whose backward pass adds the gradients of the penalties.

        Mark the loss itself, before it is divided, scaled or weighted: `(activities.mark(loss) / 4).backward()`.

        Args:
            loss: a single number.
            update: the number of updates made so far, where a strength is a schedule.

        Raises:
            TypeError: the loss is no tensor.
            ValueError: the loss is not a single number, or a schedule lacks the update.

        >>> import torch
        >>> from shrinkage import L1, Ramp
        >>> layer = torch.nn.Linear(2, 2)
        >>> activities = Activities(layer, {"": L1(Ramp(0.1, 1000))})
        >>> for update in range(3):
        ...     loss = layer(torch.ones(1, 2)).square().mean()
        ...     activities.mark(loss, update=update).backward()
        """
        if not isinstance(loss, Tensor):
            raise TypeError(f"mark() takes the loss, a tensor with a single number, got {shown(loss)}")
        if loss.numel() != 1:
            raise ValueError(
                f"mark() takes a loss of a single number, got shape {tuple(loss.shape)}: take its mean first"
            )
        self._check_update(update, "mark(loss, update=...)")
        self._passes.forget()
        if not (self._passes.alive and loss.requires_grad):
            return loss
        number = -1 if update is None else update
        marked: Tensor = MarkedLoss.apply(loss, self._passes.handle, number)  # type: ignore[no-untyped-call]  # torch's
        return marked

    def value(self, closure: Callable[[], object], *, update: int | None = None) -> Tensor:
        """Return the sum of all penalties in one call of the model, a 0-dim tensor without a graph; for logs.

        Args:
            closure: calls the model, such as `lambda: model(x)`. It is left as it was: buffers, random states.
            update: as in `mark`.

        Raises:
            ActivityError: the closure calls none of the penalized layers.
            ValueError: a schedule lacks the update.

        >>> import torch
        >>> from shrinkage import L1
        >>> layer = torch.nn.Identity()
        >>> Activities(layer, {"": L1(0.5)}).value(lambda: layer(torch.tensor([[1.0, -3.0], [0.0, 2.0]])))
        tensor(1.5000)
        """
        self._check_update(update, "value(closure, update=...)")
        measured = self._passes.measured = []
        try:
            with torch.no_grad(), restored(self._model, closure), torch.compiler.set_stance("force_eager"):
                closure()
        finally:
            self._passes.measured = None
        if not measured:
            names = ", ".join(repr(layer.name) for layer, _ in self._layers[:3])
            raise ActivityError(f"the closure calls none of the penalized layers, such as {names}")
        found = [value_of(self._passes.penalty(i, a.device, update), a, self._samples) for i, a in measured]
        return torch.stack([each.to(found[0].device) for each in found]).sum()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Compute gradients without the penalties inside: of a gradient penalty, or of an attack.

        >>> import torch
        >>> from shrinkage import L1
        >>> layer = torch.nn.Linear(2, 1)
        >>> activities = Activities(layer, {"": L1(0.5)})
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> with activities.paused():
        ...     (slope,) = torch.autograd.grad(layer(x).sum(), x)
        >>> torch.equal(slope, layer.weight)
        True
        """
        self._passes.paused += 1
        try:
            yield
        finally:
            self._passes.paused -= 1

    def remove(self) -> None:
        """Take the penalties off the model; `mark` returns losses as they are from then on."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._passes.alive = [], False
        for layer, _ in self._layers:
            withdraw(layer.module, self._passes.handle)

    def _check_update(self, update: int | None, call: str) -> None:
        """Raise `ValueError` unless `update` is one, or none where none is needed."""
        if update is None:
            scheduled = [penalty for _, penalty in self._layers if penalty.scheduled]
            if scheduled:
                raise ValueError(f"the strength of {scheduled[0]} is a schedule of the update count: give it, {call}")
        elif not isinstance(update, int) or isinstance(update, bool) or update < 0:
            raise ValueError(f"update must be a whole number >= 0, got {shown(update)}")

    def _begin(self) -> None:
        """Let the hooks act."""
        self._passes.names = [layer.name for layer, _ in self._layers]
        self._passes.penalties = [penalty for _, penalty in self._layers]
        self._passes.alive = True
        for layer, _ in self._layers:
            announce(layer.module, self._passes.handle)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies that come with a copy of the model act on that."""
        vars(self).update(state)
        if self._handles:
            self._begin()

    def __repr__(self) -> str:
        header = ["layer", "class", "penalty", "strength", "groups"]
        rows = [[layer.name or "(model)", type(layer.module).__name__, *p.describe(None)] for layer, p in self._layers]
        count = f"{len(rows)} layer{'s' * (len(rows) > 1)}{'' if self._handles else ', removed'}"
        return f"Activities: {count}\n{table(header, rows)}"


def check_rules(model: object, rules: object, samples: object) -> None:
    """Raise unless these can be the arguments of `Activities`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a module, got {shown(model)}: Activities(model, rules)")
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        raise TypeError("nn.DataParallel cuts batches, over which penalties are averaged; use DistributedDataParallel")
    if not isinstance(rules, Mapping) or not rules:
        raise TypeError(
            f"rules are a mapping from layers to penalties, such as {{'encoder.relu': L1(1e-3)}}, got {shown(rules)}"
        )
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 0:
        raise ValueError(f"samples must be a whole number >= 0, got {shown(samples)}")
    for selector, penalty in rules.items():
        where = f"rule {selector_text(selector)}: "
        check_penalty(penalty, where)
        if isinstance(penalty, Budget) or (penalty is not None and not penalty.explicit):
            raise ValueError(f"{where}{penalty} has no derivative to follow: take one such as L1, L2 or GroupLasso")
        if coupled_of(penalty) is not None:
            raise ValueError(f"{where}the groups of {penalty} name parameters: take groups such as Columns()")
        if isinstance(penalty, Toward) and not isinstance(penalty.reference, Tensor):
            raise ValueError(f"{where}{penalty} takes its reference from parameters: give it a tensor")
        if penalty is not None and has_control(penalty):
            raise ValueError(f"{where}{penalty} has a strength that only weights can find: give a number or a schedule")
