"""Pictures: what they draw is what they were given."""

from io import BytesIO

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread

from shrinkage.pictures import weights as plots


def histogram(values: torch.Tensor) -> Figure:
    return plots.weight_histograms({"w": values}, below=1e-3)


def bars(figure: Figure) -> list[tuple[float, float]]:
    return [(bar.get_x(), bar.get_height()) for bar in figure.axes[0].patches if bar.get_height()]


def test_histogram_counts_every_weight_once() -> None:
    values = torch.tensor([0.0, 0.0, -0.0, 1e-20, -1e-9, 0.02, -0.02, 0.5, 30.0])
    found = bars(histogram(values))
    assert sum(height for _, height in found) == values.numel()
    assert max(x for x, _ in found) < 1.5  # 30 lies between 10^1 and 10^2


def test_exact_zeros_have_their_own_bar() -> None:
    assert bars(histogram(torch.zeros(7))) == [(pytest.approx(plots.SMALLEST - 1.3), 7)]
    (position, height), *others = bars(histogram(torch.full((5,), 1e-30)))
    assert (position, height, others) == (pytest.approx(plots.SMALLEST - 0.25), 5, [])


def test_panels_of_a_histogram_share_a_scale_that_holds_the_tallest_bar() -> None:
    figure = plots.weight_histograms({"few": torch.ones(3), "zeros": torch.zeros(10_000)}, below=1e-3)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_ylim()[1] > 10_000
    assert figure.axes[1].get_title(loc="left") == "zeros: 10000 of 10000 weights are exactly zero"


def test_zeros_over_epochs_draws_per_cent() -> None:
    figure = plots.zeros_over_epochs(
        {"layer": {"a": [0.0, 0.25], "b": [0.5, 1.0]}, "other": {"a": [0, 0], "b": [0, 0]}}
    )
    assert len(figure.axes) == 2
    lines = figure.axes[0].get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[1, 2], [1, 2]]
    assert [list(line.get_ydata()) for line in lines] == [[0, 25], [50, 100]]
    assert len({line.get_color() for line in lines}) == 2


def test_pixel_maps_cross_out_exact_zeros_only() -> None:
    norms = torch.tensor([[0.0, 1e-30], [2.0, 0.0]])
    figure = plots.pixel_maps(torch.rand(2, 2), {"map": norms})
    panel = figure.axes[1]
    assert panel.get_title() == "map: 2 of 4 pixels zero"
    (crosses,) = panel.get_lines()
    assert [*zip(crosses.get_xdata(), crosses.get_ydata(), strict=True)] == [(0, 0), (1, 1)]


def test_networks_have_a_point_per_neuron_and_a_line_per_weight_that_is_not_zero() -> None:
    first, second = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.5, -1.0, 0.0]])
    figure = plots.networks({"net": [first, second]}, ("in", "hidden", "out"))
    (panel,) = figure.axes
    assert panel.get_title() == "net: 9 weights"
    assert panel.get_ylabel().startswith("a point per input, neuron or output")
    lines, points = panel.collections[:2], panel.collections[2:]
    assert [len(of_layer.get_segments()) for of_layer in lines] == [2, 2]
    assert list(lines[0].get_alpha()) == [0.5, 1]
    assert [len(column.get_offsets()) for column in points] == [2, 3, 1]
    is_zero = [[colour == to_rgba(plots.ZERO_COLOUR) for colour in map(tuple, p.get_facecolor())] for p in points]
    assert is_zero == [[False, True], [False, True, False], [False]]


def test_pictures_name_their_axes() -> None:
    for figure in (
        histogram(torch.ones(3)),
        plots.zeros_over_epochs({"layer": {"a": [0.0, 0.1]}}),
        plots.pixel_maps(torch.rand(2, 2), {"map": torch.rand(2, 2)}),
        plots.networks({"net": [torch.rand(2, 2)]}, ("in", "out")),
    ):
        assert figure.get_suptitle()
        assert figure.axes[0].get_xlabel()
        assert figure.axes[0].get_ylabel()


def test_png_is_a_picture_that_is_not_blank() -> None:
    picture = imread(BytesIO(plots.png(histogram(torch.randn(100)))))
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05
