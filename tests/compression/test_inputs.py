"""No input is a constant, whatever numbers the example has: models of whole numbers, truth values and complex ones."""

import dataclasses
import random
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from shrinkage import shrink
from shrinkage.compression.calls.comparison import Checks
from shrinkage.compression.calls.inputs import taken_apart, truths, varied

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Neurons(nn.Module):
    """Sixteen hidden neurons, of which two are zero and two put out a constant; `code` says what happens to inputs."""

    def __init__(self, code, inputs=6):
        super().__init__()
        torch.manual_seed(0)
        self.code = code
        self.inner, self.outer = nn.Linear(inputs, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.inner.weight[:4] = 0
            self.inner.bias[:4] = torch.tensor([0.0, 0.0, 0.5, 0.7])
        self.eval()

    def forward(self, *inputs, **named):
        return self.code(self, *inputs, **named)

    def body(self, x):
        return self.outer(torch.relu(self.inner(x)))

    def gated(self, x, gate):
        return self.outer(torch.relu(self.inner(x)) * gate)


def check(model, example, others, *, left=None, kwargs=None, verify=True):
    """The smaller model gives what the dense one does on `others`, and has as many neurons as are `left`."""
    result = shrink(model, example, example_kwargs=kwargs, verify=verify)
    for other in others:
        args, keywords = ((), other) if isinstance(other, dict) else (other, {})
        torch.testing.assert_close(result.model(*args, **keywords), model(*args, **keywords))
    if left is not None:
        assert result.model.inner.out_features == left
    return result


X, Y = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), torch.linspace(-2, 2, 12).reshape(2, 6)


@pytest.mark.parametrize("number", [0, 1, 7])
@pytest.mark.parametrize("dtype", WHOLE, ids=str)
@pytest.mark.parametrize("verify", [True, False])
def test_whole_numbers_that_are_all_the_same_are_no_constant(dtype, number, verify):
    other = torch.arange(12).reshape(2, 6).to(dtype) * 9
    model = Neurons(lambda self, x: self.body(x.float() / 8))
    check(model, torch.full((2, 6), number, dtype=dtype), [(other,)], left=12, verify=verify)


def test_a_picture_of_bytes_that_is_black():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]

    class Pictures(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float() / 255)

    model = Pictures(*layers, nn.Linear(8, 5)).eval()
    result = shrink(model, torch.zeros(2, 3, 12, 12, dtype=torch.uint8))
    assert result.report.after.parameters == result.report.before.parameters
    x = torch.arange(2 * 3 * 144).reshape(2, 3, 12, 12).mul(37).to(torch.uint8)
    torch.testing.assert_close(result.model(x), model(x))


