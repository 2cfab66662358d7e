"""Pictures of a model of one's own: sizes of its weights, zeros in training, columns that it reads, what is left."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from shrinkage.diagnostics.report import Model, Report, TensorReport, named_tensors, report
from shrinkage.distributed.dtensor import whole
from shrinkage.penalties.groups import Columns
from shrinkage.pictures.weights import BAR_COLOUR, COLOURS, FONT_SIZE, weight_histograms, zeros_over_epochs
from shrinkage.tables import shape_text

MOST = len(COLOURS)  # tensors in a picture, whose lines stay distinct
GREY = COLOURS[0]


def histograms(model: Model, *, below: float = 1e-3) -> Figure:
    """Draw how many weights of a model are of which size, exact zeros by themselves; a panel for each weight matrix.

    Args:
        model: a module or its state_dict; the five largest parameters that have rows are shown.
        below: a size that is marked with a line, in units of the weights.

    Raises:
        ValueError: the model has no parameter with two dimensions or more.

    `weight_histograms` draws tensors of your choice.

    >>> from torch import nn
    >>> len(histograms(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))).axes)
    2
    """
    return weight_histograms(largest_weights(model, report(model, below=below)), below=below)


def zeros_by_epoch(history: Sequence[Report]) -> Figure:
    """Draw the share of exact zeros in each weight matrix after each epoch.

    Args:
        history: `report(model)` after each epoch; the five largest parameters that have rows are shown.

    Raises:
        ValueError: the history is empty, or the model has no parameter with two dimensions or more.

    >>> from torch import nn
    >>> figure = zeros_by_epoch([report(nn.Linear(4, 3))] * 10)
    >>> [line.get_label() for line in figure.axes[0].get_lines()]
    ['weight']
    """
    if not history:
        raise ValueError("the history is empty: append report(model) to a list after each epoch")
    return zeros_over_epochs({"weights": shares_of_zeros(history, largest(history[-1]))})


def column_norms(weight: Tensor, names: Sequence[str] = (), *, most: int = 40) -> Figure:
    """Draw which input columns a layer reads: the norms of the columns of its weight that are not zero.

    norm_j = sqrt( sum_i w_ij^2 ), the largest on top

    Args:
        weight: of the first layer, shape `(outputs, inputs)`, or of a convolution, whose columns are input channels.
        names: of the columns, in their order; left out, they are numbers from 0.
        most: how many columns are drawn at most.

    Raises:
        ValueError: the weight has fewer than two dimensions, or there are other than one name per column.

    >>> import torch
    >>> figure = column_norms(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), ["age", "height"])
    >>> figure.axes[0].get_title(), [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ('1 of 2 columns is read', ['age'])
    """
    if weight.dim() < 2:
        raise ValueError(f"weight must have two dimensions or more, got shape {tuple(weight.shape)}")
    norms = Columns().norms(whole(weight.detach())).cpu()
    if names and len(names) != len(norms):
        raise ValueError(f"names must be {len(norms)}, one per column of the weight, got {len(names)}")
    read = [index for index in norms.argsort(descending=True, stable=True).tolist() if norms[index] != 0]
    shown = read[:most][::-1]
    figure = Figure(figsize=(8, 1.4 + 0.25 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), norms[shown].tolist(), color=BAR_COLOUR)
    axes.set_yticks(range(len(shown)), [names[index] if names else f"column {index}" for index in shown])
    axes.set_xlabel("norm of the column's weights (no unit)", fontsize=FONT_SIZE)
    cut = f", the {most} largest" if len(read) > most else ""
    axes.set_title(f"{len(read)} of {len(norms)} columns {'is' if len(read) == 1 else 'are'} read{cut}")
    return figure


def layer_sizes(before: Model, after: Model, *, most: int = 30) -> Figure:
    """Draw how large each layer was before `shrink`, and how large it is now.

    Args:
        before: the dense model or its state_dict.
        after: the smaller one.
        most: how many weights are drawn at most, the largest ones.

    Raises:
        ValueError: a weight of the dense model is not in the smaller one, or no weight has two dimensions.

    >>> from torch import nn
    >>> figure = layer_sizes(nn.Linear(4, 3), nn.Linear(4, 2))
    >>> figure.axes[0].get_title(), [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ('10 of 15 parameters are left', ['weight, 3x4 to 2x4'])
    """
    old, new = report(before), report(after)
    shapes = {tensor.name: tensor.shape for tensor in new}
    layers = [old[name] for name in largest(old, most)][::-1]
    if missing := [layer.name for layer in layers if layer.name not in shapes]:
        raise ValueError(f"{missing[-1]!r} is no parameter of the smaller model: give the two models of one `shrink`")
    figure = Figure(figsize=(8, 1.7 + 0.3 * len(layers)), layout="constrained")
    axes = figure.subplots()
    places = range(len(layers))
    axes.barh(places, [layer.size for layer in layers], 0.8, color=GREY, label="before")
    axes.barh(places, [new[layer.name].size for layer in layers], 0.5, color=BAR_COLOUR, label="after")
    axes.set_yticks(places, [change(layer, shapes[layer.name]) for layer in layers])
    axes.set_xlabel("weights", fontsize=FONT_SIZE)
    axes.set_title(f"{new.size:,} of {old.size:,} parameters are left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT_SIZE)
    return figure


def change(layer: TensorReport, shape: tuple[int, ...]) -> str:
    """Return the name of a layer, and how its shape changed."""
    now = "" if layer.shape == shape else f" to {shape_text(shape)}"
    return f"{layer.name}, {shape_text(layer.shape)}{now}"


def largest(tensors: Iterable[TensorReport], most: int = MOST) -> list[str]:
    """Return the names of the largest tensors that have rows, in the order of the model; raise if there are none."""
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    if not matrices:
        raise ValueError("the model has no parameter with two dimensions or more: there is nothing to draw")
    chosen = sorted(matrices, key=lambda tensor: tensor.size, reverse=True)[:most]
    return [tensor.name for tensor in matrices if tensor in chosen]


def largest_weights(model: Model, zeros: Report) -> dict[str, Tensor]:
    """Return the largest weights of a model, of which `zeros` is the report, by name."""
    tensors = dict(named_tensors(model))
    return {name: whole(tensors[name]).float().cpu() for name in largest(zeros)}


def shares_of_zeros(history: Sequence[Report], names: Sequence[str]) -> Mapping[str, list[float]]:
    """Return the share of zeros of each tensor after each epoch."""
    return {name: [epoch[name].zeros / epoch[name].size for epoch in history] for name in names}
