"""The scripts that save, load and export models of many kinds: a line says what became of a model, or what failed."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from late import Late
from shrinkage.errors import ShrinkError
from zoo.case import Case, Normal
from zoo.own import CASES
from zoo.real import BERT, LLAMA, language

exports, families, loading, round_trips = map(
    Late, ("benchmarks.exports", "benchmarks.families", "benchmarks.loading", "benchmarks.round_trips")
)
pytestmark = pytest.mark.filterwarnings("ignore")  # packages may deprecate what they like


@pytest.fixture(autouse=True)
def packages():
    """Skips a test where torchvision is missing."""
    pytest.importorskip("zoo.torchvision_models")


@pytest.fixture
def here(monkeypatch):
    """Models are loaded in this process."""

    class Here(dict):
        def __missing__(self, kind):
            def ask(folder):
                found = loading.answer(kind, folder)
                return {name: value for name, value in found.items() if name != "library"}

            return SimpleNamespace(ask=ask)

    return Here()


def case_of(name):
    return next(case for case in CASES if case.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("uniform", [False, True])
def test_a_model_of_transformers_comes_back(uniform, here):
    trip = round_trips.measure_trip(
        "transformers", language("llama", "LlamaForCausalLM", **LLAMA), here, uniform=uniform
    )
    before, after = trip.parameters
    assert after < before
    assert (trip.how, trip.told, trip.error) == ("AutoModelForCausalLM", (), "")
    assert trip.difference < 1e-5
    assert trip.again < 1e-5
    assert trip.stored.startswith("intermediate_size=" if uniform else "a plan")
    assert f"{after:,}" in str(trip)


def test_other_models_come_back_from_one_file(here):
    trip = round_trips.measure_trip("hand", case_of("mlp"), here)
    assert (trip.how, trip.stored, trip.told, trip.error) == ("load_smaller", "one file", (), "")
    assert trip.difference < 1e-5
    assert trip.again < 1e-5


def test_what_goes_wrong_is_in_the_line(here, monkeypatch):
    broken = Case("broken", lambda: nn.Linear(2, 2), (Normal(2, 3),))
    trip = round_trips.measure_trip("hand", broken, here)
    assert trip.error.startswith("ShrinkError: calling the Linear with the example inputs failed")
    assert "ShrinkError" in str(trip)
    monkeypatch.setattr("benchmarks.loading.KINDS", {"file": lambda folder: 1 / 0})
    assert round_trips.measure_trip("hand", case_of("mlp"), here).error == "ZeroDivisionError: division by zero"


@pytest.mark.slow
def test_other_outputs_and_names_are_seen(here, monkeypatch):
    case, save = language("bert", "BertForSequenceClassification", **BERT), round_trips.saved

    def other(group, case, dense, small, folder):
        with torch.no_grad():
            small.model.classifier.bias += 1
        small.model.classifier.register_buffer("more", torch.ones(1))
        return save(group, case, dense, small, folder)

    monkeypatch.setattr("benchmarks.round_trips.saved", other)
    trip = round_trips.measure_trip("transformers", case, here)
    assert trip.difference > 0.1
    assert trip.told == ("unexpected_keys: classifier.more",)


def test_names_choose_models_and_each_has_one():
    every = [(group, case.name) for group, case in families.chosen([])]
    assert len(set(every)) == len(every)
    assert [case.name for _, case in families.chosen(["mlp", "detr"])] == ["mlp", "detr"]
    assert {group for group, _ in families.chosen(["timm"])} == {"timm"}
    with pytest.raises(
        SystemExit, match="expected one of hand, torchvision, timm, transformers, or the name of a model"
    ):
        list(families.chosen(["nothing"]))


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--uniform"]])
def test_the_command_loads_in_other_processes(options, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.setattr(
        sys, "argv", ["round_trips", "llama", "mlp", "--output", str(tmp_path / "trips.json"), *options]
    )
    round_trips.main()
    own, llama = json.loads((tmp_path / "trips.json").read_text())["results"]
    assert own["difference"] < 1e-5
    assert llama["difference"] < 1e-5
    assert llama["error"] == ""


@pytest.mark.slow
def test_an_export_is_compared():
    found = exports.measure_export("hand", case_of("swiglu"))
    assert found.program < 1e-5
    assert found.onnx < 1e-4
    assert "swiglu" in str(found)


def test_what_is_equal_after_both_exporters_is_told(monkeypatch):
    monkeypatch.setattr("benchmarks.exports.with_torch", lambda model, calls: 0.0)
    monkeypatch.setattr("benchmarks.exports.with_onnx", lambda model, calls: 0.0)
    assert str(exports.measure_export("hand", case_of("mlp"))).split() == ["hand", "mlp", "0e+00", "0e+00"]


def test_an_exporter_that_fails_is_tried_with_the_dense_model(monkeypatch):
    found = exports.measure_export("hand", case_of("undecided"))
    assert found.program.startswith("dense too: ")

    def fails(model, calls):
        if model[0].out_features < 16:
            raise ShrinkError("only the smaller one")
        return 0.0

    monkeypatch.setattr("benchmarks.exports.with_torch", fails)
    monkeypatch.setattr("benchmarks.exports.with_onnx", lambda model, calls: 1.0)
    found = exports.measure_export("hand", case_of("mlp"))
    assert found.program == "FAILS: ShrinkError: only the smaller one"
    assert found.onnx == 1.0
