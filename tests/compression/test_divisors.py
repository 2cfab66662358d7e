"""Norms that only divide: a channel that is zero goes, and `eps` and scale take up that it is counted no longer."""

import copy
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shrinkage import (
    Coupled,
    CoupledChannels,
    GroupError,
    PlanError,
    ShrinkPlan,
    apply_plan,
    load_smaller,
    save_smaller,
    shrink,
    shrink_optimizer_,
)
from shrinkage.compression.plans.index_text import hashed
from zoo.harness import choose, difference, outputs, size
from zoo.only_dividing import CASES, Llama

WIDTH, DEAD = 12, [1, 5, 6, 11]
KEPT = [channel for channel in range(WIDTH) if channel not in DEAD]
FACTOR = WIDTH / len(KEPT)
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
OTHERS = 3 * torch.randn(7, 4, generator=torch.Generator().manual_seed(2), dtype=torch.double)


class Norm(nn.Module):
    """A norm with a scale, as `form` writes it."""

    def __init__(self, form: Callable[["Norm", Tensor], Tensor], width: int = WIDTH):
        super().__init__()
        self.weight, self.eps, self.same, self.dim = nn.Parameter(torch.rand(width) + 0.5), 0.3, 0.3, width
        self.shape = (width,)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


class Stream(nn.Module):
    """A residual stream that two layers write to, behind two norms."""

    def __init__(self, norm: Callable[[], nn.Module], width: int = WIDTH):
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(4, width), norm(), norm()
        self.up, self.down, self.head = nn.Linear(width, 9), nn.Linear(9, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.up(self.first(x))))
        return self.head(self.second(x))


@torch.no_grad()
def stream(norm: Callable[[], nn.Module], dead: list[int] = DEAD, kind: type[Stream] = Stream) -> Stream:
    """A stream of which some channels are zero for all who write to it."""
    torch.manual_seed(0)
    model = kind(norm).double().eval()
    for layer in (model.stem, model.down):
        layer.weight[dead], layer.bias[dead] = 0, 0
    return model


def mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


FORMS = {
    "llama": lambda s, x: s.weight * (x * torch.rsqrt(mean_square(x) + s.eps)),
    "last": lambda s, x: x * (mean_square(x) + s.eps).rsqrt() * s.weight,
    "scale-and-root": lambda s, x: x * (torch.rsqrt(mean_square(x) + s.eps) * s.weight),
    "offset": lambda s, x: x * torch.rsqrt(mean_square(x) + s.eps) * (1.0 + s.weight),
    "cast": lambda s, x: x.double() * torch.rsqrt(mean_square(x.double()) + s.eps) * (1.0 + s.weight.double()),
    "quotient": lambda s, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + s.eps) * s.weight,
    "power": lambda s, x: x * (x.square().mean(-1).unsqueeze(-1) + s.eps) ** -0.5 * s.weight,
    "outside": lambda s, x: x / (mean_square(x).sqrt() + s.eps) * s.weight,
    "bound": lambda s, x: x / mean_square(x).sqrt().clamp(min=s.eps) * s.weight,
    "in-place": lambda s, x: x.clone().mul(torch.rsqrt(mean_square(x).add(s.eps))).mul(s.weight),
    "divided-by": lambda s, x: x / (torch.sqrt(mean_square(x) + s.eps) / s.weight),
    "absolute": lambda s, x: x / (x.abs().mean(-1, keepdim=True) + s.eps) * s.weight,
    "function": lambda s, x: F.rms_norm(x, (x.shape[-1],), s.weight, s.eps),
    "function-by-number": lambda s, x: F.rms_norm(x, (s.dim,), s.weight, s.eps),
    "function-by-shape": lambda s, x: F.rms_norm(x, s.shape, s.weight, s.eps),
    "without-scale": lambda s, x: F.rms_norm(x, (x.shape[-1],), None, s.eps),
    "without-scale-by-shape": lambda s, x: F.rms_norm(x, s.shape, None, s.eps),
    "without-eps": lambda s, x: x * mean_square(x).rsqrt() * s.weight,
}  # fmt: skip
TORCH = {
    "module": lambda: nn.RMSNorm(WIDTH, eps=0.3),
    "module-without-scale": lambda: nn.RMSNorm(WIDTH, eps=0.3, elementwise_affine=False),
    "module-without-eps": lambda: nn.RMSNorm(WIDTH),
}
NORMS = {name: lambda form=form: Norm(form) for name, form in FORMS.items()} | TORCH


