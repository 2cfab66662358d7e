import math

import pytest
import torch
from torch import nn

from shrinkage import ParameterError, SelectionError, report, threshold_

NARROW = torch.float8_e5m2


def model():
    return nn.Sequential(nn.Linear(20, 30), nn.LayerNorm([5, 6]), nn.Linear(30, 3))


def by_hand(weight, limit):
    return torch.where(weight.abs() < limit, 0.0, weight)


@pytest.mark.parametrize("source", ["module", "state_dict"])
def test_small_weights_become_exact_zeros(source):
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = {n: by_hand(v, 0.05) if n in ("0.weight", "2.weight") else v for n, v in before.items()}
    changed = threshold_(
        net if source == "module" else {k: v for k, v in net.state_dict().items() if k[0] != "1"}, 0.05
    )
    assert changed == sum(int((value == 0).sum()) - int((before[n] == 0).sum()) for n, value in expected.items())
    assert changed > 50
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_relative_thresholds_are_in_standard_deviations_of_each_tensor():
    net = model()
    with torch.no_grad():
        net[2].weight.mul_(1000)
    expected = [by_hand(w, 0.5 * w.std(correction=0)) for w in (net[0].weight.detach(), net[2].weight.detach())]
    threshold_(net, 0.5, relative=True)
    assert torch.equal(net[0].weight, expected[0])
    assert torch.equal(net[2].weight, expected[1])
    assert 0.2 < report(net)["2.weight"].zeros / 90 < 0.6


def test_a_standard_deviation_is_that_of_all_elements_and_not_an_estimate():
    state = {"weight": torch.tensor([[1.0, -1.0]])}
    assert threshold_(state, 0.99, relative=True) == 0
    assert threshold_(state, 1.01, relative=True) == 2


def test_parameters_are_selected():
    net = model()
    threshold_(net, math.pi, parameters="2.*")
    assert [t.name for t in report(net) if t.zeros == t.size] == ["1.bias", "2.weight", "2.bias"]
    threshold_(net, math.pi, parameters=(nn.Linear, "bias"))
    assert report(net)["0.bias"].zeros == 30
    state = model().state_dict()
    threshold_(state, math.pi, parameters="*.bias")
    assert report(state)["0.bias"].zeros == 30
    assert report(state)["0.weight"].zeros == 0


def test_a_second_time_nothing_changes():
    net = model()
    assert threshold_(net, 0.1) > 0
    assert threshold_(net, 0.1) == 0
    assert threshold_(net, 0.0) == 0


def test_no_graph_and_no_gradient_are_touched():
    net = model()
    net[0](torch.ones(1, 20)).sum().backward()
    grad = net[0].weight.grad.clone()
    threshold_(net, 0.1)
    assert torch.equal(net[0].weight.grad, grad)
    assert net[0].weight.requires_grad


def test_nan_stays_and_half_precision_is_measured_in_float32():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[torch.nan, 0.1], [torch.inf, 3.0]]))
    assert threshold_(layer, 1.0) == 1
    assert layer.weight[0, 0].isnan()
    half = nn.Linear(300, 300, bias=False).half()
    with torch.no_grad():
        half.weight.fill_(60_000.0)
        half.weight[0] = 1.0
    assert threshold_(half, 0.1, relative=True) == 300


@pytest.mark.parametrize("magnitude", [-1.0, math.nan, math.inf, "1"])
def test_bad_magnitudes_are_refused(magnitude):
    with pytest.raises(ValueError, match="magnitude must be a finite number >= 0"):
        threshold_(model(), magnitude)


def test_selections_that_can_not_be_made_are_refused():
    with pytest.raises(SelectionError, match=r"'3\.weight' matches no parameter"):
        threshold_(model(), 0.1, parameters="3.weight")
    with pytest.raises(SelectionError, match=r"'3\.weight' selects no tensor; nearest names: '2\.weight'"):
        threshold_(model().state_dict(), 0.1, parameters="3.weight")
    with pytest.raises(SelectionError, match="selects no tensor"):
        threshold_({}, 0.1)
    with pytest.raises(TypeError, match="a state_dict has names only"):
        threshold_(model().state_dict(), 0.1, parameters=nn.Linear)
    with pytest.raises(ParameterError, match="is not a parameter"):
        threshold_(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), 0.1)
    with pytest.raises(TypeError, match="expected a module or a state_dict"):
        threshold_([1], 0.1)
    with pytest.raises(TypeError, match=r"give checkpoint\['model'\]"):
        threshold_({"model": model().state_dict(), "optimizer": {}}, 0.1)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("stored", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, lambda w: w.to(NARROW)])
def test_what_can_not_be_written_in_place_is_refused(stored):
    with pytest.raises(ParameterError, match=r"'a\.weight' of shape \(3, 3\) is stored as .*: make it dense"):
        threshold_({"a.weight": stored(torch.eye(3))}, 2.0)
    with pytest.raises(ParameterError, match="meta device"):
        threshold_({"a.weight": torch.empty(3, 3, device="meta")}, 2.0)


def test_tied_entries_are_selected_by_each_of_their_names():
    weight = torch.full((2, 2), 0.1)
    assert threshold_({"embed.weight": weight, "head.weight": weight}, 1.0, parameters="head.*") == 4
    assert (weight == 0).all()
