"""Smaller models have the outputs of the dense ones, over the zoo and over random models."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from channels import free_channels
from shrinkage import ShrinkError, ShrinkPlan, apply_plan, shrink
from shrinkage.compression.calls import comparison
from shrinkage.compression.calls.cost import multiply_adds
from shrinkage.compression.removal import bisection
from shrinkage.compression.tracing.coupling import couple
from shrinkage.compression.tracing.operators import RULES
from zoo import graphs, real
from zoo.harness import run
from zoo.own import CASES

RANDOM = [graphs.at_random(seed, 6 + seed % 20) for seed in range(24)]
# Half of the random graphs wait for `make test-all`.
DRAWN = [pytest.param(case, marks=[pytest.mark.slow] * (place % 2), id=str(case)) for place, case in enumerate(RANDOM)]
LSTM = "ignore:The tensor attributes .*_flat_weights:UserWarning"


def shrunk(model, arguments, keywords):
    return shrink(model, arguments, example_kwargs=keywords).model


@pytest.mark.filterwarnings(LSTM)
@pytest.mark.parametrize("mode", ["all", pytest.param("weights", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [*CASES, *DRAWN], ids=str)
def test_outputs_are_those_of_the_dense_model(case, mode):
    result = run(case, free_channels, shrunk, mode)
    assert result.error < 1e-5


def unknown(*arguments, **keywords):
    raise NotImplementedError


def operators_of(case):
    arguments, keywords = case.example()
    traces = couple(case.make(), arguments, example_kwargs=keywords).traces
    nodes = [node for subgraph, _ in traces for node in subgraph.program.graph.nodes]
    return sorted({packet for node in nodes if (packet := getattr(node.target, "overloadpacket", None))}, key=str)


@pytest.mark.filterwarnings(LSTM)
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one", "each"])
@pytest.mark.parametrize(
    "place",
    [pytest.param(place, id=str(case), marks=[pytest.mark.slow] * (place % 4 > 0)) for place, case in enumerate(CASES)],
)
def test_what_an_unknown_operator_touches_stays(place, all_of_them, monkeypatch):
    """An operator of the model has no rule: one of them, another one in each model, or each of them in turn."""
    operators = operators_of(CASES[place])
    for operator in operators if all_of_them else [operators[place % len(operators)]]:
        with monkeypatch.context() as patch:
            patch.setitem(RULES, operator, unknown)
            assert run(CASES[place], free_channels, shrunk, "all").error < 1e-5, operator


def test_a_grouped_convolution_behind_an_unknown_operator_stays(monkeypatch):
    monkeypatch.setitem(RULES, torch.ops.aten.relu, unknown)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    for layer in (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3, groups=2)):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), layer, nn.Tanh(), nn.Conv2d(8, 3, 1)).eval()
        with torch.no_grad():
            model[4].weight[:, 2] = 0
        for verify in (True, False):
            result = shrink(model, x, verify=verify)
            assert result.model[2].bias.shape == (8,)
            torch.testing.assert_close(result.model(x), model(x))


# The lengths in their code are found out by a comparison.
BY_COMPARISON = {
    "generator", "attention-literal", "attention-by-count", "attention-cross", "nanoGPT", "minGPT", "shuffled",
    "graph-einsum", "llama-by-hand", "llama-tied", "sliced-glu",
}  # fmt: skip


@pytest.mark.filterwarnings(LSTM)
@pytest.mark.parametrize("mode", ["all", pytest.param("weights", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [*(case for case in CASES if case.name not in BY_COMPARISON), *DRAWN], ids=str)
def test_the_rules_are_right_without_a_comparison(case, mode):
    kept = []

    def unverified(model, arguments, keywords):
        small = shrink(model, arguments, example_kwargs=keywords, verify=False)
        kept.extend(small.report.kept)
        return small.model

    result = run(case, free_channels, unverified, mode)
    assert result.error < 1e-5
    constant = any("is not zero where" in each.reason for each in kept)  # a sum over it reads what a sigmoid makes
    if mode == "all" and result.zeroed and not constant and case.name != "recurrent":  # it reads again what it added
        assert result.after < result.before


@given(graphs.cases())
@settings(max_examples=25, deadline=None)
def test_outputs_of_any_model_are_those_of_the_dense_one(case):
    assert run(case, free_channels, shrunk, "all").error < 1e-5


@pytest.mark.parametrize("mode", ["all", pytest.param("weights", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case.slow else [], id=str(case)) for case in real.CASES]
)
def test_outputs_of_real_models_are_those_of_the_dense_ones(case, mode):
    assert run(case, free_channels, shrunk, mode).error < 1e-5


def silenced():
    """A network with a norm, three of whose eight hidden neurons are zero, one of them with a shift left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor[:3] = 0
        model[1].bias[0] = 2.0
    return model


