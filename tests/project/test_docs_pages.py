"""The gallery is complete and up to date, its pictures can be drawn, and the example of an own penalty works."""

import importlib.util
import inspect
import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
import test_penalties as properties
import torch
from matplotlib.image import imread
from torch import nn

import shrinkage
from catalog import PenaltyCase
from oracle import best_improvement, minimiser_on_grid, objectives
from shrinkage import L0, L1, L2, MCP, Box, Grouped, GroupError, GroupLasso, Heads, L1Ball, Penalty, Rows
from shrinkage.pictures import curves, sets

DOCS = Path(__file__).parents[2] / "docs"
GALLERY = (DOCS / "penalties.md").read_text()
GUIDE = (DOCS / "add_a_penalty.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[1:]  # the first is L1's source

specification = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
build = importlib.util.module_from_spec(specification)
specification.loader.exec_module(build)


def public_penalties() -> list[str]:
    """Names of all penalties of the package: classes, and functions that return one."""
    names = []
    for name in shrinkage.__all__:
        thing = getattr(shrinkage, name)
        is_class = inspect.isclass(thing) and issubclass(thing, Penalty) and thing is not Penalty
        is_maker = inspect.isfunction(thing) and thing.__annotations__.get("return") is Grouped
        if is_class or is_maker:
            names.append(name)
    return names


def test_all_penalties_are_found():
    assert {"L1", "GroupLasso", "TopK", "SpectralBall"} < set(public_penalties())
    assert len(public_penalties()) >= 27


@pytest.mark.parametrize("name", public_penalties())
def test_every_penalty_has_a_section_with_its_formula_its_limits_and_a_picture(name):
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^##|\Z)", GALLERY, re.DOTALL | re.MULTILINE)
    assert f"<!-- generated: summary {name} -->" in section
    assert f"](penalties/{name}.png)" in section
    assert "**Limits.**" in section
    assert name in GALLERY[: GALLERY.index("## How to read")], "the table of goals names it"


def test_the_gallery_shows_all_pictures_and_no_others():
    files = {path.stem for path in (DOCS / "penalties").iterdir()}
    assert files == set(build.PICTURES)
    assert files == set(re.findall(r"\]\(penalties/(\w+)\.png\)", GALLERY))


@pytest.mark.parametrize("path", sorted((DOCS / "penalties").iterdir()), ids=lambda path: path.stem)
def test_pictures_are_small_and_not_blank(path):
    assert path.stat().st_size < 60_000
    assert imread(path)[..., :3].std() > 0.05


@pytest.mark.parametrize("page", build.PAGES)
def test_generated_blocks_are_up_to_date(page):
    text = (DOCS / page).read_text()
    assert build.filled(text) == text, "run make docs"
    assert len(build.BLOCK.findall(text)) == text.count("<!-- generated")


def test_the_guide_shows_the_source_of_l1():
    assert inspect.getsource(L1) in GUIDE


@pytest.mark.parametrize("name", build.PICTURES)
def test_every_picture_can_be_drawn(name, monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 8)
    monkeypatch.setattr(sets, "SIDE", 5)
    figure = build.PICTURES[name]()
    assert figure.get_suptitle()
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.lines or axes.patches or axes.collections


def lines(axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines() if len(line.get_xdata())]


def test_curves_are_the_penalty():
    values, slopes, moved = curves.draw_curves(L2(2.0), steps=(0.5,), reach=3.0).axes
    for axes, expected in ((values, lambda w: w**2), (slopes, lambda w: 2 * w), (moved, lambda w: w / 2)):
        x, y = lines(axes)[0]
        assert (x[0], x[-1]) == (-3.0, 3.0)
        assert y == pytest.approx([expected(w) for w in x])


def test_jumps_are_gaps_and_kinks_are_dots():
    slopes = curves.draw_curves(L1(1.0), steps=(1.0,)).axes[1]
    left, middle, right = lines(slopes)
    assert set(left[1]) == {-1.0}
    assert (set(middle[0]), set(middle[1])) == ({0.0}, {0.0})
    assert set(right[1]) == {1.0}
    assert [line.get_marker() for line in slopes.get_lines()] == ["None", "o", "None"]
    moved = curves.draw_curves(L0(1.0), steps=(1.0,)).axes[2]
    ends = [x[-1] for x, _ in lines(moved)[:2]]
    assert ends == pytest.approx([-(2**0.5), 2**0.5])


def test_a_steep_curve_is_not_a_jump():
    axes = curves.draw_curves(L2(1.0)).axes[0]
    axes.clear()
    curves.draw_curve(axes, lambda x: torch.tensor(200.0 * x).tanh().item(), 4.0)
    assert len(axes.get_lines()) == 1
    _, y = lines(axes)[0]
    assert max(abs(b - a) for a, b in pairwise(y)) < 0.1


def test_what_is_infinite_is_not_drawn():
    values, slopes, _ = build.PICTURES["NonNegative_L1"]().axes
    for axes in (values, slopes):
        drawn = [x for xs, ys in lines(axes) for x, y in zip(xs, ys, strict=True) if y == y]
        assert min(drawn) >= 0
    assert "o" in [line.get_marker() for line in slopes.get_lines()], "at 0 the element of least norm is 0"


def test_draw_takes_any_penalty():
    assert [axes.get_title() for axes in sets.draw(MCP(1.0)).axes] == ["value", "derivative", "after the prox"]
    assert sets.draw(GroupLasso(1.0, Rows())).axes[0].get_xlabel() == "w₁   (w₂ = 1)"
    with pytest.raises(GroupError, match="multiple of 2"):
        sets.draw(GroupLasso(1.0, Heads(2)))


def test_arrows_of_a_set_end_at_the_projections(monkeypatch):
    monkeypatch.setattr(sets, "SIDE", 5)
    plane = sets.draw(Box(-0.5, 1.0)).axes[0]
    assert len(plane.texts) > 8
    for arrow in plane.texts:
        start, end = torch.tensor(arrow.xyann), torch.tensor(arrow.xy)
        torch.testing.assert_close(end, start.clamp(-0.5, 1.0))


def test_the_second_plane_shows_another_metric(monkeypatch):
    monkeypatch.setattr(sets, "SIDE", 5)
    metric = sets.draw(L1Ball(1.0)).axes[1]
    for arrow in metric.texts:
        start, end = torch.tensor([arrow.xyann]), torch.tensor([arrow.xy])
        steps = torch.tensor([[1.0, sets.RATIO]])
        assert best_improvement(L1Ball(1.0 + 1e-6), end, start, steps) <= 1e-5


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the guide's code defines, after all of it has run in an empty folder."""
    torch.manual_seed(0)
    found = {"__name__": "guide"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guide"))
        for code in CODE:
            exec(code, found)
        found["picture"] = Path("capped_l1.png").read_bytes()
    return found


def test_the_guides_example_trains_to_exact_zeros(names):
    assert 0 < names["zeros"] < 16
    assert isinstance(names["model"], nn.Module)
    assert "CappedL1" in str(names["regularizer"])
    assert imread(io.BytesIO(names["picture"])).shape[0] > 300


@pytest.mark.parametrize("step", [0.05, 1.0, 4.0, "metric"])
def test_the_guides_prox_is_the_minimiser(names, step):
    for cap in (0.3, 1.0):
        penalty = names["CappedL1"](0.7, cap=cap)
        w = 2 * torch.randn(1, 2, dtype=torch.float64)
        steps = torch.rand_like(w) * 4 + 0.1 if step == "metric" else torch.full_like(w, step)
        y, best = penalty.prox(w, steps), minimiser_on_grid(penalty, w, steps)
        found, least = objectives(penalty, torch.stack([y, best]), w, steps)
        assert found <= least + 1e-9
        assert best_improvement(penalty, y, w, steps) <= 1e-12


PROPERTIES = [
    properties.test_zero_steps_and_zero_strengths_give_the_input_back,
    properties.test_narrow_types_are_computed_in_float32_and_rounded_once,
    properties.test_bad_weights_propagate_and_do_not_leave_their_group,
    properties.test_a_number_a_0_dim_tensor_and_a_constant_metric_agree,
    properties.test_the_origin_stays_where_it_is,
    properties.test_prox_points_are_stationary,
    properties.test_gradient_is_that_of_the_value,
    properties.test_a_huge_step_gives_exact_zeros,
    properties.test_strength_max_is_where_the_origin_becomes_stationary,
]
ARGUMENTS = {"dtype": torch.float32, "bad": float("nan"), "in_metric": True, "step": 1.0}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_the_guides_penalty_has_the_properties_of_all(names, check):
    case = PenaltyCase("CappedL1", lambda strength, _: names["CappedL1"](strength, cap=0.6), convex=False)
    asked = inspect.signature(check).parameters
    check(case, **{name: value for name, value in ARGUMENTS.items() if name in asked})
