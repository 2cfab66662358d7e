"""Pictures of weights: how large they are, where their zeros are, when these came, and what is left without them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

# Okabe and Ito's colours are distinct to colour-blind readers too; widths keep lines visible that lie on one another.
COLOURS = ("#AAAAAA", "#E69F00", "#0072B2", "#009E73", "#D55E00")
STYLES = ("solid", "solid", (0, (4, 3)), "solid", (0, (6, 2, 1, 2)))
WIDTHS = (7.0, 3.5, 1.6, 2.5, 2.5)
ZERO_COLOUR = "#D55E00"
BAR_COLOUR = "#0072B2"
SMALLEST = -8  # power of ten; the histograms put all smaller weights into one bar
BARS_PER_DECADE = 4
RESOLUTION = 130  # dots per inch
FONT_SIZE = 11


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG picture."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=RESOLUTION, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    """Return `figure` as an SVG picture, the same for the same figure."""
    stream = BytesIO()
    with rc_context({"svg.hashsalt": "shrinkage"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def weight_histograms(weights: Mapping[str, Tensor], *, below: float) -> Figure:
    """Draw how many weights are of which size, one panel per entry; exact zeros are a bar of their own.

    Args:
        weights: tensors of any shape, under the names of their panels.
        below: a size that is marked with a line.
    """
    figure = Figure(figsize=(9, 1.9 * len(weights) + 0.9), layout="constrained")
    panels = figure.subplots(len(weights), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    decades = range(SMALLEST, largest_power(weights.values()) + 1)
    tallest = 0
    for axes, (name, values) in zip(panels, weights.items(), strict=True):
        tallest = max(tallest, draw_histogram(axes, values, decades))
        zeros = int((values == 0).sum())
        axes.axvline(math.log10(below), color="black", linestyle="dashed", linewidth=1)
        axes.set_title(f"{name}: {zeros} of {values.numel()} weights are exactly zero", fontsize=FONT_SIZE, loc="left")
        axes.set_ylabel("weights", fontsize=FONT_SIZE)
        axes.set_yscale("log")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylim(0.7, 2 * tallest)
    panels[-1].set_xticks([SMALLEST - 1, *decades], ["exactly 0", *(f"$10^{{{decade}}}$" for decade in decades)])
    panels[-1].set_xlabel(
        "size |w| of a weight (no unit); the leftmost blue bar holds all smaller ones", fontsize=FONT_SIZE
    )
    figure.suptitle("How large are the weights?", fontsize=FONT_SIZE + 2)
    return figure


def largest_power(tensors: Iterable[Tensor]) -> int:
    """Return the power of ten that no size in `tensors` exceeds, 0 at least."""
    largest = max((float(values.abs().max()) for values in tensors if values.numel()), default=1.0)
    return math.ceil(math.log10(max(largest, 1.0)))


def draw_histogram(axes: Axes, values: Tensor, decades: range) -> int:
    """Draw the bars of one panel, in powers of ten, and return the height of the tallest."""
    sizes = values.detach().abs().flatten().double().numpy()
    width = 1 / BARS_PER_DECADE
    edges = np.arange(decades[0] - width, decades[-1] + width / 2, width)
    counts, _ = np.histogram(np.log10(sizes[sizes > 0]).clip(min=edges[0]), edges)
    zeros = int((sizes == 0).sum())
    axes.bar(edges[:-1], counts, width=width, align="edge", color=BAR_COLOUR, edgecolor="white", linewidth=0.4)
    axes.bar([decades[0] - 1], [zeros], width=0.6, color=ZERO_COLOUR)
    return max(int(counts.max()), zeros)


def zeros_over_epochs(zeros: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the share of exact zeros after each epoch.

    Args:
        zeros: titles of the panels; under each, names of the lines with one share per epoch.
    """
    figure = Figure(figsize=(4.0 * len(zeros), 4.6), layout="constrained")
    panels = figure.subplots(1, len(zeros), sharey=True, squeeze=False)[0]
    for axes, (title, lines) in zip(panels, zeros.items(), strict=True):
        for index, (name, shares) in enumerate(lines.items()):
            epochs = range(1, len(shares) + 1)
            colour, style, width = (cycle[index % len(cycle)] for cycle in (COLOURS, STYLES, WIDTHS))
            percents = [100 * share for share in shares]
            axes.plot(epochs, percents, label=name, color=colour, linestyle=style, linewidth=width)
        axes.set_title(title, fontsize=FONT_SIZE)
        axes.set_xlabel("epoch", fontsize=FONT_SIZE)
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("exact zeros (% of the layer's weights)", fontsize=FONT_SIZE)
    handles = [line for line in panels[0].get_lines() if isinstance(line, Line2D)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=FONT_SIZE)
    figure.suptitle("When do weights become exactly zero?", fontsize=FONT_SIZE + 2)
    return figure


