"""Sums over channels: zeros do not change them, so that channels that are zero go; where they do, channels stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkage import CoupledChannels, GroupError, ShrinkPlan, apply_plan, shrink
from shrinkage.compression.plans.layers import layer_attributes
from shrinkage.compression.tracing.operators import RULES, pointwise
from shrinkage.compression.tracing.signs import never_negative
from zoo import real
from zoo.harness import difference, outputs
from zoo.own import CASES
from zoo.sums import Prototypes

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
INF = float("inf")


class Model(nn.Module):
    """Two layers, a number that is made of what they put out, and a layer that reads it."""

    def __init__(self, number):
        super().__init__()
        torch.manual_seed(0)
        self.number, self.a, self.b, self.head = number, nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(1, 3)
        self.v, self.w = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(5, 12))
        self.cube, self.both = nn.Parameter(torch.randn(3, 4, 5)), nn.Bilinear(12, 12, 1)
        self.eval()

    def forward(self, x):
        number = self.number(self, self.a(x), self.b(x))
        return self.head(number.reshape(-1, 1) if number.dim() else number.expand(len(x), 1))


@torch.no_grad()
def without_some(number, verify=False):
    """The model and the smaller one, both layers of which have zero channels, the first four of twelve."""
    model = Model(number)
    for layer in (model.a, model.b):
        layer.weight[:4] = layer.bias[:4] = 0
    return model, shrink(model, X, verify=verify)


@torch.no_grad()
def assert_equal(model, small):
    for x in (X, 3 * torch.randn(7, 6), torch.randn(1, 6)):
        torch.testing.assert_close(small(x), model(x))


UNCHANGED = {
    "sum": lambda m, a, b: a.sum(-1),
    "sum of all": lambda m, a, b: a.sum(),
    "sum of squares": lambda m, a, b: (a**2).sum(1, keepdim=True),
    "nansum": lambda m, a, b: a.nansum(-1),
    "any": lambda m, a, b: (a > 0).any(-1).float(),
    "count_nonzero": lambda m, a, b: a.relu().count_nonzero(-1).float(),
    "norm": lambda m, a, b: a.norm(dim=-1),
    "norm, p=1": lambda m, a, b: a.norm(p=1, dim=-1),
    "norm, p=inf": lambda m, a, b: torch.linalg.vector_norm(a, INF, -1),
    "norm, p=0": lambda m, a, b: torch.linalg.vector_norm(a, 0, -1),
    "linalg.norm": lambda m, a, b: torch.linalg.norm(a, dim=-1),
    "linalg.norm of vectors": lambda m, a, b: torch.linalg.norm(a, 3, dim=-1),
    "norm of a matrix": lambda m, a, b: torch.linalg.matrix_norm(a),
    "normalize": lambda m, a, b: (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1),
    "cosine": lambda m, a, b: F.cosine_similarity(a, b),
    "cosine with one": lambda m, a, b: F.cosine_similarity(a, b[:1]),
    "distance without eps": lambda m, a, b: F.pairwise_distance(a, b, eps=0.0),
    "cdist": lambda m, a, b: torch.cdist(a, b).sum(-1),
    "cdist, p=1": lambda m, a, b: torch.cdist(a, b, p=1.0).sum(-1),
    "pdist": lambda m, a, b: F.pdist(a).sum(),
    "largest": lambda m, a, b: a.relu().amax(-1),
    "largest absolute": lambda m, a, b: a.abs().max(-1).values,
    "product": lambda m, a, b: (a * b).sum(-1),
    "vecdot": lambda m, a, b: torch.linalg.vecdot(a, b),
    "vecdot along the first axis": lambda m, a, b: torch.linalg.vecdot(a.T, b.T, dim=0),
    "matrix times vector": lambda m, a, b: a @ m.v,
    "vector times matrix": lambda m, a, b: m.v @ a.mT,
    "mv": lambda m, a, b: torch.mv(a, m.v),
    "addmv": lambda m, a, b: torch.addmv(b.sum(-1), a, m.v),
    "inner": lambda m, a, b: torch.inner(a, m.v),
    "tensordot": lambda m, a, b: torch.tensordot(a, m.v, 1),
    "tensordot of rows": lambda m, a, b: torch.tensordot(a, m.w, ([1], [1])).amax(-1),
    "bilinear": lambda m, a, b: m.both(a, b),
    "outer": lambda m, a, b: torch.outer(a.sum(1), b[0]).sum(1),
    "letters": lambda m, a, b: torch.einsum("bi,bi->b", a, b),
    "three letters": lambda m, a, b: torch.einsum("bi,bi,i->b", a, b, m.v),
    "letters of the result left out": lambda m, a, b: torch.einsum("bi,i", a, m.v),
    "letters in front of dots": lambda m, a, b: torch.einsum("...i,...i->...", a, b),
    "letters alone": lambda m, a, b: torch.einsum("bi,bj->b", a, b),
    "all letters": lambda m, a, b: torch.einsum("bi,bi->", a, b),
    "capital letters": lambda m, a, b: torch.einsum("BI,I->B", a, m.v),
    "broadcast": lambda m, a, b: torch.broadcast_to(a[None], (2, *a.shape)).sum((0, 2)),
    "broadcast together": lambda m, a, b: sum(torch.broadcast_tensors(a[:, None], b[:1, None])).sum((1, 2)),
    "stacked": lambda m, a, b: torch.hstack([a, b]).sum(1) + torch.vstack([a, b])[: len(a)].norm(dim=1),
    "taken along": lambda m, a, b: torch.take_along_dim(a, torch.zeros(1, 1, dtype=torch.long), 0).sum(1) + a.sum(1),
    "spectrum": lambda m, a, b: torch.fft.rfft(a, dim=0).abs().sum(),
    "patches": lambda m, a, b: F.fold(F.unfold(spread(a), 2), (4, 4), 2).sum((1, 2, 3)),
    "samples": lambda m, a, b: F.grid_sample(
        spread(a), torch.zeros(1, 2, 2, 2).expand(len(a), -1, -1, -1), align_corners=False
    ).sum((1, 2, 3)),
    "windows": lambda m, a, b: spread(a).unfold(2, 2, 1).diff(dim=2).sum((1, 2, 3, 4)) + a.sum(1),
    "triangles": lambda m, a, b: spread(a).tril().diagonal(0, 2, 3).cummax(2).values.relu().sum((1, 2)),
    "tiles": lambda m, a, b: a.tile(2, 1)[: len(a)].swapdims(0, 1).moveaxis(0, 1).sum(1),
}  # fmt: skip


def spread(x):
    """Images of one color."""
    return x[..., None, None].expand(-1, -1, 4, 4)


@pytest.mark.parametrize("name", UNCHANGED)
def test_channels_that_do_not_change_a_sum_go(name):
    """By the rules alone: the outputs are compared here, and were not before."""
    model, small = without_some(UNCHANGED[name])
    assert len(small.model.a.weight) == 8
    assert small.model.a.weight.equal(model.a.weight[4:])
    assert_equal(model, small.model)


def written(m, a, b):
    """Numbers that are no longer above 0 when the largest is taken."""
    x = a.relu()
    x.sub_(1)
    return x.amax(-1)


def written_through_a_view(m, a, b):
    x = a.relu()
    x.view(-1).sub_(1)
    return x.amax(-1)


CHANGED = {
    "sum of what is not zero": (lambda m, a, b: a.exp().sum(-1), "is not zero where `sum` in `the model` sums over it"),
    "norm, p=-1": (lambda m, a, b: torch.linalg.vector_norm(a, -1, -1), "linalg_vector_norm over channels"),
    "spectral norm": (lambda m, a, b: torch.linalg.matrix_norm(a, 2), "linalg_matrix_norm over channels"),
    "largest of any": (lambda m, a, b: a.amax(-1), "amax over channels"),
    "largest of some": (lambda m, a, b: (a.relu() - b.relu()).amax(-1), "amax over channels"),
    "largest and where": (lambda m, a, b: sum(a.relu().max(-1)), "max over channels"),
    "largest of what was written": (written, "amax over channels"),
    "largest of what was written through a view": (written_through_a_view, "amax over channels"),
    "smallest": (lambda m, a, b: a.relu().amin(-1), "amin over channels"),
    "sum of logarithms": (lambda m, a, b: a.logsumexp(-1), "logsumexp over channels"),
    "distance with eps": (lambda m, a, b: F.pairwise_distance(a, b), "adds its `eps` over channels"),
    "cosine with a copy": (lambda m, a, b: F.cosine_similarity(a, b[:, :1]), "cosine_similarity over channels"),
    "product that meets numbers": (lambda m, a, b: torch.einsum("bi,i->b", a, torch.linspace(0, 1, 12)),
                                "meets a tensor of fixed length where it is summed over"),
    "a diagonal": (lambda m, a, b: torch.einsum("ii->i", a.T @ b).sum(), "a diagonal in `einsum`"),
    "windows of channels": (lambda m, a, b: a.unfold(1, 2, 1).sum((1, 2)), "windows over channels"),
    "norm of a column": (lambda m, a, b: (a @ m.w.T / m.w.norm(dim=1)).relu().amax(-1),
                         "is not zero where `linalg_vector_norm` in `the model` sums over it"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_channels_that_change_a_sum_stay(name):
    number, reason = CHANGED[name]
    model, small = without_some(number)
    assert len(small.model.a.weight) == 12
    assert any(reason in kept.reason for kept in small.report.kept if kept.name == "a.weight"), small.report.kept
    assert_equal(model, small.model)


def test_the_next_layer_takes_up_the_divisor_of_a_mean():
    model, small = without_some(lambda m, a, b: a.mean(-1))
    assert len(small.model.a.weight) == 8
    assert_equal(model, small.model)


def test_weights_that_are_measured_or_looked_up_are_in_the_group():
    """The columns of prototypes, of codes and of a weight whose rows are divided by their norm have to be zero too."""
    members = {
        case.name: {
            (member.parameter, member.dim) for member in CoupledChannels(case.make(), *case.example()[:1]).members
        }
        for case in CASES
        if case.name in ("prototypes", "quantizer", "angles")
    }
    assert ("prototypes", 1) in members["prototypes"]
    assert ("codes.weight", 1) in members["quantizer"]
    assert ("weight", 1) in members["angles"]


@pytest.mark.filterwarnings("ignore:the model puts out other numbers when channels of prototypes go:UserWarning")
def test_a_column_that_can_be_in_no_group_holds_its_channel():
    """Rows of the prototypes can go, so that their columns are in no group: the code stays as wide as it is."""

    class Nearest(Prototypes):
        def forward(self, x):
            return super().forward(x).exp().sum(-1)

    with pytest.raises(GroupError, match=r"weight that is summed by itself can be .* \(136 .* `encoder\.2\.weight`"):
        CoupledChannels(Nearest().eval(), X, pin=["encoder.0"])


def test_what_has_no_zeros_at_a_sum_is_in_no_group():
    with pytest.warns(
        UserWarning, match=r"puts out other numbers when channels of a\.weight, .* an exponential is not"
    ):
        channels = CoupledChannels(Model(lambda m, a, b: a.exp().sum(-1) + b.sum(-1)), X)
    assert {member.parameter for member in channels.members} == {"b.weight", "b.bias"}


class Convolutions(nn.Module):
    """A convolution in groups between two others."""

    def __init__(self, groups, size=8, out=8):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, groups * size, 1), nn.Conv2d(groups * out, 3, 1)
        self.grouped = nn.Conv2d(groups * size, groups * out, 3, groups=groups)
        self.eval()

    def forward(self, x):
        return self.last(self.grouped(self.first(x).relu()).relu())


IMAGES = torch.randn(2, 3, 6, 6)


def test_few_groups_of_a_convolution_lose_the_same_channels():
    model = Convolutions(groups=2)
    assert CoupledChannels(model, IMAGES).count == 16
    with torch.no_grad():
        for place in (1, 4, 9, 12):  # at the places 1 and 4 of both groups
            model.first.weight[place] = model.first.bias[place] = 0
        for place in (2, 10):
            model.grouped.weight[place] = model.grouped.bias[place] = 0
        model.first.weight[7] = model.first.bias[7] = 0  # in one group alone
    small = shrink(model, IMAGES, verify=False)
    layer = small.model.grouped
    assert (layer.groups, layer.in_channels, layer.out_channels, tuple(layer.weight.shape)) == (
        2,
        12,
        14,
        (14, 6, 3, 3),
    )
    again = apply_plan(Convolutions(groups=2), small.plan)
    again.load_state_dict(small.model.state_dict())
    for x in (IMAGES, torch.randn(5, 3, 9, 7)):
        torch.testing.assert_close(small.model(x), model(x))
        assert torch.equal(again(x), small.model(x))


def test_many_groups_of_a_convolution_go_as_a_whole():
    model = Convolutions(groups=8, size=2, out=2)
    assert CoupledChannels(model, IMAGES).count == 8
    with torch.no_grad():
        model.first.weight[4:6] = model.first.bias[4:6] = model.grouped.weight[4:6] = model.grouped.bias[4:6] = 0
    small = shrink(model, IMAGES, verify=False).model
    assert small.grouped.groups == 7
    torch.testing.assert_close(small(IMAGES), model(IMAGES))


def test_a_bias_that_is_left_holds_a_channel_of_a_group():
    model = Convolutions(groups=2)
    with torch.no_grad():
        model.first.weight[[1, 9]], model.first.bias[[1, 9]] = 0, 1.0
    small = shrink(model, IMAGES, verify=False)
    assert len(small.model.first.weight) == 16
    assert "is not zero where a product in `grouped` sums over it" in {kept.reason for kept in small.report.kept}


def test_a_column_of_a_group_that_is_zero_takes_its_channels_along():
    model = Convolutions(groups=2)
    with torch.no_grad():
        model.grouped.weight[:, 3] = 0
    small = shrink(model, IMAGES, verify=False).model
    assert small.first.out_channels == 14
    torch.testing.assert_close(small(IMAGES), model(IMAGES))


def test_whole_groups_and_parts_of_each_are_told_apart():
    layer = nn.Conv2d(8, 8, 1, groups=2)
    shapes = {"weight": (4, 4, 1, 1), "bias": (4,)}
    whole, parts = ({"weight": {0: rows}} for rows in ((0, 1, 2, 3), (0, 1, 4, 5)))
    assert layer_attributes(layer, shapes, whole) == {"in_channels": 4, "out_channels": 4, "groups": 1}
    assert layer_attributes(layer, shapes, parts) == {"out_channels": 4}


class Words(nn.Module):
    """A kernel over words, as wide as they are."""

    def __init__(self, padding=(0, 0), width=10):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.kernel, self.head = (
            nn.Embedding(20, 10),
            nn.Conv2d(1, 6, (2, width), padding=padding),
            nn.Linear(6, 3),
        )
        with torch.no_grad():
            self.words.weight[:, [2, 7]] = 0
        self.eval()

    def forward(self, tokens):
        return self.head(self.kernel(self.words(tokens)[:, None]).relu().amax((2, 3)))


TOKENS = torch.randint(20, (3, 7))


def test_a_kernel_that_is_as_wide_as_its_input_sums_over_the_width():
    model = Words()
    small = shrink(model, TOKENS, verify=False).model
    assert (small.words.embedding_dim, small.kernel.kernel_size) == (8, (2, 8))
    for tokens in (TOKENS, torch.randint(20, (5, 9))):
        torch.testing.assert_close(small(tokens), model(tokens))


@pytest.mark.parametrize("model", [Words(padding=(0, 1)), Words(width=9)], ids=["padded", "narrower"])
def test_another_kernel_holds_the_width(model):
    small = shrink(model, TOKENS, verify=False).model
    assert small.words.embedding_dim == 10
    torch.testing.assert_close(small(TOKENS), model(TOKENS))


SIGNS = {
    True: [
        lambda x: x.relu(), lambda x: x.abs().flatten(), lambda x: (x * x).sum(0), lambda x: x**2 + x.sigmoid(),
        lambda x: x.exp() * 3 / x.norm(), lambda x: x.clamp(min=0.5), lambda x: x.relu().max(1).values,
        lambda x: x.relu_(),
        lambda x: torch.cat([x.softmax(0), x.square()]), lambda x: torch.maximum(x.abs(), x.relu()),
        lambda x: F.max_pool1d(x.relu(), 2), lambda x: F.hardtanh(x, 0.0, 1.0), lambda x: x.relu() ** 3,
    ],
    False: [
        lambda x: x, lambda x: x**3, lambda x: x.relu() - 1, lambda x: x.relu() * -1, lambda x: x.tanh(),
        lambda x: x.clamp(max=0.5), lambda x: torch.cat([x, x.relu()]), lambda x: x.relu().sub_(1),
        lambda x: torch.add(x.relu(), x.relu(), alpha=-2), lambda x: F.hardtanh(x),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("sign", "place"), [(sign, place) for sign in SIGNS for place in range(len(SIGNS[sign]))])
def test_what_is_never_negative(sign, place):
    class Function(nn.Module):
        def forward(self, x):
            return SIGNS[sign][place](x.clone())

    graph = torch.export.export(Function(), (torch.randn(3, 4),), strict=False).graph
    (output,) = graph.find_nodes(op="output")
    assert never_negative(output.args[0][0]) is sign


def test_numbers_are_never_negative_if_they_are_not():
    assert never_negative(0)
    assert not never_negative(-1.0)
    assert not never_negative("text")


def test_experts_in_one_tensor_lose_as_many_neurons_as_products_of_groups_take():
    case = next(case for case in real.CASES if case.name == "mixtral")
    model, (arguments, keywords) = case.make(), case.example()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj[:, 96:111] = 0  # 15 of the 96 neurons that are gated
    small = shrink(model, arguments, example_kwargs=keywords)
    assert small.model.model.layers[0].mlp.experts.down_proj.shape == (4, 64, 88)
    reasons = [kept.reason for kept in small.report.kept]
    assert any("a multiple of 8 channels, as products of the matrices of experts" in reason for reason in reasons)
    assert difference(outputs(model, case), outputs(small.model, case)) < 1e-5


def test_an_operator_that_is_defined_later_has_a_rule_by_its_name(monkeypatch):
    library = torch.library.Library("sums_over_channels", "DEF")
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: 2 * x, "CompositeExplicitAutograd")
    double = lambda m, a, b: torch.ops.sums_over_channels.doubled(a).sum(-1)  # noqa: E731
    assert len(without_some(double)[1].model.a.weight) == 12
    monkeypatch.setitem(RULES, "sums_over_channels.doubled", pointwise)
    assert len(without_some(double)[1].model.a.weight) == 8


class Biased(nn.Module):
    """Attention with a bias of zeros for each head and pair of positions, as a decoder has between its inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.out = 4, nn.Linear(12, 3)
        self.q, self.k, self.v = (nn.Linear(6, 12) for _ in range(3))

    def forward(self, x, y):
        q, k, v = (part.view(*part.shape[:2], -1, 3).transpose(1, 2) for part in (self.q(x), self.k(y), self.v(y)))
        bias = torch.zeros(1, self.heads, x.shape[1], y.shape[1]) - 1
        return self.out(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))


