"""The picture of scaling."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.scaling import Sweep


def draw(sweeps: Sequence[Sweep], title: str, path: Path) -> None:
    """Write a picture with a panel for each sweep, both axes logarithmic: what grows in proportion runs diagonally."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(sweeps), 4.8), layout="constrained")
    panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for axes, sweep in zip(panels, sweeps, strict=True):
        points = [point for point in sweep.points if point.skipped is None]
        sizes = [point.size for point in points]
        for index, name in enumerate(points[0].milliseconds):
            style = {"color": f"C{index}", "linestyle": "-", "marker": "osD^v"[index % 5], "markersize": 4}
            axes.loglog(sizes, [point.milliseconds[name] for point in points], label=name, **style)
        axes.set(xlabel=f"number of {sweep.of}", ylabel="milliseconds per step")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
