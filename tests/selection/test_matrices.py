"""Weights that are not called `weight`, and layers that select them: by class, by object, with the name of a part."""

import copy
import functools
from fnmatch import fnmatch

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from shrinkage import (
    L1,
    Columns,
    GroupLasso,
    ParameterError,
    Regularizer,
    Rows,
    Rule,
    SelectionError,
    regularize,
    threshold_,
)
from shrinkage.selection.plan import resolve

RECURRENT = [
    nn.RNN(3, 4, nonlinearity="relu"),
    nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    nn.GRU(3, 4, bias=False),
    nn.RNNCell(3, 4),
    nn.LSTMCell(3, 4),
    nn.GRUCell(3, 4, bias=False),
]
ATTENTION = [
    nn.MultiheadAttention(4, 2, add_bias_kv=True),
    nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False, add_bias_kv=True),
]


def names(model, rules):
    return [entry.name for entry in resolve(model, rules)]


def matrices(layer):
    """What is multiplied with: everything with two dimensions but the biases, whatever their shapes."""
    named = layer.named_parameters()
    return [name for name, p in named if p.dim() == 2 and "bias" not in name]


class Around(nn.Module):
    """A layer among a table of positions, a token, a graph's own matrix and layers that are left alone."""

    def __init__(self, layer):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 3), nn.LayerNorm([2, 2])
        self.position, self.w = nn.Parameter(torch.randn(7, 3)), nn.Parameter(torch.randn(3, 3))
        self.layer, self.head = layer, nn.Linear(4, 2)


def around(layer):
    return Around(copy.deepcopy(layer))


@pytest.mark.parametrize("layer", [*RECURRENT, *ATTENTION], ids=str)
def test_a_bare_penalty_takes_the_matrices_of_a_layer(layer):
    expected = [*(f"layer.{name}" for name in matrices(layer)), "head.weight"]
    assert names(around(layer), L1(0.1)) == expected
    assert not any("bias" in name for name in expected)


@pytest.mark.parametrize("layer", [*RECURRENT, *ATTENTION], ids=str)
def test_a_class_a_base_class_and_the_layer_itself_mean_the_same(layer):
    model = around(layer)
    expected = [f"layer.{name}" for name in matrices(layer)]
    assert names(model, {type(layer): L1(0.1)}) == expected
    assert names(model, {model.layer: L1(0.1)}) == expected
    for base in (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention):
        if isinstance(layer, base):
            assert names(model, {base: L1(0.1)}) == expected
    own = regularize(copy.deepcopy(layer), L1(0.1))
    assert [entry.name for entry in Regularizer(own).plan] == matrices(layer)
    assert [entry.name for entry in Regularizer(regularize(own, None), L1(0.1)).plan] == matrices(layer)


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((nn.LSTM, "weight_hh*"), ["weight_hh_l0", "weight_hh_l0_reverse"]),
        ((nn.LSTM, "weight_ih_l0"), ["weight_ih_l0"]),
        ((nn.RNNBase, "bias*_l0"), ["bias_ih_l0", "bias_hh_l0"]),
    ],
)
def test_globs_in_the_second_of_a_pair(pair, expected):
    model = around(nn.LSTM(3, 4, bidirectional=True))
    assert names(model, {pair: L1(0.1)}) == [f"layer.{name}" for name in expected]
    assert names(model, {(model.layer, pair[1]): L1(0.1)}) == [f"layer.{name}" for name in expected]


def test_a_pair_with_the_output_of_attention():
    model = nn.TransformerEncoderLayer(4, 2, 8)
    assert names(model, {(nn.MultiheadAttention, "out_proj.weight"): L1(0.1)}) == ["self_attn.out_proj.weight"]
    assert names(model, {(nn.MultiheadAttention, "*weight"): L1(0.1)}) == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
    ]
    assert names(model, {nn.MultiheadAttention: None, nn.Linear: L1(0.1)}) == ["linear1.weight", "linear2.weight"]


@pytest.mark.parametrize("first", [nn.Linear, nn.MultiheadAttention])
def test_the_output_of_attention_is_a_linear_layer_too_and_the_first_match_wins(first):
    rules = {nn.Linear: L1(0.1), nn.MultiheadAttention: L1(0.2)}
    ordered = {first: rules.pop(first), **rules}
    penalized = {entry.name: entry.penalty for entry in resolve(nn.TransformerEncoderLayer(4, 2, 8), ordered)}
    assert penalized["self_attn.out_proj.weight"] == ordered[first]
    assert penalized["self_attn.in_proj_weight"] == L1(0.2)
    assert penalized["linear1.weight"] == L1(0.1)