class Steps:
    """What models do with the numbers of an input before a weight sees them."""

    def whole(self, x):
        return x.float()

    def sines(self, t):
        return torch.cat([(t.float() / 9).sin(), (t.float() / 9).cos()], -1)[..., :6]

    def one_hot(self, ids):
        return F.one_hot(ids.long().clamp(0, 5)[..., 0], 6).float()

    def scattered(self, ids):
        return torch.zeros(len(ids), 6).scatter(1, ids.long().clamp(0, 5)[:, :3], 1.0)

    def hundreds(self, t):
        return (t // 4).float()

    def beyond(self, t):
        return (t > 5).float()

    def chosen(self, t):
        return torch.where(t == 3, 1.0, 0.0)

    def shifted(self, t):
        return torch.relu(t.float() - 3)

    def rounded(self, t):
        return (t.float() / 3).round()

    def canvas(self, x):
        canvas = torch.zeros(*x.shape[:-1], 6)
        canvas[..., :3] = x[..., :3]
        canvas[..., 3:].add_(x[..., 3:])
        return canvas


STEPS = [name for name in vars(Steps) if not name.startswith("_")]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_what_a_model_makes_of_zeros_is_no_constant(name, dtype, verify):
    model = Neurons(lambda self, x: self.body(getattr(Steps(), name)(x)))
    other = torch.arange(12).reshape(2, 6).to(dtype)
    check(model, torch.zeros(2, 6, dtype=dtype), [(other,), (other % 5,)], left=12, verify=verify)


@pytest.mark.parametrize(
    ("example", "other"),
    [
        (torch.tensor(0), torch.tensor(5)),
        (torch.tensor(0.0), torch.tensor(-3.0)),
        (torch.tensor(False), torch.tensor(True)),
        (torch.tensor(True), torch.tensor(False)),
        (torch.zeros(1, dtype=torch.long), torch.tensor([4])),
        (torch.zeros(2, 1, dtype=torch.uint8), torch.tensor([[0], [4]], dtype=torch.uint8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_gate_that_is_shut_in_the_example(example, other, verify):
    """Neurons that put out a constant put out none behind a gate, and stay; those that are zero go."""
    check(Neurons(Neurons.gated), (X, example), [(X, other), (Y, other)], left=14, verify=verify)
    chosen = Neurons(lambda self, x, gate: self.outer(torch.where(gate > 0, torch.relu(self.inner(x)), 0.0)))
    check(chosen, (X, example), [(X, other), (Y, other)], left=14, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_numbers_that_are_read_off_a_tensor_are_no_constant(verify):
    for code in (
        lambda self, x, t: self.gated(x, t.item()),
        lambda self, x, t: self.gated(x, torch.full((1,), t.item())),
        lambda self, x, t: self.gated(x, torch.zeros(1).fill_(t)),
    ):
        check(
            Neurons(code),
            (X, torch.tensor(0.0)),
            [(X, torch.tensor(2.0)), (Y, torch.tensor(-1.0))],
            left=14,
            verify=verify,
        )


def test_complex_numbers_that_are_zero():
    model = Neurons(lambda self, x: self.body(torch.view_as_real(x).flatten(1)))
    check(model, torch.zeros(2, 3, dtype=torch.complex64), [(torch.complex(X[:, :3], Y[:, 3:]),)], left=12)
    model = Neurons(lambda self, x: self.body(x.abs()))
    check(model, torch.zeros(2, 6, dtype=torch.complex64), [(torch.complex(X, Y),)], left=12)


def test_a_zero_weight_takes_an_input_away():
    """What is multiplied by an exact zero does not depend on the input, and is folded."""
    model = Neurons(lambda self, x: self.body(x * self.kept))
    model.kept = nn.Parameter(torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))
    with torch.no_grad():
        model.inner.weight[7, ::2] = 0  # so that it reads zeros alone
    check(model, torch.zeros(2, 6), [(X,), (Y,)], left=11)


@dataclasses.dataclass
class Batch:
    ids: torch.Tensor
    scale: float = 1.0


@pytest.mark.parametrize(
    ("code", "wrapped"),
    [
        (lambda batch: batch["a"][0], lambda x: ({"a": [x, None]},)),
        (lambda batch: batch[1][0], lambda x: ((3, [x]),)),
        (lambda batch: batch.ids * batch.scale, lambda x: (Batch(x),)),
        (lambda batch: batch["ids"], lambda x: (UserDict(ids=x),)),
        (lambda ids: ids, lambda x: {"ids": x}),
    ],
    ids=["dict", "tuple", "dataclass", "user-dict", "keyword"],
)
def test_inputs_inside_of_others(code, wrapped):
    model = Neurons(lambda self, *args, **kwargs: self.body(code(*args, **kwargs).float()))
    example, other = (wrapped(x) for x in (torch.zeros(2, 6, dtype=torch.long), torch.arange(12).reshape(2, 6)))
    named = isinstance(example, dict)
    check(model, () if named else example, [other], kwargs=example if named else None)
    checks = Checks.of(model, ((), example) if named else (example, {}), 1e-5)
    inputs = {str(taken_apart(call)[0]) for call, _ in checks.known}
    assert len(inputs) > 3  # those inside change too
    assert not checks.unvaried


class Lengths(Neurons):
    """The first entries of sequences; how many is an input."""

    def __init__(self):
        super().__init__(lambda self, x, lengths: self.outer(self.pooled(x, lengths)))

    def pooled(self, x, lengths):
        inside = torch.arange(x.shape[1]) < lengths[:, None]
        return (torch.relu(self.inner(x)) * inside[..., None]).sum(1)


@pytest.mark.parametrize("length", [0, 5])
def test_lengths_of_sequences(length):
    x = torch.linspace(-1, 1, 60).reshape(2, 5, 6)
    check(Lengths(), (x, torch.full((2,), length)), [(x, torch.tensor([3, 1])), (x, torch.tensor([5, 4]))], left=14)


def test_rows_that_are_looked_up_of_activations():
    def last(self, ids, x):
        return self.outer(torch.relu(self.inner(x))[torch.arange(len(x)), ids.argmax(-1)])

    x, ids = torch.linspace(-1, 1, 60).reshape(2, 5, 6), torch.tensor([[0, 3, 1, 0, 2], [5, 3, 1, 0, 2]])
    check(Neurons(last), (torch.zeros_like(ids), x), [(ids, x), (ids.flip(1), x)], left=12)


@pytest.mark.parametrize("verify", [True, False])
def test_entries_that_are_looked_up_in_a_table(verify):
    model = Neurons(lambda self, x: self.body(self.table.gather(0, x)))
    model.table = nn.Parameter(torch.randn(4, 6))
    check(model, torch.zeros(2, 6, dtype=torch.long), [(torch.arange(12).reshape(2, 6) % 4,)], left=12, verify=verify)


class Attention(nn.Module):
    """Attention under a mask of the positions that may be seen, two of whose values are zero but for a bias."""

    def __init__(self, fused):
        super().__init__()
        torch.manual_seed(0)
        self.fused = fused
        self.queries, self.keys, self.values, self.out = (nn.Linear(6, 6) for _ in range(4))
        with torch.no_grad():
            self.values.weight[:2] = 0
        self.eval()

    def forward(self, x, mask):
        q, k, v = self.queries(x), self.keys(x), self.values(x)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v, mask[:, None]))
        return self.out((q @ k.mT).masked_fill(~mask[:, None], -1e9).softmax(-1) @ v)


@pytest.mark.parametrize(("fused", "known"), [(True, True), (False, True), (False, False)])
def test_masks_that_hide_all_or_nothing(fused, known):
    """A constant value is a constant under every mask, since weights add up to one, and is folded."""
    model, x = Attention(fused), torch.linspace(-1, 1, 60).reshape(2, 5, 6).sin()
    small = shrink(model, (x, torch.full((2, 5), known))).model
    assert small.values.out_features == 4
    mask = torch.tensor([[True, True, False, True, False], [False, True, False, False, False]])
    torch.testing.assert_close(small(x, mask), model(x, mask))


def test_truth_values_leave_something_of_each_row():
    for shape in ((4, 5), (3, 2), (2, 3, 7)):
        for number in range(6):
            drawn = truths(torch.ones(shape, dtype=torch.bool), number)
            assert drawn.any(-1).all()
            assert not drawn.all(-1).any()
        assert torch.equal(truths(torch.ones(shape), 2), ~truths(torch.ones(shape), 3))
    mask = torch.zeros(3, 5).masked_fill(torch.arange(5) > 2, float("-inf"))
    for number in (1, 2, 3):
        (drawn,) = varied([mask], number)
        assert drawn.isfinite().any(-1).all()
        assert drawn.isinf().any(-1).all()


def test_no_larger_index_is_drawn_unless_all_are_the_same():
    ids = torch.tensor([[4, 0, 2]])
    for number in (1, 2, 3):
        for upcast in (True, False):
            assert varied([ids], number, upcast=upcast)[0].max() <= 4
        assert varied([torch.zeros(2, 3, dtype=torch.long)], number)[0].max() == 0
    drawn = [varied([torch.zeros(50, dtype=torch.uint8)], number, upcast=True)[0].max() for number in (1, 2, 3)]
    assert drawn[0] == 1
    assert 1 < drawn[1] < 10
    assert drawn[2] > 100


class Choosy(Neurons):
    """A model that takes some numbers only: `refused` tells of which it raises, `undefined` for which it gives NaN."""

    def __init__(self, refused=None, undefined=None):
        super().__init__(None)
        self.refused, self.undefined = refused, undefined

    def forward(self, x, flags):
        if self.refused is not None and bool(self.refused(flags).any()):
            raise ValueError("not this one")
        x = self.body(x)
        if self.undefined is not None:
            x = torch.where(self.undefined(flags), float("nan"), x)
        return x + 0 * flags.sum()


def drawn_of(model, flags):
    checks = Checks.of(model, ((X, flags), {}), 1e-5)
    return [call[0] for call, _ in checks.known], checks.unvaried


FLAGS = torch.zeros(2, 1, dtype=torch.long)


def test_numbers_that_a_model_refuses_are_dropped():
    calls, unvaried = drawn_of(Choosy(refused=lambda flags: flags > 1), FLAGS)
    assert unvaried == ()
    assert {int(flags.max()) for _, flags in calls} == {0, 1}
    others = [x for x, _ in calls if x.shape == X.shape and not torch.equal(x, X)]
    assert len(others) == 3  # the other input is drawn all the same
    calls, unvaried = drawn_of(Choosy(undefined=lambda flags: flags > 1), FLAGS)
    assert unvaried == ()
    assert {int(flags.max()) for _, flags in calls} == {0, 1}


@pytest.mark.parametrize("kind", ["refused", "undefined"])
def test_inputs_of_which_a_model_takes_no_other_numbers_are_reported(kind):
    model = Choosy(**{kind: lambda flags: flags != 0})
    calls, unvaried = drawn_of(model, FLAGS)
    assert unvaried == ("flags",)
    assert all(not flags.any() for _, flags in calls)
    report = shrink(model, (X, FLAGS)).report
    assert report.unvaried == ("flags",)
    assert "the model takes no others that were tried: `flags`" in str(report)


def test_an_example_that_gives_nan_is_compared_as_it_is():
    calls, unvaried = drawn_of(Choosy(undefined=lambda flags: flags >= 0), FLAGS)
    assert len(calls) > 3
    assert unvaried == ()


class Bags(Neurons):
    """Means of bags of embeddings: the bags begin at offsets, the first of which is 0."""

    def __init__(self):
        super().__init__(lambda self, ids, offsets: self.body(self.table(ids, offsets)))
        self.table = nn.EmbeddingBag(5, 6)


class Packed(Neurons):
    """Sequences that are packed by their lengths."""

    def __init__(self):
        super().__init__(lambda self, x, lengths: self.body(self.padded(x, lengths)))

    def padded(self, x, lengths):
        return pad_packed_sequence(pack_padded_sequence(x, lengths, batch_first=True))[0]


def test_inputs_that_depend_on_each_other():
    ids, offsets = torch.zeros(8, dtype=torch.long), torch.tensor([0, 4])
    others = [(torch.tensor([0, 4, 2, 1, 3, 0, 2, 2]), torch.tensor([0, start])) for start in (1, 6)]
    result = check(Bags(), (ids, offsets), others)
    assert result.report.unvaried == ()
    x = torch.linspace(-1, 1, 180).reshape(6, 5, 6)
    lengths = torch.tensor([[5, 5, 4, 3, 3, 2], [5, 4, 4, 2, 2, 1], [4, 4, 4, 1, 1, 1]])
    result = check(Packed(), (x, lengths[0]), [(x, each) for each in lengths[1:]])
    assert result.report.unvaried == ()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("step", [torch.relu, lambda x: x.cumsum(-1)], ids=["relu", "cumsum"])
def test_entries_of_bags_that_are_all_alike_are_no_constant(step, rows, verify):
    """Whole numbers are drawn up to the largest of the example, so that no run reads the entries that differ."""
    model = Neurons(lambda self, ids: self.body(step(self.table(ids))))
    model.table = nn.EmbeddingBag(5, 6)
    with torch.no_grad():
        model.table.weight[:rows] = 0.5
    ids = torch.arange(8).reshape(2, 4)
    check(model, ids % rows, [(ids % 5,)], left=12, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_what_an_operator_makes_that_fails_on_noise_is_no_constant(verify):
    """The entropy of mixed probabilities: noise in their place has none."""

    def entropies(self, x):
        mixed = F.linear(x, self.shares)
        return self.body(F.binary_cross_entropy(mixed, mixed, reduction="none"))

    model, other = Neurons(entropies), torch.linspace(0.1, 0.9, 12).reshape(2, 6)
    model.shares = nn.Parameter(torch.eye(6) / 2 + torch.ones(6, 6) / 12)
    check(model, torch.full((2, 6), 0.5), [(other,), (other.flip(0),)], left=12, verify=verify)


def test_edges_of_a_graph():
    def messages(self, x, edges):
        hidden = torch.relu(self.inner(x))
        return self.outer(hidden + torch.zeros_like(hidden).index_add(0, edges[1], hidden[edges[0]]))

    x, edges = torch.linspace(-1, 1, 24).reshape(4, 6), torch.tensor([[0, 1, 3, 2], [1, 2, 2, 0]])
    for example in (edges, torch.zeros_like(edges), torch.full_like(edges, 3)):
        assert check(Neurons(messages), (x, example), [(x, edges), (x, edges.flip(0))]).report.unvaried == ()


def at_random(seed):
    """A small model of a first input, and of a second one that is a gate, and inputs for it of any kind."""
    choose = random.Random(seed)
    dtype = choose.choice([torch.uint8, torch.int8, torch.int64, torch.bool, torch.complex64, torch.float32])
    gate_type = choose.choice([torch.int64, torch.bool, torch.float32])
    step = getattr(Steps(), choose.choice(STEPS))
    gate_shape = choose.choice([(), (1,), (2, 1)])
    activation = choose.choice([torch.relu, torch.sigmoid, torch.tanh, F.hardtanh, F.gelu])
    place = choose.choice(["before", "between", "none"])
    rows = choose.choice([1, 2])

    def code(self, x, gate):
        if x.is_complex():
            x = torch.view_as_real(x).flatten(-2)[..., :6]
        features = step(x if x.dtype != torch.bool else x.long() * 6)
        hidden = activation(self.inner(features * gate if place == "before" else features))
        hidden = activation(self.middle(hidden * gate if place == "between" else hidden))
        return self.outer(hidden)

    model = Neurons(code)
    torch.manual_seed(seed)
    model.middle = nn.Linear(16, 16)
    with torch.no_grad():
        model.middle.weight[torch.rand(16) < 0.3] = 0
        model.middle.bias[torch.rand(16) < 0.3] = 0
        model.inner.weight[torch.rand(16) < 0.3] = 0
        model.inner.bias[torch.rand(16) < 0.3] = 0

    def numbers(shape, dtype, kind):
        if kind == "random":
            return (torch.rand(shape) * 12).to(dtype) if dtype != torch.bool else torch.rand(shape) < 0.5
        return torch.full(shape, {"zero": 0, "one": 1, "equal": 7}[kind]).to(dtype)

    kinds = [choose.choice(["zero", "one", "equal"]) for _ in range(2)]
    if gate_shape == (2, 1):
        gate_shape = (rows, 1)
    example = numbers((rows, 6), dtype, kinds[0]), numbers(gate_shape, gate_type, kinds[1])
    others = [(numbers((rows, 6), dtype, "random"), numbers(gate_shape, gate_type, "random")) for _ in range(4)]
    return model, example, others


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_outputs_agree_on_inputs_that_the_example_does_not_resemble(seed, verify):
    check(*at_random(seed), verify=verify)


SEEN: list[float] = []


class Clipped(nn.Module):
    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(float(x[0]))
        return x.clamp(max=self.limit)


@pytest.mark.parametrize(("limit", "seen", "error"), [(9.0, [1, 2, 3], 0), (2.0, [1, 2, 3], 1 / 3), (1.0, [1, 2], 0.5)])
def test_a_model_is_compared_on_all_inputs_until_it_is_wrong_on_one(limit, seen, error):
    calls = [((torch.tensor([number]),), {}) for number in (1.0, 2.0, 3.0)]
    checks = Checks(1e-5, known=tuple((call, list(call[0])) for call in calls))
    SEEN.clear()
    assert checks.error(Clipped(limit)) == pytest.approx(error)
    assert seen == SEEN


@pytest.mark.parametrize(
    ("layer", "x", "count"),
    [
        (nn.Linear(4, 2), torch.randn(3, 4), 4),
        (nn.Linear(4, 2), torch.ones(3, 4), 5),
        (nn.Embedding(9, 2), torch.randint(9, (3, 4)), 7),
    ],
)
def test_numbers_are_drawn_anew_twice_and_put_into_another_order_where_that_is_something_else(layer, x, count):
    """Besides: the example, one more sample, and two shorter inputs where the layer takes them."""
    assert len(Checks.of(layer, ((x,), {}), 1e-5).known) == count