@pytest.mark.parametrize("name", NORMS)
def test_a_zero_channel_goes_and_outputs_stay(name):
    """With an `eps` as large as the mean of squares: nothing but the exact one gives the same outputs."""
    model = stream(NORMS[name])
    result = shrink(model, X)
    assert result.model.head.in_features == len(KEPT)
    assert not result.report.kept
    torch.testing.assert_close(result.model(OTHERS), model(OTHERS), atol=1e-13, rtol=1e-13)
    again = apply_plan(model, ShrinkPlan.from_json(result.plan.to_json()))
    assert torch.equal(again(OTHERS), result.model(OTHERS))


def test_the_numbers_are_those_of_the_formula():
    model = stream(lambda: nn.RMSNorm(WIDTH, eps=0.3))
    result = shrink(model, X)
    assert result.model.first.eps == 0.3 * FACTOR
    assert torch.equal(result.model.first.weight, model.first.weight[KEPT] * math.sqrt(FACTOR))
    assert result.model.first.normalized_shape == (len(KEPT),)
    x = torch.zeros(6, WIDTH, dtype=torch.double)
    x[:, KEPT] = torch.randn(6, len(KEPT), generator=torch.Generator().manual_seed(3), dtype=torch.double)
    by_hand = x / torch.sqrt(x.square().sum(1, keepdim=True) / WIDTH + 0.3) * model.first.weight
    torch.testing.assert_close(result.model.first(x[:, KEPT]), by_hand[:, KEPT], atol=1e-15, rtol=1e-14)
    assert "multiplied: first.weight by 1.22474, second.weight by 1.22474" in str(result.plan)


def test_the_precision_of_the_machine_is_what_a_norm_without_eps_adds():
    small = shrink(stream(lambda: nn.RMSNorm(WIDTH)), X).model
    assert small.first.eps == torch.finfo(torch.double).eps * FACTOR
    half = shrink(stream(lambda: nn.RMSNorm(WIDTH)).bfloat16(), X.bfloat16()).model
    assert half.first.eps == torch.finfo(torch.float32).eps * FACTOR, "torch computes the norm in single precision"


def test_in_half_precision_the_scale_is_rounded_once():
    model = stream(lambda: Norm(FORMS["offset"])).bfloat16()
    small = shrink(model, X.bfloat16()).model
    exact = (model.first.weight[KEPT].double() + 1) * math.sqrt(FACTOR) - 1
    assert torch.equal(small.first.weight, exact.bfloat16())


