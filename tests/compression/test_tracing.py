"""Channels by hand: small models whose coupling can be read off, and what is removed from them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from channels import free_channels
from shrinkage import shrink
from shrinkage.compression.tracing.disjoint_sets import DisjointSets
from zoo.harness import choose, zero_
from zoo.own import CASES


class Model(nn.Module):
    """Two linear layers and a function between them."""

    def __init__(self, between, hidden=12, out=None, **buffers):
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first, self.second = nn.Linear(5, hidden), nn.Linear(out or hidden, 2)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)
        self.eval()

    def forward(self, x, *others):
        return self.second(self.between(self, self.first(x), *others))


def count(model, *inputs):
    return len(free_channels(model, inputs, {}))


X = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


def test_labels_of_a_long_chain_are_one():
    labels = DisjointSets()
    chain = labels.new(5000)
    labels.unite(chain[1:], chain[:-1])
    assert labels.find(chain).unique().tolist() == [0]


def test_a_pointwise_function_keeps_channels_apart():
    assert count(Model(lambda self, h: F.gelu(h)), X) == 12


def test_what_meets_an_input_stays():
    assert count(Model(lambda self, h, other: h + other), X, torch.randn(3, 12)) == 0
    assert count(Model(lambda self, h, other: h * other), X, torch.randn(3, 1)) == 12


@pytest.mark.parametrize(
    ("between", "channels"),
    [
        (lambda self, h: h.view(len(h), -1, 4).relu().flatten(1), 3),
        (lambda self, h: h.view(len(h), 3, -1).relu().flatten(1), 4),
        (lambda self, h: (h.view(len(h), 3, 4) * self.scale).flatten(1), 3),
        (lambda self, h: F.layer_norm(h.view(len(h), 3, 4), (4,)).flatten(1), 3),
        (lambda self, h: h.view(len(h), 3, 4).softmax(1).flatten(1), 4),
        (lambda self, h: torch.cat(h.chunk(3, 1)[::-1], 1), 4),
    ],
    ids=["by -1 in front", "by -1 behind", "a buffer in a grid", "a norm in a grid", "softmax in a grid", "chunks"],
)
def test_channels_in_a_grid_go_by_lines(between, channels):
    assert count(Model(between, scale=torch.rand(4)), X) == channels


@pytest.mark.parametrize(
    ("between", "channels"),
    [
        (lambda self, h: h + torch.ones_like(h[:, :1]), 12),
        (lambda self, h: h + torch.ones_like(h[:, 1:2]), 1),
        (lambda self, h: h + (lambda first: first * torch.ones_like(first))(h[:, :1]), 0),
        (lambda self, h: torch.cat(h.view(len(h), 3, 4).chunk(2, -1)[::-1], 1).flatten(1), 2),
    ],
    ids=["its shape", "one behind another", "its number", "halves of a grid"],
)
def test_a_part_of_the_channels(between, channels):
    assert count(Model(between), X) == channels


def test_every_zero_channel_is_taken_out():
    names = ("mlp", "resnet", "mobilenet", "swiglu", "layer-scale", "pooled", "chunked-glu", "rotary", "convnext",
             "attention-reshaped", "attention-by-size", "attention-chunked", "grouped-queries-native")  # fmt: skip
    for case in (case for case in CASES if case.name in names):
        model, (arguments, keywords) = case.make(), case.example()
        zero_(model, choose(free_channels(model, arguments, keywords)), "all")
        assert not shrink(model, arguments, example_kwargs=keywords).report.kept, case.name


def test_a_length_that_the_code_counts_holds_its_layer_alone():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.first(x).relu()
            return self.third(self.second(h / h.shape[-1]).relu())

    model = Counted().eval()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight[1] = layer.bias[1] = 0
    small = shrink(model, X)
    assert (small.model.first.out_features, small.model.second.out_features) == (6, 7)
    assert [(kept.name, kept.channels) for kept in small.report.kept] == [("first.weight", 1)]
    torch.testing.assert_close(small.model(X), model(X))


class Scores(nn.Module):
    """Attention with one head, whose scale does not depend on its size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 3)
        self.eval()

    def forward(self, x):
        return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)


@pytest.mark.parametrize(("bias", "left"), [(0.0, 5), (1.5, 6)])
def test_a_channel_of_a_product_goes_where_one_side_is_zero(bias, left):
    model, x = Scores(), torch.randn(2, 4, 5)
    with torch.no_grad():
        model.query.weight[3], model.query.bias[3] = 0, bias
    small = shrink(model, x, verify=False).model
    assert small.query.out_features == small.key.out_features == left
    torch.testing.assert_close(small(x), model(x))


