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
from torch.distributed import checkpoint as file_system
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
    (tmp_path / "model.bin.index.json").write_text("{}")
    assert_fails(call("report", tmp_path), "is a folder", "'model.bin.index.json'")


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


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"hello", "a text file, which begins with 'hello'"),
        ("n\u00e4mlich ".encode() * 2000, "a text file"),
        (b'{"lr": 0.1}', "text file of JSON"),
        (b'{"weight_map": {}}', "text file of JSON"),
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


def shards(model: nn.Module, folder: Path, *, ending: str = ".safetensors") -> Path:
    """The model in a file for each tensor, and their index."""
    index = {}
    for name, tensor in model.state_dict().items():
        index[name] = f"model-{len(index) + 1}{ending}"
        content = {name: tensor}
        save_file(content, folder / index[name]) if ending == ".safetensors" else saved(folder / index[name], content)
    (folder / "model.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder / "model.index.json"


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_report_of_shards_by_their_index(ending: str, model: nn.Module, tmp_path: Path) -> None:
    result = call("report", shards(model, tmp_path, ending=ending))
    assert result.stdout == f"{shrinkage.report(model)}\n"


def test_report_of_an_index_without_its_shards(model: nn.Module, tmp_path: Path) -> None:
    index = shards(model, tmp_path)
    save_file({"other": torch.ones(2)}, tmp_path / "model-2.safetensors")
    assert_fails(call("report", index), "index of a model in several files; none of them has 'bias'")
    (tmp_path / "model-2.safetensors").unlink()
    assert_fails(call("report", index), "in 2 files; not beside it are 'model-2.safetensors'")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "model.index.json").write_text('{"weight_map": {"weight": "../model-1.safetensors"}}')
    assert_fails(call("report", tmp_path / "below" / "model.index.json"), "not beside it are '../model-1.safetensors'")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_report_of_a_distributed_checkpoint(model: nn.Module, tmp_path: Path) -> None:
    file_system.save(checkpoint_of(model) | {"epoch": 3}, checkpoint_id=tmp_path / "nested", no_dist=True)
    result = call("report", tmp_path / "nested")
    assert result.stdout == f"The entry 'model' of '{tmp_path / 'nested'}':\n{shrinkage.report(model)}\n"
    file_system.save(model.to(torch.bfloat16).state_dict(), checkpoint_id=tmp_path / "plain", no_dist=True)
    assert call("report", tmp_path / "plain").stdout == f"{shrinkage.report(model)}\n"
    (file,) = (tmp_path / "plain").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:100])
    assert_fails(call("report", tmp_path / "plain"), "damaged or of another version", "again")


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_report_of_a_distributed_checkpoint_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    assert_fails(call("report", tmp_path), "damaged", "which is no part of such a file")
    assert not (tmp_path / "harm").exists()
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    assert_fails(call("report", tmp_path), "damaged", "it is a dict")


def test_running_statistics_are_no_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    result = call("report", saved(tmp_path / "model.pt", model.state_dict()))
    assert result.stdout == f"{shrinkage.report(model)}\n"
    assert "running" not in result.stdout


def test_report_as_json(model: nn.Module, tmp_path: Path) -> None:
    file = saved(tmp_path / "run.pt", checkpoint_of(model))
    expected = json.loads(json.dumps(shrinkage.report(model).to_dict()))
    assert json.loads(call("report", file, "--json").stdout) == expected
    result = json.loads(call("report", file, saved(tmp_path / "b.pt", nn.Linear(3, 2).state_dict()), "--json").stdout)
    assert result["before"] == expected
    assert result["after"]["zeros"] == 0
    assert result["change"] == pytest.approx(-3 / 8)


def test_two_files_are_compared(model: nn.Module, tmp_path: Path) -> None:
    before = saved(tmp_path / "a.pt", checkpoint_of(nn.Linear(3, 2)))
    after = saved(tmp_path / "b.pt", {"weight": model.weight.data, "more": torch.zeros(1, 3)})
    assert call("report", before, after).stdout.splitlines() == [
        f"The entry 'model' of '{before}':",
        "parameter  shape   zeros        zeros after          change",
        "---------  ------  -----  ----  -----------  ------  ------",
        "weight     2x3         0  0.0%            3   50.0%   +50.0",
        "bias       2           0  0.0%",
        "more       1x3                            3  100.0%",
        "all        8 to 9      0  0.0%            6   66.7%   +66.7",
    ]


@pytest.mark.parametrize(
    ("share", "code"), [("0", 0), ("0.375", 0), ("37.5%", 0), ("0.38", 1), ("38%", 1), ("38", 2), ("nan", 2)]
)
def test_fail_under_ends_with_a_code(share: str, code: int, model: nn.Module, tmp_path: Path) -> None:
    dense, file = (
        saved(tmp_path / f"{each}.pt", checkpoint_of(net)) for each, net in enumerate((nn.Linear(3, 2), model))
    )
    for files in ((file,), (dense, file)):  # of two files the second counts
        result = call("report", *files, "--fail-under", share)
        assert result.exit_code == code
        assert ("37.5% of the 8 weights of" in result.stderr) == (code == 1)
        assert ("a share from 0 to 1" in result.stderr) == (code == 2)
        assert ("weight " in result.stdout) == (code < 2)


