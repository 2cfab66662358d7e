"""Weights over their norms lose channels like others: what stays of each is what it was, in every mode."""

import copy
import os
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from test_channel_kinds import check
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from channels import free_channels
from shrinkage import (
    L1,
    Budget,
    CoupledChannels,
    GroupError,
    GroupLasso,
    PlanError,
    Regularizer,
    ShrinkPlan,
    apply_plan,
    load_smaller,
    save_smaller,
    shrink,
    shrink_optimizer_,
)
from shrinkage.compression.calls.cost import parameter_count
from shrinkage.compression.plans.normed_weights import cut_along
from shrinkage.compression.plans.tensors import tensors_of
from zoo import normed
from zoo.harness import choose, difference, zero_
from zoo.normed import older_weight_norm, settle_

pytestmark = pytest.mark.filterwarnings("ignore:what the model puts out no longer:UserWarning")
WEIGHT_NORMS = {"hook": older_weight_norm, "parametrization": parametrizations.weight_norm}
SPECTRAL_NORMS = {"hook": nn.utils.spectral_norm, "parametrization": parametrizations.spectral_norm}
CASES = {case.name: case for case in normed.CASES}


def lengths_and_directions(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    """What multiplies a weight over its norm, and the weight."""
    if parametrize.is_parametrized(layer):
        chain = layer.parametrizations.weight
        return chain.original0, chain.original1
    return layer.weight_g, layer.weight_v


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original if parametrize.is_parametrized(layer) else layer.weight_orig


def weight(layer: nn.Module) -> Tensor:
    """The weight, computed by hand: also where a hook would compute it at the next call."""
    if parametrize.is_parametrized(layer):
        return layer.weight.detach()
    (hook,) = layer._forward_pre_hooks.values()
    return hook.compute_weight(layer, *(False,) * isinstance(hook, nn.utils.spectral_norm.__globals__["SpectralNorm"]))


def calls(case, model: nn.Module, longer: int = 4) -> list[Tensor]:
    """Inputs of the type of a model: its example, another batch size, and another length."""
    ((x,), _), ((more,), _) = case.example(0), case.example(1, 3)
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(2)
    longest = [torch.randn(1, *more.shape[1:-1], more.shape[-1] + longer, generator=generator)] * (more.dim() == 3)
    return [each.to(dtype) for each in (x, more, *longest)]


def remove_(model: nn.Module) -> nn.Module:
    """Remove all norms of weights, by the functions of torch."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
        for hook in list(module._forward_pre_hooks.values()):
            remove = {"WeightNorm": nn.utils.remove_weight_norm, "SpectralNorm": nn.utils.remove_spectral_norm}
            remove[type(hook).__name__](module, "weight")
    return model


def assert_equal(one: nn.Module, other: nn.Module, inputs: list[Tensor]) -> None:
    for x in inputs:
        with torch.no_grad():
            expected = one(x)
            assert expected.isfinite().all()
            assert difference(expected, other(x)) < 1e-12


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", normed.CASES, ids=str)
def test_outputs_are_those_of_the_dense_model(case, seed):
    """In both modes, for other batch sizes and lengths, from a file, as a copy, and without the norms."""
    model = case.make(seed).double()
    inputs = calls(case, model)
    zero_(model, choose(free_channels(model, (inputs[0],), {}), 0.4, seed), "all")
    result = shrink(model, inputs[0])
    small = result.model
    assert parameter_count(small) < parameter_count(model)
    assert not result.report.kept
    assert_equal(model, small, inputs)
    plan = ShrinkPlan.from_json(result.plan.to_json())
    assert plan == result.plan
    again = apply_plan(case.make(seed + 9).double(), plan)
    again.load_state_dict(small.state_dict())
    assert_equal(model, again, inputs)
    assert_equal(model, apply_plan(model, plan), inputs)
    for each in (model, small):
        each.train()
        each.apply(lambda module: module.eval() if isinstance(module, nn.Dropout) else None)
    for _ in range(3):  # spectral norms take a step of the power iteration in each
        assert_equal(model, small, inputs)
    copied = copy.deepcopy(small.eval())
    assert_equal(model.eval(), copied, inputs)
    assert_equal(model, remove_(small), inputs)
    assert_equal(small, remove_(model), inputs)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 5)) for seed in range(40)])
@torch.no_grad()
def test_groups_of_random_models_go_when_they_are_zero(seed, verify):
    """All of them: none is left that is a constant, or that a norm measures."""
    model = normed.at_random(seed)
    inputs = [torch.randn(batch, 3, length, dtype=torch.double) for batch, length in ((2, 9), (3, 9), (1, 14))]
    try:
        channels = CoupledChannels(model, inputs[0])
    except GroupError:
        return
    for member in channels.members:
        places = [place for place, group in enumerate(member.groups) if group >= 0 and group % 5 < 2]
        model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(places, dtype=torch.long), 0.0)
    result = shrink(model, inputs[0], verify=verify)
    assert not result.report.kept
    assert parameter_count(result.model) < parameter_count(model)
    assert_equal(model, result.model, inputs)
    again = apply_plan(normed.at_random(seed), result.plan)
    again.load_state_dict(result.model.state_dict())
    assert_equal(model, again, inputs)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), 2),
    "convolution": (lambda: nn.Conv1d(6, 5, 3), 3),
    "without a bias": (lambda: nn.Conv1d(6, 5, 3, bias=False), 3),
    "transposed": (lambda: nn.ConvTranspose1d(6, 5, 3, stride=2), 3),
    "transposed by groups": (lambda: nn.ConvTranspose1d(6, 9, 3, groups=3), 3),
    "by groups": (lambda: nn.Conv1d(6, 9, 3, groups=3), 3),
    "depthwise": (lambda: nn.Conv1d(6, 6, 3, groups=6), 3),
    "multiplied": (lambda: nn.Conv1d(6, 12, 3, groups=6), 3),
}


class Between(nn.Module):
    """A layer between two others, of the same kind of inputs."""

    def __init__(self, layer: nn.Module, rank: int):
        super().__init__()
        outputs = layer.out_features if rank == 2 else layer.out_channels
        first, last = (
            (nn.Linear(4, 6), nn.Linear(outputs, 3)) if rank == 2 else (nn.Conv1d(4, 6, 1), nn.Conv1d(outputs, 3, 1))
        )
        self.first, self.layer, self.last, self.rank = first, layer, last, rank

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x).relu()).relu())

    def example(self, batch: int = 2, length: int = 7) -> Tensor:
        return torch.randn(batch, 4, *(length,) * (self.rank - 2), dtype=torch.double)


def between(kind: str, wrap) -> Between:
    torch.manual_seed(0)
    build, rank = LAYERS[kind]
    with torch.no_grad():  # or the hook would keep a weight with a history, of which there is no deepcopy
        model = Between(wrap(build()), rank).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    settle_(model)
    return model


# Of the older hooks, all layers but one wait for `make test-all`: they come to the same operators.
ALL = [
    pytest.param(kind, norm, marks=[pytest.mark.slow] * (norm == "hook" and kind != "convolution"))
    for kind in LAYERS
    for norm in ("hook", "parametrization")
]


def assert_zeros_go(model, modes):
    """Channels that are zero go, one by one and among others, without a change of the outputs in several modes."""
    found = free_channels(model, (model.example(),), {})
    assert found
    for chosen in [*([one] for one in found[::3]), choose(found, 0.5)]:
        dense = copy.deepcopy(model)
        zero_(dense, chosen, "all")
        result = shrink(dense, model.example(), verify=False)
        assert parameter_count(result.model) < parameter_count(dense)
        for mode in modes:
            assert_equal(dense.train(mode), result.model.train(mode), [model.example(), model.example(3, 9)])


@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.parametrize(("kind", "norm"), ALL)
def test_every_channel_that_is_zero_goes_by_itself_and_among_others(kind, norm, dim):
    model = between(kind, partial(WEIGHT_NORMS[norm], dim=dim))
    assert_zeros_go(model, (True, False))


@pytest.mark.parametrize(("kind", "norm"), ALL)
def test_channels_under_a_spectral_norm_go_by_themselves_and_among_others(kind, norm):
    model = between(kind, SPECTRAL_NORMS[norm])
    assert_zeros_go(model, (False, True, True, False))


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_the_weight_that_is_left_is_a_part_of_the_weight_before(norm):
    """Columns of directions go that are not zero, so that lengths have to change."""
    model = between("convolution", WEIGHT_NORMS[norm])
    with torch.no_grad():
        model.first.weight[[1, 4]], model.first.bias[[1, 4]] = 0.0, 0.0
        lengths_and_directions(model.layer)[0][2], model.layer.bias[2] = 0.0, 0.0
    before, small = weight(model.layer), shrink(model, model.example()).model
    torch.testing.assert_close(weight(small.layer), before[[0, 1, 3, 4]][:, [0, 2, 3, 5]], rtol=1e-14, atol=1e-14)
    (lengths, directions), (old, source) = map(lengths_and_directions, (small.layer, model.layer))
    assert torch.equal(directions, source[[0, 1, 3, 4]][:, [0, 2, 3, 5]])
    norms = [each.flatten(1).norm(dim=1)[:, None, None] for each in (directions, source[[0, 1, 3, 4]])]
    torch.testing.assert_close(lengths, old[[0, 1, 3, 4]] * norms[0] / norms[1], rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_lengths_stay_bit_for_bit_where_the_columns_that_go_are_zero(norm):
    model = between("convolution", WEIGHT_NORMS[norm])
    lengths, directions = lengths_and_directions(model.layer)
    with torch.no_grad():
        model.first.weight[[1, 4]], model.first.bias[[1, 4]] = 0.0, 0.0
        directions[:, [1, 4]] = 0.0
    small = shrink(model, model.example()).model
    assert small.layer.in_channels == 4
    assert torch.equal(lengths_and_directions(small.layer)[0], lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_a_row_of_which_nothing_is_left_is_zero_and_no_quotient_of_zeros(norm, dtype):
    model = between("convolution", WEIGHT_NORMS[norm])
    with torch.no_grad():
        model.first.weight[[1, 4]], model.first.bias[[1, 4]] = 0.0, 0.0
        _, directions = lengths_and_directions(model.layer)
        directions[3][[0, 2, 3, 5]] = 0.0  # it reads zeros alone
    model = model.to(dtype)
    assert shrink(model, model.example().to(dtype)).model.layer.out_channels == 4  # it is a constant
    small = shrink(model, model.example().to(dtype), pin=["layer.bias"]).model
    lengths, left = lengths_and_directions(small.layer)
    assert small.layer.in_channels == 4
    assert torch.equal(lengths[3], torch.zeros(1, 1, dtype=dtype))
    assert left[3].detach().abs().min() > 0
    assert torch.equal(weight(small.layer)[3], torch.zeros(4, 3, dtype=dtype))
    small(model.example().to(dtype)).float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in small.parameters())
    x = model.example(3, 9).to(dtype)
    with torch.no_grad():
        assert difference(model(x), small(x)) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_a_channel_that_only_rows_read_that_go_goes_too(norm):
    model = between("convolution", WEIGHT_NORMS[norm])
    with torch.no_grad():
        model.last.weight[:, 2] = 0.0  # nobody reads the third row, which is not zero
        directions = lengths_and_directions(model.layer)[1]
        directions[[0, 1, 3, 4], 1] = 0.0  # nor does another row read the second channel
    small = shrink(model, model.example()).model
    assert (small.layer.in_channels, small.layer.out_channels) == (5, 4)
    assert_equal(model, small, [model.example(), model.example(3, 9)])


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_lengths_that_are_zero_and_stay_are_told(norm):
    model = between("convolution", WEIGHT_NORMS[norm])
    with torch.no_grad():
        lengths_and_directions(model.layer)[0][:3], model.layer.bias[:3] = 0.0, 0.0
    result = shrink(model, model.example(), round_to=3)
    (kept,) = result.report.kept
    assert result.model.layer.out_channels == 3
    assert kept.channels == 1
    assert tensors_of(model)[kept.name] is lengths_and_directions(model.layer)[0]


@pytest.mark.parametrize("norm", SPECTRAL_NORMS)
def test_a_channel_that_a_spectral_norm_measures_stays_with_a_reason_and_advice(norm):
    model = between("convolution", SPECTRAL_NORMS[norm])
    with torch.no_grad():
        model.first.weight[[1, 4]], model.first.bias[[1, 4]] = 0.0, 0.0
    result = shrink(model, model.example())
    assert result.model.layer.in_channels == 6
    (kept,) = result.report.kept
    assert (kept.name, kept.channels) == ("first.weight", 2)
    assert "is not zero in a weight that a norm in `layer` measures" in kept.reason
    assert "remove_spectral_norm" in kept.advice
    with torch.no_grad():
        original(model.layer)[:, [1, 4]] = 0.0
    assert shrink(model, model.example()).model.layer.in_channels == 4


@pytest.mark.parametrize("norm", SPECTRAL_NORMS)
def test_the_measured_norm_and_its_vectors_are_cut_along(norm):
    model = between("convolution", SPECTRAL_NORMS[norm])
    with torch.no_grad():
        model.first.weight[1], model.first.bias[1] = 0.0, 0.0
        original(model.layer)[:, 1], original(model.layer)[3], model.layer.bias[3] = 0.0, 0.0, 0.0
    before, small = weight(model.layer), shrink(model, model.example()).model
    torch.testing.assert_close(weight(small.layer), before[[0, 1, 2, 4]][:, [0, 2, 3, 4, 5]], rtol=1e-14, atol=0.0)
    shapes = sorted(tuple(buffer.shape) for buffer in small.layer.buffers())
    assert shapes == [(4,), (5 * 3,)]


@pytest.mark.parametrize("norm", [*WEIGHT_NORMS.values(), *SPECTRAL_NORMS.values()])
def test_a_model_in_training_mode_stays_as_it_is(norm):
    """To look at a weight takes a step of the power iteration in this mode."""
    model = between("by groups", norm).train()
    zero_(model, choose(free_channels(model, (model.example(),), {}), 0.5), "all")
    before = copy.deepcopy(model.state_dict())
    CoupledChannels(model, model.example())
    result = shrink(model, model.example())
    assert parameter_count(result.model) < parameter_count(model)
    apply_plan(model, result.plan)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert_equal(model.eval(), result.model.eval(), [model.example()])


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("norm", [*WEIGHT_NORMS.values(), *SPECTRAL_NORMS.values()])
def test_steps_go_on_as_those_of_the_dense_model_where_all_that_goes_is_zero(norm, make):
    model, x = between("convolution", norm).train(), None
    x = model.example(4)
    is_spectral = norm in SPECTRAL_NORMS.values()
    with torch.no_grad():
        source = original(model.layer) if is_spectral else lengths_and_directions(model.layer)[1]
        source[:, [1, 4]] = 0.0
        model.first.weight[[1, 4]], model.first.bias[[1, 4]] = 0.0, 0.0
        (source if is_spectral else lengths_and_directions(model.layer)[0])[2] = 0.0
        model.layer.bias[2], model.last.weight[:, 2] = 0.0, 0.0
    optimizer = make(model.parameters())
    trained(model, optimizer, x)
    result = shrink(model, x)
    small = result.model
    assert (small.layer.in_channels, small.layer.out_channels) == (4, 4)
    going_on = make(model.parameters())
    going_on.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shrink_optimizer_(going_on, result.plan, model, small)
    trained(model, optimizer, x)
    trained(small, going_on, x)
    for mode in (True, False):
        with torch.no_grad():
            torch.testing.assert_close(small.train(mode)(x), model.train(mode)(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_averaged_gradients_of_lengths_are_divided_by_what_these_are_multiplied_by(norm):
    """The gradient itself is: so the next average is that of a model which was small from the start."""
    model = between("convolution", WEIGHT_NORMS[norm])
    x = model.example(4)
    with torch.no_grad():
        model.first.weight[[1, 4]], model.first.bias[[1, 4]] = 0.0, 0.0
        lengths_and_directions(model.layer)[1][3][[0, 2, 3, 5]] = 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    trained(model, optimizer, x, 1)
    result = shrink(model, x, pin=["layer.bias"])
    shrink_optimizer_(optimizer, result.plan, model, result.model)
    fresh = torch.optim.Adam(result.model.parameters(), lr=0.0)
    trained(result.model, fresh, x, 1)
    lengths, _ = lengths_and_directions(result.model.layer)
    for key in ("exp_avg", "exp_avg_sq"):
        expected = fresh.state[lengths][key].clone()
        expected[3] = 0.0  # nothing is left of its direction
        torch.testing.assert_close(optimizer.state[lengths][key], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_what_a_regularizer_averages_of_lengths_is_divided_too(norm):
    model = between("convolution", WEIGHT_NORMS[norm])
    x = model.example(4)
    with torch.no_grad():
        model.first.weight[[1, 4]], model.first.bias[[1, 4]] = 0.0, 0.0
    (name,) = (name for name, each in model.named_parameters() if each is lengths_and_directions(model.layer)[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    regularizer = Regularizer(model, {name: L1(0.1)}, hold_zeros=0.9).attach(optimizer)
    trained(model, optimizer, x, 3)
    before = regularizer.state_dict()["averages"][0][name]["total"]
    regularizer.detach()
    result = shrink(model, x)
    shrink_optimizer_(optimizer, result.plan, model, result.model)
    after = Regularizer(result.model, {name: L1(0.1)}, hold_zeros=0.9).attach(optimizer).state_dict()
    factor = lengths_and_directions(result.model.layer)[0] / lengths_and_directions(model.layer)[0]
    torch.testing.assert_close(after["averages"][0][name]["total"], before / factor.detach())


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_groups_are_lengths_and_not_directions(norm):
    model = between("convolution", WEIGHT_NORMS[norm])
    channels = CoupledChannels(model, model.example())
    own = {name for name, parameter in model.named_parameters() if parameter is lengths_and_directions(model.layer)[0]}
    assert channels.count == 6 + 5
    assert set(channels.names) == {"first.weight", "first.bias", "layer.bias", *own}


@pytest.mark.parametrize("name", ["temporal", "vocoder-parametrized", "discriminator", "chain-discriminator"])
def test_penalties_make_channels_exactly_zero_and_shrink_removes_them(name):
    case = CASES[name]
    model = case.make().double().train()
    x = calls(case, model)[1]
    channels = CoupledChannels(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    regularizer = Regularizer(model, GroupLasso(2.0, channels)).attach(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    regularizer.detach()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    model.eval()
    result = shrink(model, x)
    assert result.report.after.parameters < 0.9 * result.report.before.parameters
    assert_equal(model, result.model, calls(case, model))


@pytest.mark.parametrize("name", ["vocoder", "discriminator-parametrized", "chain-discriminator"])
@torch.no_grad()
def test_a_weight_is_never_zero_as_a_whole_when_all_groups_are(name):
    """It would be 0 / 0: one channel is in no group."""
    case = CASES[name]
    model = case.make().double()
    x = calls(case, model)[0]
    for member in CoupledChannels(model, x).members:
        places = [place for place, group in enumerate(member.groups) if group >= 0]
        model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(places), 0.0)
    assert model(x).isfinite().all()
    assert model.train()(x).isfinite().all()
    assert_equal(model.eval(), shrink(model, x).model, calls(case, model))


@pytest.mark.parametrize("norm", WEIGHT_NORMS)
@pytest.mark.parametrize("dim", [0, 1, None])
def test_groups_of_what_reads_a_constant_are_columns_or_their_lengths(norm, dim):
    torch.manual_seed(0)
    reader = WEIGHT_NORMS[norm](nn.Conv1d(6, 3, 3, padding=1), dim=dim)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Sigmoid(), reader).double().eval()
    x = torch.randn(2, 2, 9, dtype=torch.double)
    channels = CoupledChannels(model, x)
    lengths, directions = lengths_and_directions(reader)
    (member,) = channels.members
    assert tensors_of(model)[member.parameter] is (lengths if dim == 1 else directions)
    assert channels.count == 6 - (dim != 1)  # or no direction would be left
    with torch.no_grad():
        model.get_parameter(member.parameter).index_fill_(1, torch.tensor([0, 3]), 0.0)
    small = shrink(model, x).model
    assert small[0].out_channels == 4
    assert_equal(model, small, [x, torch.randn(3, 2, 12, dtype=torch.double)])


@pytest.mark.parametrize("norm", [*SPECTRAL_NORMS.values(), partial(parametrizations.weight_norm, dim=None)])
def test_channels_that_are_a_constant_for_who_reads_them_are_found(norm):
    """A weight that is zero as a whole would be 0 / 0, which tells nothing of what comes from single zeros."""
    model = nn.Sequential(norm(nn.Conv1d(2, 6, 3)), nn.Sigmoid(), nn.Conv1d(6, 3, 3, padding=1)).double()
    x = torch.randn(2, 2, 9, dtype=torch.double)
    if norm in SPECTRAL_NORMS.values():  # measures their rows, also where nobody reads them
        with pytest.raises(GroupError, match="a constant other than zero where a weight reads them"):
            CoupledChannels(model, x)
    else:
        channels = CoupledChannels(model, x)
        assert (channels.count, channels.names) == (6, ("2.weight",))  # the columns that read them


def test_weights_under_spectral_norms_are_in_groups_along_rows_and_columns_by_turns():
    model = CASES["chain-discriminator"].make()
    channels = CoupledChannels(model, CASES["chain-discriminator"].example()[0])
    names = {name.removesuffix(".parametrizations.weight.original"): channels.slices(name) for name in channels.names}
    assert {name: member.dim for name, member in names.items()} == {
        "0": 0,
        "0.bias": 0,
        "2": 1,
        "4": 0,
        "4.bias": 0,
        "7": 1,
    }
    assert channels.count == (8 - 1) + (12 - 1)
    x = torch.empty(2, 3, 8, 8, device="meta")
    assert CoupledChannels(model.to("meta"), x) == channels
    model = CASES["discriminator"].make()
    channels = CoupledChannels(model, CASES["discriminator"].example()[0])
    along = {name: channels.slices(name).dim for name in channels.names if name.endswith("weight_orig")}
    assert along == {f"blocks.{block}.conv{number}.weight_orig": number - 1 for block in (0, 1) for number in (1, 2)}


@pytest.mark.parametrize("name", ["temporal-parametrized", "wavenet", "vocoder-parametrized", "codec", "discriminator"])
def test_what_is_left_is_counted_before(name):
    check(CASES[name].make(), *CASES[name].example())


@pytest.mark.filterwarnings("ignore:.*fewer than it may:UserWarning")
def test_a_budget_leaves_as_many_parameters_as_it_says():
    case = CASES["temporal-parametrized"]
    model, x = case.make().train(), case.example(0, 8)[0][0]
    budget = Budget(updates=20, groups=CoupledChannels(model, x), parameters=900)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    regularizer = Regularizer(model, budget).attach(optimizer)
    trained(model, optimizer, x, 25)
    regularizer.detach()
    result = shrink(model.eval(), x)
    assert 800 < result.report.after.parameters <= 900
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-5)


def test_layers_of_a_kind_keep_as_many_channels():
    case = CASES["temporal"]
    model = case.make().double()
    inputs = calls(case, model)
    zero_(model, choose(free_channels(model, (inputs[0],), {}), 0.5), "all")
    result = shrink(model, inputs[0], uniform=True)
    assert_equal(model, result.model, inputs)


def test_smaller_models_are_made_smaller_again_and_plans_follow_each_other():
    case = CASES["vocoder-parametrized"]
    model = case.make().double()
    inputs = calls(case, model)
    zero_(model, choose(free_channels(model, (inputs[0],), {}), 0.3), "all")
    first = shrink(model, inputs[0])
    zero_(first.model, choose(free_channels(first.model, (inputs[0],), {}), 0.3), "all")
    second = shrink(first.model, inputs[0])
    both = apply_plan(case.make().double(), first.plan.then(second.plan))
    both.load_state_dict(second.model.state_dict())
    assert_equal(first.model, both, inputs)


RUN = """
import sys
import torch
from shrinkage import ShrinkPlan, apply_plan
torch.set_num_threads(1)
from zoo.normed import CASES
folder, name = sys.argv[1:]
case = next(case for case in CASES if case.name == name)
plan = ShrinkPlan.from_json(open(f"{folder}/plan.json").read())
small = apply_plan(case.make(5), plan)
small.load_state_dict(torch.load(f"{folder}/small.pt"))
x, y = torch.load(f"{folder}/call.pt")
assert torch.equal(small(x), y)
"""


@pytest.mark.parametrize("name", ["temporal", "discriminator-parametrized"])
def test_a_plan_is_applied_in_another_process_and_a_file_brings_the_model_back(name, tmp_path):
    case = CASES[name]
    model = case.make()
    (x,), _ = case.example()
    zero_(model, choose(free_channels(model, (x,), {}), 0.4), "all")
    result = shrink(model, x)
    (tmp_path / "plan.json").write_text(result.plan.to_json())
    torch.save(result.model.state_dict(), tmp_path / "small.pt")
    torch.save((x, result.model(x).detach()), tmp_path / "call.pt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path), name], check=True, env=environment)
    save_smaller(tmp_path / "small.safetensors", result)
    for low_memory in (False, True):
        back = load_smaller(tmp_path / "small.safetensors", case.build, low_memory=low_memory).model.eval()
        torch.testing.assert_close(back(x), result.model(x))


@pytest.mark.parametrize("name", ["temporal", "discriminator"])
def test_a_smaller_model_with_hooks_is_pickled(name):
    case = CASES[name]
    model = case.make()
    (x,), _ = case.example()
    zero_(model, choose(free_channels(model, (x,), {}), 0.4), "all")
    small = shrink(model, x).model
    assert torch.equal(pickle.loads(pickle.dumps(small))(x), small(x))


def test_what_the_hook_keeps_has_the_smaller_shape_before_the_first_call():
    model = between("convolution", older_weight_norm)
    plan = ShrinkPlan.of(model, {"layer.weight_v": {0: (0, 3)}, "layer.bias": {0: (0, 3)}, "last.weight": {1: (0, 3)}})
    assert apply_plan(model, plan).layer.weight.shape == (2, 6, 3)
    assert model.layer.weight.shape == (5, 6, 3)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("norm", WEIGHT_NORMS)
def test_a_plan_made_by_hand_cuts_along_what_belongs_to_a_weight(norm, device):
    model = between("convolution", WEIGHT_NORMS[norm])
    (directions,) = (name for name, each in model.named_parameters() if each is lengths_and_directions(model.layer)[1])
    cut = {directions: {0: (0, 3), 1: (1, 2)}, "layer.bias": {0: (0, 3)}, "last.weight": {1: (0, 3)}}
    plan = ShrinkPlan.of(model, {**cut, "first.weight": {0: (1, 2)}, "first.bias": {0: (1, 2)}})
    small = apply_plan(model.to(device), plan)
    assert lengths_and_directions(small.layer)[0].shape == (2, 1, 1)
    assert (small.layer.in_channels, small.layer.out_channels) == (2, 2)
    if device == "cpu":
        torch.testing.assert_close(weight(small.layer), weight(model.layer)[[0, 3]][:, [1, 2]])
        assert small(model.example()).isfinite().all()


@pytest.mark.parametrize("norm", [*WEIGHT_NORMS.values(), *SPECTRAL_NORMS.values()])
def test_a_weight_and_what_belongs_to_it_are_not_cut_in_two_ways(norm):
    model = between("convolution", norm)
    own = {name: each for name, each in tensors_of(model).items() if name.startswith("layer.") and "bias" not in name}
    name = max(own, key=lambda name: own[name].numel())
    followed = cut_along(model, tensors_of(model), {name: {0: (0, 3)}})
    (other,) = followed.keys() - {name}
    assert followed[other] == {0: (0, 3)}
    for wrong in ({0: (0, 4)}, {0: (0, 1, 3)}):
        with pytest.raises(PlanError, match=r"belong together, by .*, and would be cut in two ways"):
            ShrinkPlan.of(model, {name: {0: (0, 3)}, other: wrong})


def test_lengths_of_two_weights_that_would_change_in_unlike_ways_are_refused():
    model = nn.Sequential(older_weight_norm(nn.Linear(4, 3)), older_weight_norm(nn.Linear(4, 3)))
    model[1].weight_g = model[0].weight_g
    plan = ShrinkPlan.of(model, {"0.weight_v": {1: (0, 1)}})
    with pytest.raises(PlanError, match="gives the lengths of several weights, which are cut in unlike ways"):
        apply_plan(model, plan)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


HELD = {
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 6)),
    "own": lambda: parametrize.register_parametrization(nn.Linear(6, 6), "weight", Halved()),
    "two": lambda: parametrize.register_parametrization(
        parametrizations.weight_norm(nn.Linear(6, 6)), "weight", Halved()
    ),
    "bias": lambda: parametrize.register_parametrization(
        parametrizations.weight_norm(nn.Linear(6, 6)), "bias", Halved()
    ),
    "mask": lambda: prune.random_unstructured(nn.Linear(6, 6), "weight", 1),
    "cell": lambda: parametrizations.weight_norm(nn.RNNCell(6, 6), "weight_hh"),
}


@pytest.mark.parametrize("kind", HELD)
def test_other_computed_weights_hold_their_channels_with_a_reason(kind):
    torch.manual_seed(0)
    model = nn.Sequential(HELD[kind](), nn.Linear(6, 3))
    x = torch.randn(2, 6)
    with pytest.raises(GroupError, match=r"remove_parametrizations|torch\.nn\.utils\.prune\.remove"):
        CoupledChannels(model, x)
    assert parameter_count(shrink(model, x).model) == parameter_count(model)


class Overall(nn.Module):
    """A layer whose own code divides by the norm of all of a weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 6), nn.Linear(5, 2)
        self.direction, self.length = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.direction, self.length, -1)
        return self.head(nn.functional.linear(self.stem(x).relu(), weight).relu())


def test_the_norm_of_all_of_a_weight_in_code_of_its_own_holds_all_axes():
    """-1 stands for no axis, not for the last one."""
    torch.manual_seed(0)
    model = Overall()
    with torch.no_grad():
        model.stem.weight[2], model.stem.bias[2] = 0.0, 0.0
        model.head.weight[:, 1] = 0.0
    small = shrink(model, torch.randn(4, 8), verify=False).model
    assert small.direction.shape == (5, 6)


@pytest.mark.parametrize("norm", [*WEIGHT_NORMS.values(), *SPECTRAL_NORMS.values()])
def test_the_dense_model_keeps_its_norms_when_the_smaller_one_loses_them(norm):
    model = between("convolution", norm)
    small, other = (shrink(model, model.example()).model for _ in range(2))
    remove_(small)
    assert type(small.layer) is nn.Conv1d
    assert_equal(model, small, [model.example()])
    assert_equal(model, other, [model.example()])
