"""A plan makes the same smaller model of any model of its class, and says why where it cannot."""

import copy
import io
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import shrinkage
from late import transformers
from shrinkage import L1, PlanError, ShrinkPlan, apply_plan, regularize
from shrinkage.compression.plans.index_text import decoded, encoded, hashed
from shrinkage.compression.plans.tensors import cut, tensors_of

GUIDE = (Path(__file__).parents[2] / "docs/plans.md").read_text()
KEPT = (0, 2, 3, 7)
NORM = ("weight", "bias", "running_mean", "running_var")
PIXELS = tuple(4 * channel + pixel for channel in KEPT for pixel in range(4))


class Network(nn.Module):
    """A convolution with a norm, a buffer that is not saved, and a head that is tied to an embedding."""

    def __init__(self, channels: int = 8, *, tied: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(4 * channels, 6)
        self.words = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.words.weight
        self.register_buffer("mask", torch.arange(channels).float(), persistent=False)
        self.width = channels

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x))) + self.mask[:, None, None]
        return self.head(self.fc(h.flatten(1)))


KEEP = {
    "conv.weight": {0: KEPT},
    **{f"norm.{name}": {0: KEPT} for name in NORM},
    "mask": {0: KEPT},
    "fc.weight": {0: (0, 1, 5), 1: PIXELS},
    "fc.bias": {0: (0, 1, 5)},
    "head.weight": {1: (0, 1, 5)},
}
IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def plan_of(model: nn.Module | None = None, keep: Mapping = KEEP, **options) -> ShrinkPlan:
    return ShrinkPlan.of(model or Network(), keep, attributes={"width": 4}, **options)


def expected(tensor: Tensor, dims: Mapping[int, tuple[int, ...]]) -> Tensor:
    """Return what stays of a tensor, by indexing."""
    for dim, kept in dims.items():
        tensor = tensor[(slice(None),) * dim + (list(kept),)]
    return tensor


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors_of(model).items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What a model becomes.


def test_tensors_are_what_stays_of_them():
    model = Network()
    before, plan = bits(model), plan_of(model)
    small = apply_plan(model, plan)
    keep = {**KEEP, "words.weight": KEEP["head.weight"]}
    assert same(bits(small), {name: expected(w, keep.get(name, {})) for name, w in before.items()})
    assert type(small) is Network
    assert same(bits(model), before), "the model that was given stays as it is"
    assert model.width == 8
    assert (small.width, small.conv.out_channels, small.norm.num_features, small.words.embedding_dim) == (4, 4, 4, 3)
    assert {name: tuple(w.shape) for name, w in small.state_dict().items()} == {
        name: plan.shape_after(name) for name in small.state_dict()
    }
    assert small(IMAGES).shape == (2, 11)


def test_nothing_is_shared_with_the_dense_model():
    model = Network()
    small = apply_plan(model, plan_of(model))
    before = bits(model)
    for tensor in tensors_of(small).values():
        tensor.data.zero_()
    assert same(bits(model), before)


def test_tied_parameters_stay_tied():
    small = apply_plan(Network(), plan_of())
    assert small.head.weight is small.words.weight
    untied = apply_plan(Network(tied=False), plan_of())
    assert untied.head.weight is not untied.words.weight
    assert untied.words.weight.shape == (11, 3), "the plan knows both names"


def test_a_module_in_two_places_stays_one():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    plan = ShrinkPlan.of(model, {"0.weight": {0: KEPT[:3], 1: KEPT[:3]}, "2.bias": {0: KEPT[:3]}})
    small = apply_plan(model, plan)
    assert small[0] is small[2]
    assert small(torch.ones(3)).shape == (3,)
    assert plan.attributes.keys() == {f"{place}.{end}_features" for place in (0, 2) for end in ("in", "out")}


