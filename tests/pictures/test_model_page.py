"""The page about a model of one's own: complete, escaped, and about that model."""

import pytest
import torch
from torch import nn

from shrinkage import report
from shrinkage.pictures.model_page import largest, model_page, picture_of_history


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0] = 0
    return model


def test_a_page_has_every_parameter_and_a_picture_of_its_history(model: nn.Module) -> None:
    without, with_history = model_page(model), model_page(model, history=[report(model)] * 3)
    assert [name for name, _ in model.named_parameters() if f'<th scope="row">{name}</th>' not in without] == []
    assert "3 of 80 parameters are exactly zero" in without
    assert "<td>33.3%</td><td>1 of 3</td><td>0 of 3</td>" in without
    assert (without.count("<img"), with_history.count("<img")) == (1, 2)
    assert "strengths were chosen" not in without
    assert "make this report again" not in without


def test_names_are_escaped(model: nn.Module) -> None:
    named = nn.ModuleDict({"<b>": model})
    assert "<b>" not in model_page(named, history=[report(named)], title="<b>")


def test_pictures_show_the_five_largest(model: nn.Module) -> None:
    found = largest([each for each in report(model) if len(each.shape) > 1])
    assert found == [f"{index}.weight" for index in range(5)]
    assert picture_of_history([report(model)], found).png.startswith(b"\x89PNG")


def test_parametrized_weights_are_shown(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model[1])
    assert model_page(model, history=[report(model)]).count("<img") == 2


def test_a_model_without_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        model_page(nn.BatchNorm1d(3))
