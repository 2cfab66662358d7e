"""Models that have collapsed are called so, and zeros that stay are explained one by one."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from shrinkage import L1, CoupledChannels, GroupError, Regularizer, report, shrink

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def chain(*dead):
    """Three layers, those in `dead` zero as a whole but for their biases."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    for number in dead:
        nn.init.zeros_(model[number].weight)
    return model


@pytest.mark.parametrize("dead", [(0,), (2,), (4,), (0, 2), (2, 4), (0, 2, 4)])
def test_a_dead_chain_is_no_success(dead):
    model = chain(*dead)
    with pytest.warns(UserWarning, match=f"depends on the inputs.*`{dead[0]}.weight`.*smaller one"):
        small = shrink(model, X)
    first = str(small).partition("\n")[0]
    assert "no longer depends on the inputs" in first
    assert f"`{dead[0]}.weight`" in first
    assert "no longer depend on the inputs" in repr(small)
    assert torch.equal(small.model(X), small.model(X + 1))


def test_channels_that_never_meet_cut_a_chain_too():
    model = chain()
    with torch.no_grad():
        model[2].weight[:3] = 0  # the first three put out a constant,
        model[4].weight[:, 3:] = 0  # and nobody reads the others
    with pytest.warns(UserWarning, match="depends on the inputs"):
        shrink(model, X)


def test_a_collapsed_model_stays_collapsed_when_it_is_made_smaller_again():
    with pytest.warns(UserWarning, match="depends on the inputs"):
        small = shrink(chain(2), X).model
    with pytest.warns(UserWarning, match="depends on the inputs"):
        assert "no longer depends" in str(shrink(small, X))


@pytest.mark.parametrize("model", [chain(), nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))])
def test_a_model_that_lives_is_not_called_dead(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = shrink(model, X)
    assert small.report.collapsed == ()
    assert str(small) == "no channel is zero: nothing to remove"


class TwoOfEach(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x, y):
        h = F.relu(self.a(x) + self.b(y))
        return self.c(h), self.d(h)


def test_an_input_that_no_longer_matters_is_named():
    model = TwoOfEach()
    nn.init.zeros_(model.b.weight)
    (text,) = shrink(model, (X, X + 1)).report.collapsed
    assert "depends on `y`" in text
    assert "`b.weight`" in text


def test_an_output_that_became_a_constant_is_named():
    model = TwoOfEach()
    nn.init.zeros_(model.d.weight)
    with pytest.warns(UserWarning, match=r"output 2 .*`d.weight`"):
        small = shrink(model, (X, X + 1))
    assert "no longer depend" not in repr(small)


def test_a_dead_branch_is_no_dead_model():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.alpha = nn.Linear(8, 8), nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return x + self.alpha * self.branch(x)

    assert shrink(Skip(), X).report.collapsed == ()


def test_the_report_names_dead_layers_first_but_no_adapters_and_scales():
    model = nn.ModuleDict(
        {"dead": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "lora_B": nn.Linear(4, 4), "live": nn.Linear(4, 4)}
    )
    model["positions"] = nn.ParameterList([nn.Parameter(torch.zeros(3, 4))])
    for name in ("dead", "norm", "lora_B"):
        nn.init.zeros_(model[name].weight)
    for given in (model, model.state_dict()):
        found = report(given)
        assert found.dead == ("dead.weight",)
        assert str(found).startswith("`dead.weight` is zero as a whole")
        assert found.to_dict()["dead"] == ["dead.weight"]
    assert not str(report(nn.Linear(2, 2))).startswith("`")


def test_residuals_of_a_dead_layer_say_so_first():
    model = chain(2)
    regularizer = Regularizer(model, {"2.weight": L1(1e3)}).attach(torch.optim.SGD(model.parameters(), 0.1))
    found = regularizer.residuals(lambda: model(X).square().mean())
    assert str(found).startswith("`2.weight` is zero as a whole")
    assert found.dead == ("2.weight",)


def norm_and_padding():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))


def test_zero_gammas_that_stay_are_reported_like_zero_filters():
    told = []
    for place in (0, 1):
        model = norm_and_padding()
        with torch.no_grad():
            model[1].bias.uniform_(0.1, 1)
            model[place].weight[:6] = 0
        (kept,) = shrink(model, torch.randn(3, 3, 8, 8)).report.kept
        assert kept.name == f"{place}.weight"
        told.append((kept.channels, kept.reason, kept.advice))
    assert told[0] == told[1]
    assert "zeros at the border" in told[0][1]


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.LayerNorm(6), "layer norm also subtracts the mean over 6 channels"),
        (nn.RMSNorm(6), "is not zero where `rms_norm` in `1` sums over it"),
    ],
    ids=["layer", "rms"],
)
def test_zero_gammas_of_norms_over_channels_are_reported(norm, reason):
    with torch.no_grad():
        norm.weight[:2] = 0
    (kept,) = shrink(nn.Sequential(nn.Linear(8, 6), norm, nn.Linear(6, 2)), X).report.kept
    assert (kept.name, kept.channels) == ("1.weight", 2)
    assert reason in kept.reason


class Scaled(nn.Module):
    """A branch with a scale for each channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.scale[None, :] * self.branch(x))


def test_zero_scales_that_stay_are_reported():
    model = Scaled()
    with torch.no_grad():
        model.scale[:2] = 0
    (kept,) = shrink(model, X).report.kept
    assert (kept.name, kept.channels) == ("scale", 2)


def test_the_last_channel_and_a_round_number_are_different_reasons():
    model = chain(2)
    with torch.no_grad():
        model[2].bias.zero_()
    with pytest.warns(UserWarning, match="depends on the inputs"):
        (last,) = shrink(model, X).report.kept
    assert "the last one of `2.weight`" in last.reason
    model = chain()
    with torch.no_grad():
        model[2].weight[:4], model[2].bias[:4] = 0, 0
    (rounded,) = shrink(model, X, round_to=4).report.kept
    assert (rounded.channels, "multiple of 4" in rounded.reason) == (2, True)


def test_a_mask_of_pruning_is_explained():
    model = chain()
    prune.ln_structured(model[0], "weight", 0.5, 2, dim=0)
    (kept,) = shrink(model, X).report.kept
    assert (kept.name, kept.channels) == ("0.weight_orig", 3)
    assert "torch.nn.utils.prune.remove(module, 'weight')" in kept.reason
    prune.remove(model[0], "weight")
    assert shrink(model, X).model[0].out_features == 3


class Split(nn.Module):
    """A number in the code holds the only channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.a(x).view(-1, 2, 3).amax(1).repeat(1, 2).sort(-1).values)


def test_a_model_without_channels_that_can_go_says_what_holds_them():
    masked = chain()
    for number in (0, 2, 4):
        prune.identity(masked[number], "weight")
    frozen = chain()
    frozen[0].requires_grad_(False), frozen[2].requires_grad_(False)
    texts = {
        "torch.nn.utils.prune.remove": masked,
        "requires_grad is False": frozen,
        "an output of the model": nn.Linear(8, 4),
        "sort": Split(),
    }
    for text, model in texts.items():
        with pytest.raises(GroupError, match=rf"found none.*{text}.*parameters of `"):
            CoupledChannels(model, X)
