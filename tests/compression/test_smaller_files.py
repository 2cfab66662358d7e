"""A smaller model in one file comes back as it was, in a fresh process too, and what does not fit is told."""

import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from channels import free_channels
from shrinkage import PlanError, ShrinkPlan, apply_plan, load_smaller, save_smaller, shrink
from shrinkage.compression.plans.tensors import tensors_of
from zoo import real
from zoo.harness import choose, difference, outputs, zero_

WORDS = torch.randint(0, 12, (3, 5), generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """A head that is tied to an embedding, a hidden layer, and a buffer that is not saved."""

    def __init__(self, *, tied: bool = True, buffer: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 12, bias=False)
        if tied:
            self.head.weight = self.words.weight
        if buffer:
            self.register_buffer("scale", torch.arange(1.0, 7.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        if "scale" in self._buffers:
            h = h * self.scale
        return self.head(h + self.down(torch.relu(self.up(h))))


def without_buffer() -> Tied:
    return Tied(buffer=False)


def silenced(model: nn.Module) -> nn.Module:
    """Return `model` with hidden units that are zero."""
    with torch.no_grad():
        for tensor in (model.up.weight, model.up.bias):
            tensor[[1, 4, 5]] = 0
    return model.eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return shrink(silenced(Tied()), WORDS)


def test_a_model_comes_back_with_its_plan(small, tmp_path):
    file = tmp_path / "small.safetensors"
    save_smaller(file, small)
    loaded = load_smaller(file, Tied)
    assert loaded.plan == small.plan
    assert loaded.model.up.out_features == 5
    assert loaded.model.head.weight is loaded.model.words.weight
    assert torch.equal(loaded.model.eval()(WORDS), small.model(WORDS))
    assert (loaded.report.before.parameters, loaded.report.after.parameters) == (182, 143)
    assert loaded.report.before.size - loaded.report.after.size == 4 * 39
    assert "not compared" in str(loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]
    assert "head.weight" not in safetensors.torch.load_file(file), "tied tensors are in the file once"


def test_a_model_that_was_trained_on_comes_back_with_its_weights(small, tmp_path):
    with torch.no_grad():
        small.model.down.bias += 1
    save_smaller(tmp_path / "a", small.model, plan=small.plan)
    assert torch.equal(load_smaller(tmp_path / "a", Tied).model.eval()(WORDS), small.model(WORDS))


def test_half_precision_comes_back(small, tmp_path):
    small.model.bfloat16()
    save_smaller(tmp_path / "a", small)
    loaded = load_smaller(tmp_path / "a", Tied).model.eval()
    assert {tensor.dtype for tensor in tensors_of(loaded).values()} == {torch.bfloat16}
    assert loaded.head.weight is loaded.words.weight
    assert torch.equal(loaded(WORDS), small.model(WORDS))


def test_the_dense_model_takes_no_memory(tmp_path):
    small = shrink(silenced(without_buffer()), WORDS)
    save_smaller(tmp_path / "a", small)
    loaded = load_smaller(tmp_path / "a", without_buffer, low_memory=True).model.eval()
    assert loaded.head.weight is loaded.words.weight
    assert isinstance(loaded.head.weight, nn.Parameter)
    assert torch.equal(loaded(WORDS), small.model(WORDS))


def test_a_buffer_that_is_not_saved_needs_memory(small, tmp_path):
    save_smaller(tmp_path / "a", small)
    with pytest.raises(PlanError, match="cannot be made on the meta device: 'scale': low_memory=False"):
        load_smaller(tmp_path / "a", Tied, low_memory=True)


def test_a_model_that_reads_its_numbers_while_built_needs_memory(small, tmp_path):
    def build():
        model = Tied()
        model.first = model.words.weight[0, 0].item()
        return model

    save_smaller(tmp_path / "a", small)
    with pytest.raises(PlanError, match=r"`build` fails on the meta device with RuntimeError, .*: low_memory=False"):
        load_smaller(tmp_path / "a", build, low_memory=True)


def test_a_fresh_process_reads_it(small, tmp_path):
    save_smaller(tmp_path / "small", small)
    code = (
        "import sys, torch; from shrinkage import load_smaller\n"
        "from compression.test_smaller_files import Tied, WORDS\n"
        "torch.save(load_smaller(sys.argv[1] + '/small', Tied).model.eval()(WORDS), sys.argv[1] + '/outputs')"
    )
    path = [*sys.path, *(folder for folder in sys.path if folder.endswith("tests"))]
    environment = {"PYTHONPATH": ":".join(path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    assert torch.equal(torch.load(tmp_path / "outputs"), small.model(WORDS))


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        whole = torch.randn(3, 4)
        model[0].weight, model[1].weight = nn.Parameter(torch.randn(4, 4)), nn.Parameter(whole[:2])
        model.register_buffer("other", whole[1:])
        return model

    plan = ShrinkPlan.of(build(), {"0.weight": {1: (0, 2)}})
    small = apply_plan(build(), plan)
    small.other = small[1].weight.data
    save_smaller(tmp_path / "a", small, plan=plan)
    loaded = load_smaller(tmp_path / "a", build).model
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_plans_one_after_the_other_are_one(small, tmp_path):
    with torch.no_grad():
        small.model.up.weight[0] = small.model.up.bias[0] = 0
    second = shrink(small.model, WORDS)
    plan = small.plan.then(second.plan)
    assert plan.keep["up.weight"][0] == (2, 3, 6, 7)
    save_smaller(tmp_path / "a", second.model, plan=plan)
    assert torch.equal(load_smaller(tmp_path / "a", Tied).model.eval()(WORDS), second.model(WORDS))
    with pytest.raises(PlanError, match=r"'up\.weight' is \(4, 6\) there, and \(8, 6\) for the second"):
        plan.then(small.plan)


def test_composed_plans_know_new_biases_and_buffers_that_are_not_saved():
    def build():
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 5, bias=False))
        model.register_buffer("mask", torch.arange(6.0), persistent=False)
        return model

    first = ShrinkPlan.of(build(), {"0.weight": {0: (0, 1, 3)}, "1.weight": {1: (0, 1, 3)}}, biases=("1",))
    between = apply_plan(build(), first)
    second = ShrinkPlan.of(between, {"1.weight": {0: (1, 4)}, "1.bias": {0: (1, 4)}, "mask": {0: (0, 5)}})
    at_once = apply_plan(build(), first.then(second))
    assert {name: tensor.shape for name, tensor in tensors_of(at_once).items()} == {
        name: tensor.shape for name, tensor in tensors_of(apply_plan(between, second)).items()
    }
    assert torch.equal(at_once.mask, torch.tensor([0.0, 5.0]))
    assert (at_once[1].in_features, at_once[1].out_features) == (3, 2)
    third = ShrinkPlan.of(at_once, {"0.weight": {1: (0,)}})
    assert first.then(second).then(third).keep["mask"] == {0: (0, 5)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm-resnet", "timm-vit", "timm-convnext", "vision-transformer-torchvision"])
def test_models_of_other_packages_come_back(name, tmp_path):
    pytest.importorskip("zoo.torchvision_models")
    case = next(case for case in real.CASES if case.name == name)
    model, (example, _) = case.make(), case.example()
    zero_(model, choose(free_channels(model, example, {})), "all")
    small = shrink(model, example)
    assert small.report.after.parameters < small.report.before.parameters
    save_smaller(tmp_path / "a", small)
    for low_memory in (False, True):
        loaded = load_smaller(tmp_path / "a", case.build, low_memory=low_memory)
        assert difference(outputs(small.model, case), outputs(loaded.model.eval(), case)) == 0
    assert difference(outputs(model, case), outputs(loaded.model, case)) < 1e-5


# What does not fit.


def test_a_model_without_a_plan_is_refused(small, tmp_path):
    with pytest.raises(TypeError, match="or a model and its plan=, found a module Tied"):
        save_smaller(tmp_path / "a", small.model)
    with pytest.raises(TypeError, match="expected no plan beside"):
        save_smaller(tmp_path / "a", small, plan=small.plan)


def test_a_model_that_is_not_of_the_plan_is_refused(small, tmp_path):
    with pytest.raises(PlanError, match="the model is the dense one"):
        save_smaller(tmp_path / "a", Tied(), plan=small.plan)
    small.model.up = nn.Linear(6, 7)
    with pytest.raises(PlanError, match=r"'up\.weight' should be \(5, 6\), is \(7, 6\)"):
        save_smaller(tmp_path / "a", small)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.to("meta"), "is on the meta device and holds no numbers"),
        (
            lambda model: model.register_buffer("rare", torch.eye(2).to_sparse()),
            "'rare' is stored as .*: make it dense",
        ),
        (
            lambda model: setattr(type(model), "get_extra_state", lambda self: 3),
            "'_extra_state' is 3: expected",
        ),
    ],
)
def test_what_a_file_does_not_hold_is_refused(change, message, tmp_path):
    class Mine(Tied):
        pass

    small = shrink(silenced(Mine()), WORDS)
    change(small.model)
    with pytest.raises(PlanError, match=message):
        save_smaller(tmp_path / "a", small)
    assert not list(tmp_path.iterdir())


def test_files_that_are_none_are_told(small, tmp_path):
    safetensors.torch.save_file(small.model.up.state_dict(), tmp_path / "other")
    with pytest.raises(PlanError, match="'other' has no plan in its header"):
        load_smaller(tmp_path / "other", Tied)
    (tmp_path / "text").write_text("weights")
    with pytest.raises(PlanError, match="'text' is no file of safetensors, or damaged"):
        load_smaller(tmp_path / "text", Tied)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_smaller(tmp_path / "none", Tied)
    with pytest.raises(FileNotFoundError, match="make it first"):
        save_smaller(tmp_path / "folder" / "a", small)


def test_another_model_than_the_plans_is_told(small, tmp_path):
    save_smaller(tmp_path / "a", small)
    with pytest.raises(PlanError, match="the model is not like the dense one"):
        load_smaller(tmp_path / "a", lambda: nn.Linear(3, 2))
    with torch.no_grad():
        small.model.head.weight = nn.Parameter(torch.randn(12, 6))
    save_smaller(tmp_path / "a", small)
    with pytest.raises(PlanError, match=r"'head\.weight' and 'words\.weight' are tied in the model that `build` makes"):
        load_smaller(tmp_path / "a", Tied)


def test_a_save_that_fails_leaves_the_file_before(small, tmp_path, monkeypatch):
    def fails(state, path, metadata):
        path.write_text("half of it")
        raise OSError("no space left")

    save_smaller(tmp_path / "a", small)
    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(OSError, match="no space left"):
        save_smaller(tmp_path / "a", small)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert torch.equal(load_smaller(tmp_path / "a", Tied).model.eval()(WORDS), small.model(WORDS))


class Versioned(Tied):
    """A model that asks which version of its class a state is of, as MnasNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *arguments):
        if local_metadata.get("version") != self._version:
            raise ValueError("version should be set")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


@pytest.mark.parametrize("buffer", [False, True])
def test_modules_are_told_their_version(buffer, tmp_path):
    small = shrink(silenced(Versioned(buffer=buffer)), WORDS)
    save_smaller(tmp_path / "small.safetensors", small)
    again = load_smaller(tmp_path / "small.safetensors", lambda: Versioned(buffer=buffer), low_memory=not buffer)
    assert torch.equal(again.model.eval()(WORDS), small.model(WORDS))