def test_a_constant_goes_into_a_bias_that_is_made_for_it():
    model, x = silenced(), torch.randn(6, 4)
    result = shrink(model, x)
    assert [tuple(p.shape) for p in result.model.parameters()] == [(5, 4), (5,), (5,), (5,), (3, 5), (3,)]
    torch.testing.assert_close(result.model[3].bias, 2.0 * model[3].weight[:, 0])
    torch.testing.assert_close(result.model(x), model(x))
    assert model[3].bias is None
    assert result.plan.biases == ("3",)


def test_a_plan_rebuilds_the_smaller_model_bit_for_bit():
    model, x = silenced(), torch.randn(6, 4)
    result = shrink(model, x)
    plan = ShrinkPlan.from_json(result.plan.to_json())
    again = apply_plan(silenced(), plan)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again(x), result.model(x))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    filled = apply_plan(empty, plan)
    filled.load_state_dict(result.model.state_dict(), assign=True)
    assert torch.equal(filled(x), result.model(x))


class Insisting(nn.Module):
    """A side branch that nobody reads, and code that insists on its width."""

    def __init__(self):
        super().__init__()
        self.side, self.main = nn.Linear(4, 8), nn.Linear(4, 3)

    def forward(self, x):
        if self.side(x).shape[-1] != 8:
            raise ValueError("eight, please")
        return self.main(x)


def test_no_other_channel_goes_in_place_of_those_that_have_to_stay():
    """All but one of the side branch could go; where these cannot, neither can the one."""
    model, x = Insisting().eval(), torch.randn(5, 4)
    result = shrink(model, x)
    assert result.report.error == 0
    assert torch.equal(result.model(x), model(x))


def test_axes_keep_a_multiple_of_channels():
    model, x = silenced(), torch.randn(6, 4)
    result = shrink(model, x, round_to=3)
    assert result.model[0].out_features == 6
    torch.testing.assert_close(result.model(x), model(x))
    (kept,) = result.report.kept
    assert (kept.name, kept.channels) == ("0.weight", 1)


def test_one_channel_stays_where_all_are_zero():
    model, x = silenced(), torch.randn(6, 4)
    with torch.no_grad():
        for parameter in model[:2].parameters():
            parameter.zero_()
    result = shrink(model, x)
    assert result.model[0].out_features == 1
    assert torch.equal(result.model(x), model(x))


def test_what_nobody_reads_goes():
    model, x = silenced(), torch.randn(6, 4)
    with torch.no_grad():
        model[3].weight[:, 5] = 0
    assert shrink(model, x).model[0].out_features == 4


def test_a_neuron_that_a_relu_silences_on_the_examples_alone_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].bias[2] = -50.0
    assert shrink(model, torch.randn(6, 4)).model[0].out_features == 8


def test_a_constant_that_meets_zeros_at_a_border_stays_and_is_reported():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
    result = shrink(model, torch.randn(2, 3, 6, 6))
    assert result.model[0].out_channels == 4
    (kept,) = result.report.kept
    assert (kept.name, kept.channels) == ("0.weight", 1)
    assert "zeros at the border" in kept.reason
    assert kept.advice
    assert "zeros at the border" in str(result)


