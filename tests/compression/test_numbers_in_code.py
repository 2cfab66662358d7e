"""Numbers that code adds in a norm: they change with the channels that are left, as attributes do."""

import copy
import importlib
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from late import transformers
from shrinkage import CoupledChannels, PlanError, ShrinkPlan, apply_plan, load_smaller, save_smaller, shrink
from shrinkage.compression.plans.index_text import hashed
from zoo.families import ConvNextV2
from zoo.harness import difference

WIDTH, DEAD = 12, [1, 5, 6, 11]
KEPT = [channel for channel in range(WIDTH) if channel not in DEAD]
FACTOR = WIDTH / len(KEPT)
X = 0.05 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
OTHERS = 3 * torch.cat([X, -X.flip(0)])


class Scaled(nn.Module):
    """What all norms here have: a scale. Inputs are so small that the number that is added counts."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.weight, self.two = nn.Parameter(torch.rand(width) + 0.5), 2.0


class InForward(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight


class InMethod(Scaled):
    def root(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.root(x) * self.weight


class InFunctionInside(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        root = lambda y: torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-3)  # noqa: E731
        return x * root(x) * self.weight


class Inherited(InMethod):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class OfTorch(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-3)


class Bounded(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=4e-2 / 8) * self.weight


class Twice(Scaled):
    """The same number in both norms of one stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight


class WithSizes(Scaled):
    """A size as a number beside it, in the same code."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight
        return x.view(x.shape[0], 1, 12).flatten(1)


NORMS = (InForward, InMethod, InFunctionInside, Inherited, OfTorch, Bounded, WithSizes)


class Stream(nn.Module):
    """A residual stream that two layers write to, behind two norms."""

    def __init__(self, norm: type[nn.Module] = InForward, width: int = WIDTH):
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(4, width), norm(width), norm(width)
        self.up, self.down, self.head = nn.Linear(width, 9), nn.Linear(9, width), nn.Linear(width, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.up(self.first(x))))
        return self.head(self.second(x))


@torch.no_grad()
def stream(norm: type[nn.Module] = InForward) -> Stream:
    torch.manual_seed(0)
    model = Stream(norm).eval()
    for layer in (model.stem, model.down):
        layer.weight.mul_(0.2), layer.bias.mul_(0.1)
        layer.weight[DEAD], layer.bias[DEAD] = 0, 0
    return model


def changed(model: nn.Module) -> list[float]:
    """What takes the place of numbers in the code of the first norm."""
    return [after for _, _, after in vars(type(model.first)).get("code_numbers", ())]


@pytest.mark.parametrize("norm", NORMS)
def test_a_number_in_code_changes_and_outputs_stay(norm):
    model = stream(norm)
    result = shrink(model, X)
    assert result.model.head.in_features == len(KEPT)
    assert not result.report.kept
    assert result.model.first.weight.shape == (len(KEPT),)
    for training in (False, True):
        for other in (OTHERS, OTHERS[:1], 0.01 * OTHERS):
            torch.testing.assert_close(
                result.model.train(training)(other), model.train(training)(other), atol=1e-13, rtol=1e-13
            )
    again = apply_plan(Stream(norm), ShrinkPlan.from_json(result.plan.to_json()))
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again(OTHERS), result.model(OTHERS))
    assert torch.equal(pickle.loads(pickle.dumps(result.model))(OTHERS), result.model(OTHERS))
    assert torch.equal(copy.deepcopy(result.model)(OTHERS), result.model(OTHERS))


def test_the_number_is_that_of_the_formula_and_the_class_an_ordinary_one():
    model = stream()
    result = shrink(model, X)
    small = result.model
    assert changed(small) == [1e-3 * FACTOR]
    assert changed(model) == []
    assert isinstance(small.first, InForward)
    assert type(small.first) is type(small.second)
    assert (type(small.first).__name__, type(small.first).__module__) == ("InForward", InForward.__module__)
    assert "numbers replaced in code: 0.001 in first.forward by 0.0015" in str(result.plan)
    x = torch.zeros(6, WIDTH, dtype=torch.double)
    x[:, KEPT] = 0.05 * torch.randn(6, len(KEPT), generator=torch.Generator().manual_seed(3), dtype=torch.double)
    torch.testing.assert_close(small.first(x[:, KEPT]), model.first(x)[:, KEPT], atol=1e-15, rtol=1e-14)


def test_a_compiled_model_computes_with_the_new_number():
    model = stream()
    small = torch.compile(shrink(model, X).model, backend="aot_eager", fullgraph=True)
    dense = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(small(OTHERS), dense(OTHERS), atol=1e-13, rtol=1e-13)


def test_channels_of_the_stream_are_offered_with_residual():
    channels = CoupledChannels(stream(), X, residual=True)
    assert channels.count == WIDTH + 9
    assert "first.weight" in channels.names


EPS = 1e-3


def rooted(x: Tensor, eps: float = 1e-3) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class InFunction(Scaled):
    """The number is in a function that others may call too."""

    def forward(self, x: Tensor) -> Tensor:
        return x * rooted(x) * self.weight


class Global(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * self.weight


class Computed(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.two * 1e-3) * self.weight


class Large(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.25) * self.weight


class ElsewhereToo(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight + 1e-3


REFUSED = {
    InFunction: "the code adds 0.001, no attribute of the module or number in its methods",
    Global: "the code adds 0.001, no attribute of the module or number in its methods",
    Computed: "the code adds 0.002, no attribute of the module or number in its methods",
    Large: "the code adds 0.25, no attribute of the module or number in its methods",
    Twice: "whose factor a number would take up that serves other places too",
    ElsewhereToo: "whose factor a number would take up that serves other places too",
}


@pytest.mark.parametrize("norm", REFUSED)
def test_another_number_holds_the_channels_and_is_told(norm):
    model = stream(norm)
    result = shrink(model, X)
    assert torch.equal(result.model(OTHERS), model(OTHERS))
    reasons = {kept.reason: kept.advice for kept in result.report.kept}
    assert any(REFUSED[norm] in reason for reason in reasons), reasons
    assert all(reasons.values())


def test_two_plans_are_one():
    model = stream()
    first = shrink(model, X)
    with torch.no_grad():
        for layer in (first.model.stem, first.model.down):
            layer.weight[2:4], layer.bias[2:4] = 0, 0
    second = shrink(first.model, X)
    assert changed(second.model) == pytest.approx([1e-3 * WIDTH / (len(KEPT) - 2)], rel=1e-12)
    torch.testing.assert_close(second.model(OTHERS), first.model(OTHERS), atol=1e-13, rtol=1e-13)
    both = ShrinkPlan.from_json(first.plan.then(second.plan).to_json())
    at_once = apply_plan(Stream(), both)
    at_once.load_state_dict(second.model.state_dict())
    assert torch.equal(at_once(OTHERS), second.model(OTHERS))


def test_a_plan_is_refused_for_code_without_its_number():
    model = stream()
    plan = shrink(model, X).plan
    with pytest.raises(
        PlanError, match=re.escape("the number 0.001 in `forward` of 'first', whose code has no such number: use the")
    ):
        apply_plan(Stream(InMethod), plan)
    model.first.forward = model.first.forward
    with pytest.raises(PlanError, match="the plan changes numbers in the code of 'first', whose forward is none of"):
        apply_plan(model, plan)


def test_plans_of_before_have_no_numbers_in_code():
    plan = ShrinkPlan.of(nn.RMSNorm(4), {"weight": {0: (0, 2)}})
    content = json.loads(plan.to_json())
    del content["numbers"], content["checksum"]
    content["version"] = 3
    before = ShrinkPlan.from_json(json.dumps({**content, "checksum": hashed(content)}))
    assert (before.keep, before.numbers) == (plan.keep, {})


def test_a_fresh_process_applies_them(tmp_path):
    small = shrink(stream(), X)
    save_smaller(tmp_path / "small.safetensors", small)
    torch.save({"x": OTHERS, "outputs": small.model(OTHERS)}, tmp_path / "rest.pt")
    (tmp_path / "whole.pkl").write_bytes(pickle.dumps(small.model))
    code = """
