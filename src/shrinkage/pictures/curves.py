"""Pictures of penalties as functions of one weight: what they cost, how they pull, what their prox does."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from shrinkage.penalties.base import Penalty
from shrinkage.penalties.elementwise import Elementwise
from shrinkage.pictures.weights import COLOURS, FONT_SIZE

Function = Callable[[float], float]
Numbers = Mapping[str, Callable[[Tensor], Tensor]]  # names, and how each is read from a weight
Point = tuple[float, float]
Range = tuple[float, float]
Curve = tuple[str, Penalty, float]  # name, penalty, step of the prox

STEPS = (0.5, 1.0, 2.0)
REACH = 4.0
GREY = COLOURS[0]
LINES = (COLOURS[1], COLOURS[2], "#000000", COLOURS[3], COLOURS[4])
WIDTHS = (4.5, 2.8, 1.3, 1.6, 1.6)  # lines that lie on one another stay visible
PATTERNS = ("solid", (0, (1, 1.3)))
POINTS = 100  # of a curve, on either side of the middle
STEEP = 0.03  # a rise between neighbouring points that may be a jump, in units of the whole curve's
BISECTIONS = 40
BEYOND = 20.0  # what is higher than the curve by this many times its height is not followed


@dataclass(frozen=True)
class Line:
    """A line through the space of a weight: its first element runs from -reach to reach, the others stay."""

    weight: Tensor
    reach: float
    label: str
    after: Numbers

    @property
    def symbol(self) -> str:
        """Return the first word of the label: the name of the element that runs."""
        return self.label.split()[0]

    def at(self, first: float) -> Tensor:
        """Return the weight with another first element."""
        moved = self.weight.clone()
        moved.view(-1)[0] = first
        return moved

    def value(self, penalty: Penalty) -> Function:
        """Return the value as a function of the first element."""
        return lambda first: float(penalty.value(self.at(first)))

    def derivative(self, penalty: Penalty) -> Function:
        """Return the derivative by the first element, NaN where the value is infinite."""

        def slope(first: float) -> float:
            w = self.at(first)
            return float(penalty.gradient(w).flatten()[0]) if penalty.value(w).isfinite() else math.nan

        return slope

    def moved(self, penalty: Penalty, step: float, read: Callable[[Tensor], Tensor]) -> Function:
        """Return a number of the weight after the prox as a function of the first element before it."""
        return lambda first: float(read(penalty.prox(self.at(first), step)))


def draw_curves(
    penalty: Penalty,
    *,
    weight: Tensor | None = None,
    steps: Sequence[float] = STEPS,
    reach: float = REACH,
    label: str | None = None,
    after: Numbers | None = None,
    title: str | None = None,
    third: str = "after the prox",
) -> Figure:
    """Draw value, derivative and prox while the first element of a weight runs from -reach to reach.

    Args:
        penalty: what to draw.
        weight: the other elements, which stay as they are; left out, there is one element, or, if `penalty` is no sum
            over elements, a row of two, the second of which is 1.
        steps: of the prox, at most five.
        reach: > 0, how far the element runs.
        label: of the horizontal axes; its first word is the name of the element.
        after: what is drawn of the weight after the prox, one number or two; left out, its first two elements.
        title: of the picture; left out, the penalty.
        third: title of the last panel.

    Raises:
        GroupError: the penalty cannot penalize a weight of this shape.

    >>> from shrinkage import MCP
    >>> figure = draw_curves(MCP(1.0, gamma=3.0), steps=(1.0, 4.0))
    >>> [axes.get_title() for axes in figure.axes]
    ['value', 'derivative', 'after the prox']
    """
    if weight is None:
        weight = torch.zeros(1) if isinstance(penalty, Elementwise) else torch.tensor([[0.0, 1.0]])
    penalty.check_shape(weight.shape)
    line = Line(weight.double(), reach, label or variable(weight), after or first_elements(weight))
    figure, (values, slopes, moved) = row_of_panels(title or str(penalty))
    for axes, function in ((values, line.value(penalty)), (slopes, line.derivative(penalty))):
        set_height(axes, [draw_curve(axes, function, reach, color="black", linewidth=2)])
    draw_moved(moved, line, [(f"step {step:g}", penalty, step) for step in steps])
    finish_curves((values, slopes, moved), line, third)
    return figure


def compare(penalties: Mapping[str, Penalty], *, step: float = 1.0, reach: float = REACH, title: str = "") -> Figure:
    """Draw several penalties of one weight into one picture.

    Args:
        penalties: at most five, under the names that the legend shows.
        step: of the prox.
        reach: > 0, how far the weight runs.
        title: of the picture.

    >>> from shrinkage import L1, MCP
    >>> figure = compare({"L1": L1(1.0), "MCP": MCP(1.0)})
    """
    weight = torch.zeros(1, dtype=torch.float64)
    line = Line(weight, reach, variable(weight), first_elements(weight))
    figure, (values, slopes, moved) = row_of_panels(title)
    for axes, function in ((values, line.value), (slopes, line.derivative)):
        set_height(axes, [draw_curve(axes, function(p), reach, **style(i)) for i, p in enumerate(penalties.values())])
    draw_moved(moved, line, [(name, penalty, step) for name, penalty in penalties.items()])
    finish_curves((values, slopes, moved), line, f"after the prox, step {step:g}")
    return figure


def draw_moved(axes: Axes, line: Line, curves: Sequence[Curve]) -> None:
    """Draw what is left after the prox of every curve, with the names of the lines beside the panel."""
    several = len(line.after) > 1
    ranges = []
    for index, (name, penalty, step) in enumerate(curves):
        for pattern, read in zip(PATTERNS, line.after.values(), strict=False):
            moved = line.moved(penalty, step, read)
            ranges.append(draw_curve(axes, moved, line.reach, linestyle=pattern, **style(index)))
        axes.plot([], [], label=name, **style(index))
    for pattern, name in zip(PATTERNS, line.after if several else (), strict=False):
        axes.plot([], [], color="black", linewidth=WIDTHS[-1], linestyle=pattern, label=f"{name} after")
    if next(iter(line.after)) == line.symbol:
        axes.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="dashed", zorder=0, label="unmoved")
    set_height(axes, ranges)
    lines = [handle for handle in axes.get_lines() if not str(handle.get_label()).startswith("_")]
    axes.figure.legend(handles=lines, loc="outside right upper", fontsize=FONT_SIZE, frameon=False, handlelength=1.6)


def finish_curves(panels: Sequence[Axes], line: Line, last: str) -> None:
    """Name the panels and their axes."""
    after = ", ".join(line.after) if len(line.after) > 1 else f"{next(iter(line.after))} after"
    heights = ("R", f"dR / d{line.symbol}", after)
    for axes, title, height in zip(panels, ("value", "derivative", last), heights, strict=True):
        finish(axes, title, line.label, height)
        axes.set_xlim(-line.reach, line.reach)


def draw_curve(axes: Axes, function: Function, reach: float, **drawn: Any) -> Range:
    """Draw `function` with gaps where it jumps, and a dot where it has a value at a single point; return its range."""
    positions = [reach * index / POINTS for index in range(-POINTS, POINTS + 1)]
    finite = [y for y in map(function, positions) if math.isfinite(y)]
    low, high = min(finite), max(finite)
    height = high - low if high - low > 1e-6 else 1.0  # a constant has rounding, and no steep places

    def point(x: float) -> Point:  # where a derivative is infinite the curve leaves the panel, far enough
        y = function(x)
        return x, min(max(y, low - BEYOND * height), high + BEYOND * height) if math.isfinite(y) else math.nan

    points = [point(position) for position in positions]
    stretches = [points[:1]]
    for before, behind in pairwise(points):
        first, *others = between(point, before, behind, STEEP * height)
        stretches[-1] += first
        stretches += others
    for stretch in stretches:
        xs = [x for x, y in stretch if not math.isnan(y)]
        single = bool(xs) and max(xs) - min(xs) < 1e-9 * reach
        axes.plot(*zip(*stretch, strict=True), **drawn | ({"marker": "o", "markersize": 5} if single else {}))
    return low, high


def set_height(axes: Axes, ranges: Sequence[Range]) -> None:
    """Make a panel as high as its curves, with some room."""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    room = 0.05 * (high - low) if high - low > 1e-6 else 1.0
    axes.set_ylim(low - room, high + room)


def between(
    point: Callable[[float], Point], before: Point, behind: Point, rise: float, bisections: int = BISECTIONS
) -> list[list[Point]]:
    """Return the points after `before` up to `behind`, dense where the curve is steep, and parted where it jumps."""
    if not abs(behind[1] - before[1]) > rise:
        return [[behind]]
    if not bisections:
        return [[], [behind]]
    middle = point((before[0] + behind[0]) / 2)
    left = between(point, before, middle, rise, bisections - 1)
    right = between(point, middle, behind, rise, bisections - 1)
    return [*left[:-1], left[-1] + right[0], *right[1:]]


def style(index: int) -> dict[str, Any]:
    """Return colour and width of a line; the first are the widest."""
    return {"color": LINES[index], "linewidth": WIDTHS[index]}


def variable(weight: Tensor) -> str:
    """Return the label of an axis along which the first element of `weight` runs."""
    others = weight.flatten().tolist()[1:]
    fixed = ", ".join(f"w{subscript(index)} = {value:g}" for index, value in enumerate(others, 2))
    return f"w{subscript(1)}   ({fixed})" if others else "w"


def first_elements(weight: Tensor) -> Numbers:
    """Return how to read the first two elements of a weight, or its only one."""
    if weight.numel() == 1:
        return {"w": lambda w: w.flatten()[0]}
    return {f"w{subscript(1)}": lambda w: w.flatten()[0], f"w{subscript(2)}": lambda w: w.flatten()[1]}


def subscript(number: int) -> str:
    """Return a number in subscript digits.

    >>> subscript(12)
    '₁₂'
    """
    return "".join(chr(ord("₀") + int(digit)) for digit in str(number))


def row_of_panels(title: str) -> tuple[Figure, list[Axes]]:
    """Return a picture of three panels in a row."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=FONT_SIZE + 1)
    return figure, list(figure.subplots(1, 3))


def finish(axes: Axes, title: str, label: str, height: str) -> None:
    """Name a panel and its axes."""
    axes.set_title(title, fontsize=FONT_SIZE)
    axes.set_xlabel(label, fontsize=FONT_SIZE)
    axes.set_ylabel(height, fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(alpha=0.3)
