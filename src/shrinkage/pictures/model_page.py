"""One HTML page about a model: its zeros in numbers and pictures, and when they came."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from shrinkage.diagnostics.report import Report, TensorReport, named_tensors, report, share
from shrinkage.distributed.dtensor import whole
from shrinkage.pictures.page import Page, Picture, Table, render
from shrinkage.pictures.weights import COLOURS, png, weight_histograms, zeros_over_epochs
from shrinkage.tables import shape_text

MOST = len(COLOURS)  # tensors in a picture, whose lines stay distinct
HEADER = ("parameter", "shape", "exact\nzeros", "", "zero\nrows", "zero\ncolumns")


def model_page(
    model: nn.Module, *, history: Sequence[Report] = (), title: str = "Zeros of the model", below: float = 1e-3
) -> str:
    """Return a self-contained HTML page: a table of zeros, sizes of the weights, and zeros after each epoch.

    Args:
        model: the trained model, whose parameters are shown; pictures show the five largest that have rows.
        history: `report(model)` after each epoch; without any there is no picture of zeros over time.
        title: the heading; names are escaped, so that any text is allowed.
        below: a weight counts as small if |w| < `below`, in units of the weights.

    Raises:
        ValueError: `model` has no parameter with two dimensions or more.

    >>> from shrinkage import report
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> html = model_page(model, history=[report(model)], title="Small & <plain>")
    >>> "<h1>Small &amp; &lt;plain&gt;</h1>" in html
    True
    """
    zeros = report(model, below=below)
    shown = largest([tensor for tensor in zeros if len(tensor.shape) > 1])
    if not shown:
        raise ValueError("the model has no parameter with two dimensions or more: there is nothing to draw")
    tensors = dict(named_tensors(model))
    weights = {name: whole(tensors[name]).float().cpu() for name in shown}
    pictures = [picture_of_weights(weights, below=below)]
    if history:
        pictures.append(picture_of_history(history, shown))
    finding = f"{zeros.zeros:,} of {zeros.size:,} parameters are exactly zero, {zeros.small:,} are below {below:g}."
    return render(Page(title, findings=[finding], tables=[Table(HEADER, rows(zeros))], pictures=pictures))


def largest(tensors: Iterable[TensorReport]) -> list[str]:
    """Return the names of the largest tensors, in the order of the model."""
    tensors = list(tensors)
    chosen = sorted(tensors, key=lambda tensor: tensor.size, reverse=True)[:MOST]
    return [tensor.name for tensor in tensors if tensor in chosen]


def picture_of_weights(weights: Mapping[str, Tensor], *, below: float, what: str = "Sizes of the weights") -> Picture:
    """Return the histograms of tensors, under the names of their panels; the caption begins with `what`."""
    caption = (
        f"{what}, both axes logarithmic. Exact zeros have no place on such an axis: they are the bar on "
        f"the left. The dashed line is at {below:g}."
    )
    return Picture("weight_histograms.png", caption, png(weight_histograms(weights, below=below)))


def picture_of_history(history: Sequence[Report], names: Sequence[str]) -> Picture:
    """Return how the zeros of the tensors called `names` grow in training."""
    shares = {name: [epoch[name].zeros / epoch[name].size for epoch in history] for name in names}
    return Picture("zeros.png", "Exact zeros after each epoch.", png(zeros_over_epochs({"weights": shares})))


def rows(zeros: Report) -> list[tuple[str, ...]]:
    """Return a row of text per parameter, under `HEADER`."""
    return [
        (
            tensor.name,
            shape_text(tensor.shape),
            f"{tensor.zeros:,}",
            share(tensor.zeros, tensor.size),
            f"{tensor.zero_rows} of {tensor.rows}" if tensor.rows else "",
            f"{tensor.zero_columns} of {tensor.columns}" if tensor.columns else "",
        )
        for tensor in zeros
    ]