def test_all_matrices_of_a_transformer_are_taken():
    model = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)
    assert sorted(names(model, L1(0.1))) == sorted(matrices(model))


@pytest.mark.parametrize("layer", RECURRENT, ids=str)
@pytest.mark.parametrize("groups", [Rows(), Columns()], ids=str)
def test_training_makes_rows_or_columns_of_the_matrices_zero(layer, groups):
    model = around(layer).layer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, GroupLasso(1.0, groups)).attach(optimizer)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        for name, p in model.named_parameters():
            p.grad = torch.ones_like(p)
            w = expected[name] - 0.1
            if name in matrices(layer):
                norms = w.norm(dim=1 if groups == Rows() else 0, keepdim=True)
                size = w.shape[1] if groups == Rows() else w.shape[0]
                w = w * (1 - 0.1 * size**0.5 / norms).clamp_min(0)
            expected[name] = w
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-4, atol=1e-6)


def test_zeros_of_a_declared_lstm():
    layer = regularize(nn.LSTM(3, 4), L1(1.0))
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    layer(torch.randn(5, 3))[0].sum().backward()
    layer.bias_hh_l0.grad = layer.bias_ih_l0.grad = None
    layer.weight_ih_l0.grad.zero_()
    layer.weight_hh_l0.grad.zero_()
    optimizer.step()
    assert not layer.weight_ih_l0.any()
    assert not layer.weight_hh_l0.any()
    assert layer.bias_ih_l0.any()
    regularize(layer, None)
    with pytest.raises(SelectionError, match=r"no penalty for 'weight_ih\*' and 'weight_hh\*' to take back"):
        regularize(layer, None)


@pytest.mark.parametrize("layer", [*RECURRENT, *ATTENTION], ids=str)
def test_a_threshold_takes_the_same(layer):
    model = around(layer)
    state = copy.deepcopy(model.state_dict())
    assert threshold_(model, 100.0) == sum(model.get_parameter(name).numel() for name in names(model, L1(0.1)))
    del state["embed.weight"], state["norm.weight"]
    threshold_(state, 100.0)
    chosen = [name for name, p in state.items() if not p.any() and p.dim() > 1 and "norm" not in name]
    assert chosen == names(model, L1(0.1))


def test_computed_matrices_are_refused_with_what_they_are_computed_from():
    class Half(nn.Module):
        def forward(self, w):
            return w / 2

    for wrap in (
        lambda m: parametrize.register_parametrization(m, "weight_hh_l0", Half()),
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    ):
        model = nn.Sequential(nn.Linear(2, 3), wrap(nn.LSTM(3, 4)))
        for rules in (L1(0.1), {nn.LSTM: L1(0.1)}, {model[1]: L1(0.1)}):
            with pytest.raises(ParameterError, match=r"'1\.weight_hh_l0' is not a parameter: .* computes it from '1\."):
                resolve(model, rules)
        assert names(model, {(nn.LSTM, "weight_hh_l0"): None, nn.LSTM: L1(0.1)}) == ["1.weight_ih_l0"]


def test_frozen_tied_and_lazy_layers():
    model = around(nn.LSTM(4, 4))
    model.layer.weight_hh_l0 = model.layer.weight_ih_l0
    (first, _) = resolve(model, L1(0.1))
    assert (first.name, first.aliases) == ("layer.weight_ih_l0", ("layer.weight_hh_l0",))
    model.layer.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"the rule LSTM matches frozen parameters only \('layer.weight_ih_l0'"):
        Regularizer(model, {nn.LSTM: L1(0.1)})
    tied = around(nn.LSTM(3, 4))
    tied.embed.weight = tied.layer.weight_ih_l0
    assert names(tied, L1(0.1)) == ["layer.weight_hh_l0", "head.weight"]
    lazy = nn.Sequential(nn.LazyLinear(3), nn.LSTM(3, 4))
    assert names(lazy, L1(0.1)) == ["0.weight", "1.weight_ih_l0", "1.weight_hh_l0"]


def last_line(plan):
    return str(plan).splitlines()[-1]


