"""Columns chosen by the estimators and by LassoNet, on paths of a few updates: one file, and its tables."""

import sys

import pytest
import torch

from benchmarks.experiments import columns
from benchmarks.experiments.columns import OURS, THEIRS, Cell, Result, cells, read, tables


def compare(path, *arguments):
    """Call the command with short trainings."""
    columns.main(["--quick", "--task", "cancer", "--lines", str(path), *arguments])
    torch.set_flush_denormal(False)


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, capsys):
    path = tmp_path / "runs" / "lines.jsonl"
    compare(path, "--method", OURS, "--seed", "0")
    first = path.read_text()
    path.write_text(first + first[:50])  # as if it was interrupted while it wrote
    capsys.readouterr()
    compare(path, "--method", OURS, "--seed", "0", "1")
    assert path.read_text().startswith(first)
    assert "seed 0" not in capsys.readouterr().out
    found = read(path)
    assert [each.cell.seed for each in found] == [0, 1]
    assert all(50 < value <= 100 for each in found for value in each.accuracy.values())
    assert list(found[0].accuracy) == ["5", "10", "20"]


def test_a_missing_package_skips_its_runs_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lassonet", None)
    path = tmp_path / "lines.jsonl"
    compare(path, "--method", THEIRS, "--seed", "0")
    assert "cancer lassonet, seed 0: skipped, lassonet is not installed" in capsys.readouterr().out
    assert read(path) == []


@pytest.mark.filterwarnings("ignore")
def test_the_other_package_gives_as_many_numbers(tmp_path):
    pytest.importorskip("lassonet", reason="lassonet is not among the development extras")
    path = tmp_path / "lines.jsonl"
    compare(path, "--method", THEIRS, "--seed", "0")
    (found,) = read(path)
    assert list(found.accuracy) == ["5", "10", "20"]


def test_methods_take_turns():
    found = list(cells(["digits", "cancer"], [OURS, THEIRS], [0]))
    assert [each.method for each in found] == [OURS, THEIRS, THEIRS, OURS]


def test_numbers_of_the_tables():
    def result(method, seed, accuracy, seconds):
        return Result(Cell("cancer", method, seed), seconds, {"5": accuracy, "10": 90.0, "20": 90.0}, "2")

    made = [result(OURS, 0, 91.0, 1.0), result(THEIRS, 0, 90.0, 4.0), result(OURS, 1, 95.0, 1.0)]
    found = tables([*made, result(THEIRS, 1, 92.0, 8.0), result(OURS, 2, 10.0, 9.0)])  # the last without a pair
    assert found.splitlines()[2] == "| cancer | 5 | 93.0 ± 2.8 | 91.0 ± 1.4 | +2.0 ± 1.0 |"
    assert found.splitlines()[-1] == "| cancer | 1.0 ± 0.0 s | 6.0 ± 2.8 s | 6.0 |"