class Sum(nn.Module):
    """The sum of two layers, one of them shifted so far that a ReLU silences it on small inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.first.weight[2] = self.first.bias[2] = 0
            self.second.bias[2] = -10.0
        self.eval()

    def forward(self, x):
        return self.last((self.first(x) + self.second(x)).relu())


def test_what_a_relu_silences_on_the_examples_alone_is_no_constant():
    small = shrink(Sum(), X, verify=False).model
    assert small.last.in_features == 6
    torch.testing.assert_close(small(100 * X), Sum()(100 * X))


def test_what_is_silent_by_chance_is_no_constant():
    model = Model(lambda self, h, x: (-h).relu() * F.relu(self.gate(x)), hidden=64)
    model.gate = nn.Linear(5, 64)
    small = shrink(model.eval(), (X[:1], X[:1]), verify=False).model
    assert small.second.in_features == 64


def test_what_a_softmax_silences_by_chance_is_no_constant():
    model, x = Model(lambda self, h: (100 * h).softmax(1)[:, 0], hidden=64), torch.randn(1, 8, 5)
    small = shrink(model, x, verify=False).model
    assert small.second.in_features == 64


class Standardized(nn.Module):
    """Convolutions whose weights are standardized over what they read, as those of networks without norms are."""

    def __init__(self, standardize, kernel):
        super().__init__()
        self.standardize = standardize
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, kernel), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(F.conv2d(x, self.standardize(self.second.weight), self.second.bias))
        return self.third(x)


def by_batch_norm(weight):
    rows = F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True, momentum=0.0, eps=1e-6)
    return rows.reshape_as(weight)


def by_hand(weight):
    variance, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True, correction=0)
    return (weight - mean) / (variance + 1e-6).sqrt()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("standardize", [by_batch_norm, by_hand])
def test_what_a_standardized_weight_reads_stays_and_its_rows_may_go(standardize, kernel):
    model, x = Standardized(standardize, kernel).eval(), torch.randn(2, 3, 8, 8)
    assert count(model, x) == 8
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight[:3] = layer.bias[:3] = 0
    small = shrink(model, x)
    assert (small.model.first.out_channels, small.model.second.out_channels) == (8, 5)
    torch.testing.assert_close(small.model(x), model(x))


class Crossed(nn.Module):
    """Attention of a few queries to a longer sequence, with a mask that weights make."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 32, bias=False), nn.Linear(8, 32, bias=False), nn.Linear(8, 32)
        self.shift, self.out = nn.Parameter(torch.randn(4, 1, 9)), nn.Linear(32, 8)

    def forward(self, x, memory):
        q = self.q(x).unflatten(-1, (-1, 8)).transpose(1, 2)
        k, v = (f(memory).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.shift)
        return self.out(attended.transpose(1, 2).flatten(2))


def test_heads_go_beside_a_mask_with_weights_of_their_own():
    model, inputs = Crossed().eval(), (torch.randn(2, 1, 8), torch.randn(2, 9, 8))
    with torch.no_grad():
        for layer in (model.q, model.k, model.v):
            layer.weight.view(4, 8, 8)[1] = 0
        model.v.bias.view(4, 8)[1] = model.shift[1] = 0
    small = shrink(model, inputs)
    assert small.report.unknown_operators == {}
    assert (small.model.q.out_features, len(small.model.shift)) == (24, 3)
    torch.testing.assert_close(small.model(*inputs), model(*inputs))


class Undivided(nn.Module):
    """Attention of one head, with a mask that is a parameter."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(*sizes) for sizes in ((8, 8), (8, 8), (8, width), (width, 8)))
        self.shift = nn.Parameter(torch.randn(5, 9))

    def forward(self, x, memory):
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(memory), self.v(memory), self.shift))


@pytest.mark.parametrize("width", [9, 12])
def test_values_go_one_by_one_beside_a_mask_that_is_a_parameter(width):
    """Positions, which a mask has along its last axis, are no values, also where there are as many."""
    model, inputs = Undivided(width).eval(), (torch.randn(2, 5, 8), torch.randn(2, 9, 8))
    with torch.no_grad():
        model.v.weight[:4] = model.v.bias[:4] = 0
    small = shrink(model, inputs).model
    assert (small.q.out_features, small.v.out_features) == (8, width - 4)
    assert small.shift.shape == model.shift.shape
    torch.testing.assert_close(small(*inputs), model(*inputs))
