"""What a path chooses, joins, counts and prints, given its points."""

import json
import math
import pickle

import pandas
import pytest
import torch
from torch import nn

from shrinkage import Columns, GroupError, Path, Point


def points(*scores, error=0.1, strengths=None, states=None):
    strengths = strengths or [0.1 * 2**i for i in range(len(scores))]
    states = states or [{}] * len(scores)
    return tuple(
        Point(s, 2 * i, 8, i, 4, score, error, 10, state)
        for i, (s, score, state) in enumerate(zip(strengths, scores, states, strict=True))
    )


def test_the_best_of_equal_scores_is_that_of_the_greatest_strength():
    assert Path(points(2.0, 1.0, 1.0, 3.0)).best.strength == 0.4
    assert Path(points(2.0, 1.0, 1.0, 3.0)[::-1]).best.strength == 0.4
    assert Path(points(2.0, 3.0, 3.0, 1.0), maximize=True).best.strength == 0.4


def test_one_standard_error_is_the_greatest_strength_within_the_error_of_the_best():
    scores = (1.2, 1.0, 1.2, 1.09, 1.11)  # the third is not within, and a greater one is
    for order in (1, -1):
        assert Path(points(*scores)[::order]).one_standard_error.strength == pytest.approx(0.8)
        higher = tuple(-score for score in scores)
        assert Path(points(*higher)[::order], maximize=True).one_standard_error.strength == pytest.approx(0.8)
    assert Path(points(1.0, 1.1, 5.0)).one_standard_error.strength == 0.2  # the border counts


def test_scores_that_are_not_finite_are_never_chosen():
    found = Path(points(math.nan, 1.0, -math.inf, 1.05))
    assert found.best.strength == 0.2
    assert found.one_standard_error.strength == 0.8
    with pytest.raises(ValueError, match=r"no point of the path has a finite score.*score="):
        _ = Path(points(math.nan, math.nan)).best


def test_a_score_without_an_error_has_no_one_standard_error():
    with pytest.raises(ValueError, match=r"no standard error.*Path\.together"):
        _ = Path(points(1.0, 2.0, error=math.nan)).one_standard_error


def test_joined_paths_have_means_and_their_standard_errors():
    folds = [Path(points(*scores)) for scores in ((1.0, 4.0), (2.0, 6.0), (6.0, 8.0))]
    joined = Path.together(folds)
    assert [point.score for point in joined] == [3.0, 6.0]
    assert joined[0].error == pytest.approx(7**0.5 / 3**0.5)  # variance 14 / 2
    assert joined[1].zeros == 2
    assert len(joined.runs) == 3
    weighted = Path.together(folds, weights=[1, 1, 2])
    assert weighted[0].score == pytest.approx(3.75)
    spread = (2.75**2 + 1.75**2 + 2 * 2.25**2) / 4
    assert weighted[0].error == pytest.approx((spread / 2) ** 0.5)


def test_paths_of_different_lengths_are_joined_as_far_as_all_go():
    joined = Path.together([Path(points(1.0, 2.0, 3.0)), Path(points(3.0, 4.0))])
    assert [point.score for point in joined] == [2.0, 3.0]
    assert [len(run) for run in joined.runs] == [2, 2]


@pytest.mark.parametrize(
    ("paths", "weights", "message"),
    [
        ([Path(points(1.0))], None, "two paths or more"),
        ([Path(points(1.0)), Path(points(1.0), maximize=True)], None, "maximize"),
        ([Path(points(1.0)), Path(points(1.0, strengths=[0.2]))], None, "other strengths"),
        ([Path(points(1.0)), Path(points(1.0))], [1.0], "2 numbers > 0"),
        ([Path(points(1.0)), Path(points(1.0))], [1.0, 0.0], "2 numbers > 0"),
    ],
)
def test_paths_that_do_not_fit_together_are_refused(paths, weights, message):
    with pytest.raises(ValueError, match=message):
        Path.together(paths, weights)


WEIGHTS = [
    [torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]), torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])],
    [torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1e-30], [0.0, 0.0, 0.0]])],
]


