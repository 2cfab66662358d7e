"""Pictures of paths: coefficients, scores with their errors, and zeros, over the strength."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shrinkage.paths.path import Path
from shrinkage.paths.point import Point
from shrinkage.penalties.groups import Groups
from shrinkage.pictures.weights import BAR_COLOUR, COLOURS, FONT_SIZE, ZERO_COLOUR

GREY = COLOURS[0]
CHOICE_COLOUR = COLOURS[3]
PATTERNS = ("solid", "dashed", "dotted", "dashdot")  # of named lines: there are ten colours
CHOICES = ("dashed", "dotted")  # best, and one standard error


def path_coefficients(path: Path, name: str, groups: Groups | None = None, labels: Sequence[str] = ()) -> Figure:
    """Draw a line per weight of one tensor over the strength, or, of groups, their norms; those that stay zero in grey.

    Args:
        path: of one model, not joined.
        name: of the tensor in the model's state.
        groups: whose norms are drawn, such as `Columns()`.
        labels: names of the weights or groups, in their order, for a legend; up to about twenty are readable. A name
            that begins with "_" is left out, and where there are some, their lines are grey.

    Raises:
        KeyError: the state has no such tensor.
        ValueError: the path is joined, or there are other than one label per line.

    >>> import torch
    >>> from shrinkage import Point
    >>> weights = {1.0: torch.tensor([[1.0, 2.0]]), 2.0: torch.tensor([[0.0, 1.5]])}
    >>> points = (Point(strength, 0, 2, 0, 0, 0.0, 0.0, 1, {"weight": w}) for strength, w in weights.items())
    >>> figure = path_coefficients(Path(tuple(points)), "weight")
    >>> [line.get_ydata().tolist() for line in figure.axes[0].get_lines()[:2]]
    [[1.0, 0.0], [2.0, 1.5]]
    """
    weights = path.coefficients(name).double()
    lines = weights.flatten(1) if groups is None else weights.new_tensor([groups.norms(w).tolist() for w in weights])
    if labels and len(labels) != lines.shape[1]:
        raise ValueError(f"labels must be {lines.shape[1]} names, one per line, got {len(labels)}")
    figure, axes = panel(path, f"What is left of {name}?", "weight" if groups is None else "norm of a group")
    named = [index for index, label in enumerate(labels) if not label.startswith("_")] or list(range(lines.shape[1]))
    place = {index: number for number, index in enumerate(named)}
    for index, values in enumerate(lines.T):
        shown = index in place and bool((values != 0).any())
        number = place.get(index, 0)
        axes.plot(
            path.strengths,
            values.tolist(),
            color=f"C{number % 10}" if shown else GREY,
            linestyle=PATTERNS[number // 10 % 4] if labels and shown else "solid",
            linewidth=1.2 if shown else 0.8,
            zorder=2 if shown else 1,
            label=labels[index] if labels else f"_{index}",
        )
    axes.axhline(0, color="black", linewidth=0.8, zorder=0)
    if labels:
        figure.legend(loc="outside right upper", fontsize=FONT_SIZE - 2, frameon=False)
    return figure


def path_scores(path: Path) -> Figure:
    """Draw the score over the strength with a band of one standard error, both choices, and zeros on the upper axis.

    Raises:
        ValueError: no point has a finite score.
    """
    direction = "higher" if path.maximize else "lower"
    figure, axes = panel(path, "Which strength?", f"score, {direction} is better")
    draw_scores(axes, path, "score", BAR_COLOUR)
    if all(point.refit is not None for point in path):
        draw_scores(axes, path.refits, "after a refit", ZERO_COLOUR)
    mark_choices(axes, path)
    upper = axes.secondary_xaxis("top")
    shown = path.points[:: max(1, len(path) // 8)]
    upper.set_xticks([point.strength for point in shown], [f"{100 * point.sparsity:.0f}%" for point in shown])
    upper.set_xticks([], minor=True)
    upper.set_xlabel("zeros", fontsize=FONT_SIZE)
    figure.legend(loc="outside lower center", ncols=4, fontsize=FONT_SIZE, frameon=False)
    return figure


def path_zeros(path: Path) -> Figure:
    """Draw the share of zero weights over the strength, and of zero groups if there are any."""
    figure, axes = panel(path, "When do weights become exactly zero?", "share of penalized weights (%)")
    shares = [100 * point.sparsity for point in path]
    axes.plot(path.strengths, shares, color=BAR_COLOUR, marker="o", markersize=4, label="zero weights")
    if all(point.groups for point in path):
        groups = [100 * point.zero_groups / point.groups for point in path]
        axes.plot(path.strengths, groups, color=ZERO_COLOUR, marker="s", markersize=4, label="zero groups")
    axes.set_ylim(-3, 103)
    axes.legend(fontsize=FONT_SIZE, frameon=False)
    return figure


def panel(path: Path, title: str, height: str) -> tuple[Figure, Axes]:
    """Return a picture of one panel over the strengths of a path, which are > 0 or begin with 0."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=FONT_SIZE + 1)
    axes.set_xlabel("strength", fontsize=FONT_SIZE)
    axes.set_ylabel(height, fontsize=FONT_SIZE)
    axes.grid(alpha=0.3)
    positive = [strength for strength in path.strengths if strength > 0]
    if len(positive) == len(path):
        axes.set_xscale("log")
    elif positive:
        axes.set_xscale("symlog", linthresh=min(positive))
    return figure, axes


def draw_scores(axes: Axes, path: Path, label: str, colour: str) -> None:
    """Draw scores as a line, and a band of one standard error where there are errors."""
    scores, errors = [point.score for point in path], [point.error for point in path]
    axes.plot(path.strengths, scores, color=colour, marker="o", markersize=4, label=label)
    low = [score - error for score, error in zip(scores, errors, strict=True)]
    high = [score + error for score, error in zip(scores, errors, strict=True)]
    axes.fill_between(path.strengths, low, high, color=colour, alpha=0.15, linewidth=0)


def mark_choices(axes: Axes, path: Path) -> None:
    """Draw a vertical line at the best strength, and at that of one standard error if there are errors."""
    for pattern, (name, point) in zip(CHOICES, path.choices().items(), strict=False):
        axes.axvline(point.strength, color=CHOICE_COLOUR, linestyle=pattern, label=told(name, point))


def told(name: str, point: Point) -> str:
    """Return a choice in words, for a legend."""
    return f"{name}: {point.strength:.3g}"
