"""Pictures of constraints: the set in a plane of two weights, and where points outside of it go."""

import math
from collections.abc import Callable, Iterable

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from shrinkage.penalties.base import Penalty
from shrinkage.penalties.constraints import Constraint
from shrinkage.pictures.curves import GREY, draw_curves, finish, row_of_panels
from shrinkage.pictures.weights import BAR_COLOUR, FONT_SIZE, ZERO_COLOUR

REACH = 2.0  # of the plane
SIDE = 61  # points along an edge of the grid that is projected to show the set
RATIO = 4.0  # of the two steps in the picture of a metric
SET_COLOUR = "#9CCBE8"
ARROW_COLOUR = "#A04000"
ARROW_HEAD = 0.02  # shorter moves get no arrow
EXAMPLE = ((1.5, -0.4, 0.9, 1.1), (-0.7, 0.2, 0.5, -0.3))


def draw(penalty: Penalty) -> Figure:
    """Draw a constraint as a set, and any other penalty as curves; `draw_set` and `draw_curves` take arguments.

    >>> from shrinkage import L1
    >>> from shrinkage.pictures.weights import png
    >>> picture = png(draw(L1(1.0)))
    """
    return draw_set(penalty) if isinstance(penalty, Constraint) else draw_curves(penalty)


def in_a_row(pair: Tensor) -> Tensor:
    """Return two weights as a matrix with one row."""
    return pair.reshape(1, 2)


def draw_set(
    constraint: Constraint,
    *,
    place: Callable[[Tensor], Tensor] = in_a_row,
    read: Callable[[Tensor], Tensor] = torch.flatten,
    labels: tuple[str, str] = ("w₁", "w₂"),
    example: Tensor | None = None,
) -> Figure:
    """Draw the set in the plane of two weights, projections onto it in two metrics, and those of an example.

    Args:
        constraint: what to draw.
        place: makes a weight of a point of the plane, a tensor of two numbers.
        read: the inverse of `place`.
        labels: of the axes of the plane.
        example: what the third panel shows before and after, a matrix.

    >>> from shrinkage import L1Ball
    >>> figure = draw_set(L1Ball(1.0))
    """
    figure, (plain, metric, bars) = row_of_panels(str(constraint))

    def nearest(point: Tensor, steps: tuple[float, float]) -> Tensor:
        metric = 1 + place(torch.tensor(steps, dtype=point.dtype) - 1)
        return read(constraint.prox(place(point), metric))

    members = torch.stack([nearest(point, (1.0, 1.0)) for point in grid(SIDE)])
    for axes, steps, title in (
        (plain, (1.0, 1.0), "nearest points"),
        (metric, (1.0, RATIO), f"nearest, with {RATIO:g} times the step for {labels[1]}"),
    ):
        axes.scatter(members[:, 0].tolist(), members[:, 1].tolist(), s=15, marker="s", color=SET_COLOUR, linewidths=0)
        draw_arrows(axes, [(point, nearest(point, steps)) for point in circles()])
        finish(axes, title, *labels)
        axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=range(-2, 3), yticks=range(-2, 3))
    before = torch.tensor(EXAMPLE, dtype=torch.float64) if example is None else example.double()
    draw_bars(bars, before, constraint.prox(before, 1.0))
    return figure


def grid(side: int) -> Tensor:
    """Return the points of a square grid over the plane."""
    axis = torch.linspace(-REACH, REACH, side, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def circles() -> Tensor:
    """Return points on two circles, none of them on a diagonal, where several points may be equally near."""
    angles = 0.2 + torch.arange(12, dtype=torch.float64) * math.pi / 6
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.cat([1.75 * directions, 0.55 * directions[::3]])


def draw_arrows(axes: Axes, moves: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Draw a dot at every point, and an arrow to where it goes if it moves."""
    for before, after in moves:
        axes.plot(*xy(before), marker="o", markersize=3, color="black")
        if (after - before).norm() > ARROW_HEAD:
            drawn = {"arrowstyle": "->", "color": ARROW_COLOUR, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xy(after), xy(before), arrowprops=drawn)


def xy(point: Tensor) -> tuple[float, float]:
    """Return a point of the plane as two numbers."""
    x, y = point.tolist()
    return x, y


def draw_bars(axes: Axes, before: Tensor, after: Tensor) -> None:
    """Draw every element of a matrix before and after; those that became zero are crossed out."""
    positions = list(range(before.numel()))
    axes.bar(positions, before.flatten().tolist(), width=0.8, color=GREY, label="before")
    axes.bar(positions, after.flatten().tolist(), width=0.4, color=BAR_COLOUR, label="after")
    zeros = [position for position in positions if after.flatten()[position] == 0]
    if zeros:
        flat = [0.0] * len(zeros)
        axes.plot(zeros, flat, "x", color=ZERO_COLOUR, markersize=9, markeredgewidth=2.5, label="exactly 0")
    axes.axhline(0, color="black", linewidth=0.8)
    rows, columns = before.shape
    for row in range(1, rows):
        axes.axvline(row * columns - 0.5, color="black", linewidth=0.8, linestyle="dashed")
    finish(axes, "an example", f"element of a {rows} x {columns} matrix, row by row", "w")
    axes.set_axisbelow(True)
    axes.set_xticks(positions, [str(position % columns + 1) for position in positions])
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False, loc="upper right")