def pixel_maps(mean_image: Tensor, norms: Mapping[str, Tensor]) -> Figure:
    """Draw the mean image, and the norm of each pixel's weights; pixels whose norm is exactly 0 are crossed out.

    Args:
        mean_image: `(rows, columns)`, values 0 to 1.
        norms: maps of the shape of the mean image, under the names of their panels.
    """
    figure = Figure(figsize=(4.1 * (1 + len(norms)) + 0.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 1 + len(norms), sharey=True, squeeze=False)[0]
    shown = panels[0].imshow(mean_image.numpy(), cmap="gray_r", vmin=0, vmax=1)
    figure.colorbar(shown, ax=panels[0], shrink=0.75, label="mean ink (0 none, 1 full)")
    panels[0].set_title("mean training image", fontsize=FONT_SIZE)
    largest = max(float(of_pixels.max()) for of_pixels in norms.values())
    for axes, (name, of_pixels) in zip(panels[1:], norms.items(), strict=True):
        zero = (of_pixels == 0).numpy()
        shown = axes.imshow(np.ma.masked_array(of_pixels.numpy(), zero), cmap="viridis", vmin=0, vmax=largest)
        rows, columns = zero.nonzero()
        axes.plot(columns, rows, linestyle="none", marker="x", color=ZERO_COLOUR, markersize=11, markeredgewidth=2.5)
        axes.set_title(f"{name}: {zero.sum()} of {zero.size} pixels zero", fontsize=FONT_SIZE)
    figure.colorbar(shown, ax=panels[1:], shrink=0.75, label="norm of the pixel's weights (no unit)")
    for axes in panels:
        axes.set_xlabel("column of the image (pixels)", fontsize=FONT_SIZE)
        axes.set_xticks(range(mean_image.shape[1]))
        axes.set_yticks(range(mean_image.shape[0]))
    panels[0].set_ylabel("row of the image (pixels)", fontsize=FONT_SIZE)
    figure.suptitle("Which pixels matter?", fontsize=FONT_SIZE + 2)
    return figure


def networks(
    weights: Mapping[str, Sequence[Tensor]], layers: Sequence[str], *, point: str = "input, neuron or output"
) -> Figure:
    """Draw networks of linear layers: a point per neuron, a line per weight that is not zero, the darker the larger.

    Args:
        weights: `(outputs, inputs)` of each layer, under the names of the panels.
        layers: what the points of each column are.
        point: what a point is, in words.
    """
    figure = Figure(figsize=(5.2 * len(weights) + 0.6, 6.4), layout="constrained")
    panels = figure.subplots(1, len(weights), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, matrices) in zip(panels, weights.items(), strict=True):
        draw_network(axes, [matrix.detach() for matrix in matrices])
        count = sum(matrix.numel() for matrix in matrices)
        axes.set_title(f"{name}: {count:,} weights", fontsize=FONT_SIZE)
        axes.set_xticks(range(len(layers)), layers, fontsize=FONT_SIZE)
        axes.set_yticks([])
        axes.set_xlabel("layer", fontsize=FONT_SIZE)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel(f"a point per {point}; orange: its weights are all zero", fontsize=FONT_SIZE)
    figure.suptitle("What is left of the network?", fontsize=FONT_SIZE + 2)
    return figure


def draw_network(axes: Axes, matrices: Sequence[Tensor]) -> None:
    """Draw one panel, its columns centred; a column's points are as far apart in all panels."""
    sizes = [matrices[0].shape[1], *(len(matrix) for matrix in matrices)]
    heights = [np.arange(size) - (size - 1) / 2 for size in sizes]
    for column, matrix in enumerate(matrices):
        shares = (matrix.abs() / matrix.abs().max().clamp_min(1e-30)).numpy()
        ends, starts = shares.nonzero()
        lines = [
            [(column, heights[column][start]), (column + 1, heights[column + 1][end])]
            for start, end in zip(starts, ends, strict=True)
        ]
        axes.add_collection(LineCollection(lines, colors=BAR_COLOUR, alpha=shares[ends, starts], linewidths=0.5))
    zeros = [(matrices[0] == 0).all(0), *((matrix == 0).all(1) for matrix in matrices)]
    for column, (height, zero) in enumerate(zip(heights, zeros, strict=True)):
        colours = [ZERO_COLOUR if silent else BAR_COLOUR for silent in zero.tolist()]
        axes.scatter([column] * len(height), height, s=9, color=colours, zorder=2)
