"""Layers whose tensors are cut know their new widths: they are what a layer made with these widths is."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from late import transformers
from shrinkage import PlanError, ShrinkPlan, apply_plan, register_layer
from shrinkage.compression.plans.layers import _rules, attention, layer_attributes, outputs_of, rule_of_layer
from shrinkage.compression.plans.tensors import tensors_of

FEW = (0, 2, 3)  # of 6
PAIRS = (0, 1, 4, 5)  # of 6, in groups of two
TWO = (1, 4)  # of 6


@dataclass(frozen=True)
class LayerCase:
    """A layer, what stays of its tensors, the same layer made small from the start, and the shapes of its inputs."""

    name: str
    dense: nn.Module
    keep: dict[str, dict[int, tuple[int, ...]]]
    small: nn.Module
    inputs: tuple[Any, ...] = field(default_factory=tuple)

    def __str__(self) -> str:
        return self.name


def both(dims: dict[int, tuple[int, ...]], bias: tuple[int, ...], *others: str) -> dict[str, Any]:
    """Return what stays of a weight, and of a bias and other vectors."""
    return {"weight": dims, **{name: {0: bias} for name in ("bias", *others)}}


RUNNING = ("running_mean", "running_var")
IMAGE, SIGNAL, VOLUME = (9, 9), (9,), (5, 5, 5)
MANY = tuple(range(0, 24, 2))
CASES = [
    LayerCase("Linear", nn.Linear(6, 6), both({0: FEW, 1: TWO}, FEW), nn.Linear(2, 3), ((4, 2),)),
    LayerCase("Conv1d", nn.Conv1d(6, 6, 3), both({0: FEW, 1: TWO}, FEW), nn.Conv1d(2, 3, 3), ((4, 2, *SIGNAL),)),
    LayerCase("Conv2d", nn.Conv2d(6, 6, 3), both({0: FEW, 1: TWO}, FEW), nn.Conv2d(2, 3, 3), ((4, 2, *IMAGE),)),
    LayerCase("Conv3d", nn.Conv3d(6, 6, 3), both({0: FEW, 1: TWO}, FEW), nn.Conv3d(2, 3, 3), ((4, 2, *VOLUME),)),
    LayerCase(
        "Conv2d one of many stays",
        nn.Conv2d(6, 6, 3),
        both({0: (5,), 1: (0,)}, (5,)),
        nn.Conv2d(1, 1, 3),
        ((4, 1, 9, 9),),
    ),
    LayerCase(
        "Conv2d depthwise",
        nn.Conv2d(6, 6, 3, groups=6),
        both({0: FEW}, FEW),
        nn.Conv2d(3, 3, 3, groups=3),
        ((4, 3, 9, 9),),
    ),
    LayerCase(
        "Conv2d depthwise with multiplier",
        nn.Conv2d(3, 6, 3, groups=3),
        both({0: PAIRS}, PAIRS),
        nn.Conv2d(2, 4, 3, groups=2),
        ((4, 2, *IMAGE),),
    ),
    LayerCase(
        "Conv2d grouped",
        nn.Conv2d(9, 6, 3, groups=3),
        both({0: PAIRS}, PAIRS),
        nn.Conv2d(6, 4, 3, groups=2),
        ((4, 6, 9, 9),),
    ),
    LayerCase(
        "Conv2d grouped, fewer inputs a group",
        nn.Conv2d(9, 6, 3, groups=3),
        {"weight": {1: (0, 2)}},
        nn.Conv2d(6, 6, 3, groups=3),
        ((4, 6, *IMAGE),),
    ),
    LayerCase(
        "Conv2d one group stays",
        nn.Conv2d(9, 6, 3, groups=3),
        both({0: (2, 3)}, (2, 3)),
        nn.Conv2d(3, 2, 3),
        ((4, 3, 9, 9),),
    ),
    LayerCase(
        "ConvTranspose1d",
        nn.ConvTranspose1d(6, 6, 3),
        both({0: TWO, 1: FEW}, FEW),
        nn.ConvTranspose1d(2, 3, 3),
        ((4, 2, *SIGNAL),),
    ),
    LayerCase(
        "ConvTranspose2d",
        nn.ConvTranspose2d(6, 6, 3),
        both({0: TWO, 1: FEW}, FEW),
        nn.ConvTranspose2d(2, 3, 3),
        ((4, 2, *IMAGE),),
    ),
    LayerCase(
        "ConvTranspose3d",
        nn.ConvTranspose3d(6, 6, 3),
        both({0: TWO, 1: FEW}, FEW),
        nn.ConvTranspose3d(2, 3, 3),
        ((4, 2, *VOLUME),),
    ),
    LayerCase(
        "ConvTranspose2d grouped",
        nn.ConvTranspose2d(6, 9, 3, groups=3),
        both({0: PAIRS}, (0, 1, 2, 6, 7, 8)),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        ((4, 4, *IMAGE),),
    ),
    LayerCase(
        "ConvTranspose2d depthwise",
        nn.ConvTranspose2d(6, 6, 3, groups=6),
        both({0: FEW}, FEW),
        nn.ConvTranspose2d(3, 3, 3, groups=3),
        ((4, 3, *IMAGE),),
    ),
    LayerCase("BatchNorm1d", nn.BatchNorm1d(6), both({0: FEW}, FEW, *RUNNING), nn.BatchNorm1d(3), ((4, 3),)),
    LayerCase("BatchNorm2d", nn.BatchNorm2d(6), both({0: FEW}, FEW, *RUNNING), nn.BatchNorm2d(3), ((4, 3, 5, 5),)),
    LayerCase(
        "BatchNorm1d without weights",
        nn.BatchNorm1d(6, affine=False),
        {name: {0: FEW} for name in RUNNING},
        nn.BatchNorm1d(3, affine=False),
        ((4, 3),),
    ),
    LayerCase(
        "InstanceNorm2d",
        nn.InstanceNorm2d(6, affine=True),
        both({0: FEW}, FEW),
        nn.InstanceNorm2d(3, affine=True),
        ((4, 3, 5, 5),),
    ),
    LayerCase("GroupNorm", nn.GroupNorm(3, 6), both({0: PAIRS}, PAIRS), nn.GroupNorm(2, 4), ((4, 4, 5),)),
    LayerCase("GroupNorm of one group", nn.GroupNorm(1, 6), both({0: FEW}, FEW), nn.GroupNorm(1, 3), ((4, 3, 5),)),
    LayerCase("LayerNorm", nn.LayerNorm(6), both({0: FEW}, FEW), nn.LayerNorm(3), ((4, 3),)),
    LayerCase(
        "LayerNorm of two dimensions",
        nn.LayerNorm((5, 6)),
        {"weight": {1: FEW}, "bias": {1: FEW}},
        nn.LayerNorm((5, 3)),
        ((4, 5, 3),),
    ),
    LayerCase("RMSNorm", nn.RMSNorm(6), {"weight": {0: FEW}}, nn.RMSNorm(3), ((4, 3),)),
    LayerCase("Embedding", nn.Embedding(6, 6), {"weight": {0: TWO, 1: FEW}}, nn.Embedding(2, 3)),
    LayerCase("Embedding, padding stays", nn.Embedding(6, 6, 4), {"weight": {0: TWO}}, nn.Embedding(2, 6, 1)),
    LayerCase("Embedding, padding goes", nn.Embedding(6, 6, 5), {"weight": {0: TWO}}, nn.Embedding(2, 6)),
    LayerCase("Embedding, fewer features", nn.Embedding(6, 6, 5), {"weight": {1: TWO}}, nn.Embedding(6, 2, 5)),
    LayerCase(
        "EmbeddingBag",
        nn.EmbeddingBag(6, 6, padding_idx=4),
        {"weight": {0: TWO, 1: FEW}},
        nn.EmbeddingBag(2, 3, padding_idx=1),
    ),
    LayerCase(
        "Bilinear", nn.Bilinear(6, 6, 6), both({0: FEW, 1: TWO, 2: (5,)}, FEW), nn.Bilinear(2, 1, 3), ((4, 2), (4, 1))
    ),
    LayerCase("PReLU", nn.PReLU(6), {"weight": {0: FEW}}, nn.PReLU(3), ((4, 3),)),
    LayerCase(
        "LSTM",
        nn.LSTM(6, 6),
        {
            "weight_ih_l0": {0: MANY, 1: TWO},
            "weight_hh_l0": {0: MANY, 1: FEW},
            "bias_ih_l0": {0: MANY},
            "bias_hh_l0": {0: MANY},
        },
        nn.LSTM(2, 3),
        ((5, 4, 2),),
    ),
    LayerCase(
        "LSTM with projection",
        nn.LSTM(6, 6, proj_size=4),
        {"weight_ih_l0": {1: TWO}, "weight_hh_l0": {1: (0, 3)}, "weight_hr_l0": {0: (0, 3)}},
        nn.LSTM(2, 6, proj_size=2),
    ),
    LayerCase("GRUCell", nn.GRUCell(6, 6), {"weight_ih": {1: TWO}}, nn.GRUCell(2, 6), ((4, 2),)),
]


def knowledge(layer: nn.Module) -> dict[str, Any]:
    """Return what a layer knows beside its tensors and children."""
    return {name: value for name, value in vars(layer).items() if not name.startswith("_")}


def assert_cut_as_if_made_small(case: LayerCase) -> None:
    small = apply_plan(case.dense, ShrinkPlan.of(case.dense, case.keep))
    assert repr(small) == repr(case.small)
    assert knowledge(small) == knowledge(case.small)
    shapes = {name: tensor.shape for name, tensor in tensors_of(small).items()}
    assert shapes == {name: tensor.shape for name, tensor in tensors_of(case.small).items()}
    inputs = [torch.randn(shape) for shape in case.inputs]
    case.small.load_state_dict(small.state_dict())
    for output, expected in zip(small(*inputs), case.small(*inputs), strict=True) if inputs else []:
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_that_is_cut_is_one_made_small(case):
    assert_cut_as_if_made_small(case)


def test_a_transposed_layer_of_transformers_that_is_cut_is_one_made_small():
    dense, small = transformers.Conv1D(6, 6), transformers.Conv1D(3, 2)
    assert_cut_as_if_made_small(LayerCase("Conv1D", dense, both({0: TWO, 1: FEW}, FEW), small, ((4, 2),)))


def test_every_rule_has_a_case():
    of_torch = {rule for layer_class, rule in _rules.items() if layer_class.__module__.startswith("torch.")}
    assert {rule_of_layer(case.dense) for case in CASES} >= of_torch - {attention}  # whose class changes


@pytest.mark.parametrize(
    ("layer", "keep", "message"),
    [
        (nn.Conv2d(9, 6, 3, groups=3), both({0: FEW}, FEW), r"3 groups of 2 channels.*3 of 6 channels would be left"),
        (nn.ConvTranspose2d(6, 9, 3, groups=3), {"weight": {0: FEW}}, "3 groups of 2 channels"),
        (nn.GroupNorm(3, 6), both({0: FEW}, FEW), r"GroupNorm\(3, 6.*multiple of the size of a group"),
    ],
    ids=["grouped", "transposed", "norm"],
)
def test_groups_stay_whole(layer, keep, message):
    with pytest.raises(PlanError, match=message):
        ShrinkPlan.of(layer, keep)


def test_attributes_that_stay_are_not_named():
    assert layer_attributes(nn.Linear(6, 4), {"weight": (4, 3)}) == {"in_features": 3}
    assert layer_attributes(nn.Linear(6, 4), {"weight": (4, 6)}) == {}
    assert layer_attributes(nn.BatchNorm1d(6, affine=False, track_running_stats=False), {}) == {}


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width, self.factor = width, nn.Parameter(torch.ones(width))


class Wider(Scale):
    pass


class Affine(nn.Linear):
    pass


def test_layers_of_others_are_known_once_registered():
    assert layer_attributes(Wider(6), {"factor": (3,)}) == {}
    register_layer(Scale, lambda layer, shapes: {"width": shapes["factor"][0]})
    assert layer_attributes(Wider(6), {"factor": (3,)}) == {"width": 3}
    register_layer(Wider, lambda layer, shapes: {"width": -shapes["factor"][0]})
    assert layer_attributes(Wider(6), {"factor": (3,)}) == {"width": -3}, "the nearest class speaks"
    plan = ShrinkPlan.of(nn.Sequential(Scale(6)), {"0.factor": {0: FEW}})
    assert plan.attributes == {"0.width": 3}


def test_classes_derived_from_ordinary_layers_are_ordinary():
    assert layer_attributes(Affine(6, 4), {"weight": (4, 3)}) == {"in_features": 3}


def test_what_is_registered_is_checked():
    with pytest.raises(TypeError, match=r"subclass of torch\.nn\.Module, got 3"):
        register_layer(3, lambda layer, shapes: {})
    with pytest.raises(TypeError, match="function of"):
        register_layer(Scale, {})


def test_sizes_of_biases():
    layers = [nn.Linear(2, 3), nn.Bilinear(2, 2, 3), nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(2, 3, 1), nn.LayerNorm(3)]
    assert [outputs_of(layer) for layer in layers] == [3, 3, 3, 3, None]