def test_an_operator_without_a_rule_holds_what_it_touches_and_is_named():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.second(torch.ops.aten.diag_embed(self.first(x)).sum(-1))

    model = Sorted().eval()
    with torch.no_grad():
        model.first.weight[1] = model.first.bias[1] = 0
    report = shrink(model, torch.randn(3, 4)).report
    assert report.unknown_operators == {"aten.diag_embed.default": 1}
    assert "without a rule" in report.kept[0].reason


def test_the_dense_model_stays_as_it_was():
    model, x = silenced(), torch.randn(6, 4)
    model.train()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = shrink(model, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert result.model.training
    assert not result.model[0].weight.requires_grad


def test_a_broken_choice_of_channels_is_found_and_undone(monkeypatch):
    """With constants taken for zeros, the comparison finds the neuron whose constant was lost."""
    monkeypatch.setattr(bisection, "shifts", lambda *_: {})
    model, x = silenced(), torch.randn(6, 4)
    result = shrink(model, x)
    torch.testing.assert_close(result.model(x), model(x))
    assert result.model[0].out_features == 8
    assert "outputs differ" in result.report.kept[0].reason


def test_without_numbers_nothing_can_be_taken_out():
    with torch.device("meta"):
        model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(ShrinkError, match="meta device"):
        shrink(model, x)


def test_the_report_counts_what_went():
    report = shrink(silenced(), torch.randn(6, 4)).report
    assert (report.before.parameters, report.after.parameters) == (80, 53)
    assert (report.before.multiply_adds, report.after.multiply_adds) == (6 * (32 + 24), 6 * (20 + 15))
    assert report.to_dict()["before"]["parameters"] == 80
    assert report.before.latency > 0
    assert [layer.name for layer in report.layers] == ["0", "1", "3"]
    first, _, last = report.layers
    assert first.shapes == {"0.weight": ((8, 4), (5, 4)), "0.bias": ((8,), (5,))}
    assert (first.before.multiply_adds, first.after.multiply_adds) == (6 * 32, 6 * 20)
    assert (last.before.parameters, last.after.parameters) == (24, 18)
    assert 0 < first.before.latency < 10 * report.before.latency
    assert re.search(r"^0 +8x4 to 5x4 +40 to 25 +192 to 120 ", str(report), re.MULTILINE)


def test_a_layer_that_is_used_without_being_called_has_no_time():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return nn.functional.linear(torch.relu(nn.functional.linear(x, self.inner.weight)), self.outer.weight)

    model = Tied()
    with torch.no_grad():
        model.inner.weight[:2] = 0
    report = shrink(model, torch.randn(3, 4)).report
    assert {layer.after.latency for layer in report.layers} == {None}
    assert {layer.after.multiply_adds for layer in report.layers} == {0}
    assert report.after.multiply_adds == 3 * (16 + 8)
    assert "-" in str(report)


@pytest.mark.parametrize("kernels", [[SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]])
def test_fused_attention_is_counted_as_its_two_products(kernels):
    class Attention(nn.Module):
        def forward(self, queries, keys, values):
            with sdpa_kernel(kernels):
                return nn.functional.scaled_dot_product_attention(queries, keys, values)

    call = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    assert multiply_adds(Attention(), (call, {}))[""] == 2 * 3 * 5 * 7 * (4 + 4)


CASE = {case.name: case for case in CASES}


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mlp", 36), ("resnet", 68), ("mobilenet", 64), ("unet", 38), ("squeeze-excite", 16), ("swiglu", 20),
        ("group-norm", 16), ("grouped-conv", 4), ("chunked-glu", 16), ("functional-glu", 16), ("flattened", 18),
        ("generator", 18), ("recurrent", 16), ("tied-weights", 20), ("low-rank-merged", 24), ("attention-reshaped", 4),
        ("attention-chunked", 4), ("grouped-queries-interleave", 2), ("grouped-queries-expand", 2),
        ("grouped-queries-native", 2), ("rotary", 4), ("densenet", 26), ("instance-norm", 30), ("prelu", 22),
        ("softmax-channels", 0), ("shuffled", 8), ("einsum", 12), ("lstm", 26), ("weight-norm", 16), ("assigned", 0),
        ("multihead-attention", 36), ("pixel-shuffled", 14), ("pixel-unshuffled", 10),
        ("channel-shuffled", 16), ("einsum-attention", 4), ("einsum-linear-attention", 4), ("einsum-columns", 24),
        ("einsum-weights-first", 24), ("einsum-experts", 24), ("einsum-similarity", 11),
        ("factorization-machine", 20), ("recommender", 36), ("bags-sum", 22), ("bags-mean", 22), ("bags-max", 22),
        ("bags-by-offsets", 22), ("bags-weighted", 22), ("contrastive", 28), ("twins", 28), ("prototypes", 24),
        ("quantizer", 40), ("angles", 28), ("graph-einsum", 4), ("heads-by-einsum", 10), ("pooled-places", 16),
        ("sentences", 22), ("interaction", 18), ("stacked-experts", 12), ("temporal", 44),
        ("temporal-parametrized", 44), ("wavenet", 40), ("vocoder", 54), ("vocoder-parametrized", 54), ("codec", 33),
        ("weight-norms", 23), ("discriminator", 36), ("discriminator-parametrized", 36), ("chain-discriminator", 30),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings(LSTM)
def test_so_many_channels_can_go(name, channels):
    """Neurons, channels, groups of channels or heads of the models; with fewer, something is held that need not be."""
    case = CASE[name]
    assert len(free_channels(case.make(), *case.example())) == channels


def test_a_bias_is_made_only_where_it_would_be_used():
    """The weight of a linear layer is read by `einsum`, which would not add the layer's bias."""

    class Letters(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3, bias=False)

        def forward(self, x):
            return torch.einsum("bi,oi->bo", torch.sigmoid(self.first(x)), self.second.weight)

    torch.manual_seed(0)
    model, x = Letters().eval(), torch.randn(5, 4)
    with torch.no_grad():
        model.first.weight[2] = 0
    result = shrink(model, x)
    assert torch.equal(result.model(x), model(x))
    (kept,) = result.report.kept
    assert "no bias that could take it up" in kept.reason


def test_channels_that_change_places_go_where_they_came_to():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 2, 1)).eval()
    x, gone = torch.randn(2, 3, 4, 4), [1, 5, 9]
    with torch.no_grad():
        model[0].weight[gone], model[0].bias[gone] = 0, 0
    small = shrink(model, x, verify=False).model
    assert small[0].out_channels == 9
    torch.testing.assert_close(small(x), model(x))


