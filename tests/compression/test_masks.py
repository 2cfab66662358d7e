"""Channels that masks and norms of weights hold are explained: those that are zero, and those that zeros alone read."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from shrinkage import CoupledChannels, shrink
from zoo.harness import difference

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
HALF = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])


def chain():
    """Three layers without zeros."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def columns(model):
    """Mask half of what the third layer reads."""
    prune.ln_structured(model[2], "weight", 0.5, 2, dim=1)
    return [(2, "weight")]


def bias_before(model):
    """Mask the biases of channels that nobody reads."""
    nn.init.zeros_(model[2].weight[:, :3])
    prune.custom_from_mask(model[0], "bias", HALF)
    return [(0, "bias")]


def bias_of_zeros(model):
    """Mask the biases of channels whose weights are zero."""
    nn.init.zeros_(model[0].weight[:3])
    prune.custom_from_mask(model[0], "bias", HALF)
    return [(0, "bias")]


def both(model):
    """Mask weights and biases."""
    prune.custom_from_mask(model[0], "weight", HALF[:, None].expand(6, 8))
    prune.custom_from_mask(model[0], "bias", HALF)
    return [(0, "weight"), (0, "bias")]


@pytest.mark.parametrize("masked", [columns, bias_before, bias_of_zeros, both])
@torch.no_grad()
def test_what_a_mask_holds_goes_once_the_masks_that_the_report_names_are_removed(masked):
    model = chain()
    names = masked(model)
    report = shrink(model, X).report
    (kept,) = report.kept
    assert kept.channels == 3
    assert ("read by zeros alone" in kept.reason) == (masked in (columns, bias_before))
    assert "torch.nn.utils.prune.remove" in kept.reason
    for layer, name in names:
        assert kept.name.startswith(f"{layer}.")
        assert repr(name) in kept.reason
        prune.remove(model[layer], name)
    small = shrink(model, X).model
    assert small[0].out_features == 3
    torch.testing.assert_close(small(X), model(X))


NORMS = {
    "weight": (parametrizations.weight_norm, parametrize.remove_parametrizations),
    "spectral": (parametrizations.spectral_norm, parametrize.remove_parametrizations),
    "older weight": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "older spectral": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(("layer", "before"), [(2, 0), (4, 2)])
@pytest.mark.parametrize("kind", NORMS)
def test_columns_under_a_norm_of_the_weight_go_but_for_rows_that_one_measures(kind, layer, before):
    norm, remove = NORMS[kind]
    model = chain()
    with torch.no_grad():
        model[layer].weight[:, :2] = 0
    norm(model[2])
    norm(model[4])
    model.eval()
    result = shrink(model, X)
    if "spectral" in kind and before == 2:  # whose rows are not zero
        (kept,) = result.report.kept
        assert kept.channels == 2
        assert kept.reason == "read by zeros alone, but is not zero in a weight that a norm in `2` measures"
        assert remove.__name__ in kept.advice
        for each in (2, 4):
            remove(model[each], "weight")
        result = shrink(model, X)
    assert not result.report.kept
    assert result.model[before].out_features == 4
    with torch.no_grad():
        assert difference(model(X), result.model(X)) < 1e-5


class Mirrored(nn.Module):
    """A parametrization of one's own, whose operators hold columns besides."""

    def forward(self, weight):
        return weight.flip(1).flip(1)


@pytest.mark.parametrize(("layer", "before"), [(2, 0), (4, 2)])
def test_columns_under_a_parametrization_of_ones_own_go_once_it_is_removed(layer, before):
    model = chain()
    with torch.no_grad():
        model[layer].weight[:, :2] = 0
    for each in (2, 4):
        parametrize.register_parametrization(model[each], "weight", Mirrored())
    (kept,) = shrink(model, X).report.kept
    assert kept.channels == 2
    assert "read by zeros alone, but behind a parametrization" in kept.reason
    for each in (2, 4):
        parametrize.remove_parametrizations(model[each], "weight")
    small = shrink(model, X).model
    assert small[before].out_features == 4
    torch.testing.assert_close(small(X), model(X))


class Directed(nn.Module):
    """A layer that computes its weight from directions and lengths."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 6), nn.Linear(6, 2)
        self.direction, self.length = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.rand(6, 1) + 1)

    def forward(self, x):
        weight = torch._weight_norm(self.direction, self.length)
        return self.head(nn.functional.linear(self.stem(x).relu(), weight).relu())


def test_rows_of_length_zero_go_with_their_directions():
    torch.manual_seed(0)
    model = Directed()
    with torch.no_grad():
        model.length[1:3] = 0
        model.stem.weight[4], model.stem.bias[4] = 0, 0  # directions read it, whose lengths would change
    small = shrink(model, X, verify=False).model
    assert (small.direction.shape, small.length.shape, small.head.in_features) == ((4, 6), (4, 1), 4)
    torch.testing.assert_close(small(X), model(X))


def test_directions_are_in_no_group():
    """One that is zero would be divided by its norm."""
    torch.manual_seed(0)
    channels = CoupledChannels(Directed(), X)
    assert (channels.count, channels.names) == (6, ("length",))


def test_a_mask_is_not_blamed_for_what_stays_anyway():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.left(x), self.right(x)

    model = Two()
    prune.ln_structured(model.left, "weight", 0.5, 2, dim=1)  # the other one still reads them
    assert shrink(model, X).report.kept == ()
    model = chain()
    prune.ln_structured(model[0], "weight", 0.5, 2, dim=1)  # the inputs are no channels
    assert shrink(model, X).report.kept == ()


class Summed(nn.Module):
    """A stem that is put out besides."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x), x


def test_a_mask_is_not_blamed_for_what_is_an_output():
    model = Summed()
    prune.ln_structured(model.head, "weight", 0.5, 2, dim=1)
    assert shrink(model, X).report.kept == ()


@pytest.mark.filterwarnings("ignore:what the model puts out no longer depends:UserWarning")
def test_a_mask_on_attention_holds_its_heads():
    model = nn.MultiheadAttention(8, 2)
    prune.custom_from_mask(model, "in_proj_weight", torch.zeros(24, 8))
    (kept,) = shrink(model, (X, X, X)).report.kept
    assert "pruned by a mask" in kept.reason