import pickle, torch
from pathlib import Path
from shrinkage import load_smaller
from test_numbers_in_code import Stream
torch.set_num_threads(1)
rest = torch.load("rest.pt")
loaded = load_smaller("small.safetensors", Stream).model.eval()
assert torch.equal(loaded(rest["x"]), rest["outputs"])
whole = pickle.loads(Path("whole.pkl").read_bytes())
assert torch.equal(whole(rest["x"]), rest["outputs"])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert torch.equal(load_smaller(tmp_path / "small.safetensors", Stream).model(OTHERS), small.model(OTHERS))


@torch.no_grad()
def test_hidden_channels_under_global_response_normalization_go():
    torch.manual_seed(0)
    model = ConvNextV2().eval()
    for tensor in (model.response.gamma, model.response.beta):
        tensor.normal_()
    x = torch.randn(2, 3, 8, 8)
    channels = CoupledChannels(model, x, residual=True)
    assert channels.count == 16
    gone = [0, 3, 4, 9]
    for tensor in (model.response.gamma, model.response.beta):
        tensor[..., gone] = 0
    model.expand.weight[gone], model.expand.bias[gone] = 0, 0
    small = shrink(model, x).model
    assert small.expand.out_features == 12
    for other in (torch.randn(5, 3, 8, 8), 1e-3 * torch.randn(1, 3, 6, 9)):
        assert difference(model(other), small(other)) < 1e-5


@torch.no_grad()
def test_convnext_v2_of_transformers_loses_hidden_channels(tmp_path):
    config = transformers.ConvNextV2Config(
        num_channels=3, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2, num_labels=4
    )
    torch.manual_seed(0)
    model = transformers.ConvNextV2ForImageClassification(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("grn.weight", "grn.bias")):
            parameter.normal_()
    x = torch.randn(2, 3, 16, 16)
    channels = CoupledChannels(model, x, residual=True)
    assert channels.count == 4 * (8 + 12)
    for member in channels.members:
        places = [place for place, group in enumerate(member.groups) if group >= 0 and group % 3 == 0]
        model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(places), 0.0)
    result = shrink(model, x)
    assert not result.report.kept
    assert result.plan.numbers
    other = torch.randn(3, 3, 16, 16)
    assert difference(model(other).logits, result.model(other).logits) < 1e-5
    kept_plans = importlib.import_module("shrinkage.integrations.kept_plans")
    kept_plans.keep_plan(result.model, result.plan)
    result.model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(other).logits, result.model(other).logits)
