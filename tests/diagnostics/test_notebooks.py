"""In notebooks, what prints as tables shows as tables, with all names escaped; rows go to pandas as they are."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from shrinkage import L1, Path, Point, Regularizer, report, shrink, suggest_strengths, to_sparse

NAME = "<b>&"


class Cells(HTMLParser):
    """The text of the cells and paragraphs of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def model():
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight[1], layer.bias[1] = 0, 0
    return nn.ModuleDict({NAME: layer, "out": nn.Linear(4, 2)})


def shown(model):
    """Everything that prints as a table, of one model."""

    class Forward(nn.ModuleDict):
        def forward(self, x):
            return self["out"](self[NAME](x))

    model = Forward(model)
    regularizer = Regularizer(model, {f"{NAME}.weight": L1(0.1)})
    x = torch.randn(5, 3)

    def loss():
        return model(x).square().mean()

    strengths = suggest_strengths(model, loss, {f"{NAME}.weight": L1(1.0)})
    sparse = to_sparse(model, keep_if_faster=False, min_sparsity=0.1).report
    return [report(model), regularizer.plan, regularizer.residuals(loss), strengths, shrink(model, x), sparse]


def test_tables_say_what_is_printed(model):
    for each in shown(model):
        page = Cells(each._repr_html_())
        assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
        assert any(NAME in text for text in page.texts)
        found, printed = " ".join(page.texts).split(), str(each).split()
        assert [word for word in found if set(word) != {"-"}] == [word for word in printed if set(word) != {"-"}]


def test_paths_say_what_is_printed():
    points = tuple(Point(strength, 1, 4, 0, 0, 2.0, 0.1, 10) for strength in (0.1, 0.2))
    for path in (Path(points), Path.together([Path(points), Path(points)])):
        assert " ".join(Cells(path._repr_html_()).texts).split() == [
            word for word in str(path).split() if set(word) != {"-"}
        ]


def test_rows_go_to_pandas(model):
    pandas = pytest.importorskip("pandas")
    found = report(model)
    frame = pandas.DataFrame(found)
    assert list(frame.columns) == list(found.tensors[0]._fields)
    assert frame.zeros.tolist() == [each.zeros for each in found]
    assert frame.name.tolist() == [f"{NAME}.weight", f"{NAME}.bias", "out.weight", "out.bias"]