def test_zeros_for_each_head_go_with_the_heads():
    model, x, y = Biased().eval(), torch.randn(2, 5, 6), torch.randn(2, 7, 6)
    assert CoupledChannels(model, (x, y)).count == 4
    with torch.no_grad():
        for layer in (model.q, model.k, model.v):
            layer.weight[3:6] = layer.bias[3:6] = 0
    small = shrink(model, (x, y)).model
    assert (small.heads, small.out.in_features) == (3, 9)
    for shift in (0, 1):
        torch.testing.assert_close(small(x[shift:, shift:], y[shift:]), model(x[shift:, shift:], y[shift:]))


FIRST = {
    "zeros": lambda model, x: torch.zeros(len(x), model.width),
    "ones": lambda model, x: torch.ones((len(x), model.width)),
    "full": lambda model, x: torch.full((len(x), model.width), 0.5),
    "new_zeros": lambda model, x: x.new_zeros(len(x), model.width),
    "new_full": lambda model, x: x.new_full((len(x), model.width), 0.5),
    "zeros-by-number": lambda model, x: torch.zeros(len(x), 12),
    "ones-by-number": lambda model, x: torch.ones(size=(len(x), 12), dtype=x.dtype),
    "full-by-number": lambda model, x: torch.full((x.shape[0], 12), 0.5),
    "new-zeros-by-number": lambda model, x: x.new_zeros(len(x), 12),
    "new-ones-by-number": lambda model, x: x.new_ones((len(x), 12)),
    "new-full-by-number": lambda model, x: x.new_full(size=(len(x), 12), fill_value=0.5),
    "vector-by-number": lambda model, x: torch.zeros(12),
    "empty-by-number": lambda model, x: torch.empty(len(x), 12).fill_(0.5),
    "new-empty-by-number": lambda model, x: x.new_empty((len(x), 12)).zero_(),
    "new-by-number": lambda model, x: model.head.weight.new(len(x), 12).zero_(),
    "new-by-shape": lambda model, x: x.new(torch.Size((len(x), 12))).fill_(0.5),
    "written": lambda model, x: torch.zeros(len(x), 12).copy_(model.inner(x)),
    "written-by-slices": lambda model, x: written_by_slices(torch.zeros(len(x), 2, 12), model.inner(x)),
}  # fmt: skip


