"""Which measurements of a tumour does a network need? An estimator of scikit-learn that selects columns of a table.

    pip install '.[sklearn]' matplotlib pandas
    python examples/feature_selection.py

adds ten columns of noise to the thirty of scikit-learn's table of tumours. It keeps as few columns as the rows held out
cannot tell from the best, then five, and puts these in front of a random forest. The picture has the norm of each
column's weights over the strength. It takes about ten seconds.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from shrinkage.integrations.sklearn import SparseMLPClassifier
from shrinkage.pictures.weights import png

OUTPUT = Path("runs/examples")
NOISE = 10
COUNT = 5
SHORT: dict[str, Any] = {"strengths": 4, "max_iter": 20, "iter_per_strength": 10}  # to see that all works


def tumours() -> tuple[pandas.DataFrame, pandas.Series]:
    """Return measurements with columns of noise, and which tumours are benign."""
    table, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    noise = np.random.default_rng(0).normal(size=(len(table), NOISE))
    return table.join(pandas.DataFrame(noise, columns=[f"noise {number}" for number in range(1, NOISE + 1)])), labels


def told(classifier: SparseMLPClassifier, table: pandas.DataFrame, labels: pandas.Series) -> str:
    """Return which columns are kept, the most important first, and the accuracy."""
    order = np.argsort(-classifier.feature_importances_)[: classifier.get_support().sum()]
    names = ", ".join(classifier.feature_names_in_[order])
    return f"{len(order)} of {table.shape[1]} columns, accuracy {classifier.score(table, labels):.1%}: {names}"


def main(arguments: Sequence[str] | None = None) -> SparseMLPClassifier:
    """Run the example and return the classifier with few columns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the picture")
    parser.add_argument("--quick", action="store_true", help="few updates, to see that all works")
    options = parser.parse_args(arguments)
    settings = {"random_state": 0} | (SHORT if options.quick else {})
    table, test, labels, test_labels = train_test_split(*tumours(), random_state=0)

    found = SparseMLPClassifier(**settings).fit(table, labels)
    print(f"As few as cannot be told from the best: {told(found, test, test_labels)}.")
    few = SparseMLPClassifier(n_features_to_select=COUNT, **settings).fit(table, labels)
    print(f"The best {COUNT}: {told(few, test, test_labels)}.")
    forest = make_pipeline(few, RandomForestClassifier(random_state=0)).fit(table, labels)
    print(f"A random forest behind them: accuracy {forest.score(test, test_labels):.1%}.")

    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "feature_selection.png"
    file.write_bytes(png(few.plot()))
    print(f"Wrote {file}")
    return few


if __name__ == "__main__":
    main()
