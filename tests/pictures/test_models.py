"""Pictures of a model: what they draw is what the model is, or was."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from shrinkage import report
from shrinkage.pictures.models import column_norms, histograms, layer_sizes, zeros_by_epoch


def labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def widths(figure: Figure) -> list[float]:
    return [bar.get_width() for bar in figure.axes[0].patches]


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[:3] = 0
    return model


def test_histograms_have_a_panel_for_each_matrix(model: nn.Module) -> None:
    for given in (model, model.state_dict()):
        titles = [axes.get_title(loc="left") for axes in histograms(given).axes]
        assert titles == [
            "0.weight: 54 of 72 weights are exactly zero",
            "3.weight: 0 of 48 weights are exactly zero",
        ]


def test_zeros_by_epoch_are_those_of_the_reports(model: nn.Module) -> None:
    history = [report(model)]
    with torch.no_grad():
        model[3].weight[1:] = 0
    lines = zeros_by_epoch([*history, report(model)]).axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["0.weight", "3.weight"]
    assert [list(line.get_ydata()) for line in lines] == [[75.0, 75.0], [0.0, pytest.approx(200 / 3)]]
    with pytest.raises(ValueError, match="history is empty"):
        zeros_by_epoch([])


def test_columns_that_are_read_are_drawn_the_largest_on_top() -> None:
    weight = torch.tensor([[0.0, 3.0, 0.0, 1.0], [0.0, 4.0, -7.0, 0.0]])
    figure = column_norms(weight, ["a", "b", "c", "d"])
    assert (labels(figure), widths(figure)) == (["d", "b", "c"], [1, 5, 7])
    assert figure.axes[0].get_title() == "3 of 4 columns are read"
    cut = column_norms(weight, most=2)
    assert (labels(cut), widths(cut)) == (["column 1", "column 2"], [5, 7])
    assert cut.axes[0].get_title() == "3 of 4 columns are read, the 2 largest"
    assert column_norms(torch.zeros(2, 3)).axes[0].get_title() == "0 of 3 columns are read"
    assert widths(column_norms(torch.ones(2, 3, 4))) == [pytest.approx(8**0.5)] * 3  # a convolution's input channels


def test_columns_need_a_name_each() -> None:
    with pytest.raises(ValueError, match="names must be 3, one per column of the weight, got 2"):
        column_norms(torch.ones(2, 3), ["a", "b"])
    with pytest.raises(ValueError, match=r"weight must have two dimensions or more, got shape \(3,\)"):
        column_norms(torch.ones(3))


def test_layers_are_drawn_in_the_order_of_the_model_from_the_top(model: nn.Module) -> None:
    small = nn.Sequential(nn.Conv2d(2, 1, 3), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3))
    figure = layer_sizes(model, small)
    assert labels(figure) == ["3.weight, 3x16 to 3x4", "0.weight, 4x2x3x3 to 1x2x3x3"]
    assert widths(figure) == [48, 72, 12, 18]
    assert figure.axes[0].get_title() == "36 of 135 parameters are left"
    assert labels(layer_sizes(model, model, most=1)) == ["0.weight, 4x2x3x3"]
    assert widths(layer_sizes(model.state_dict(), small.state_dict())) == [48, 72, 12, 18]


def test_other_models_are_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' is no parameter of the smaller model"):
        layer_sizes(model, nn.Linear(2, 2))
    for draw in (histograms, lambda norm: layer_sizes(norm, norm), lambda norm: zeros_by_epoch([report(norm)])):
        with pytest.raises(ValueError, match="two dimensions"):
            draw(nn.BatchNorm1d(3))


def test_pictures_name_their_axes(model: nn.Module) -> None:
    for figure in (column_norms(torch.ones(2, 2)), layer_sizes(model, model), zeros_by_epoch([report(model)])):
        assert figure.axes[0].get_xlabel()
        assert figure.axes[0].get_title()
