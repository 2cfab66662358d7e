"""The command line: what it prints, and that errors are one line and end with a code."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import shrinkage
from shrinkage.cli import app
from shrinkage.demo import run as demo_run


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_fails(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def model() -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0] = 0
    return model


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"{shrinkage.__version__}\n")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
def test_report_prints_the_report_of_a_state_dict(ending: str, model: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / f"model{ending}"
    if ending == ".safetensors":
        save_file(model.state_dict(), file)
    else:
        torch.save(model.state_dict(), file)
    result = call("report", file, "--below", "0.5")
    assert result.exit_code == 0, result.output
    for line in str(shrinkage.report(model.state_dict(), below=0.5)).splitlines():
        assert line in result.stdout


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_report_of_a_missing_file(ending: str, tmp_path: Path) -> None:
    assert_fails(call("report", tmp_path / f"none{ending}"), "no file", f"none{ending}")


def test_report_of_a_folder(tmp_path: Path) -> None:
    assert_fails(call("report", tmp_path), "no file")


def test_report_of_a_whole_model_says_what_to_save(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "model.pt")
    assert_fails(call("report", tmp_path / "model.pt"), "model.pt", "model.state_dict()")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 cut off", bytes(range(256))])
def test_report_of_a_damaged_file(content: bytes, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"damaged{ending}"
    file.write_bytes(content)
    assert_fails(call("report", file), f"damaged{ending}")


def test_report_of_a_checkpoint_names_its_entries(model: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    assert_fails(call("report", tmp_path / "checkpoint.pt"), "not hold a state_dict", "'model', 'epoch'")


@pytest.mark.parametrize(("content", "word"), [([1, 2], "list"), ({}, "empty"), (torch.ones(2), "Tensor")])
def test_report_of_something_else(content: object, word: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert_fails(call("report", tmp_path / "other.pt"), "not hold a state_dict", word)


@pytest.mark.parametrize(
    ("option", "value"), [("--seeds", "0"), ("--epochs", "-1"), ("--epochs", "many"), ("--output", "")]
)
def test_demo_refuses_bad_values(option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = call("demo", option, value or "file")
    assert result.exit_code != 0
    assert option.removeprefix("--") in result.stderr or "'file'" in result.stderr


def test_demo_prints_two_tables_and_says_where_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "Settings", partial(demo_run.Settings, rounds=2, steps=1))
    output = tmp_path / "new" / "folder"
    result = call("demo", "--seeds", "1", "--epochs", "1", "--output", output)
    assert result.exit_code == 0, result.output
    names = [variant["name"] for variant in json.loads((output / "results.json").read_text())["variants"]]
    for name in names:
        assert sum(line.startswith(name) for line in result.stdout.splitlines()) == 2
    assert "Wrote results.json, report.html" in result.stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extras_are_named(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from shrinkage.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"shrinkage: the command line needs {missing}; install it with: pip install 'shrinkage[cli]'\n"
    )


def test_missing_extra_of_the_demo_is_named(tmp_path: Path) -> None:
    program = "import sys; sys.modules['sklearn'] = None; from shrinkage.cli import app; app(['demo'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "needs sklearn; install it with: pip install 'shrinkage[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