def test_flags_modes_types_attributes_and_hooks_are_kept():
    model = Network().double()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.fc.bfloat16()
    model.fc.weight.wanted = "a label"
    model.norm.weight.wanted = "another one"
    model.fc.bias.wanted = "a third one"
    seen = []
    model.conv.register_forward_hook(lambda *_: seen.append("called"))
    small = apply_plan(model, plan_of())
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [p.dtype for p in small.parameters()] == [p.dtype for p in model.parameters()]
    wanted = small.fc.weight.wanted, small.norm.weight.wanted, small.fc.bias.wanted
    assert wanted == ("a label", "another one", "a third one")
    assert all(type(one) is type(other) for one, other in zip(small.parameters(), model.parameters(), strict=True))
    small.conv(IMAGES.double())
    assert seen == ["called"]


def test_attributes_of_parameters_that_stay_whole_are_kept():
    model = nn.Linear(2, 2)
    model.bias.wanted = "a label"
    assert apply_plan(model, ShrinkPlan.of(model, {"weight": {1: (0,)}})).bias.wanted == "a label"


def test_gradients_are_left_behind():
    model = Network()
    model(IMAGES).sum().backward()
    small = apply_plan(model, plan_of())
    assert all(parameter.grad is None for parameter in small.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.is_leaf for parameter in small.parameters())


def test_the_order_of_memory_is_kept():
    model = Network().to(memory_format=torch.channels_last)
    model.fc.weight = nn.Parameter(model.fc.weight.detach().t().contiguous().t())
    small = apply_plan(model, plan_of())
    assert small.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.conv.weight.is_contiguous()
    assert small.fc.weight.t().is_contiguous()
    assert apply_plan(Network(), plan_of()).conv.weight.is_contiguous()


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest result of an operation that is no view."""

    def __init__(self, of: set[int]) -> None:
        super().__init__()
        self.memory, self.count = of, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in self.memory:
            self.count = max(self.count, result.numel())
        return result


def test_what_goes_is_never_copied():
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 100))
    few = tuple(range(0, 200, 4))
    plan = ShrinkPlan.of(model, {"0.weight": {0: few}, "0.bias": {0: few}, "2.weight": {1: few}})
    with Largest({w.untyped_storage().data_ptr() for w in model.parameters()}) as largest:
        apply_plan(model, plan)
    assert 0 < largest.count <= 100 * len(few)


def test_new_biases_are_zero():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False), nn.Linear(5, 5, bias=False)
    ).double()
    model[2].requires_grad_(False)
    keep = {"1.weight": {0: (0, 1)}, "0.weight": {0: (0, 1)}}
    small = apply_plan(model, ShrinkPlan.of(model, keep, biases=("0", "1", "2")))
    assert [tuple(layer.bias.shape) for layer in small] == [(2,), (3,), (5,)]
    assert all((layer.bias == 0).all() and layer.bias.dtype == torch.float64 for layer in small)
    assert [layer.bias.requires_grad for layer in small] == [True, True, False]
    assert list(small.state_dict()) == [f"{place}.{name}" for place in range(3) for name in ("weight", "bias")]
    assert model[0].bias is None


def test_declared_layers_are_penalized_on():
    model = nn.Sequential(regularize(nn.Linear(6, 6), L1(0.1)), nn.Linear(6, 2))
    plan = ShrinkPlan.of(model, {"0.weight": {0: (0, 3)}, "0.bias": {0: (0, 3)}, "1.weight": {1: (0, 3)}})
    small = apply_plan(model, plan)
    del model
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    penalized = small[0].weight.detach().clone()
    for parameter in small.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(small[0].weight.detach(), penalized - penalized.clamp(-0.01, 0.01))


def test_recurrent_layers_run_on_their_new_weights():
    model = nn.LSTM(6, 4)
    small = apply_plan(model, ShrinkPlan.of(model, {"weight_ih_l0": {1: (0, 5)}}))
    x = torch.randn(3, 1, 2)
    upcast = torch.zeros(3, 1, 6)
    upcast[..., [0, 5]] = x
    torch.testing.assert_close(small(x)[0], model(upcast)[0])


TYPES = [torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_type_can_be_cut(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    smaller, upcast = cut(tensor, {0: (2,), 1: (1, 3)}), tensor.to(torch.complex64)
    assert smaller.dtype == dtype
    assert torch.equal(smaller.to(torch.complex64), upcast[[2]][:, [1, 3]])


# Round trips.


def test_checkpoints_hold_plans():
    model = Network()
    plan = plan_of(model)
    small, stream = apply_plan(model, plan), io.BytesIO()
    torch.save({"plan": plan.to_json(), "state": small.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    again = apply_plan(Network(), ShrinkPlan.from_json(saved["plan"]))
    again.load_state_dict(saved["state"])
    assert torch.equal(again.eval()(IMAGES), small.eval()(IMAGES))


def test_safetensors_hold_plans(tmp_path):
    model, path = Network(tied=False), tmp_path / "small.safetensors"
    plan = plan_of(model)
    small = apply_plan(model, plan)
    safetensors.torch.save_file(small.state_dict(), path, metadata={"plan": plan.to_json()})
    with safetensors.safe_open(path, "pt") as file:
        again = apply_plan(Network(tied=False), ShrinkPlan.from_json(file.metadata()["plan"]))
    again.load_state_dict(safetensors.torch.load_file(path))
    assert torch.equal(again.eval()(IMAGES), small.eval()(IMAGES))


def test_models_on_the_meta_device_are_filled_later():
    small = apply_plan(Network(), plan_of())
    with torch.device("meta"):
        model = Network()
    empty = apply_plan(model, plan_of())
    assert all(tensor.is_meta for tensor in tensors_of(empty).values())
    empty.load_state_dict(small.state_dict(), assign=True)
    empty.head.weight = empty.words.weight
    empty.mask = small.mask
    assert torch.equal(empty.eval()(IMAGES), small.eval()(IMAGES))
    assert plan_of(model) == plan_of(), "a plan needs no weights"


def test_averages_of_weights_are_cut_too():
    model = Network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)
    plan = plan_of(model)
    small, small_average = apply_plan(model, plan), apply_plan(average, plan)
    assert same(bits(small_average.module), bits(apply_plan(average.module, plan)))
    assert small_average.module.conv.out_channels == 4
    assert small_average.n_averaged == average.n_averaged == 1
    with torch.no_grad():
        small.fc.bias += 1
    small_average.update_parameters(small)
    torch.testing.assert_close(small_average.module.fc.bias, small.fc.bias - 0.9)


def random_plan(model: nn.Module, seed: int) -> ShrinkPlan:
    """A plan that keeps about half of every dimension of every tensor of a model whose layers are told nothing."""
    generator = random.Random(seed)
    keep = {
        name: {dim: [i for i in range(size) if generator.random() < 0.5] or [0] for dim, size in enumerate(w.shape)}
        for name, w in tensors_of(model).items()
    }
    return ShrinkPlan.of(model, keep)


class Tensors(nn.Module):
    """Parameters and buffers of given shapes, in children of their own."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        for place, shape in enumerate(shapes):
            child = nn.Module()
            self.add_module(f"child{place}", child)
            if place % 3:
                child.register_parameter("weight", nn.Parameter(torch.randn(shape)))
            else:
                child.register_buffer("count", torch.randn(shape), persistent=place % 2 == 0)


