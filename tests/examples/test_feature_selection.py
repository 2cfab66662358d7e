"""The example of the estimators, cut down to seconds: it selects columns and draws them."""

import pytest


def test_the_example_selects_columns_and_draws_them(tmp_path, capsys):
    pytest.importorskip("pandas")
    import feature_selection

    classifier = feature_selection.main(["--quick", "--output", str(tmp_path)])
    assert classifier.get_support().sum() == 5
    assert "The best 5: 5 of 40 columns, accuracy" in capsys.readouterr().out
    assert (tmp_path / "feature_selection.png").stat().st_size > 1000