def test_a_plan_ends_with_the_matrices_that_no_rule_names():
    model = around(nn.LSTM(3, 4))
    model.norm = nn.LayerNorm(3)
    assert last_line(resolve(model, L1(0.1))) == (
        "no rule names these matrices (45 weights): 'position', 'w', 'embed.weight'"
    )
    model.w.requires_grad_(False)
    model.head.weight = model.embed.weight = nn.Parameter(torch.randn(2, 4))
    plan = resolve(model, {"position": None, "head.weight": L1(0.1)})
    assert last_line(plan) == "no rule names these matrices (112 weights): 'layer.weight_ih_l0', 'layer.weight_hh_l0'"
    assert "no rule" not in str(resolve(model, {"*": L1(0.1)}))
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(7)))
    text = repr(Regularizer(many, {"0.weight": L1(0.1)}))
    assert text.endswith("\nno rule names these matrices (6 weights): '1.weight', '2.weight', '3.weight' and 3 others")
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert last_line(resolve(tied, {"2.weight": L1(0.1)})) == "no rule names these matrices (4 weights): '0.weight'"
    lazy = nn.Sequential(nn.Linear(1, 1), nn.LazyLinear(3))
    assert "no rule" not in str(resolve(lazy, {"0.weight": L1(0.1)}))


class Own(nn.Linear):
    def forward(self, *args):
        return args[0] if isinstance(args[0], str) else super().forward(args[0])


@pytest.mark.parametrize(
    "make", [nn.Linear, Own, lambda i, o: torch.compile(nn.Linear(i, o))], ids=["plain", "own", "compiled"]
)
def test_a_layer_means_its_weights(make):
    model = nn.Sequential(make(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert names(model, {model[0]: L1(0.1)}) == ["0.weight"]
    assert names(model, Rule(L1(0.1), model[0])) == ["0.weight"]
    assert names(model, {model[1]: L1(0.1)}) == ["1.weight"]
    assert names(model, {(model[0], "bias"): L1(0.1)}) == ["0.bias"]
    assert names(model, {model[0]: None, nn.Linear: L1(0.1)}) == ["2.weight"]
    assert str(Regularizer(model, {model[0]: L1(0.1)})).count("0.weight") == 1


def test_a_layer_that_occurs_twice_is_penalized_once():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ModuleDict({"again": shared}), nn.Linear(3, 3))
    (entry,) = resolve(model, {shared: L1(0.1)})
    assert (entry.name, entry.aliases) == ("0.weight", ("1.again.weight",))


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            lambda model: nn.Linear(4, 4),
            r"rule Linear\(\.\.\.\) matches no parameter of the model: this layer is no part of it",
        ),
        (
            lambda model: nn.ReLU(),
            r"rule ReLU\(\.\.\.\) matches no parameter of the model: this layer is no part of it",
        ),
        (
            lambda model: model.body,
            r"no 'weight' of its own is there, but 'body\.0\.weight', 'body\.0\.bias', which a glob",
        ),
        (lambda model: type(model), r"no 'weight' of its own is there, but 'w', which a glob or a pair can name"),
    ],
)
def test_a_layer_without_a_weight_says_what_it_has(select, message):
    model = nn.Module()
    model = type("Graph", (nn.Module,), {})()
    model.w, model.body = nn.Parameter(torch.ones(2, 2)), nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(SelectionError, match=message):
        resolve(model, {select(model): L1(0.1)})


class Callable:
    def __call__(self, name, module, parameter):
        raise AssertionError("it was called")


@pytest.mark.parametrize(
    "wrap", [lambda c: c, functools.partial, functools.lru_cache], ids=["plain", "partial", "cache"]
)
def test_what_is_no_plain_function_is_never_called(wrap):
    with pytest.raises(SelectionError, match=r"a selector is a glob .* which is no plain function: write lambda"):
        resolve(nn.Linear(2, 2), {wrap(Callable()): L1(0.1)})
    with pytest.raises(SelectionError, match="is no plain function"):
        Rule(L1(0.1), functools.partial(nn.Linear(2, 2)))


class Chooses:
    def method(self, name, module, parameter):
        return fnmatch(name, "*weight")

    @staticmethod
    def static(name, module, parameter):
        return name == "weight"

    @classmethod
    def by_class(cls, name, module, parameter):
        return name == "weight"


def chosen(wanted, name, module, parameter):
    return name == wanted


@pytest.mark.parametrize(
    "function",
    [
        Chooses().method,
        Chooses.static,
        Chooses.by_class,
        functools.partial(chosen, "weight"),
        lambda n, m, p: n == "weight",
    ],
)
def test_functions_of_every_kind(function):
    assert names(nn.Linear(2, 2), {function: L1(0.1)}) == ["weight"]


def test_the_message_about_a_tensor_does_not_show_its_numbers():
    with pytest.raises(TypeError, match=r"got a tensor of shape \(2, 2\): write its name$"):
        resolve(nn.Linear(2, 2), {nn.Parameter(torch.ones(2, 2)): L1(0.1)})
