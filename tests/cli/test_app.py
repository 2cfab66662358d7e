"""The command line: what it prints, and that errors are one line and end with a code."""

import json
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import shrinkage
from shrinkage.cli.app import app


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


def saved(file: Path, content: object, **options: object) -> Path:
    torch.save(content, file, **options)
    return file


def checkpoint_of(model: nn.Module) -> dict[str, object]:
    """What docs/trainers.md saves."""
    return {"model": model.state_dict(), "optimizer": torch.optim.AdamW(model.parameters()).state_dict()}


def test_report_of_a_run_says_which_entry_it_read(model: nn.Module, tmp_path: Path) -> None:
    result = call("report", saved(tmp_path / "run.pt", checkpoint_of(model)))
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.splitlines()
    assert first == f"The entry 'model' of '{tmp_path / 'run.pt'}':"
    assert rest == str(shrinkage.report(model)).splitlines()


def test_report_of_a_lightning_checkpoint(model: nn.Module, tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": model.state_dict(),
        "optimizer_states": [checkpoint_of(model)["optimizer"]],
        "callbacks": {"Average": {"weights": {"weight": torch.ones(2, 3)}}},
        "hyper_parameters": {"lr": 0.1},
    }
    result = call("report", saved(tmp_path / "last.ckpt", content))
    assert result.exit_code == 0, result.output
    assert "'state_dict'" in result.stdout.splitlines()[0]
    assert "others are 'callbacks.Average.weights', with --key" in result.stdout.splitlines()[0]
    assert str(shrinkage.report(model)) in result.stdout


def test_report_of_several_networks_asks_which(model: nn.Module, tmp_path: Path) -> None:
    other = nn.Linear(5, 4)
    file = saved(tmp_path / "gan.pt", {"generator": model.state_dict(), "critic": {"model": other.state_dict()}})
    result = call("report", file, "--key", "generator")
    assert str(shrinkage.report(model)) in result.stdout
    for key in ("critic", "critic.model"):
        assert str(shrinkage.report(other)) in call("report", file, "--key", key).stdout
    file = saved(tmp_path / "two.pt", {"generator": model.state_dict(), "critic": other.state_dict()})
    assert_fails(call("report", file), "2 state_dicts", "'generator', 'critic'", "--key")
    assert_fails(call("report", file, "--key", "critics"), "under the key 'critics'", "'generator', 'critic'")
    plain = saved(tmp_path / "plain.pt", model.state_dict())
    assert_fails(call("report", plain, "--key", "weight"), "is a state_dict itself")


def test_report_of_a_folder_names_the_files_in_it(model: nn.Module, tmp_path: Path) -> None:
    assert_fails(call("report", tmp_path), "is a folder")
    saved(tmp_path / "model.bin", model.state_dict())
    assert_fails(call("report", tmp_path), "is a folder", "'model.bin'")
    (tmp_path / ".metadata").touch()
    assert_fails(call("report", tmp_path), "dcp_to_torch_save")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", [False, True])
def test_report_of_python_objects_says_what_to_save(
    beside: bool, zipped: bool, model: nn.Module, tmp_path: Path
) -> None:
    content = {"model": model.state_dict(), "arguments": Namespace(lr=1)} if beside else model
    file = saved(tmp_path / "model.pt", content, _use_new_zipfile_serialization=zipped)
    named = "argparse.Namespace" if beside else "torch.nn.modules.linear.Linear"
    assert_fails(call("report", file), "model.pt", named, "can run code", "model.state_dict()")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 cut off", bytes(range(256))])
def test_report_of_a_damaged_file(content: bytes, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"damaged{ending}"
    file.write_bytes(content)
    assert_fails(call("report", file), f"damaged{ending}", "safetensors")


INDEX = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"hello", "a text file, which begins with 'hello'"),
        ("n\u00e4mlich ".encode() * 2000, "a text file"),
        (b'{"lr": 0.1}', "text file of JSON"),
        (json.dumps(INDEX).encode(), "'model-1-of-2.safetensors', 'model-2-of-2.safetensors'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"\x08\x08\x12\x07pytorch", "ONNX"),
        (b"\x1f\x8b\x08 ...", "gzip"),
        (b"\x93NUMPY\x01", "NumPy"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    ],
)
def test_report_names_what_is_no_file_of_weights(content: bytes, word: str, tmp_path: Path) -> None:
    file = tmp_path / "some.pt"
    file.write_bytes(content)
    result = call("report", file)
    assert_fails(result, "some.pt", word, "expected a state_dict")
    assert "101" not in result.stderr


def test_report_names_other_archives(model: nn.Module, tmp_path: Path) -> None:
    def archive(*names: str) -> Path:
        with zipfile.ZipFile(tmp_path / "some.pt", "w") as made:
            for name in names:
                made.writestr(name, "")
        return tmp_path / "some.pt"

    assert_fails(call("report", archive("a.txt")), "zip archive that torch.save did not write", "'a.txt'")
    assert_fails(call("report", archive("a.npy", "b.npy")), "NumPy")
    assert_fails(call("report", archive("m/data.pkl", "m/constants.pkl")), "TorchScript")
    torch.export.save(torch.export.export(model, (torch.ones(1, 3),)), tmp_path / "program.pt2")
    assert_fails(call("report", tmp_path / "program.pt2"), "torch.export")


def test_report_goes_by_what_a_file_is_and_not_by_its_name(model: nn.Module, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "one.pt")
    saved(tmp_path / "two.safetensors", model.state_dict())
    for name in ("one.pt", "two.safetensors"):
        assert call("report", tmp_path / name).exit_code == 0


@pytest.mark.parametrize("kept", [60, -20])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_report_of_a_file_that_is_cut_off(kind: str, kept: int, model: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "cut.pt"
    if kind == "safetensors":
        save_file(model.state_dict(), file)
    else:
        saved(file, model.state_dict(), _use_new_zipfile_serialization=kind == "zip")
    file.write_bytes(file.read_bytes()[:kept])
    assert_fails(call("report", file), "cut off or damaged", "again")


@pytest.mark.parametrize(("content", "word"), [([1, 2], "list"), ({}, "empty"), (torch.ones(2), "Tensor")])
def test_report_of_something_else(content: object, word: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert_fails(call("report", tmp_path / "other.pt"), "not hold a state_dict", word)


def test_report_of_values_that_can_not_be_counted(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pt", {"a": torch.ones(3, dtype=torch.int8)})
    assert_fails(call("report", whole), "no floating-point weights", "torch.int8")
    empty = saved(tmp_path / "meta.pt", {"a": torch.ones(3, device="meta")})
    assert_fails(call("report", empty), "meta device")


def test_missing_extras_are_named() -> None:
    program = "import sys; sys.modules['typer'] = None; from shrinkage.cli.app import app; app()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "shrinkage: the command line needs typer; in a checkout of it: pip install '.[cli]'\n"


def test_missing_extra_of_a_format_is_named(model: nn.Module, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    program = "import sys; sys.modules['safetensors'] = None; from shrinkage.cli.app import app; app()"
    command = [sys.executable, "-c", program, "report", "model.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "shrinkage: the command line needs safetensors; in a checkout of it: pip install '.[cli]'\n"
