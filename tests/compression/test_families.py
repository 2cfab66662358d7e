"""Families of models: what is smaller gives the same outputs, and what stays has its true reason, and what to do."""

import re
import warnings

import pytest
import torch
from torch import nn

from shrinkage import Coupled, CoupledChannels, GroupError, ShrinkError, shrink
from zoo.case import Case
from zoo.families import FAMILIES
from zoo.harness import choose, difference, size

REFUSED = {  # by name, with the reason and what to do
    "graph-attention-edges": r"max over channels, in `first`, `second` \(272 .*\): what is computed over all channels",
    "convnext-v2": r"subtracts the mean over 6 channels, in `norm`.* only divides, in `response` \(144 ",
    "branching": r"put out by `inner`, which was exported by itself .*: make the model one that `torch.export` takes",
}
PARTLY = r"ignore:(the model|`block`) cannot be exported as a whole:UserWarning"


@torch.no_grad()
def zero_groups_(model: nn.Module, channels: Coupled) -> None:
    goes = choose(range(channels.count), share=0.4)
    for member in channels.members:
        indices = [place for place, group in enumerate(member.groups) if group in goes]
        model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(indices, dtype=torch.long), 0.0)


@torch.no_grad()
def zero_rows_(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter[: max(1, len(parameter) // 3)] = 0


@torch.no_grad()
def largest_difference(case: Case, model: nn.Module, small: nn.Module) -> float:
    """Over inputs that are other numbers, more samples, and numbers of another size than the example."""
    errors = []
    for seed, batch, scale in ((11, None, 1.0), (12, 9, 1.0), (13, None, 3.0)):
        given = [x * scale if x.is_floating_point() else x for x in case.example(seed, batch)[0]]
        answers = []
        for each in (model, small):
            torch.manual_seed(0)  # of those that draw numbers
            answers.append(each(*given))
        errors.append(difference(*answers))
    return max(errors)


def refusing(case: Case, model: nn.Module) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which names the same parameters
        with pytest.raises(GroupError, match="some channel can go") as raised:
            CoupledChannels(model, case.example()[0])
    return str(raised.value)


@pytest.mark.filterwarnings(PARTLY, "ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("case", [case for case in FAMILIES if case.name not in REFUSED], ids=str)
def test_a_smaller_model_of_the_family_gives_the_same_outputs(case):
    model, example = case.make(), case.example()[0]
    zero_groups_(model, CoupledChannels(model, example))
    result = shrink(model, example)
    assert largest_difference(case, model, result.model) < 1e-5
    assert size(result.model) < 0.8 * size(model)


@pytest.mark.filterwarnings(PARTLY)
@pytest.mark.parametrize("case", [case for case in FAMILIES if case.name in REFUSED], ids=str)
def test_a_family_that_stays_as_it_is_has_the_reason_and_what_to_do(case):
    model, example = case.make(), case.example()[0]
    text = refusing(case, model)
    assert re.search(REFUSED[case.name], text), text
    zero_rows_(model)
    assert largest_difference(case, model, shrink(model, example).model) < 1e-5


@pytest.mark.parametrize(("name", "where"), [("branching", "the model"), ("branching-inside", "block")])
def test_a_branch_that_depends_on_the_data_is_told_in_plain_words(name, where):
    case = next(case for case in FAMILIES if case.name == name)
    report = str(shrink(case.make(), case.example()[0]).report)
    assert f"`{where}` was not exported: its code asks for a number that depends on the data" in report
    assert "write it with torch.where or torch.cond" in report


def test_a_product_that_reads_a_constant_is_the_reason_why_it_stays():
    """What a network for the weights of another one is given is a parameter, so that both sides are computed."""
    case = next(case for case in FAMILIES if case.name == "hyper-layers")
    model = case.make()
    with torch.no_grad():
        model.inner.weight[:3] = 0
    (kept,) = shrink(model, case.example()[0]).report.kept
    assert (kept.name, kept.reason) == ("inner.weight", "is not zero where a product in `first` sums over it")


def test_a_smaller_model_that_fails_is_refused_where_nothing_is_compared():
    case = next(case for case in FAMILIES if case.name == "maxout-by-width")
    model = case.make()
    zero_rows_(model)
    with pytest.raises(ShrinkError, match=r"the smaller model fails .* is invalid .*: let verify be True"):
        shrink(model, case.example()[0], verify=False)


def test_a_scale_that_broadcasts_is_named_by_its_channels():
    case = next(case for case in FAMILIES if case.name == "convnext-v2")
    model = case.make()
    with torch.no_grad():
        model.response.gamma[..., :3] = 0
    (kept,) = shrink(model, case.example()[0]).report.kept
    assert (kept.name, kept.channels) == ("response.gamma", 3)
    assert kept.reason == "is not zero where `mean` in `response` sums over it"
