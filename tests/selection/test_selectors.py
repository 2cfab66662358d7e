import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from shrinkage import L1, L2, ParameterError, Regularizer, Rule, SelectionError
from shrinkage.selection.plan import resolve


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.final = nn.LayerNorm([2, 2])


def names(model, rules):
    return [entry.name for entry in resolve(model, rules)]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("blocks.0.conv.weight", ["blocks.0.conv.weight"]),
        ("blocks.*.head.*", [f"blocks.{i}.head.{n}" for i in (0, 1) for n in ("weight", "bias")]),
        (nn.Conv2d, ["blocks.0.conv.weight", "blocks.1.conv.weight"]),
        ((nn.Linear, "bias"), ["blocks.0.head.bias", "blocks.1.head.bias"]),
        (lambda name, module, parameter: parameter.dim() == 4, ["blocks.0.conv.weight", "blocks.1.conv.weight"]),
        (lambda name, module, parameter: isinstance(module, nn.Embedding), ["embed.weight"]),
    ],
)
def test_each_kind_of_selector(selector, expected):
    assert names(Model(), {selector: L1(0.1)}) == expected
    assert names(Model(), Rule(L1(0.1), selector)) == expected


def test_a_bare_penalty_penalizes_weights_outside_of_norms_and_embeddings():
    expected = [f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("conv", "head")]
    assert names(Model(), L1(0.1)) == expected


def test_the_first_match_wins_and_none_leaves_alone():
    plan = resolve(Model(), {"blocks.1.*": None, "*.head.weight": L2(0.2), "*.weight": L1(0.1)})
    assert {entry.name: entry.penalty for entry in plan} == {
        "embed.weight": L1(0.1),
        "blocks.0.conv.weight": L1(0.1),
        "blocks.0.norm.weight": L1(0.1),
        "blocks.0.head.weight": L2(0.2),
        "final.weight": L1(0.1),
    }


def test_a_rule_that_matches_nothing_names_the_three_nearest_parameters():
    with pytest.raises(SelectionError) as caught:
        resolve(Model(), {"blocks.0.cnov.weight": L1(0.1)})
    message = str(caught.value)
    assert "'blocks.0.cnov.weight' matches no parameter" in message
    nearest = message.split("nearest names: ")[1].split(", ")
    assert nearest[0] == "'blocks.0.conv.weight'"
    assert len(nearest) == 3


@pytest.mark.parametrize("selector", [nn.Conv1d, (nn.Linear, "wieght"), lambda name, module, parameter: False])
def test_other_selectors_that_match_nothing(selector):
    with pytest.raises(SelectionError, match="matches no parameter of the model; nearest names: '"):
        resolve(Model(), {selector: L1(0.1)})


def test_the_name_of_a_module_is_met_with_a_hint():
    with pytest.raises(SelectionError, match=r"'blocks\.0' is a module: write 'blocks\.0\.\*' for its parameters"):
        resolve(Model(), {"blocks.0": L1(0.1)})


def test_none_has_to_match_too():
    with pytest.raises(SelectionError, match=r"rule 'haed\.\*' matches no parameter"):
        resolve(Model(), {"haed.*": None, "*.weight": L1(0.1)})


def test_a_rule_behind_one_that_takes_all_of_its_parameters_is_refused():
    with pytest.raises(SelectionError, match=r"'blocks\.0\.\*' never applies.*earlier .* such as '\*'.*put it before"):
        resolve(Model(), {"*": L1(0.1), "blocks.0.*": None})


def test_no_rules():
    for rules in ({}, []):
        with pytest.raises(SelectionError, match="there are no rules"):
            resolve(Model(), rules)


@pytest.mark.parametrize("selector", [3, ("Linear", "weight"), int, (nn.Linear, "weight", 1), torch.ones(2)])
def test_what_is_no_selector_is_refused(selector):
    with pytest.raises(TypeError, match="a selector is a glob"):
        resolve(Model(), {selector: L1(0.1)})


