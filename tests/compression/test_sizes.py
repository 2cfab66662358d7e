"""Sizes that a model's code gives as numbers: read off inputs, computed from others, or written out."""

import copy
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shrinkage import CoupledChannels, PlanError, ShrinkPlan, apply_plan, shrink, shrink_optimizer_
from shrinkage.compression.plans.index_text import hashed
from shrinkage.compression.plans.sized_modules import with_text_changed
from shrinkage.compression.plans.sizes import Asked, Correction, asked_by, table_of
from shrinkage.compression.removal import recording
from shrinkage.compression.removal.lockstep import Step, _check_means_one
from zoo import gpt
from zoo.harness import difference


@torch.no_grad()
def without_groups(model, channels, chosen):
    """Set the chosen groups to zero, in place."""
    parameters = dict(model.named_parameters())
    for member in channels.members:
        which = torch.isin(torch.tensor(member.groups), torch.tensor(chosen))
        parameters[member.parameter].index_fill_(member.dim, which.nonzero().flatten(), 0.0)


def heads_of(channels, layer):
    """The groups that are heads of a layer: several rows each."""
    member = next(each for each in channels.members if each.parameter == layer)
    return list(dict.fromkeys(group for group in member.groups if group >= 0))


def shrunk_gpt(kind="nano", **options):
    torch.manual_seed(0)
    model = gpt.GPT(kind, **options).eval()
    tokens = torch.randint(40, (2, 12))
    channels = CoupledChannels(model, tokens)
    first = "c_attn" if kind == "nano" else "key"
    heads = [heads_of(channels, f"h.{block}.attn.{first}.weight") for block in range(2)]
    without_groups(model, channels, [heads[0][1], heads[1][0], heads[1][2]])
    return model, shrink(model, tokens), heads


@pytest.fixture(scope="module")
def nano():
    return shrunk_gpt()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def tokens(*shape):
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(shape[0]))


@pytest.mark.parametrize("kind", ["nano", "min"])
def test_heads_of_gpts_as_people_write_them_go(nano, kind):
    model, small, heads = nano if kind == "nano" else shrunk_gpt(kind)
    assert [len(each) for each in heads] == [4, 4]
    assert [block.attn.n_head for block in small.model.h] == [3, 2]
    last = "c_proj" if kind == "nano" else "proj"
    assert [block.attn.get_submodule(last).in_features for block in small.model.h] == [24, 16]
    assert not small.report.kept
    for shape in ((1, 1), (3, 7), (5, 24)):
        assert difference(model(tokens(*shape)), small.model(tokens(*shape))) < 1e-6


def test_a_module_whose_code_is_corrected_is_an_ordinary_one(nano):
    model, small, _ = nano
    before, after = model.h[0].attn, small.model.h[0].attn
    assert isinstance(after, gpt.NanoAttention)
    assert (type(after).__name__, type(after).__module__) == ("NanoAttention", "zoo.gpt")
    assert list(small.model.state_dict()) == list(model.state_dict())
    assert type(before) is gpt.NanoAttention
    x = tokens(2, 9)
    for twin in (copy.deepcopy(small.model), pickle.loads(pickle.dumps(small.model))):
        assert torch.equal(twin(x), small.model(x))
        assert type(twin.h[0].attn) is type(after)
        assert twin.h[0].attn.c_attn.weight is not after.c_attn.weight


def test_threads_do_not_meet(nano):
    _, small, _ = nano
    inputs = [tokens(1 + number % 3, 5 + number) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for x, found in zip(inputs, pool.map(small.model, inputs), strict=True):
            assert torch.equal(found, small.model(x))


def test_train_mode_is_that_of_the_modules_own_code(nano):
    model, small, _ = nano
    x, found = tokens(2, 12), []
    for each in (copy.deepcopy(model).train(), copy.deepcopy(small.model).train()):
        torch.manual_seed(3)
        with torch.enable_grad():
            loss = each(x).square().mean()
            loss.backward()
        found.append((loss.detach(), each.h[0].attn.c_proj.bias.grad))
    assert difference(found[0], found[1]) < 1e-5
    assert found[0][0] != model(x).square().mean()


LOADING = """
import sys, torch
from shrinkage import ShrinkPlan, apply_plan
from zoo import gpt
saved = torch.load(sys.argv[1], weights_only=True)
small = apply_plan(gpt.GPT("nano").eval(), ShrinkPlan.from_json(saved["plan"]))
small.load_state_dict(saved["state"])
assert torch.equal(small(saved["x"]), saved["y"])
"""


def test_another_process_makes_the_same_model_from_the_plan(nano, tmp_path):
    _, small, _ = nano
    x = tokens(3, 8)
    saved = {"plan": small.plan.to_json(), "state": small.model.state_dict(), "x": x, "y": small.model(x).detach()}
    torch.save(saved, tmp_path / "small.pt")
    tests = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {tests!r})" + LOADING
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "small.pt")], check=True)
    assert ShrinkPlan.from_json(small.plan.to_json()) == small.plan
    assert "sizes corrected in the code of: h.0.attn, h.1.attn" in str(small.plan)