SHAPES = st.lists(st.lists(st.integers(1, 20), max_size=4).map(tuple), min_size=1, max_size=6)


@given(SHAPES, st.integers(0, 1000), st.permutations([0, 1, 2, 3]))
def test_any_model_is_cut_as_indexing_does(shapes, seed, order):
    model = Tensors(shapes)
    for parameter in model.parameters():
        dims = [dim for dim in order if dim < parameter.dim()]
        parameter.data = parameter.data.permute(dims).contiguous().permute([dims.index(d) for d in range(len(dims))])
    plan = random_plan(model, seed)
    small = apply_plan(model, ShrinkPlan.from_json(plan.to_json()))
    assert same(bits(small), {name: expected(w, plan.keep.get(name, {})) for name, w in bits(model).items()})
    assert all(small.get_parameter(name).shape == plan.shape_after(name) for name, _ in small.named_parameters())


NAMES = st.text(min_size=1, max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
INDICES = st.sets(st.integers(0, 10_000), min_size=1).map(sorted).map(tuple)


@given(
    st.dictionaries(NAMES, st.dictionaries(st.integers(0, 3), INDICES, min_size=1), max_size=4),
    st.lists(NAMES).map(tuple),
    st.dictionaries(NAMES, VALUES, max_size=4),
    NAMES,
)
def test_json_brings_back_any_plan(keep, biases, attributes, torch_version):
    shapes = {name: (10_001,) * 4 for name in keep} | {"other": (), "empty": (0, 3)}
    plan = ShrinkPlan(shapes, keep, biases, attributes, torch_version)
    again = ShrinkPlan.from_json(plan.to_json())
    assert again == plan
    assert again.fingerprint == plan.fingerprint
    assert again.to_json() == plan.to_json()


@given(INDICES)
def test_indices_as_text(kept):
    assert decoded(encoded(kept)) == kept
    assert len(encoded(kept)) <= 1.25 * (kept[-1] / 8 + 1) + 10


def test_half_of_the_channels_of_resnet_50_fit_into_a_header():
    with torch.device("meta"):
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    generator = random.Random(0)

    def half(size: int) -> tuple[int, ...]:
        return tuple(index for index in range(size) if generator.random() < 0.5)

    keep = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            keep[f"{name}.weight"] = {0: half(module.out_channels), 1: half(module.in_channels)}
            norm = name.replace("convolution", "normalization")
            keep |= {f"{norm}.{tensor}": {0: keep[f"{name}.weight"][0]} for tensor in NORM}
    plan = ShrinkPlan.of(model, keep)
    assert len(keep) == 53 * 5
    assert len(plan.to_json()) < 50_000
    assert ShrinkPlan.from_json(plan.to_json()) == plan


def test_plans_print_a_line_per_layer_that_is_cut():
    plan = plan_of(keep={name: dims for name, dims in KEEP.items() if name != "mask"})
    assert str(plan).splitlines() == [
        "layer   weight  becomes  numbers  become",
        "-----  -------  -------  -------  ------",
        "conv   8x3x3x3  4x3x3x3      216     108",
        "norm         8        4       33      17",
        "fc        6x32     3x16      198      51",
        "words     11x6     11x3       66      33",
        "head      11x6     11x3       66      33",
        "all                          579     242",
        "",
        "attributes: width = 4",
    ]
    assert "conv.weight" not in repr(plan)


# Errors.


def changed(text: str, **values: object) -> str:
    """Return the JSON of a plan with other values and the checksum that belongs to these."""
    content = json.loads(text) | values
    del content["checksum"]
    return json.dumps({**content, "checksum": hashed(content)})


TEXT = plan_of().to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected what ShrinkPlan\.to_json\(\) wrote, found ''"),
        ("weights", "found 'weights'"),
        ("[1, 2]", r"found '\[1, 2\]'"),
        ("3", "found '3'"),
        ("{}", "found '{}'"),
        (None, "found 'None'"),
        (TEXT[:-10], "expected what ShrinkPlan"),
        (TEXT.replace("norm.bias", "norm.bios"), "damaged or edited"),
        (TEXT.replace('"masks":["', '"masks":["0'), "damaged or edited"),
        (TEXT.replace('"width":4', '"width":5'), "damaged or edited"),
        (json.dumps({name: value for name, value in json.loads(TEXT).items() if name != "checksum"}), "damaged"),
        (changed(TEXT, version=5), "has format 5, and this shrinkage reads formats 1 to 4: update it"),
        (changed(TEXT, version="1"), "has format '1'"),
        (changed(TEXT, tensors={"fc.bias": [[6], {"3": 0}]}), r"dimension 3 of 'fc\.bias' of shape \(6,\)"),
    ],
)
def test_text_that_is_no_plan(text, message):
    with pytest.raises(PlanError, match=message):
        ShrinkPlan.from_json(text)


