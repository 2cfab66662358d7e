"""The page about a model of one's own: complete, escaped, and about that model."""

from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from shrinkage import report
from shrinkage.pictures.model_page import model_page, picture_of_history
from shrinkage.pictures.models import largest


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
    found = largest(report(model))
    assert found == [f"{index}.weight" for index in range(5)]
    picture = picture_of_history([report(model)], found)
    assert picture.image == picture_of_history([report(model)], found).image
    assert ElementTree.fromstring(picture.image).tag == "{http://www.w3.org/2000/svg}svg"


def test_pictures_say_what_they_show(model: nn.Module) -> None:
    page = model_page(model, history=[report(model)] * 2)
    assert 'alt="Histograms of the sizes of weights. 0.weight: 33.3% exactly zero; 1.weight: 0.0%' in page
    assert 'alt="Lines of the share of exact zeros over 2 epochs. 0.weight: from 33.3% to 33.3%;' in page


def test_a_state_dict_has_the_same_page(model: nn.Module) -> None:
    assert model_page(model.state_dict()) == model_page(model)


def test_the_page_of_a_large_model_is_small() -> None:
    weights = {f"layers.{index}.attention.output.dense.weight": torch.ones(1, 1 + index % 2) for index in range(2000)}
    page = model_page(weights)
    assert len(page) < 500_000
    assert page.count('<th scope="row">') == 1000
    assert page.count("<td>1x2</td>") == 1000
    assert "The table has the 1,000 largest of 2,000 parameters." in page


def test_parametrized_weights_are_shown(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model[1])
    assert model_page(model, history=[report(model)]).count("<img") == 2


def test_a_model_without_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        model_page(nn.BatchNorm1d(3))
