"""Estimators of scikit-learn: its own checks, the columns that matter, and what is exactly zero."""

import importlib
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

from late import Late
from shrinkage.integrations.column_order import columns_in_order, importances
from shrinkage.integrations.table_fits import BEGIN, perceptron

estimators = Late("shrinkage.integrations.sklearn")
checks = Late("sklearn.utils.estimator_checks")
NAMES = ["SparseMLPClassifier", "SparseMLPRegressor"]
SHORT = {"strengths": 5, "max_iter": 50, "iter_per_strength": 20, "hidden_layer_sizes": (20,), "learning_rate": 0.02}
QUICK_CHECKS = {
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_estimators_unfitted",
    "check_estimator_sparse_array",
    "check_fit2d_1sample",
    "check_n_features_in_after_fitting",
}


def table(rows=120, columns=5):
    return np.random.default_rng(0).normal(size=(rows, columns))


def labels(X):
    return np.where(X[:, 1] + X[:, 3] > 0, "high", "low")


def short(name, **parameters):
    return getattr(estimators, name)(**SHORT | {"random_state": 0} | parameters)


def targets(name, X):
    return labels(X) if name == "SparseMLPClassifier" else np.abs(X[:, 1]) + X[:, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_scikit_learn_finds_nothing_to_complain_about(name):
    checks.check_estimator(getattr(estimators, name)(), on_skip=None)


@pytest.mark.parametrize("name", NAMES)
def test_scikit_learn_finds_nothing_in_its_quick_checks(name):
    run = set()
    for estimator, check in checks.estimator_checks_generator(short(name, strengths=2)):
        named = getattr(check, "func", check).__name__
        if named in QUICK_CHECKS:
            check(estimator)
            run.add(named)
    assert run == QUICK_CHECKS


@pytest.mark.parametrize("name", NAMES)
def test_what_is_predicted_depends_on_the_chosen_columns_alone(name):
    X = table()
    estimator = short(name, n_features_to_select=2).fit(X, targets(name, X))
    assert estimator.get_support(indices=True).tolist() == [1, 3]
    assert (estimator.module_[0].weight != 0).any(0).tolist() == [False, True, False, True, False]
    assert estimator.score(X, targets(name, X)) > 0.8
    other = table() + np.array([3.0, 0.0, -4.0, 0.0, 1e3])
    assert np.array_equal(estimator.predict(other), estimator.predict(X))
    assert estimator.transform(X).tolist() == X[:, [1, 3]].tolist()


def test_without_a_number_the_rows_held_out_choose():
    X = table(300)
    classifier = short("SparseMLPClassifier").fit(X, labels(X))
    assert {1, 3} <= set(classifier.get_support(indices=True))
    assert classifier.predict_proba(X).sum(1) == pytest.approx(1)


def test_all_columns_are_kept_where_the_loss_needs_all():
    """The weakest penalty already leaves one of two: the dense network is compared with what is on the path."""
    X = table(300, 2)
    y = (X[:, 0] > 0).astype(int) + 2 * (X[:, 1] > 0)
    classifier = short("SparseMLPClassifier", max_iter=300).fit(X, y)
    assert max(point.groups - point.zero_groups for point in classifier.path_) == 1
    assert classifier.get_support().all()
    assert classifier.score(X, y) > 0.9


def test_a_unit_of_columns_and_targets_changes_nothing():
    X, y = table(), targets("SparseMLPRegressor", table())
    before = short("SparseMLPRegressor", n_features_to_select=2).fit(X, y)
    scales = 2.0 ** np.arange(5)  # powers of 2 round nothing
    after = short("SparseMLPRegressor", n_features_to_select=2).fit(X * scales, 1024 * y)
    assert np.array_equal(after.predict(X * scales), 1024 * before.predict(X))


def test_a_constant_column_is_never_chosen():
    X = table()
    X[:, 0] = 0.1  # whose mean is rounded
    regressor = short("SparseMLPRegressor", n_features_to_select=4).fit(X, X[:, 3])
    assert regressor.get_support().tolist() == [False, True, True, True, True]
    assert regressor.feature_importances_[0] == 0
    assert (regressor.feature_importances_[1:] > 0).all()


def test_first_weights_begin_small():
    """What was drawn is not told from what was learned where training ends early, and a column may go by chance."""
    told = torch.tensor([True, False, True, True])
    first = perceptron((50,), 2, told)[0].weight.detach()
    assert (first[:, ~told] == 0).all()
    assert 0.9 * BEGIN < 4**0.5 * float(first.abs().max()) <= BEGIN  # torch draws from -1 / sqrt(4) to 1 / sqrt(4)


def test_several_targets_have_several_columns_of_predictions():
    X = table()
    Y = np.stack([X[:, 0], 5 + X[:, 2]], 1)
    regressor = short("SparseMLPRegressor", n_features_to_select=2).fit(X, Y)
    assert regressor.predict(X).shape == Y.shape
    assert regressor.get_support(indices=True).tolist() == [0, 2]


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_is_repeated_by_its_random_state_and_leaves_that_of_torch(name):
    X = table()
    before = torch.random.get_rng_state()
    one, other = (short(name, n_features_to_select=2, batch_size=50).fit(X, targets(name, X)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, one.module_.parameters(), other.module_.parameters()))
    assert np.array_equal(pickle.loads(pickle.dumps(one)).predict(X), one.predict(X))


def test_it_is_searched_over_in_a_pipeline():
    model_selection, pipeline, linear = map(
        Late, ("sklearn.model_selection", "sklearn.pipeline", "sklearn.linear_model")
    )
    X = table()
    steps = [("columns", short("SparseMLPClassifier", strengths=2)), ("after", linear.LogisticRegression())]
    search = model_selection.GridSearchCV(pipeline.Pipeline(steps), {"columns__n_features_to_select": [2]}, cv=2)
    assert search.fit(X, labels(X)).best_params_ == {"columns__n_features_to_select": 2}


def test_columns_of_a_frame_keep_their_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table(), columns=list("abcde"))
    classifier = short("SparseMLPClassifier", n_features_to_select=2).fit(frame, labels(table()))
    assert classifier.get_feature_names_out().tolist() == ["b", "d"]
    assert classifier.feature_names_in_.tolist() == list("abcde")