@pytest.mark.parametrize("place", range(0, len(TEXT), 37))
def test_damage_is_noticed(place):
    letter = "x" if TEXT[place] != "x" else "y"
    with pytest.raises(PlanError):
        ShrinkPlan.from_json(TEXT[:place] + letter + TEXT[place + 1 :])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"fc.wait": {0: (0,)}}, r"no 'fc\.wait' to cut; nearest names: 'fc\.weight'"),
        ({"fc.bias": {0: ()}}, r"'fc\.bias' of shape \(6,\) would keep nothing: keep one index"),
        ({"fc.bias": {1: (0,)}}, "no such dimension"),
        ({"fc.bias": {-1: (0,)}}, "no such dimension"),
        ({"fc.bias": {0: (0, 6)}}, "has no index 6"),
        ({"fc.bias": {0: (-1, 2)}}, "has no index -1"),
        ({"fc.bias": {0: (2, 1)}}, "have to rise"),
        ({"fc.bias": {0: (1, 1)}}, "each of them once"),
        ({"norm.num_batches_tracked": {0: (0,)}}, "no such dimension"),
        (
            {"head.weight": {1: (0, 1)}, "words.weight": {1: (0, 2)}},
            r"'head\.weight' and 'words\.weight' are one tensor",
        ),
    ],
)
def test_indices_that_can_not_be(keep, message):
    with pytest.raises(PlanError, match=message):
        ShrinkPlan.of(Network(), keep)