def test_a_frequency_is_the_share_of_paths_in_which_something_is_not_zero():
    runs = [Path(points(1.0, 2.0, states=[{"weight": w} for w in ws])) for ws in WEIGHTS]
    joined = Path.together(runs)
    frequency = joined.frequency("weight")
    assert frequency[0].tolist() == [[1.0, 0.5, 0.5], [0.5, 0.0, 0.5]]
    assert joined.frequency("weight", Columns()).tolist() == [[1.0, 0.5, 0.5], [0.0, 0.0, 1.0]]
    assert runs[0].frequency("weight", Columns()).tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    assert torch.equal(runs[0].coefficients("weight"), torch.stack(WEIGHTS[0]))
    with pytest.raises(KeyError, match="no tensor 'bias'; it has weight"):
        joined.frequency("bias")
    with pytest.raises(ValueError, match=r"path\.runs"):
        joined.coefficients("weight")
    flat = Path(points(1.0, states=[{"weight": torch.ones(3)}]))
    with pytest.raises(GroupError):
        flat.frequency("weight", Columns())


def test_a_choice_of_folds_is_loaded_from_the_path_of_all_data():
    states = [{"weight": torch.full((1, 3), float(i))} for i in range(3)]
    whole = Path(points(math.nan, math.nan, math.nan, states=states))
    folds = Path.together([Path(points(3.0, 1.0, 2.0)), Path(points(3.0, 1.0, 2.0))])
    layer = nn.Linear(3, 1, bias=False)
    assert whole.load(layer, folds.best) is whole[1]
    assert layer.weight.tolist() == [[1.0, 1.0, 1.0]]
    whole.load(layer, whole[2])
    assert layer.weight.tolist() == [[2.0, 2.0, 2.0]]
    with pytest.raises(KeyError, match=r"no point at strength 7; it has '0\.1'"):
        whole.load(layer, 7)
    with pytest.raises(ValueError, match="joined paths have no weights"):
        folds.load(layer, folds.best)
    with pytest.raises(ValueError, match="no refits"):
        _ = whole.refits


def test_a_choice_at_an_end_of_the_strengths_is_told():
    falling, rising = Path(points(2.0, 1.5, 1.0)), Path(points(1.0, 1.5, 2.0, 3.0))
    assert str(falling).splitlines()[-2:] == [
        "best: the greatest strength, which leaves weights; add greater ones",
        "one standard error: the greatest strength, which leaves weights; add greater ones",
    ]
    assert str(rising).splitlines()[-1] == "best: the smallest strength; begin with smaller ones, or with 0"
    from_zero = Path(points(1.0, 1.5, 2.0, strengths=[0.0, 0.1, 0.2]))
    to_nothing = Path(points(5.0, 4.0, 3.0, 2.0, 1.0))  # 8 of 8 are zero
    for path in (from_zero, to_nothing, Path(points(1.0))):
        assert ";" not in str(path)


def test_a_path_prints_what_it_has():
    found = Path(points(2.0, 1.0, 1.05))
    lines = str(found).splitlines()
    assert lines[0].split() == ["strength", "zeros", "zero", "groups", "score", "error", "updates", "choice"]
    assert lines[3].split() == ["0.2", "2", "25.00%", "1", "of", "4", "1", "0.1", "10", "best"]
    assert lines[4].endswith("one standard error")
    assert len(lines) == 6  # the last one: a choice at the end
    plain = Path((Point(0.1, 1, 4, 0, 0, math.nan, math.nan, 5),))
    assert str(plain).splitlines()[0].split() == ["strength", "zeros", "updates"]
    assert str(Path.together([found, found])).startswith("2 paths joined\n")


def test_rows_are_a_table_of_pandas_and_a_dictionary_is_json():
    found = Path(points(2.0, 1.0, 1.05))
    frame = pandas.DataFrame(found.rows())
    assert list(frame.strength) == found.strengths
    assert list(frame.sparsity) == [0.0, 0.25, 0.5]
    told = json.loads(json.dumps(Path(points(math.nan, 1.0, error=math.nan)).to_dict(), allow_nan=False))
    assert told["choices"] == {"best": 0.2}
    assert told["points"][0]["score"] is None
    assert not told["maximize"]


def test_a_path_is_a_sequence_and_can_be_pickled():
    found = Path(points(2.0, 1.0, 1.05))
    assert [*found] == [found[0], found[1], found[2]]
    assert found[1:].strengths == found.strengths[1:]
    assert isinstance(found[1:], Path)
    assert pickle.loads(pickle.dumps(found)).points == found.points