def without(monkeypatch, package, *modules):
    """As if a package was not installed, and these modules were not imported yet."""
    for name in [name for name in sys.modules if name.startswith(modules)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def test_the_picture_has_a_line_for_each_column_and_names_those_that_are_kept(monkeypatch):
    X = table()
    regressor = short("SparseMLPRegressor", n_features_to_select=2)
    with pytest.raises(Late("sklearn.exceptions").NotFittedError):
        regressor.plot()
    figure = regressor.fit(X, np.abs(X[:, 1]) + X[:, 3]).plot()
    lines = [line.get_ydata() for line in figure.axes[0].get_lines()[:5]]
    norms = regressor.path_.coefficients("0.weight").norm(dim=1)
    assert np.allclose(lines, norms.T, rtol=1e-6)
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["x1", "x3"]
    without(monkeypatch, "matplotlib", "shrinkage.pictures", "matplotlib")
    with pytest.raises(ImportError, match="pip install matplotlib"):
        regressor.plot()


def test_without_scikit_learn_the_import_tells_what_to_install(monkeypatch):
    without(monkeypatch, "sklearn", "shrinkage.integrations", "sklearn")
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        importlib.import_module("shrinkage.integrations.sklearn")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_features_to_select": 6}, "n_features_to_select must be None, or from 1 to 5, got 6"),
        ({"n_features_to_select": 0}, "from 1 to 5"),
        ({"hidden_layer_sizes": ()}, "hidden_layer_sizes must be whole numbers > 0"),
        ({"max_iter": 0}, "max_iter must be a whole number > 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be from 0 to less than 1"),
        ({"strengths": [2.0, 1.0]}, "strengths must be > 0 and grow"),
        ({"standardize": False, "path_learning_rate": 1e30}, "training diverged"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        short("SparseMLPRegressor", **parameters).fit(table(), table()[:, 0])


def test_sparse_tables_and_a_single_class_are_refused():
    sparse = Late("scipy.sparse")
    with pytest.raises(TypeError, match="dense data is required"):
        short("SparseMLPRegressor").fit(sparse.csr_array(table()), table()[:, 0])
    with pytest.raises(ValueError, match="one class only, 'a'"):
        short("SparseMLPClassifier").fit(table(), ["a"] * 120)


def test_columns_are_ordered_by_when_they_leave_and_then_by_their_norms():
    draw = torch.Generator().manual_seed(0)
    norms = torch.rand(4, 30, generator=draw) * (torch.rand(4, 30, generator=draw) < 0.4)

    def key(column):
        there = norms[:, column].nonzero().flatten().tolist()
        return (there[-1], float(norms[there[-1], column])) if there else (-1, 0.0)

    order = columns_in_order(norms).tolist()
    assert order == sorted(range(30), key=key, reverse=True)
    assert importances(norms, [0.0, 1.0, 2.0, 4.0])[order].diff().max() <= 0


def test_the_selector_reads_any_module_and_says_what_it_does_not_find():
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    module[0].weight.data[:, 1] = 0
    selector = estimators.ColumnSelector(module).fit(table(columns=3))
    assert selector.get_support().tolist() == [True, False, True]
    best = int(module[0].weight.norm(dim=0).argmax())
    assert estimators.ColumnSelector(module, n_features_to_select=1).fit(table(columns=3)).get_support()[best]
    with pytest.raises(ValueError, match=r"its layer '2' has no weight of shape \(outputs, 3\)"):
        estimators.ColumnSelector(module, layer="2").fit(table(columns=3))
    with pytest.raises(ValueError, match="there is no path to draw"):
        selector.plot()


def test_the_selector_trains_a_net_of_skorch():
    skorch = pytest.importorskip("skorch", reason="skorch is not among the development extras: pip install skorch")
    X = table().astype(np.float32)
    module = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 2))
    settings = {"optimizer__momentum": 0.9, "batch_size": -1, "max_epochs": 60, "train_split": None, "verbose": 0}
    net = skorch.NeuralNetClassifier(module, criterion=nn.CrossEntropyLoss, lr=0.05, **settings)
    selector = estimators.ColumnSelector(net, n_features_to_select=2, strengths=8).fit(
        X, (labels(X) == "high").astype(int)
    )
    assert selector.get_support(indices=True).tolist() == [1, 3]
    assert len(selector.network_.history) == 60 * (1 + len(selector.path_))
    assert len(selector.plot().axes[0].get_lines()) > 5