def test_what_is_cut_along_no_dimension_is_left_out():
    assert ShrinkPlan.of(Network(), {"fc.bias": {}}).keep == {}
    with pytest.raises(PlanError, match=r"'bias' would be cut along no dimension: leave it out"):
        ShrinkPlan({"bias": (3,)}, {"bias": {}})


@pytest.mark.parametrize("value", [[4], {"a": 1}, torch.tensor(4), object(), (1, [2])], ids=lambda v: type(v).__name__)
def test_attributes_are_what_json_can_say(value):
    with pytest.raises(PlanError, match=r"attribute 'width' would be .*: a plan holds numbers"):
        ShrinkPlan.of(Network(), {}, attributes={"width": value})


def test_attributes_have_to_be_there():
    for name in ("wide", "conv.wide", "cone.out_channels"):
        with pytest.raises(PlanError, match=f"sets '{name}', which is absent in the model"):
            ShrinkPlan.of(Network(), {}, attributes={name: 3})
    for name in ("conv", "fc.weight", "mask"):
        with pytest.raises(PlanError, match=f"sets '{name}', which is no plain attribute"):
            ShrinkPlan.of(Network(), {}, attributes={name: 3})


def test_attributes_that_are_none_can_be_set():
    model = Network()
    model.limit = None
    assert apply_plan(model, ShrinkPlan.of(model, {}, attributes={"limit": (3, "a")})).limit == (3, "a")


def test_attributes_that_are_given_go_before_those_of_layers():
    plan = ShrinkPlan.of(nn.Linear(3, 3), {"weight": {1: (0,)}}, attributes={"in_features": 2})
    assert plan.attributes == {"in_features": 2}


@pytest.mark.parametrize("path", ["fc", "norm", "relu", "words"])
def test_biases_need_a_layer_without_one(path):
    with pytest.raises(
        PlanError, match=f"'{path}' should get a bias: expected a linear layer or a convolution without"
    ):
        ShrinkPlan.of(Network(), {}, biases=(path,))


def test_a_smaller_model_is_not_cut_again():
    for keep, biases in ((KEEP, ()), (KEEP, ("conv",)), ({}, ("conv",))):
        plan = ShrinkPlan.of(Network(), keep, biases=biases)
        small = apply_plan(Network(), plan)
        before = bits(small)
        with pytest.raises(PlanError, match="the smaller one already: apply the plan to a dense model"):
            apply_plan(small, plan)
        assert same(bits(small), before)


def test_other_models_are_refused_with_what_differs():
    model = Network(10)
    model.fc = nn.Linear(40, 6, bias=False)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(PlanError) as caught:
        apply_plan(model, plan_of())
    message = str(caught.value)
    assert "in 10 tensors: 'conv.weight' should be (8, 3, 3, 3), is (10, 3, 3, 3); " in message
    assert "; and 7 others. Build it with the arguments of the dense one" in message
    less, more = Network(), Network()
    less.fc.bias = None
    more.more = nn.Parameter(torch.zeros(2))
    with pytest.raises(PlanError, match=r"1 tensors: 'fc\.bias' should be \(6,\), is absent\. Build"):
        apply_plan(less, plan_of())
    with pytest.raises(PlanError, match=r"'more' should be absent, is \(2,\)"):
        apply_plan(more, plan_of())


