import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from shrinkage import ParameterError, report


def model():
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
        net[0].weight[0] = 0.0
        net[0].weight[:, 1] = 0.0
        net[1].weight[0, 0] = 5e-4
        net[1].bias[1] = -0.0
    return net


def test_zeros_are_counted_per_parameter_and_in_all():
    found = report(model())
    conv = found["0.weight"]
    assert (conv.shape, conv.size, conv.zeros) == ((3, 2, 2, 2), 24, 16)
    assert (conv.rows, conv.zero_rows, conv.columns, conv.zero_columns) == (3, 1, 2, 1)
    assert conv.norm == pytest.approx(8**0.5)
    assert (found["1.weight"].zeros, found["1.weight"].small) == (0, 1)
    assert (found["1.bias"].zeros, found["1.bias"].rows) == (1, 0)
    assert (found.size, found.zeros, found.small) == (24 + 3 + 6 + 2, 17, 18)
    assert found.sparsity == pytest.approx(17 / 35)
    with pytest.raises(KeyError, match=r"no tensor is called '2\.weight'; nearest names: '1\.weight'"):
        found["2.weight"]


def test_a_state_dict_gives_the_same_report():
    assert report(model().state_dict()) == report(model())
    assert report(model(), below=1e-5).small == 17


def test_the_report_prints_as_a_table():
    assert str(report(model())).splitlines() == [
        "parameter  shape    zeros         below 0.001         zero rows  zero columns   norm",
        "---------  -------  -----  -----  -----------  -----  ---------  ------------  -----",
        "0.weight   3x2x2x2     16  66.7%           16  66.7%     1 of 3        1 of 2  2.828",
        "0.bias     3            0   0.0%            0   0.0%                           1.732",
        "1.weight   2x3          0   0.0%            1  16.7%     0 of 2        0 of 3  2.236",
        "1.bias     2            1  50.0%            1  50.0%                               1",
        "all        35          17  48.6%           18  51.4%",
    ]


def test_the_report_is_ready_for_json():
    loaded = json.loads(json.dumps(report(model()).to_dict()))
    assert loaded["zeros"] == 17
    assert loaded["tensors"][0]["shape"] == [3, 2, 2, 2]


def test_tied_tensors_are_counted_once_and_integers_not_at_all():
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))
    tied[1].weight = tied[0].weight
    for source in (tied, tied.state_dict()):
        names = [tensor.name for tensor in report(source)]
        assert names[0] == "0.weight"
        assert "1.weight" not in names
        assert "2.num_batches_tracked" not in names
    assert report(tied.state_dict()) == report(tied)  # running statistics are no weights


def test_odd_shapes():
    found = report({"scale": torch.zeros(()), "empty": torch.zeros(0, 3), "nan": torch.full((2, 2), torch.nan)})
    assert (found["scale"].zeros, found["empty"].size, found["nan"].zeros) == (1, 0, 0)
    assert "0-dim" in str(found)
    assert str(report({})).splitlines()[-1].startswith("all")
    assert report({}).sparsity == 0.0


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="expected a module or a state_dict, got list"):
        report([torch.zeros(3)])
    with pytest.raises(TypeError, match=r"got a path: load it, or write in a shell: shrinkage report model\.pt"):
        report("model.pt")
    with pytest.raises(TypeError, match="got a mapping without tensors: a dict with the entries 'epoch'"):
        report({"epoch": 3})


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_values_of_other_layouts_and_narrow_types_are_counted():
    w = torch.tensor([[0.0, 0.5], [0.0, 0.0], [1.0, 0.0]])
    expected = report({"w": w})["w"]
    for other in (w.to_sparse(), w.to_sparse_csr(), w.to(torch.float8_e4m3fn)):
        assert report({"w": other})["w"] == expected
    with pytest.raises(ParameterError, match="'w' is on the meta device and holds no numbers"):
        report({"w": w.to("meta")})


def test_a_checkpoint_that_holds_a_state_dict_is_refused():
    values = model().state_dict()
    for checkpoint in ({"model": values}, {"mean": torch.ones(3), "model": values}):
        with pytest.raises(TypeError, match=r"with some under 'model': give checkpoint\['model'\]"):
            report(checkpoint)
    with pytest.raises(TypeError, match=r"a checkpoint with some under 'model': give checkpoint\['model'\]"):
        report({"model": model().state_dict(), "epoch": 3})


NORMS = {
    "spectral": (parametrizations.spectral_norm, "parametrizations.weight.original", slice(None)),
    "weight": (parametrizations.weight_norm, "parametrizations.weight.original1", 1),
    "of columns": (
        lambda layer: parametrizations.weight_norm(layer, dim=1),
        "parametrizations.weight.original1",
        (slice(None), 1),
    ),
    "of all": (
        lambda layer: parametrizations.weight_norm(layer, dim=None),
        "parametrizations.weight.original1",
        slice(None),
    ),
    "older spectral": (spectral_norm, "weight_orig", slice(None)),
    "older weight": (weight_norm, "weight_v", 1),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(("normalized", "source", "zeros"), NORMS.values(), ids=NORMS)
def test_zeros_by_whose_norm_a_weight_is_divided_are_told_first(normalized, source, zeros):
    model = nn.Sequential(normalized(nn.Linear(4, 3)))
    assert report(model).undefined == ()
    with torch.no_grad():
        model.get_parameter(f"0.{source}")[zeros] = 0
    assert model.eval()(torch.ones(4)).isnan().any()
    found = report(model)
    assert found.undefined == (f"0.{source}",)
    assert found.to_dict()["undefined"] == [f"0.{source}"]
    assert found.dead == ()
    assert str(found).startswith(f"`0.{source}`: the weight is divided by a norm of this, which is 0, and is NaN.")


@pytest.mark.parametrize("source", ["parametrizations.weight.original0", "parametrizations.weight.original1"])
def test_zero_norms_and_single_zeros_leave_the_weight_a_number(source):
    model = parametrizations.weight_norm(nn.Linear(4, 3))
    with torch.no_grad():
        model.get_parameter(source)[:, 0] = 0
    assert not model.weight.isnan().any()
    assert report(model).undefined == ()