@pytest.mark.parametrize("rules", ["*.weight", 3, [L1(0.1)], [("*", L1(0.1))]])
def test_what_are_no_rules_are_refused(rules):
    with pytest.raises(TypeError, match="rules are a penalty, a mapping"):
        resolve(Model(), rules)


def test_what_is_no_penalty_is_refused():
    with pytest.raises(TypeError, match=r"rule '\*\.weight': expected a penalty such as L1.*got 0\.1"):
        resolve(Model(), {"*.weight": 0.1})
    with pytest.raises(ValueError, match=r"how must be one of 'proximal', .* 'cautious', got 'prox'"):
        resolve(Model(), L1(0.1), "prox")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def test_tied_parameters_are_penalized_once():
    (entry,) = resolve(Tied(), {"head.weight": L1(0.1)})
    assert (entry.name, entry.aliases) == ("head.weight", ())
    (first, _) = resolve(Tied(), {"*.weight": L1(0.1)})
    assert (first.name, first.aliases) == ("embed.weight", ("head.weight",))


def test_a_weight_tied_to_an_embedding_is_left_alone_by_a_bare_penalty():
    assert names(Tied(), L1(0.1)) == ["hidden.weight"]


@pytest.mark.parametrize("other", [L2(0.1), L1(0.2), None])
def test_two_rules_that_clash_on_a_tied_parameter_are_refused(other):
    with pytest.raises(SelectionError, match=r"'embed\.weight' and 'head\.weight' are one tied parameter.*clash"):
        resolve(Tied(), {"head.weight": other, "*.weight": L1(0.1)})


def test_a_module_used_twice_is_penalized_once():
    shared = nn.Linear(3, 3)
    (entry,) = resolve(nn.Sequential(shared, nn.ReLU(), shared), L1(0.1))
    assert (entry.name, entry.aliases) == ("0.weight", ("2.weight",))


def test_wrappers_leave_no_trace_in_names():
    model = nn.Sequential(nn.Linear(3, 3))
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        assert names(wrapped, L1(0.1)) == ["0.weight"]
    holder = nn.Module()
    holder.module = model
    assert names(holder, L1(0.1)) == ["module.0.weight"]


def parametrized(how):
    layer = nn.Linear(4, 3)
    if how == "weight_norm":
        nn.utils.parametrizations.weight_norm(layer)
    elif how == "orthogonal":
        nn.utils.parametrizations.orthogonal(layer)
    elif how == "prune":
        prune.l1_unstructured(layer, "weight", amount=2)
    return nn.Sequential(layer, nn.Linear(3, 2))


@pytest.mark.parametrize("how", ["weight_norm", "orthogonal", "prune"])
@pytest.mark.parametrize("rules", [L1(0.1), {"*.weight": L1(0.1)}, {nn.Linear: L1(0.1)}, {"0.weight": L1(0.1)}])
def test_a_computed_weight_is_refused_by_name(how, rules):
    model = parametrized(how)
    with pytest.raises(ParameterError, match=r"'0\.weight' is not a parameter: .* computes it.*0\.weight': None"):
        Regularizer(model, rules)


def test_a_legacy_weight_norm_is_refused():
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(4, 3))
    with pytest.raises(ParameterError, match=r"'weight' is not a parameter: torch\.nn\.utils\.weight_norm computes"):
        resolve(layer, {"weight": L1(0.1)})


def test_a_computed_weight_can_be_left_alone_or_penalized_by_its_own_parameters():
    model = parametrized("weight_norm")
    assert names(model, {"0.weight": None, "*.weight": L1(0.1)}) == ["1.weight"]
    own = "0.parametrizations.weight.original0"
    assert names(model, {own: L1(0.1)}) == [own]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_a_parameter_that_is_not_floating_point_is_refused(dtype):
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(torch.zeros(3, 4, dtype=dtype), requires_grad=False)
    with pytest.raises(ParameterError, match=rf"'weight' of shape \(3, 4\) has type {dtype}; .*'weight': None"):
        resolve(layer, {"weight": L1(0.1)})
    assert names(layer, {"weight": None, "*": L1(0.1)}) == ["bias"]
