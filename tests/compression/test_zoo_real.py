"""Models of torchvision, timm and transformers: they can be exported and answer to their inputs."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from late import torchvision_models
from zoo import real
from zoo.harness import difference, outputs

CASES = [pytest.param(case, marks=[pytest.mark.slow] if case.slow else [], id=str(case)) for case in real.CASES]


@pytest.fixture(autouse=True)
def packages():
    """Skips a test where torchvision is missing."""
    pytest.importorskip("zoo.torchvision_models")


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_exported_and_answers_to_its_inputs(case):
    model = case.make()
    answers = outputs(model, case)
    assert 1e-3 < difference(answers[0], answers[1]) < float("inf")
    arguments, keywords = case.example()
    with torch.no_grad():
        exported = torch.export.export(model, arguments, keywords).module()
        assert difference(answers[0], exported(*arguments, **keywords)) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_no_parameter_is_zero_tiny_or_constant(case):
    for name, parameter in case.make().named_parameters():
        assert parameter.abs().max() > 0.01, name
        assert parameter.numel() == 1 or parameter.std() > 0.005, name


def test_operators_of_torchvision_are_declared_only_where_the_compiled_ones_do_not_load(monkeypatch):
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    assert torchvision_models.declare() is None
    assert torch.ops.torchvision.nms.default


@pytest.mark.parametrize("file", ["_C.so", "_C_stable.so"])
def test_compiled_operators_are_found_by_every_name_that_torchvision_gave_them(file, tmp_path, monkeypatch):
    tmp_path.joinpath(file).touch()
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert torchvision_models.declare() is None
    assert loaded == [str(tmp_path / file)]
