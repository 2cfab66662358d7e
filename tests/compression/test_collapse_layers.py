"""Layers that collapse inside: recurrent ones by layers and directions, cells, and those that meet inputs otherwise."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shrinkage import L1, Regularizer, report, shrink

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """A recurrent layer between two others; `part` of what it gives is read on."""

    def __init__(self, kind, part, **options):
        super().__init__()
        self.rnn, self.part = kind(4, 6, batch_first=True, **options), part
        width = options.get("proj_size", 6) * (2 if options.get("bidirectional") else 1)
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(width, 3)

    def forward(self, x):
        outputs, state = self.rnn(self.stem(x))
        hidden = state[0] if isinstance(state, tuple) else state
        return self.head(outputs if self.part == "all" else hidden[self.part])


def zeroed(model, *ends):
    """The model with those weights at zero whose names end so."""
    for name, parameter in model.named_parameters():
        if name.endswith(ends):
            nn.init.zeros_(parameter)
    return model


TWO, BOTH = {"num_layers": 2}, {"bidirectional": True}
DEAD_RECURRENT = [
    (nn.LSTM, {}, "all", ["weight_ih_l0"]),
    (nn.GRU, {}, "all", ["weight_ih_l0", "weight_hh_l0"]),
    (nn.RNN, {}, -1, ["weight_ih_l0"]),
    (nn.LSTM, TWO, "all", ["weight_ih_l0"]),
    (nn.GRU, TWO, -1, ["weight_ih_l1"]),
    (nn.RNN, TWO | {"bias": False}, "all", ["weight_ih_l1"]),
    (nn.LSTM, BOTH, "all", ["weight_ih_l0", "weight_ih_l0_reverse"]),
    (nn.LSTM, {"proj_size": 3}, "all", ["weight_hr_l0"]),
]
LIVE_RECURRENT = [
    (nn.LSTM, {}, "all", ["weight_hh_l0"]),
    (nn.GRU, TWO, 0, ["weight_ih_l1"]),
    (nn.LSTM, BOTH, "all", ["weight_ih_l0"]),
    (nn.GRU, BOTH | TWO, "all", ["weight_ih_l0", "weight_ih_l1_reverse"]),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(("kind", "options", "part", "zeros"), DEAD_RECURRENT)
def test_a_dead_recurrent_layer_is_no_success(kind, options, part, zeros):
    torch.manual_seed(0)
    model = zeroed(Tagger(kind, part, **options), *zeros).eval()
    x = torch.randn(2, 5, 4)
    with pytest.warns(UserWarning, match=f"depends on the inputs.*`rnn.{zeros[0]}`.*smaller one"):
        small = shrink(model, x)
    assert "rnn.weight_hh_l0" not in small.report.collapsed[0]
    assert torch.equal(small.model(x), small.model(x + 1))
    named = [f"rnn.{name}" for name in zeros if "hh" not in name]
    assert list(report(model).dead) == named
    assert str(report(model)).startswith(f"`{named[0]}`")


@pytest.mark.parametrize(("kind", "options", "part", "zeros"), LIVE_RECURRENT)
def test_a_recurrent_layer_that_still_hears_is_not_called_dead(kind, options, part, zeros):
    torch.manual_seed(0)
    model = zeroed(Tagger(kind, part, **options), *zeros).eval()
    x = torch.randn(2, 5, 4)
    assert not torch.equal(model(x), model(x + 1))
    assert shrink(model, x).report.collapsed == ()


def test_the_report_takes_no_direction_and_no_memory_for_a_dead_layer():
    model = nn.LSTM(4, 6, bidirectional=True)
    assert report(zeroed(model, "weight_ih_l0", "weight_hh_l0")).dead == ()


def test_directions_that_never_meet_cut_a_recurrent_layer():
    torch.manual_seed(0)
    model = zeroed(Tagger(nn.LSTM, "all", **TWO, **BOTH), "weight_ih_l0_reverse").eval()
    with torch.no_grad():
        model.rnn.weight_ih_l1[:, :6], model.rnn.weight_ih_l1_reverse[:, :6] = 0, 0  # none reads the live direction
    with pytest.warns(UserWarning, match="depends on the inputs.*`rnn.weight_ih_l0_reverse`"):
        shrink(model, torch.randn(2, 5, 4))


class Cells(nn.Module):
    """A cell that is called for each position."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(6, 3)

    def forward(self, x):
        state = None
        for entering in x.unbind(1):
            state = self.cell(entering, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_dead_cell_is_no_success(kind):
    x = torch.randn(2, 3, 4)
    with pytest.warns(UserWarning, match="depends on the inputs.*`cell.weight_ih`"):
        shrink(zeroed(Cells(kind(4, 6)), "weight_ih").eval(), x)
    live = zeroed(Cells(kind(4, 6)), "weight_hh").eval()
    assert shrink(live, x).report.collapsed == report(live).dead == ()


class Meeting(nn.Module):
    """Two inputs that are multiplied by one weight."""

    def __init__(self):
        super().__init__()
        self.both, self.head = nn.Bilinear(8, 8, 6), nn.Linear(6, 3)

    def forward(self, x, y):
        return self.head(self.both(x, y).relu())


class Bag(nn.Module):
    """Means of vectors from a table."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(10, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.table(x).relu())


@pytest.mark.parametrize(
    ("model", "inputs", "name"),
    [
        (Meeting(), (X, X), "both.weight"),
        (Bag(), torch.arange(6).view(2, 3), "table.weight"),
        (nn.Sequential(nn.ConvTranspose1d(5, 4, 3), nn.ReLU(), nn.ConvTranspose1d(4, 2, 3)), X[None], "2.weight"),
    ],
)
def test_dead_layers_of_other_kinds_are_no_success(model, inputs, name):
    assert shrink(model.eval(), inputs).report.collapsed == ()
    with pytest.warns(UserWarning, match=f"depends on the inputs.*`{name}`"):
        shrink(zeroed(model, name), inputs)
    assert report(model).dead == (name,)


def test_residuals_know_that_a_frozen_direction_keeps_a_recurrent_layer_alive():
    model = zeroed(nn.LSTM(8, 3, bidirectional=True), "weight_ih_l0")
    regularizer = Regularizer(model, {"weight_ih_l0": L1(1e3)}).attach(torch.optim.SGD(model.parameters(), 0.1))

    def loss():
        return model(X)[0].square().mean()

    model.weight_ih_l0_reverse.requires_grad_(False)
    assert regularizer.residuals(loss).dead == ()
    nn.init.zeros_(model.weight_ih_l0_reverse)
    assert regularizer.residuals(loss).dead == ("weight_ih_l0",)


def test_attention_without_scores_is_not_called_dead():
    model = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
    assert report(zeroed(model, "q_proj_weight", "k_proj_weight")).dead == ()
    assert report(zeroed(model, "v_proj_weight")).dead == ("v_proj_weight",)


def by_hand(query, key, value, axis=-1):
    scores = query @ key.transpose(-2, -1) / 2
    return nn.functional.dropout(scores.softmax(axis), 0.1, training=False) @ value


def in_one_batch(query, key, value):
    batch, heads, count, _ = query.shape
    scores = (query @ key.transpose(-2, -1)).masked_fill(torch.ones(count, count).triu(1).bool(), -1e9)
    weights = torch.softmax(scores, 3).reshape(batch * heads, count, count)
    return torch.bmm(weights, value.reshape(batch * heads, count, -1)).view(value.shape)


ATTENTIONS = [nn.functional.scaled_dot_product_attention, by_hand, in_one_batch]


class Attention(nn.Module):
    """Attention of two heads, with queries, keys and values by one layer; or with places added to the values."""

    def __init__(self, attend, *, places=False):
        super().__init__()
        self.attend = attend
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.places = nn.Parameter(torch.randn(1, 2, 6, 4)) if places else None

    def forward(self, x):
        parts = (part.unflatten(-1, (2, -1)).transpose(-3, -2) for part in self.qkv(x).chunk(3, -1))
        query, key, value = parts
        value = value if self.places is None else value + self.places
        mixed = self.attend(query, key, value)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


@pytest.mark.parametrize("attend", ATTENTIONS)
def test_attention_whose_values_are_biases_alone_is_dead(attend):
    torch.manual_seed(0)
    model, x = Attention(attend), torch.randn(3, 6, 8)
    with torch.no_grad():
        model.qkv.weight[16:20] = 0
    assert shrink(model, x).report.collapsed == ()
    with torch.no_grad():
        model.qkv.weight[16:] = 0
    with pytest.warns(UserWarning, match=r"depends on the inputs.*`qkv.weight`"):
        small = shrink(model, x).model
    torch.testing.assert_close(small(2 * x), model(2 * x))


@pytest.mark.parametrize("attend", ATTENTIONS)
def test_attention_that_chooses_among_constants_is_alive(attend):
    """Values that are biases and places do not depend on the inputs, but the weights of their mean do."""
    torch.manual_seed(0)
    model, x = Attention(attend, places=True), torch.randn(3, 6, 8)
    with torch.no_grad():
        model.qkv.weight[16:] = 0
    result = shrink(model, x, verify=False)
    assert result.report.collapsed == ()
    torch.testing.assert_close(result.model(2 * x), model(2 * x))


@pytest.mark.parametrize("attend", [partial(by_hand, axis=-2), lambda query, key, value: query @ key.mT @ value])
def test_weights_that_do_not_sum_to_one_are_no_mean(attend):
    torch.manual_seed(0)
    model, x = Attention(attend), torch.randn(3, 6, 8)
    with torch.no_grad():
        model.qkv.weight[16:] = 0
    result = shrink(model, x, verify=False)
    assert result.report.collapsed == ()
    torch.testing.assert_close(result.model(2 * x), model(2 * x))


OFFSETS = torch.tensor([0, 3, 7, 9])
LOOKUPS = {
    "embedding": lambda m, ids: F.embedding(ids, m.table).mean(1),
    "bags-sum": lambda m, ids: F.embedding_bag(ids, m.table, mode="sum"),
    "bags-mean": lambda m, ids: F.embedding_bag(ids, m.table, mode="mean"),
    "bags-max": lambda m, ids: F.embedding_bag(ids, m.table, mode="max"),
    "bags-by-offsets": lambda m, ids: F.embedding_bag(ids.flatten(), m.table, OFFSETS, mode="sum"),
    "bags-weighted": lambda m, ids: F.embedding_bag(ids, m.table, mode="sum", per_sample_weights=ids.float()),
    "by-index": lambda m, ids: m.table[ids].sum(1),
    "selected": lambda m, ids: m.table.index_select(0, ids[:, 0]),
}


class LookedUp(nn.Module):
    """A table of which some columns are zero, and a layer that reads others or these."""

    def __init__(self, lookup):
        super().__init__()
        torch.manual_seed(0)
        self.lookup, self.table = lookup, nn.Parameter(torch.randn(9, 8))
        self.inner, self.outer = nn.Linear(8, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.table[:, :5] = 0

    def forward(self, ids):
        return self.outer(torch.relu(self.inner(self.lookup(self, ids))))


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_table_of_which_only_zero_columns_are_read_is_dead(name):
    model, ids = LookedUp(LOOKUPS[name]), torch.arange(12).reshape(4, 3) % 9
    with torch.no_grad():
        model.inner.weight[:, 5:] = 0
    with pytest.warns(UserWarning, match="what the model puts out no longer depends on the inputs.*`table`"):
        small = shrink(model, ids)
    assert small.model.table.shape == (9, 1)
    assert torch.equal(small.model(ids), small.model((ids + 1) % 9))


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_table_of_which_some_other_column_is_read_is_not_called_dead(name):
    model, ids = LookedUp(LOOKUPS[name]), torch.arange(12).reshape(4, 3) % 9
    with torch.no_grad():
        model.inner.weight[:, 6:] = 0
    small = shrink(model, ids)
    assert not small.report.collapsed
    assert small.model.table.shape == (9, 1)
    torch.testing.assert_close(small.model((ids + 5) % 9), model((ids + 5) % 9))


@pytest.mark.parametrize("name", LOOKUPS)
def test_zero_columns_of_a_table_go_and_those_that_are_not_stay(name):
    """Those of embeddings, and of all bags, are known to be zero whatever the entries are."""
    model, ids = LookedUp(LOOKUPS[name]), torch.arange(12).reshape(4, 3) % 9
    for verify in (True, False):
        result = shrink(model, ids, verify=verify)
        assert result.model.table.shape == (9, 3)
        assert not result.report.kept
        torch.testing.assert_close(result.model((ids + 5) % 9), model((ids + 5) % 9))