def written_by_slices(places, x):
    for number in range(2):
        places[:, number] = x * (number + 1)
    return places.sum(1)


@pytest.mark.parametrize("name", FIRST)
def test_a_tensor_that_is_filled_has_as_many_channels_as_what_it_meets(name):
    class Steps(nn.Module):
        """A state that is kept in part from step to step."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.width, self.inner, self.head = 12, nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x):
            state = FIRST[name](self, x)
            for _ in range(2):
                state = 0.5 * state + self.inner(x)
            return self.head(state * self.inner(x))

    model = Steps().eval()
    with torch.no_grad():
        model.inner.weight[:5] = model.inner.bias[:5] = 0
    assert CoupledChannels(model, X).count == 12
    small = shrink(model, X).model
    assert len(small.inner.weight) == 7
    assert_equal(model, small)


class Cells(nn.Module):
    """A loop whose first state has its width as a number, in the text of `forward`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.LSTMCell(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        h = c = torch.zeros(len(x), 12)
        for _ in range(2):
            h, c = self.cell(x, (h, c))
        return self.head(h)


def test_a_width_in_a_first_state_is_corrected_in_the_text_and_nowhere_else():
    model = Cells().eval()
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(model.cell, name).view(4, 12, -1)[2, :5] = 0
    result = shrink(model, X)
    (table,) = result.plan.sizes[""]
    assert [(each.call, each.asked, each.given, each.in_text) for each in table] == [
        ("zeros", (None, 12), (None, 7), True)
    ]
    assert result.model.cell.hidden_size == 7
    again = apply_plan(Cells(), ShrinkPlan.from_json(result.plan.to_json())).eval()
    again.load_state_dict(result.model.state_dict())
    for x in (torch.randn(12, 6), torch.randn(7, 6), X):  # as many samples as there are units
        torch.testing.assert_close(result.model(x), model(x))
        assert torch.equal(again(x), result.model(x))


class Memory(nn.Module):
    """Attention by sums of products of keys and values, which begin at zeros of so many heads of such a size."""

    def __init__(self, place):
        super().__init__()
        torch.manual_seed(0)
        self.place, self.heads = place, 4
        self.q, self.k, self.v, self.decay = (nn.Linear(6, 12) for _ in range(4))
        self.out = nn.Linear(12, 3)
        if place == "buffer":
            self.register_buffer("first", torch.zeros(1, 4, 3, 3))

    def forward(self, x):
        layers = self.q, self.k, self.v, self.decay
        q, k, v, decay = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in layers)
        state = self.first if self.place == "buffer" else torch.zeros(len(x), self.heads, 3, 3)
        read = []
        for step in range(x.shape[1]):
            state = decay[:, :, step].sigmoid().unsqueeze(-1) * state
            state = state + k[:, :, step].unsqueeze(-1) * v[:, :, step].unsqueeze(-2)
            read.append((q[:, :, step].unsqueeze(-1) * state).sum(-2))
        return self.out(torch.stack(read, 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("place", ["code", "buffer"])
def test_heads_go_as_a_whole_from_a_first_state(place):
    model, x = Memory(place).eval(), torch.randn(2, 4, 6)
    assert CoupledChannels(model, x).count == 4
    with torch.no_grad():
        for layer in (model.q, model.k, model.v, model.decay):
            layer.weight[3:6] = layer.bias[3:6] = 0
    small = shrink(model, x).model
    assert small.out.in_features == 9
    for other in (x, torch.randn(3, 5, 6)):
        torch.testing.assert_close(small(other), model(other))


class Turned(nn.Module):
    """Heads of pairs of numbers, each turned as a complex one by an angle of its place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("turn", torch.polar(torch.ones(5, 2), torch.arange(10.0).view(5, 2)))

    def forward(self, x):
        pairs = torch.view_as_complex(self.first(x).view(*x.shape[:2], -1, 2, 2))
        return self.head(torch.view_as_real(pairs * self.turn[: x.shape[1], None]).flatten(2).cumsum(1))


def test_heads_that_turn_as_complex_numbers_go_as_a_whole():
    model, x = Turned().eval(), torch.randn(2, 5, 6)
    assert CoupledChannels(model, x).count == 4
    with torch.no_grad():
        model.first.weight[4:8] = model.first.bias[4:8] = 0
    small = shrink(model, x).model
    assert len(small.first.weight) == 12
    for other in (x, torch.randn(3, 4, 6)):
        torch.testing.assert_close(small(other), model(other))


def test_one_number_for_two_widths_holds_both():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(24, 3)

        def forward(self, x):
            a, b = torch.zeros(len(x), 12) + self.a(x), torch.zeros(len(x), 12) + self.b(x)
            return self.head(torch.cat([a, b.sigmoid()], -1))

    model = Both().eval()
    with torch.no_grad():
        model.a.weight[:5] = model.a.bias[:5] = 0
    result = shrink(model, X)
    assert_equal(model, result.model)
    assert len(result.model.a.weight) == 12
    assert {kept.reason for kept in result.report.kept} == {
        "the code of `the model` asks for the size 4, 12 and means two lengths"
    }
