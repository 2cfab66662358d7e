"""The zoo: models are exported and answer to their inputs, and the harness sees what is wrong with a smaller one."""

import copy

import pytest
import torch
from hypothesis import given, note, settings
from torch import nn

from zoo import graphs
from zoo.case import Case, Normal, measure_statistics_, randomize_
from zoo.harness import Member, choose, difference, disturb_readers_, outputs, run, size, zero_
from zoo.own import CASES

RANDOM = [graphs.at_random(seed, 6 + seed % 20) for seed in range(24)]
ASSIGNED = "ignore:The tensor attributes .* were assigned during export:UserWarning"


@pytest.mark.parametrize("case", CASES + RANDOM, ids=str)
def test_a_model_is_the_same_at_each_call_and_answers_to_its_inputs(case):
    first, second = case.make(), case.make()
    assert not any(module.training for module in first.modules())
    answers = outputs(first, case)
    assert difference(answers, outputs(second, case)) == 0
    assert 1e-3 < difference(answers[0], answers[1]) < float("inf")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_parameter_is_zero_tiny_or_constant(case):
    for name, parameter in case.make().named_parameters():
        assert parameter.abs().max() > 0.03, name
        assert parameter.numel() == 1 or parameter.std() > 0.01, name


@pytest.mark.filterwarnings(ASSIGNED)
@pytest.mark.parametrize("case", [case for case in CASES if case.exports] + RANDOM, ids=str)
def test_a_model_is_exported(case):
    model = case.make()
    arguments, keywords = case.example()
    with torch.no_grad():
        exported = torch.export.export(model, arguments, keywords).module()
        assert difference(model(*arguments, **keywords), exported(*arguments, **keywords)) < 1e-5


@pytest.mark.parametrize("case", [case for case in CASES if not case.exports], ids=str)
def test_what_depends_on_values_is_exported_child_by_child(case):
    model = case.make()
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(model, *case.example())
    for child in model.children():
        torch.export.export(child, *case.example())


@given(graphs.cases())
@settings(max_examples=30)
def test_any_list_of_numbers_is_a_model(case):
    note(str(case.build()))
    answers = outputs(case.make(), case)
    assert [len(answer) for answer in answers] == [2, 2, 3]
    assert difference(answers, outputs(case.make(), case)) == 0


def test_random_models_have_layers_of_every_kind():
    found = {type(layer) for seed in range(200) for layer in graphs.at_random(seed, 24).build().modules()}
    kinds = {
        nn.Linear,
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.Upsample,
        nn.GroupNorm,
        nn.BatchNorm2d,
        nn.LayerNorm,
        nn.Flatten,
    }
    kinds |= {
        graphs.Residual,
        graphs.Concat,
        graphs.Gated,
        graphs.SqueezeExcite,
        graphs.Attention,
        graphs.Tokens,
        graphs.Measured,
    }
    assert kinds <= found


def test_running_statistics_are_those_of_data_and_disturbed():
    case = Case("norm", lambda: nn.Sequential(nn.BatchNorm1d(5)), (Normal(4096, 5),))
    (norm,) = case.make()
    assert norm.momentum == 0.1
    assert 0.01 < norm.running_mean.abs().max() < 2
    assert (norm.running_var > 0.5).all()
    assert (norm.running_var < 2).all()
    assert norm.running_var.std() > 0.05


def test_layers_that_libraries_leave_at_zero_are_drawn_anew():
    layer = nn.Linear(8, 4)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 1e-6)
    randomize_(layer)
    assert layer.weight.std() > 0.1
    assert layer.bias.std() > 0.01
    measure_statistics_(layer, (), {})  # nothing to measure, so nothing runs


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))


PERCEPTRON = Case("perceptron", perceptron, (Normal(3, 6),))


def by_hand(model, arguments, keywords):
    """The hidden units."""
    return [
        [Member("0.weight", 0, [unit], "out"), Member("0.bias", 0, [unit], "out"), Member("2.weight", 1, [unit], "in")]
        for unit in range(model[0].out_features)
    ]


def without_zeros(model, arguments, keywords):
    """Leaves out the hidden units that are zero."""
    kept = (model[0].weight != 0).any(1)
    return without(model, kept)


def without(model, kept):
    first, second = model[0], model[2]
    first.weight, first.bias = nn.Parameter(first.weight[kept]), nn.Parameter(first.bias[kept])
    second.weight = nn.Parameter(second.weight[:, kept])
    return model


def test_a_smaller_model_is_compared_with_the_one_it_came_from():
    result = run(PERCEPTRON, by_hand, without_zeros, "all")
    assert result.error < 1e-6
    assert (result.channels, result.zeroed) == (10, 4)
    assert (result.before, result.after) == (114, 6 * 7 + 4 * 7)
    assert result.couple_seconds >= 0
    assert result.shrink_seconds > 0


def test_wrongly_removed_channels_are_seen():
    others = run(PERCEPTRON, by_hand, lambda model, *_: without(model, (model[0].weight == 0).any(1)), "all")
    assert others.error > 0.1
    constants = run(PERCEPTRON, by_hand, without_zeros, "weights")  # a bias that is left arrives at the second layer
    assert constants.error > 1e-3


@pytest.mark.parametrize(("mode", "bias"), [("all", 0.0), ("weights", None)])
def test_zeros_go_where_the_mode_says(mode, bias):
    model = PERCEPTRON.make()
    before = copy.deepcopy(model)
    zero_(model, by_hand(model, (), {})[2:4], mode)
    changed = (model[0].weight != before[0].weight).any(1)
    assert changed.nonzero().flatten().tolist() == [2, 3]
    assert (model[0].weight[2:4] == 0).all()
    assert torch.equal(model[0].bias[2:4], torch.zeros(2) if mode == "all" else before[0].bias[2:4])
    assert torch.equal(model[2].weight, before[2].weight)


def test_nothing_reads_a_channel_that_is_zero():
    model = PERCEPTRON.make()
    chosen = choose(by_hand(model, (), {}))
    zero_(model, chosen, "all")
    expected = outputs(model, PERCEPTRON)
    disturb_readers_(model, chosen)
    assert difference(expected, outputs(model, PERCEPTRON)) == 0
    disturb_readers_(model, by_hand(model, (), {}))
    assert difference(expected, outputs(model, PERCEPTRON)) > 0.1


def test_a_share_of_the_channels_is_chosen():
    assert len(choose(range(100))) == 35
    assert choose(range(100)) == choose(range(100)) != choose(range(100), seed=1)
    assert choose([7], share=0.01) == [7]
    assert choose([]) == []


NAN = torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.tensor([4.0, -2.0]), torch.tensor([4.0, -2.0]), 0.0),
        (torch.tensor([4.0, -2.0]), torch.tensor([4.0, -1.0]), 0.25),
        ({"a": [torch.ones(2)], "b": torch.ones(1)}, {"a": [torch.ones(2)], "b": 3 * torch.ones(1)}, 2.0),
        ((torch.ones(2),), [torch.ones(2)], float("inf")),
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), float("inf")),
        (NAN, NAN, 0.0),
        (torch.ones(2), NAN, float("inf")),
        (NAN, torch.ones(2), float("inf")),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1.0),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (None, None, 0.0),
        (3, 4, float("inf")),
    ],
)
def test_differences_are_relative_to_the_largest_value(one, other, expected):
    assert difference(one, other) == expected


def test_the_size_counts_a_shared_parameter_once():
    layer = nn.Linear(3, 3)
    assert size(nn.Sequential(layer, layer)) == 12
