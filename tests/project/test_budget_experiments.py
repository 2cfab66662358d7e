"""Budgets compared with pruning, on trainings of a few updates: the same targets, the same updates, and one table."""

import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from benchmarks.experiments.budgets import __main__ as command
from benchmarks.experiments.budgets.methods import METHODS
from benchmarks.experiments.budgets.runs import Cell, Result, cells, read, result_of
from benchmarks.experiments.budgets.table import tables
from benchmarks.experiments.budgets.tasks import TASKS, Labelled
from benchmarks.experiments.budgets.training import Run
from benchmarks.experiments.budgets.units import Weights

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}:UserWarning") for text in command.EXPECTED]


def compare(path, *arguments):
    """Call the command with a training of a few updates."""
    command.main(["--updates", "40", "--lines", str(path), *arguments])
    torch.set_flush_denormal(False)


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, capsys):
    path = tmp_path / "runs" / "lines.jsonl"
    few = ["--task", "cancer", "--unit", "weights", "--share", "0.9", "--method", "dense", "one-shot", "--seed"]
    compare(path, *few, "0")
    first = path.read_text()
    path.write_text(first + first[:50])  # as if it was interrupted while it wrote
    capsys.readouterr()
    compare(path, *few, "0", "1")
    assert path.read_text().startswith(first)
    assert "seed 0" not in capsys.readouterr().out
    assert [(each.cell.method, each.cell.seed) for each in read(path)] == [
        (method, seed) for seed in (0, 1) for method in ("dense", "one-shot")
    ]
    whole = path.read_text()
    compare(path, "--only-table")
    assert path.read_text() == whole
    assert "**cancer, 90% of the weights** (40 updates)" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["budget", "gmp-2-40", "gmp-10-60", "one-shot", "lasso-0.001", "random"])
def test_targets_of_single_weights_are_met_exactly(method):
    result = result_of(Cell("cancer", "weights", method, 0.9, seed=0, updates=50))
    assert result.weights == 13_200
    assert result.zeros == 11_880
    assert result.left == 13_200 + 202 - 11_880


@pytest.mark.parametrize("method", ["budget", "budget-size", "gmp-10-40", "one-shot", "lasso-0.001", "scratch"])
def test_targets_of_channels_are_met_from_below(method):
    result = result_of(Cell("cancer", "channels", method, 0.9, seed=0, updates=20))
    assert 1_250 <= result.left <= 1_340  # of 13,402
    assert result.zeros == 0


def test_a_small_model_from_the_start_has_as_many_parameters():
    result = result_of(Cell("mlp", "weights", "scratch", 0.98, seed=0, updates=5))
    assert 1_300 <= result.left <= 50_610 - 49_196
    assert result.zeros == 0


def test_what_gradual_pruning_cuts_stays_and_grows():
    run = Run(replace(TASKS["cancer"], updates=60), 0)
    weights, seen = Weights(run, 0.9), []
    run.optimizer.register_step_post_hook(lambda *_: seen.append(weights.sizes() == 0))
    METHODS["gmp-10-60"].train(run, weights)
    counts = [int(each.sum()) for each in seen]
    assert counts[15] == 0 < counts[16] < counts[26] < counts[36] == counts[59] == 11_880
    assert all(bool(after[before].all()) for before, after in pairwise(seen))


@pytest.mark.parametrize("method", ["budget", "gmp-10-40", "lasso-0.001", "scratch"])
def test_all_methods_have_the_same_batches_and_rates(method, monkeypatch):
    def seen(method):
        drawn = []
        run = Run(replace(TASKS["cancer"], updates=40), 0)

        def batch(data, chance):
            x, y = original(data, chance)
            drawn.append((run.optimizer.param_groups[0]["lr"], x.sum().item()))
            return x, y

        monkeypatch.setattr(Labelled, "batch", batch)
        METHODS[method].train(run, Weights(run, 0.8))
        return drawn

    original = Labelled.batch
    dense = seen("dense")
    assert len(dense) == len(set(dense)) == 40
    assert seen(method) == dense


def test_networks_of_the_comparison_have_the_stated_sizes():
    counts = {name: sum(each.numel() for each in TASKS[name].build().parameters()) for name in TASKS}
    assert counts == {"mlp": 50_610, "convnet": 15_498, "transformer": 26_346, "cancer": 13_402, "gpt": 170_496}


def test_numbers_of_the_tables():
    def result(method, seed, error, nll, left, unit="weights", share=0.9):
        zeros = 900 if method == "budget" else 0
        return Result(Cell("mlp", unit, method, share, seed, 600), error, nll, zeros, 1000, left, 1.0, "2")

    found = tables(
        [
            result("budget", 0, 2.0, 0.1, 150),
            result("dense", 0, 1.0, 0.05, 1050, None, None),
            result("budget", 1, 4.0, 0.3, 150),
            result("scratch", 0, 5.0, 0.4, 140),
            result("scratch", 1, 7.0, 0.4, 148),
            result("budget", 0, 9.0, 0.9, 150, share=0.95),
        ]
    )
    assert found.split("\n\n")[:2] == [
        "**mlp, 90% of the weights** (600 updates)",
        "| method | n | error % | nll | zeros | parameters left |\n|---|---:|---:|---:|---:|---:|\n"
        "| dense | 1 | 1.00 | 0.050 | - | 1,050 |\n"
        "| budget | 2 | 3.00 ± 1.41 | 0.200 ± 0.141 | 900 | 150 |\n"
        "| scratch | 2 | 6.00 ± 1.41 | 0.400 ± 0.000 | - | 140 to 148 |",
    ]
    assert found.count("| dense |") == found.count("| budget |") == 2


@pytest.mark.parametrize(("option", "known"), [("--task", "transformer"), ("--method", "gmp-10-60")])
def test_unknown_tasks_and_methods_are_refused_with_the_known_names(option, known, capsys):
    with pytest.raises(SystemExit):
        command.main([option, "wrong"])
    assert known in capsys.readouterr().err


def test_a_missing_package_skips_its_runs_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchao.prototype.pat.optim", None)  # others may have imported the rest
    path = tmp_path / "lines.jsonl"
    compare(path, "--task", "cancer", "--unit", "weights", "--method", "pat-10-60", "--share", "0.9", "--seed", "0")
    assert "cancer weights pat-10-60 0.9, seed 0: skipped, torchao is not installed" in capsys.readouterr().out
    assert read(path) == []


def test_a_share_that_a_method_does_not_reach_is_skipped_with_the_reason(tmp_path, capsys):
    path = tmp_path / "lines.jsonl"
    compare(path, "--task", "transformer", "--unit", "weights", "--method", "scratch", "--share", "0.98", "--seed", "0")
    assert "seed 0: skipped, no model of even shape is as small: " in capsys.readouterr().out
    assert read(path) == []


def test_a_method_makes_zeros_of_the_kinds_that_it_knows():
    found = list(cells(["mlp"], ["weights", "channels"], ["dense", "pat-10-60", "budget"], [0]))
    assert [(each.unit, each.method) for each in found].count((None, "dense")) == 1
    assert not any(each.unit == "channels" and each.method == "pat-10-60" for each in found)
    assert {each.share for each in found if each.unit == "channels"} == set(TASKS["mlp"].channels)