def test_a_plan_of_a_part_of_a_model_names_that():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([Network()])

    with pytest.raises(PlanError, match=r"the plan is one of the module called 'body\.0' in the model"):
        apply_plan(Outer(), plan_of())
    with pytest.raises(PlanError, match=r"the plan is one of the module called 'net' in the model"):
        apply_plan(nn.ModuleDict({"net": Network()}), plan_of())


def test_buffers_that_are_not_saved_may_differ_unless_they_are_cut():
    keep = {name: dims for name, dims in KEEP.items() if name != "mask"}
    model = Network()
    model.mask = torch.ones(17)
    assert apply_plan(model, plan_of(keep=keep)).mask.shape == (17,)
    with pytest.raises(PlanError, match=r"'mask' should be \(8,\), is \(17,\)"):
        apply_plan(model, plan_of())


@pytest.mark.parametrize(("cut", "whole"), [("words", "head"), ("head", "words")])
def test_a_model_that_ties_what_the_plan_does_not(cut, whole):
    plan = ShrinkPlan.of(Network(tied=False), {f"{cut}.weight": {0: (0, 1)}})
    with pytest.raises(PlanError, match=rf"'{whole}\.weight' is tied to a tensor that is cut"):
        apply_plan(Network(), plan)


def test_a_model_that_ties_what_the_plan_cuts_in_two_ways():
    plan = ShrinkPlan.of(Network(tied=False), {"head.weight": {1: (0, 1)}, "words.weight": {1: (0, 2)}})
    with pytest.raises(PlanError, match="are one tensor, tied, and would be cut in two ways"):
        apply_plan(Network(), plan)


def parametrized(model: Network) -> None:
    parametrizations.orthogonal(model.fc)


def masked(model: Network) -> None:
    prune.random_unstructured(model.fc, "weight", 0.5)


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (parametrized, "parametrizations.weight.original"),
        (parametrized, "bias"),
        (masked, "weight_orig"),
        (masked, "weight_mask"),
    ],
)
def test_weights_that_are_computed_are_refused(compute, name):
    model = Network()
    compute(model)
    with pytest.raises(PlanError, match=r"'fc\.weight' is computed by .*: make it a parameter first"):
        ShrinkPlan.of(model, {f"fc.{name}": {0: (0, 1)}})


def test_computed_weights_that_are_not_cut_are_no_matter():
    model = Network()
    parametrized(model)
    keep = {"conv.weight": {1: (0, 1)}}
    small = apply_plan(model, ShrinkPlan.of(model, keep))
    torch.testing.assert_close(small.fc.weight, model.fc.weight)
    remove_parametrizations(model.fc, "weight")
    keep = {"fc.weight": {0: (0, 1)}, "fc.bias": {0: (0, 1)}}
    assert apply_plan(model, ShrinkPlan.of(model, keep)).fc.out_features == 2


def test_lazy_and_sparse_tensors_are_refused():
    with pytest.raises(PlanError, match=r"'0\.weight' is lazy and has no shape yet: call the model once"):
        ShrinkPlan.of(nn.Sequential(nn.LazyLinear(3)), {})
    model = Network()
    model.mask = torch.eye(3).to_sparse()
    with pytest.raises(PlanError, match=r"'mask' is stored as torch\.sparse_coo"):
        ShrinkPlan.of(model, {"mask": {0: (0,)}})


def test_layers_that_are_cut_wrongly_stop_before_anything_is_made():
    model = nn.Conv2d(6, 6, 1, groups=3)
    before = copy.deepcopy(model)
    with pytest.raises(PlanError, match="3 groups of 2"):
        ShrinkPlan.of(model, {"weight": {0: (0,)}, "bias": {0: (0,)}})
    assert same(bits(model), bits(before))


def test_the_guides_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(code, names)
    assert "Linear(in_features=64, out_features=128, bias=True)" in capsys.readouterr().out
    assert names["small"][2].weight.shape == (10, 128)


def test_the_public_names_are_there():
    assert {"ShrinkPlan", "apply_plan", "register_layer", "shrink_optimizer_", "PlanError"} < set(shrinkage.__all__)