def test_a_group_norm_without_weights_stays_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8, affine=False), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    assert free_channels(model, (torch.randn(2, 3, 4, 4),), {}) == []


def test_what_is_pinned_stays():
    model, x = silenced(), torch.randn(6, 4)
    result = shrink(model, x, pin=["0"])
    assert result.model[0].out_features == 8
    assert {kept.reason for kept in result.report.kept} == {"pinned by you"}


def test_constants_that_differ_between_two_uses_of_a_layer_are_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            hidden = self.first(x)
            return self.second(hidden) + self.second(hidden + 1.0)

    model = Twice().eval()
    with torch.no_grad():
        model.first.weight[2] = 0
    result = shrink(model, torch.randn(3, 4))
    assert result.model.first.out_features == 6
    assert "another one elsewhere" in result.report.kept[0].reason


def test_nothing_is_compared_unless_asked(monkeypatch):
    monkeypatch.setattr(comparison, "outputs", lambda *_: pytest.fail("a model was called to compare"))
    report = shrink(silenced(), torch.randn(6, 4), verify=False).report
    assert math.isnan(report.error)
    assert "outputs: not compared" in str(report)


def test_the_code_of_the_guide_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/shrinking.md").read_text()
    code, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    assert "multiply-adds" in capsys.readouterr().out
