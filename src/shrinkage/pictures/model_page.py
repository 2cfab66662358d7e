"""One HTML page about a model: its zeros in numbers and pictures, and when they came."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from shrinkage.diagnostics.report import Model, Report, report, share
from shrinkage.pictures.models import largest_weights, shares_of_zeros
from shrinkage.pictures.page import Page, Picture, Table, render
from shrinkage.pictures.weights import svg, weight_histograms, zeros_over_epochs
from shrinkage.tables import shape_text

MOST_ROWS = 1000  # of the table, so that the page stays small
HEADER = ("parameter", "shape", "exact\nzeros", "", "zero\nrows", "zero\ncolumns")


def model_page(
    model: Model, *, history: Sequence[Report] = (), title: str = "Zeros of the model", below: float = 1e-3
) -> str:
    """Return a self-contained HTML page: a table of zeros, sizes of the weights, and zeros after each epoch.

    Args:
        model: the trained model or its state_dict; pictures show the five largest parameters that have rows, and the
            table the thousand largest.
        history: `report(model)` after each epoch; without any there is no picture of zeros over time.
        title: the heading; names are escaped, so that any text is allowed.
        below: a weight counts as small if |w| < `below`, in units of the weights.

    Raises:
        ValueError: `model` has no parameter with two dimensions or more.

    >>> from torch import nn
    >>> from shrinkage import report
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> html = model_page(model, history=[report(model)], title="Small & <plain>")
    >>> "<h1>Small &amp; &lt;plain&gt;</h1>" in html
    True
    """
    zeros = report(model, below=below)
    weights = largest_weights(model, zeros)
    pictures = [picture_of_weights(weights, below=below)]
    if history:
        pictures.append(picture_of_history(history, list(weights)))
    finding = f"{zeros.zeros:,} of {zeros.size:,} parameters are exactly zero, {zeros.small:,} are below {below:g}."
    findings = [finding]
    if len(zeros.tensors) > MOST_ROWS:
        findings.append(f"The table has the {MOST_ROWS:,} largest of {len(zeros.tensors):,} parameters.")
    return render(Page(title, findings=findings, tables=[Table(HEADER, rows(zeros))], pictures=pictures))


def picture_of_weights(weights: Mapping[str, Tensor], *, below: float, what: str = "Sizes of the weights") -> Picture:
    """Return the histograms of tensors, under the names of their panels; the caption begins with `what`."""
    caption = (
        f"{what}, both axes logarithmic. Exact zeros have no place on such an axis: they are the bar on "
        f"the left. The dashed line is at {below:g}."
    )
    shares = (
        f"{name}: {share(int((values == 0).sum()), values.numel())} exactly zero" for name, values in weights.items()
    )
    alt = f"Histograms of the sizes of weights. {'; '.join(shares)}."
    return Picture("weight_histograms.svg", caption, svg(weight_histograms(weights, below=below)), alt)


def picture_of_history(history: Sequence[Report], names: Sequence[str]) -> Picture:
    """Return how the zeros of the tensors called `names` grow in training."""
    shares = shares_of_zeros(history, names)
    ends = "; ".join(f"{name}: from {each[0]:.1%} to {each[-1]:.1%}" for name, each in shares.items())
    alt = f"Lines of the share of exact zeros over {len(history)} epochs. {ends}."
    return Picture("zeros.svg", "Exact zeros after each epoch.", svg(zeros_over_epochs({"weights": shares})), alt)


def rows(zeros: Report) -> list[tuple[str, ...]]:
    """Return a row of text per parameter, under `HEADER`."""
    sizes = sorted((tensor.size for tensor in zeros), reverse=True)
    least = sizes[MOST_ROWS - 1] if len(sizes) > MOST_ROWS else 0
    shown = [tensor for tensor in zeros if tensor.size >= least][:MOST_ROWS]
    return [
        (
            tensor.name,
            shape_text(tensor.shape),
            f"{tensor.zeros:,}",
            share(tensor.zeros, tensor.size),
            f"{tensor.zero_rows} of {tensor.rows}" if tensor.rows else "",
            f"{tensor.zero_columns} of {tensor.columns}" if tensor.columns else "",
        )
        for tensor in shown
    ]