def test_the_optimizer_goes_on(nano):
    model, small, _ = (copy.deepcopy(each) if isinstance(each, nn.Module) else each for each in nano)
    x, optimizer = tokens(2, 12), torch.optim.AdamW(model.parameters(), lr=1e-3)

    model.h[0].attn.c_proj.weight[:, 8:16] = 0  # so that what is zero has no gradient
    model.h[1].attn.c_proj.weight[:, :8] = model.h[1].attn.c_proj.weight[:, 16:24] = 0

    def step(each, optimizer):
        optimizer.zero_grad()
        with torch.enable_grad():
            each(x).square().mean().backward()
        optimizer.step()
        return each(x)

    step(model, optimizer)
    smaller = apply_plan(model, small.plan)
    assert difference(model(x), smaller(x)) < 1e-6
    other = copy.deepcopy(model)
    dense = torch.optim.AdamW(other.parameters(), lr=1e-3)
    dense.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shrink_optimizer_(optimizer, small.plan, model, smaller)
    for _ in range(2):
        assert difference(step(other, dense), step(smaller, optimizer)) < 1e-5


@pytest.mark.parametrize(
    ("path", "backend"),
    [
        ("h.1.attn", "eager"),
        pytest.param("", "aot_eager", marks=pytest.mark.slow),
        pytest.param("", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_as_a_whole_for_any_batch_and_length(nano, path, backend):
    _, small, _ = nano
    torch.compiler.reset()
    part = small.model.get_submodule(path)
    assert with_text_changed(part)
    compiled = torch.compile(part, fullgraph=True, backend=backend, dynamic=True)
    for shape, stance in (((2, 12), "default"), ((3, 7), "fail_on_recompile"), ((5, 24), "fail_on_recompile")):
        x = torch.randn(*shape, 32) if path else tokens(*shape)
        with torch.compiler.set_stance(stance):
            assert difference(part(x), compiled(x)) < 1e-6


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_for_any_batch_and_length(nano, strict):
    _, small, _ = nano
    batch, length = torch.export.Dim("batch", max=16), torch.export.Dim("length", max=24)
    program = torch.export.export(small.model, (tokens(2, 12),), dynamic_shapes=({0: batch, 1: length},), strict=strict)
    for shape in ((3, 7), (5, 24)):
        assert difference(small.model(tokens(*shape)), program.module()(tokens(*shape))) < 1e-6


def test_what_is_smaller_already_becomes_smaller_again(nano):
    model, small, _ = nano
    channels = CoupledChannels(small.model, tokens(2, 12))
    heads = heads_of(channels, "h.0.attn.c_attn.weight")
    assert len(heads) == 3
    dense = copy.deepcopy(small.model)
    without_groups(dense, channels, heads[2:])
    twice = shrink(dense, tokens(2, 12))
    assert twice.model.h[0].attn.c_proj.in_features == 16
    once = apply_plan(model, small.plan.then(ShrinkPlan.from_json(twice.plan.to_json())))
    once.load_state_dict(twice.model.state_dict())
    for each in (twice.model, pickle.loads(pickle.dumps(twice.model)), apply_plan(dense, twice.plan), once):
        assert difference(dense(tokens(3, 7)), each(tokens(3, 7))) < 1e-6


def test_a_plan_of_the_first_format_is_read(nano):
    model, _, _ = nano
    plan = ShrinkPlan.of(
        model, {"h.0.c_fc.weight": {0: range(64)}, "h.0.c_fc.bias": {0: range(64)}, "h.0.c_proj.weight": {1: range(64)}}
    )
    content = json.loads(plan.to_json())
    del content["checksum"], content["sizes"]
    content["version"] = 1
    first = json.dumps({**content, "checksum": hashed(content)})
    assert ShrinkPlan.from_json(first) == plan


def merge_heads(x, batch, heads, size):
    return x.view(batch, heads, -1, size).transpose(1, 2).reshape(batch, -1, heads * size)


class HeadsTimesSamples(nn.Module):
    """Heads and samples along one axis, a helper function outside of the class, the size of a head from the width."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.e, self.n, self.heads = nn.Linear(8, width), nn.LayerNorm(width), heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))

    def forward(self, x):
        x = self.e(x).transpose(0, 1)
        length, batch, width = x.shape
        size, h = width // self.heads, self.n(x)
        q, k, v = (
            f(h).contiguous().view(length, batch * self.heads, size).transpose(0, 1) for f in (self.q, self.k, self.v)
        )
        y = torch.bmm(torch.bmm(q * size**-0.5, k.transpose(1, 2)).softmax(-1), v)
        return self.last(x + self.o(merge_heads(y, batch, self.heads, size).transpose(0, 1)))


class PointNet(nn.Module):
    """A width that is written out."""

    def __init__(self):
        super().__init__()
        self.c = nn.Sequential(
            nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 24, 1), nn.BatchNorm1d(24)
        )
        self.f = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x):
        return self.f(torch.max(self.c(x), 2, keepdim=True)[0].view(-1, 24))


class Parts(nn.Module):
    """A fused layer whose parts are cut by numbers, as a list and through `unflatten`."""

    def __init__(self):
        super().__init__()
        self.fused, self.left, self.right = nn.Linear(6, 20), nn.Linear(8, 3), nn.Linear(12, 3)

    def forward(self, x):
        one, two = torch.split(self.fused(x), [8, 12], dim=-1)
        return self.left(F.relu(one)) + self.right(torch.unflatten(F.relu(two), 1, (3, 4)).flatten(1))


@pytest.mark.parametrize(
    ("build", "shape", "others"),
    [
        (HeadsTimesSamples, (2, 7, 8), [(1, 7, 8), (3, 4, 8), (5, 9, 8)]),
        (PointNet, (3, 3, 10), [(2, 3, 10), (5, 3, 6)]),
        (Parts, (4, 6), [(2, 6), (7, 6)]),
    ],
)
def test_widths_that_are_written_out(build, shape, others):
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(*shape)
    channels = CoupledChannels(model, x)
    without_groups(model, channels, list(range(0, channels.count, 3)))
    small = shrink(model, x)
    assert small.plan.sizes
    assert not small.report.kept
    for each in others:
        x = torch.randn(*each)
        assert difference(model(x), small.model(x)) < 2e-6


class Scaled(nn.Module):
    """A number that is computed from a width: no size that is asked for."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.hidden, self.out = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        weights = (q @ k.transpose(1, 2) * (q.shape[-1] // 4) ** -0.5).softmax(-1)
        return self.out(F.relu(self.hidden(weights @ self.v(x))))


def test_channels_that_arithmetic_counts_are_in_no_group():
    torch.manual_seed(0)
    model, x = Scaled().eval(), 3 * torch.randn(2, 5, 6)
    with pytest.warns(
        UserWarning, match="the model puts out other numbers when channels of q.weight, q.bias, k.weight"
    ):
        channels = CoupledChannels(model, x)
    assert channels.names == ("v.weight", "v.bias", "hidden.weight", "hidden.bias")
    without_groups(model, channels, list(range(0, channels.count, 2)))
    assert difference(model(x), shrink(model, x).model(x)) < 1e-6


def test_a_size_that_means_two_lengths_is_told():
    """Heads lie along the first axis here, and along the second one there."""
    steps = [Step(("", "inner"), (5, 12), Asked("view", -1, (5, 4, 4)), []) for _ in range(2)]
    table = {"inner": table_of((Correction("view", -1, 2, ((1, 12),), (None, 4, 4), (None, 3, 4)),))}
    _check_means_one(steps, [[5, 3, 4], [5, 3, 4]], table)
    for wanted in ([5, 4, 3], None):
        with pytest.raises(PlanError, match="the code of `inner` asks for the size 5, 4, 4 and means two lengths"):
            _check_means_one(steps, [[5, 3, 4], wanted], table)


class Branching(nn.Module):
    """A branch that the example does not take."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, other=False):
        h = F.relu(self.first(x))
        return self.second(h.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8) if other else h.view(-1, 8))


def test_a_branch_that_the_example_does_not_take_fails_loudly():
    torch.manual_seed(0)
    model, x = Branching().eval(), torch.randn(4, 6)
    with torch.no_grad():
        model.first.weight[:2], model.first.bias[:2] = 0, 0
    small = shrink(model, x).model
    assert small.first.out_features == 6
    assert difference(model(x), small(x)) < 1e-6
    with pytest.raises(RuntimeError, match="shape"):
        small(x, other=True)


def test_a_module_with_a_forward_of_its_own_is_refused(nano):
    model, small, _ = nano
    dense = copy.deepcopy(model)
    dense.h[1].attn.forward = dense.h[1].attn.forward
    with pytest.raises(PlanError, match=r"'h\.1\.attn', whose forward is none of its class"):
        apply_plan(dense, small.plan)
    with pytest.raises(PlanError, match="which the model does not have"):
        apply_plan(model, ShrinkPlan(small.plan.shapes, small.plan.keep, sizes={"h.7": small.plan.sizes["h.0.attn"]}))


@pytest.mark.parametrize(
    ("shape", "asked", "expected"),
    [
        ((2, 5, 24), (2, 5, 4, 8), [2, 5, 3, 8]),
        ((7, 1, 24), (7, 1, 4, 8), [7, 1, 3, 8]),
        ((2, 5, 32), (2, 5, 4, 8), None),
        ((2, 5, 24), (2, 5, 4, 6), None),
        ((2, 5, 24), (2, 5, 3, 8), None),
    ],
)
def test_a_correction_holds_for_its_sizes_alone(shape, asked, expected):
    correction = Correction("view", -1, 3, ((2, 24),), (None, None, 4, 8), (None, None, 3, 8))
    call = Asked("view", -1, asked)
    assert (correction.sizes(call) if correction.fits(shape, call) else None) == expected


def test_of_samples_times_channels_the_ratio_is_corrected():
    correction = Correction("view", -1, 3, (), (None, 4, 8), (None, 3, 8), (1,))
    assert correction.sizes(Asked("view", -1, (5, 12, 8))) == [5, 9, 8]
    assert correction.fits((5, 3, 24), Asked("view", -1, (5, 12, 8)))
    assert not correction.fits((5, 3, 32), Asked("view", -1, (5, 12, 8)))  # which fits as it is
    assert not correction.fits((5, 3, 24), Asked("view", -1, (5, 10, 8)))
    of_channels = Correction("view", -1, 3, ((2, 24),), (None, 4, 8), (None, 3, 8), (1,))
    assert of_channels.fits((5, 3, 24), Asked("view", -1, (5, 12, 8)))
    for size in (10, 0, -1, -4):
        assert not of_channels.fits((5, 3, 24), Asked("view", -1, (5, size, 8)))


def test_numbers_that_new_copies_are_no_sizes():
    x = torch.zeros(3)
    assert asked_by(torch.Tensor.new, (x, 4, 5), {}) == Asked("new", -1, (4, 5))
    assert asked_by(torch.Tensor.new, (x, torch.Size((4, 5))), {}) == Asked("new", -1, (4, 5))
    assert asked_by(torch.Tensor.new, (x, [4, 5]), {}) is None
    assert asked_by(torch.Tensor.new, (x, torch.ones(2)), {}) is None


class ReadsNumbers(nn.Module):
    """Two heads of which the code has the sizes as numbers; it may scale by one that needs numbers."""

    def __init__(self, *, reads_numbers):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.reads_numbers = nn.Linear(6, 16), nn.Linear(16, 3), reads_numbers

    def forward(self, x):
        scale = x.abs().max().item() if self.reads_numbers else 1.0
        split = self.inner(x).view(x.shape[0], x.shape[1], 2, 8) * scale
        return self.outer(split.transpose(1, 2).softmax(-2).transpose(1, 2).reshape(x.shape[0], x.shape[1], 16))


@pytest.mark.parametrize("reads_numbers", [False, True])
def test_sizes_are_found_where_a_model_cannot_be_called_without_numbers(reads_numbers):
    model, x = ReadsNumbers(reads_numbers=reads_numbers).eval(), torch.randn(2, 5, 6)
    with torch.no_grad():
        model.inner.weight[[1, 9]] = model.inner.bias[[1, 9]] = 0
        model.outer.weight[:, [1, 9]] = 0
    small = shrink(model, x).model
    assert small.inner.out_features == 14
    torch.testing.assert_close(small(x[:1, :3]), model(x[:1, :3]))


def test_calls_without_numbers_ask_for_the_same_sizes(monkeypatch):
    model, x = ReadsNumbers(reads_numbers=False).eval(), torch.randn(2, 5, 6)
    without = recording.recorded(model, ((x,), {}))
    monkeypatch.setattr(recording, "without_numbers", lambda model: 1 / 0)
    assert without == recording.recorded(model, ((x,), {}))
    assert [step.name for step in without] == ["view", "reshape"]
