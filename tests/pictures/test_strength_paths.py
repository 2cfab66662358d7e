"""Pictures of paths show what the path has."""

import math

import pytest
import torch

from shrinkage import Columns, Path, Point
from shrinkage.pictures import strength_paths as pictures
from shrinkage.pictures.weights import png

WEIGHTS = torch.tensor([[[3.0, 1.0, 0.0], [4.0, 0.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])


def found(strengths=(0.1, 0.2), error=0.1, refit=None, groups=3):
    states = [{"0.weight": w} for w in WEIGHTS]
    numbers = zip(strengths, (1.0, 1.05), states, strict=True)
    return Path(
        tuple(Point(s, 3 + 2 * i, 6, 1 + i, groups, y, error, 9, w, refit) for i, (s, y, w) in enumerate(numbers))
    )


def ys(figure):
    return [list(line.get_ydata()) for line in figure.axes[0].get_lines()]


def test_coefficients_are_a_line_each_and_groups_their_norms():
    assert ys(pictures.path_coefficients(found(), "0.weight"))[:6] == WEIGHTS.flatten(1).T.tolist()
    norms = pictures.path_coefficients(found(), "0.weight", Columns(), labels=["a", "b", "c"])
    assert ys(norms)[:3] == [[5.0, 2.0], [1.0, 0.0], [0.0, 0.0]]
    lines = norms.axes[0].get_lines()
    assert [lines[i].get_color() == pictures.GREY for i in range(3)] == [False, False, True]
    lines = pictures.path_coefficients(found(), "0.weight", Columns(), labels=["_a", "b", "c"]).axes[0].get_lines()
    assert [lines[i].get_color() == pictures.GREY for i in range(3)] == [True, False, True]
    with pytest.raises(ValueError, match="3 names, one per line, got 1"):
        pictures.path_coefficients(found(), "0.weight", Columns(), labels=["a"])


def test_scores_have_a_band_and_both_choices():
    figure = pictures.path_scores(found())
    axes = figure.axes[0]
    assert ys(figure)[0] == [1.0, 1.05]
    assert [line.get_xdata()[0] for line in axes.get_lines()[1:]] == [0.1, 0.2]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (pytest.approx(0.9), pytest.approx(1.15))
    (upper,) = axes.child_axes
    assert [text.get_text() for text in upper.get_xticklabels()] == ["50%", "83%"]
    assert len(png(figure)) > 1000


def test_scores_without_errors_and_with_refits_are_drawn():
    plain = pictures.path_scores(found(error=math.nan))
    assert len(plain.axes[0].get_lines()) == 2  # the score, and the best
    refit = Point(0.1, 3, 6, 1, 3, 0.5, 0.1, 9)
    both = pictures.path_scores(found(refit=refit))
    assert [0.5, 0.5] in ys(both)
    joined = pictures.path_scores(Path.together([found(), found()]))
    assert ys(joined)[0] == [1.0, 1.05]


def test_zeros_are_drawn_in_per_cent():
    assert ys(pictures.path_zeros(found())) == [pytest.approx([50, 500 / 6]), pytest.approx([100 / 3, 200 / 3])]
    assert len(ys(pictures.path_zeros(found(groups=0)))) == 1
    from_zero = pictures.path_zeros(found(strengths=(0.0, 0.2)))
    assert from_zero.axes[0].get_xscale() == "symlog"
    assert len(png(from_zero)) > 1000