REFUSED = {
    "number": (lambda s, x: x * torch.rsqrt(mean_square(x) + 0.3) * s.weight, "the code adds 0.3, no attribute"),
    "no-eps": (lambda s, x: F.rms_norm(x, (x.shape[-1],), s.weight), "adds the precision of the machine, no attribute"),
    "computed": (lambda s, x: x * torch.rsqrt(mean_square(x) + 2 * s.eps), "to which the code adds 0.6, no attribute"),
    "subtracted": (lambda s, x: (x - x.mean(-1, keepdim=True)) * s.weight, "mean over channels that is added or subtr"),
    "softmax": (lambda s, x: x * mean_square(x).softmax(0), "mean over channels that `aten.softmax` takes"),
    "layer-norm": (lambda s, x: F.layer_norm(x, s.shape, s.weight), f"also subtracts the mean over {WIDTH} channels"),
    "twice": (lambda s, x: x * torch.rsqrt(mean_square(x) + s.eps) * s.weight + s.weight, "serves other places too"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_only_divide_holds_its_channels(name):
    form, reason = REFUSED[name]
    model = stream(lambda: Norm(form))
    result = shrink(model, X)
    assert torch.equal(result.model(OTHERS), model(OTHERS))
    assert any(reason in kept.reason and "`first`" in kept.reason for kept in result.report.kept), result.report
    assert all(kept.advice for kept in result.report.kept)
    assert CoupledChannels(model, X, residual=True).names == ("up.weight", "up.bias")


def test_a_mean_that_is_put_out_holds_its_channels():
    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = stream(NORMS["module"]).stem

        def forward(self, x: Tensor) -> Tensor:
            return mean_square(self.stem(x))

    model = Sizes().eval()
    result = shrink(model, X)
    assert torch.equal(result.model(OTHERS), model(OTHERS))
    (kept,) = result.report.kept
    assert kept.reason == "mean over channels that is put out, in `the model`"


def test_an_eps_that_is_a_number_like_an_attribute_is_not_taken_for_it():
    """The comparison of outputs would not see it, where `eps` is as small as it mostly is."""
    model = stream(lambda: Norm(REFUSED["number"][0]))
    assert model.first.eps == 0.3
    assert shrink(model, X).model.first.eps == 0.3
    model = stream(lambda: Norm(FORMS["llama"]))
    small = shrink(model, X).model.first
    assert (small.eps, small.same) == (0.3 * FACTOR, 0.3)
    assert (model.first.eps, model.first.same) == (0.3, 0.3)


class Shared(Stream):
    """A number, or a scale, that serves two norms over other channels."""

    def __init__(self, norm: Callable[[], nn.Module]):
        super().__init__(norm)
        self.eps, self.weight = 0.3, nn.Parameter(torch.rand(9) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = torch.relu(self.up(F.rms_norm(x, (x.shape[-1],), self.first.weight, self.eps)))
        h = F.rms_norm(h, (h.shape[-1],), self.weight, self.eps)
        return self.head(x + self.down(h))


def test_a_number_that_would_have_to_be_two_is_left():
    model = stream(NORMS["module"], kind=Shared)
    result = shrink(model, X)
    assert torch.equal(result.model(OTHERS), model(OTHERS))
    assert {kept.reason for kept in result.report.kept} == {
        "mean over channels whose factor a number would take up that serves other places too, in `the model`"
    }


def test_a_norm_that_is_called_twice_on_one_stream_changes_once():
    model = stream(NORMS["module"])
    model.second = model.first
    small = shrink(model, X).model
    assert small.first is small.second
    assert small.first.eps == 0.3 * FACTOR
    torch.testing.assert_close(small(OTHERS), model(OTHERS), atol=1e-13, rtol=1e-13)


def test_tied_scales_are_multiplied_once():
    model = stream(NORMS["module"])
    model.second.weight = model.first.weight
    result = shrink(model, X)
    assert result.plan.scales.keys() == {"first.weight", "second.weight"}
    assert result.model.first.weight is result.model.second.weight
    torch.testing.assert_close(result.model(OTHERS), model(OTHERS), atol=1e-13, rtol=1e-13)


def test_a_channel_that_is_a_constant_is_counted_and_stays():
    model = stream(NORMS["module"])
    with torch.no_grad():
        model.stem.bias[DEAD[0]] = 0.7
    result = shrink(model, X)
    assert result.model.head.in_features == len(KEPT) + 1
    (kept,) = result.report.kept
    assert kept.reason == "is not zero where `rms_norm` in `first` sums over it"
    torch.testing.assert_close(result.model(OTHERS), model(OTHERS), atol=1e-13, rtol=1e-13)


def test_a_channel_that_no_weight_reads_is_counted_and_stays():
    model = stream(NORMS["module"], dead=[])
    with torch.no_grad():
        for layer in (model.up, model.head):
            layer.weight[:, DEAD] = 0
    result = shrink(model, X)
    assert result.model.head.in_features == WIDTH
    torch.testing.assert_close(result.model(OTHERS), model(OTHERS), atol=1e-13, rtol=1e-13)


def test_heads_under_a_norm_over_all_of_them_go():
    """As in OLMo 2, whose norms of queries and keys are over all heads."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 16, bias=False) for _ in range(3))
            self.q_norm, self.k_norm, self.out = nn.RMSNorm(16, eps=0.3), nn.RMSNorm(16, eps=0.3), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q_norm(self.q(x)), self.k_norm(self.k(x)), self.v(x)
            q, k, v = (each.view(*x.shape[:2], -1, 4).transpose(1, 2) for each in (q, k, v))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model = Attention().double().eval()
    x, other = (torch.randn(2, length, 4, dtype=torch.double) for length in (5, 8))
    assert CoupledChannels(model, x, residual=True).count == 4
    with pytest.raises(GroupError, match="only divides"):
        CoupledChannels(model, x)
    with torch.no_grad():
        for layer in (model.q, model.k, model.v):
            layer.weight[4:8] = 0
    small = shrink(model, x).model
    assert (small.out.in_features, small.q_norm.eps) == (12, 0.3 * 16 / 12)
    torch.testing.assert_close(small(other), model(other), atol=1e-13, rtol=1e-13)


# Groups, and what they cost.


@torch.no_grad()
def zero_groups_(model: nn.Module, channels: Coupled, goes: list[int]) -> None:
    for member in channels.members:
        places = [place for place, group in enumerate(member.groups) if group in goes]
        model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(places, dtype=torch.long), 0.0)


def test_groups_of_a_stream_are_whoever_writes_to_it_and_its_scales():
    model = stream(NORMS["module"])
    assert CoupledChannels(model, X).names == ("up.weight", "up.bias")
    channels = CoupledChannels(model, X, residual=True)
    assert channels.count == WIDTH + 9
    of_stream = {member.parameter for member in channels.members if member.groups[0] == channels.members[0].groups[0]}
    names = ("weight", "bias")
    writers = {f"{layer}.{name}" for layer in ("stem", "down") for name in names}
    assert of_stream == {*writers, "first.weight", "second.weight"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels_of_streams_go_from_models_of_the_zoo(case):
    model, (arguments, _) = case.make(), case.example()
    channels = CoupledChannels(model, arguments, residual=True)
    goes = choose(range(channels.count), share=0.4)
    zero_groups_(model, channels, goes)
    expected = outputs(model, case)
    result = shrink(model, arguments)
    assert difference(expected, outputs(result.model, case)) < 5e-6
    assert result.plan.scales
    assert size(result.model) < 0.6 * size(model)


def test_a_stream_can_be_told_to_keep_one_width_and_a_multiple():
    model = stream(NORMS["module"], dead=DEAD[:3])
    small = shrink(model, X, round_to=4).model
    assert small.head.in_features == 12
    small = shrink(model, X, round_to=2).model
    assert (small.head.in_features, small.first.eps) == (10, 0.3 * WIDTH / 10)
    torch.testing.assert_close(small(OTHERS), model(OTHERS), atol=1e-13, rtol=1e-13)


# Plans, files and optimizers.


def test_a_plan_is_applied_in_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    dense = Llama().eval()
    tokens = torch.randint(40, (2, 9))
    zero_groups_(dense, channels := CoupledChannels(dense, tokens, residual=True), list(range(0, channels.count, 3)))
    small = shrink(dense, tokens)
    save_smaller(tmp_path / "small.safetensors", small)
    torch.save({"dense": dense.state_dict(), "tokens": tokens, "outputs": small.model(tokens)}, tmp_path / "rest.pt")
    code = """
import torch
from shrinkage import apply_plan, load_smaller
from zoo.only_dividing import Llama
torch.set_num_threads(1)
loaded = load_smaller("small.safetensors", Llama)
rest = torch.load("rest.pt")
assert torch.equal(loaded.model.eval()(rest["tokens"]), rest["outputs"])
dense = Llama().eval()
dense.load_state_dict(rest["dense"])
assert torch.equal(apply_plan(dense, loaded.plan)(rest["tokens"]), rest["outputs"])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    low = load_smaller(tmp_path / "small.safetensors", Llama, low_memory=True).model.eval()
    assert torch.equal(low(tokens), small.model(tokens))
    assert torch.equal(pickle.loads(pickle.dumps(small.model))(tokens), small.model(tokens))


def test_two_plans_are_one():
    model = stream(lambda: Norm(FORMS["offset"]))
    first = shrink(model, X)
    with torch.no_grad():
        for layer in (first.model.stem, first.model.down):
            layer.weight[2:4], layer.bias[2:4] = 0, 0
    second = shrink(first.model, X)
    assert second.model.head.in_features == len(KEPT) - 2
    torch.testing.assert_close(second.model(OTHERS), first.model(OTHERS), atol=1e-13, rtol=1e-13)
    both = first.plan.then(second.plan)
    for layer in (model.stem, model.down):
        with torch.no_grad():
            layer.weight[torch.tensor(KEPT)[2:4]], layer.bias[torch.tensor(KEPT)[2:4]] = 0, 0
    at_once = apply_plan(model, ShrinkPlan.from_json(both.to_json()))
    torch.testing.assert_close(at_once(OTHERS), second.model(OTHERS), atol=1e-13, rtol=1e-13)


def test_scales_of_a_plan_are_checked():
    layer = nn.RMSNorm(4)
    plan = ShrinkPlan.of(layer, {"weight": {0: (0, 2)}}, scales={"weight": (2.0, 0.0)})
    with torch.no_grad():
        layer.weight.copy_(torch.arange(4))
    assert apply_plan(layer, plan).weight.tolist() == [0, 4]
    with pytest.raises(PlanError, match=re.escape("there is no 'scale' to multiply; nearest names: 'weight'")):
        ShrinkPlan.of(layer, {"weight": {0: (0, 2)}}, scales={"scale": (2.0, 0.0)})
    with pytest.raises(PlanError, match=r"multiplied by -1\.0: expected a positive number"):
        ShrinkPlan.of(layer, {"weight": {0: (0, 2)}}, scales={"weight": (-1.0, 0.0)})
    content = json.loads(plan.to_json())
    del content["scales"], content["checksum"]
    content["version"] = 2
    before = ShrinkPlan.from_json(json.dumps({**content, "checksum": hashed(content)}))
    assert (before.keep, before.scales) == (plan.keep, {})


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.0, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.0, centered=True, momentum=0.5, eps=1e-30),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.0, eps=1e-30),
}


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Take steps of length 0, which change nothing but what the optimizer keeps."""
    for seed in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("form", ["llama", "offset"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_had_the_smaller_model_from_the_start(name, form):
    dense = stream(lambda: Norm(FORMS[form]))
    result = shrink(dense, X)
    optimizer = stepped(dense, OPTIMIZERS[name](dense.parameters()))
    shrink_optimizer_(optimizer, result.plan, dense, result.model)
    fresh = copy.deepcopy(result.model)
    other = stepped(fresh, OPTIMIZERS[name](fresh.parameters()))
    for (key, mine), theirs in zip(result.model.named_parameters(), fresh.parameters(), strict=True):
        for entry, value in optimizer.state[mine].items():
            torch.testing.assert_close(value, other.state[theirs][entry], msg=f"{key}, {entry}", rtol=1e-9, atol=1e-12)