def test_what_is_counted_can_be_chosen(model: nn.Module, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pt", checkpoint_of(model))
    for options in (["--matrices"], ["--select", "*weight"], ["--select", "w*", "--select", "weigh?", "--matrices"]):
        result = call("report", file, *options, "--fail-under", "50%")
        assert result.exit_code == 0
        assert "bias" not in result.stdout
    result = call("report", file, "--select", "*s", "--fail-under", "1e-3")
    assert_fails(result, "0.0% of the 2 weights", "fewer than 0.1%")
    assert "--matrices" not in result.stderr
    assert (
        "biases and norms count too, but with --matrices or --select" in call("report", file, "--fail-under", 1).stderr
    )
    assert_fails(
        call("report", file, "--select", "wieght"), "--select 'wieght' has no tensor", "nearest names: 'weight'"
    )
    assert_fails(call("report", file, "--select", "bias", "--matrices"), "no tensor of two dimensions or more")


def test_report_writes_a_page(model: nn.Module, tmp_path: Path) -> None:
    file, page = saved(tmp_path / "<b>.pt", model.state_dict()), tmp_path / "page.html"
    assert call("report", file, "--html", page).stdout.endswith(f"\nwritten: {page}\n")
    numbers = call("report", file, "--html", page, "--json")
    assert json.loads(numbers.stdout)["zeros"] == shrinkage.report(model).zeros
    assert numbers.stderr == f"written: {page}\n"
    text = page.read_text()
    assert "<h1>Zeros of &lt;b&gt;.pt</h1>" in text
    assert "data:image/svg+xml" in text
    assert len(text) < 500_000
    assert_fails(call("report", file, "--html", tmp_path / "none" / "page.html"), "cannot be written")
    flat = saved(tmp_path / "flat.pt", {"bias": torch.ones(3)})
    assert_fails(call("report", flat, "--html", page), "cannot be written", "two dimensions")


def build() -> nn.Module:
    """A model to be built by its name, on the command line."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def build_embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


no_model = torch.ones(3)


@pytest.fixture
def pruned(tmp_path: Path) -> tuple[nn.Module, Path]:
    model = build()
    with torch.no_grad():
        model[0].weight[1:3] = 0
        model[0].bias[1:3] = 0
    return model, saved(tmp_path / "run.pt", checkpoint_of(model))


def test_shrink_writes_the_smaller_model(pruned: tuple[nn.Module, Path]) -> None:
    model, file = pruned
    result = call("shrink", f"{__name__}:build", file, "--input", "1x3x2x2")
    assert result.exit_code == 0, result.output
    path = file.with_name("small.safetensors")
    small = shrinkage.load_smaller(path, build).model
    assert small[0].out_channels == 2
    x = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(small.eval()(x), model.eval()(x))
    assert "largest relative difference of the outputs" in result.stdout
    assert f"written: {path}, to be read by load_smaller(path, build)" in result.stdout


def test_shrink_takes_indices(tmp_path: Path) -> None:
    model = build_embedding()
    with torch.no_grad():
        model[1].weight[0] = model[1].bias[0] = 0
    file, out = saved(tmp_path / "run.pt", model.state_dict()), tmp_path / "out.safetensors"
    result = call("shrink", f"{__name__}:build_embedding", file, "--input", "2x5:int64", "--out", out)
    assert result.exit_code == 0, result.output
    assert shrinkage.load_smaller(out, build_embedding).model[1].out_features == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter deprecates parts of itself
def test_shrink_writes_onnx(pruned: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, file = pruned
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = tmp_path / "small.onnx"
    result = call("shrink", f"{__name__}:build", file, "--input", "2x3x2x2", "--onnx", onnx)
    assert result.exit_code == 0, result.output
    alone = tmp_path / "alone"
    alone.mkdir()
    session = onnxruntime.InferenceSession(onnx.rename(alone / onnx.name))  # its weights are in the same file
    x = torch.randn(5, 3, 2, 2)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model.eval()(x))


def test_a_model_is_exported_as_it_is_in_evaluation(pruned, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnxscript")
    modes = []
    monkeypatch.setattr(torch.onnx, "export", lambda model, *_, **options: modes.append(model.training))
    result = call("shrink", f"{__name__}:build", pruned[1], "--input", "2x3x2x2", "--onnx", tmp_path / "small.onnx")
    assert result.exit_code == 0, result.output
    assert modes == [False]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("build", "1x3x2x2", ("names no function", "package.module:function")),
        ("nowhere.at_all:build", "1x3x2x2", ("cannot be imported", "nowhere")),
        (f"{__name__}:built", "1x3x2x2", ("cannot be imported", "'built'")),
        (f"{__name__}:no_model", "1x3x2x2", ("gives a Tensor", "torch.nn.Module")),
        (f"{__name__}:build_embedding", "1x3:int64", ("are not those of this model", "Missing key")),
        (f"{__name__}:build", "1,3,2,2", ("--input must be a shape", "'1,3,2,2'")),
        (f"{__name__}:build", "1x3:int4", ("--input must be a shape", "int64")),
        (f"{__name__}:build", "1x7x2x2", ("cannot be made smaller",)),
    ],
)
def test_shrink_tells_mistakes_in_a_line(
    name: str, shape: str, words: tuple[str, ...], pruned: tuple[nn.Module, Path]
) -> None:
    assert_fails(call("shrink", name, pruned[1], "--input", shape), *words)
    assert not pruned[1].with_name("small.safetensors").exists()


def test_the_version_needs_no_torch() -> None:
    program = (
        "import sys; sys.argv = ['shrinkage', '--version']; from shrinkage_command import main; main()\n"
        "print(sorted({'torch', 'shrinkage', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{shrinkage.__version__}\n[]\n"


def test_the_command_leads_to_the_rest() -> None:
    program = "import sys; sys.argv = ['shrinkage', 'report', 'none']; from shrinkage_command import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "shrinkage: there is no file 'none'\n")


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
