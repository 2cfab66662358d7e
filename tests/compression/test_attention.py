"""Attention of torch without some heads is the dense one in which these are zero, however it is called."""

import copy
import io
import itertools
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shrinkage import (
    CoupledChannels,
    GroupError,
    GroupLasso,
    PlanError,
    Regularizer,
    ShrinkPlan,
    apply_plan,
    shrink,
    shrink_optimizer_,
)
from shrinkage.compression.plans.attention import PrunedMultiheadAttention
from zoo.harness import difference

HEADS, SIZE, WIDTH = 4, 5, 20
KEYS, VALUES = 24, 12  # widths of other inputs
SAMPLES, QUERIES, POSITIONS = 3, 5, 6
KEPT = (0, 2, 3)
FORMS = list(itertools.product((True, False), repeat=4))  # bias, bias_k and bias_v, zero attention, kdim and vdim
CAUSAL = nn.Transformer.generate_square_subsequent_mask


def drawn(module: nn.Module, spread: float = 0.3) -> nn.Module:
    """Return `module` in evaluation mode, with all parameters drawn anew, biases too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=spread)
    return module.eval()


def attention(bias: bool, added: bool, zero: bool, other: bool, **options: Any) -> nn.MultiheadAttention:
    widths = {"kdim": KEYS, "vdim": VALUES} if other else {}
    made = nn.MultiheadAttention(
        WIDTH, HEADS, bias=bias, add_bias_kv=added, add_zero_attn=zero, **widths, **options
    )  # fmt: skip
    drawn(made)
    return made


def blocks(layer: nn.MultiheadAttention, heads: Sequence[int]) -> dict[str, dict[int, tuple[int, ...]]]:
    """Return which indices of the tensors of `layer` belong to `heads`, by dimension."""
    rows = tuple(SIZE * head + place for head in heads for place in range(SIZE))
    three = tuple(WIDTH * part + row for part in range(3) for row in rows)
    places = {"in_proj_weight": {0: three}, "in_proj_bias": {0: three}, "bias_k": {2: rows}, "bias_v": {2: rows}}
    places |= {f"{name}_proj_weight": {0: rows} for name in "qkv"} | {"out_proj.weight": {1: rows}}
    return {name: dims for name, dims in places.items() if name in dict(layer.named_parameters())}


@torch.no_grad()
def zero_heads_(layer: nn.MultiheadAttention, heads: Sequence[int]) -> None:
    for name, dims in blocks(layer, heads).items():
        for dim, places in dims.items():
            if name != "out_proj.weight":
                layer.get_parameter(name).index_fill_(dim, torch.tensor(places), 0.0)


def pruned(layer: nn.MultiheadAttention, kept: Sequence[int] = KEPT) -> nn.Module:
    return apply_plan(layer, ShrinkPlan.of(layer, blocks(layer, kept)))


def masks(keys: int, samples: int | None) -> Iterator[Tensor | None]:
    """Yield masks of attention: none, of positions, and of positions in each sample and head."""
    hidden = torch.rand(QUERIES, keys) < 0.3
    hidden[:, 0] = False
    each = torch.randn((samples or 1) * HEADS, QUERIES, keys)
    yield from (None, hidden, torch.randn(QUERIES, keys), each, (each > 0.5) & (torch.arange(keys) > 0))


def calls(layer: nn.MultiheadAttention, *, batched: bool = True) -> Iterator[tuple[tuple[Tensor, ...], dict[str, Any]]]:
    """Yield calls of `layer`: with itself and with others, every mask, with and without weights of attention."""
    widths = (WIDTH, layer.kdim, layer.vdim)
    q, k, v = (torch.randn(SAMPLES, n, w) for n, w in zip((QUERIES, POSITIONS, POSITIONS), widths, strict=True))
    padded = torch.arange(POSITIONS) >= torch.tensor([[POSITIONS], [3], [4]])
    inputs = [(q, k, v), (q, k, k), (q, q, q)] if layer.in_proj_weight is not None else [(q, k, v)]
    for given in inputs:
        length = given[1].shape[1]
        paddings = (None, padded[:, :length], torch.randn(SAMPLES, length))
        for padding, weights in itertools.product(paddings, (True, False)):
            for mask in masks(length, SAMPLES if batched else None):
                each = padding if batched or padding is None else padding[1]
                keywords = {"attn_mask": mask, "key_padding_mask": each, "need_weights": weights}
                laid = (
                    [x if layer.batch_first else x.transpose(0, 1) for x in given] if batched else [x[1] for x in given]
                )
                same = {id(x): y for x, y in zip(given, laid, strict=True)}
                yield tuple(same[id(x)] for x in given), keywords


def assert_same_heads(dense: nn.Module, small: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
    for average in (False, True) if keywords["need_weights"] else (True,):
        given = {**keywords, "average_attn_weights": average}
        (expected, all_weights), (output, weights) = dense(*args, **given), small(*args, **given)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        if not keywords["need_weights"]:
            assert weights is all_weights is None
        elif not average:
            torch.testing.assert_close(weights, all_weights[..., list(KEPT), :, :])


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@pytest.mark.parametrize(
    ("form", "batch_first"),
    [
        pytest.param(form, first, marks=[pytest.mark.slow] if number % 5 else [])
        for number, (form, first) in enumerate(itertools.product(FORMS, (True, False)))
    ],
)
def test_however_it_is_called_it_gives_what_the_dense_one_gives(form, batch_first):
    torch.manual_seed(0)
    dense = attention(*form, batch_first=batch_first)
    zero_heads_(dense, [1])
    small = pruned(dense)
    assert list(small.state_dict()) == list(dense.state_dict())
    assert isinstance(small, nn.MultiheadAttention)
    assert (small.num_heads, small.head_dim, small.embed_dim) == (len(KEPT), SIZE, WIDTH)
    for gradients, batched in ((True, False), (False, True)):
        with torch.set_grad_enabled(gradients):
            for args, keywords in calls(dense, batched=batched):
                assert_same_heads(dense, small, args, keywords)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_a_hint_that_a_mask_is_causal_is_followed_where_the_dense_one_follows_it(need_weights, padded):
    torch.manual_seed(0)
    dense = attention(True, False, False, False, batch_first=True)
    zero_heads_(dense, [1])
    x = torch.randn(2, QUERIES, WIDTH)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    for mask in (CAUSAL(QUERIES), torch.randn(QUERIES, QUERIES)):  # the second hint is untrue
        keywords = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights, "key_padding_mask": padding}
        if padded:
            keywords["key_padding_mask"] = torch.zeros(2, QUERIES).masked_fill(padding, float("-inf"))
        assert_same_heads(dense, pruned(dense), (x, x, x), keywords)
    with pytest.raises(RuntimeError, match="expected the causal mask as well"):
        pruned(dense)(x, x, x, is_causal=True)


def test_a_mask_of_another_number_of_heads_is_refused():
    layer = pruned(attention(True, False, False, False, batch_first=True))
    x = torch.randn(2, QUERIES, WIDTH)
    small, _ = layer(x, x, x, attn_mask=torch.zeros(2 * len(KEPT), QUERIES, QUERIES))
    torch.testing.assert_close(small, layer(x, x, x)[0])
    with pytest.raises(RuntimeError, match=re.escape("or 8 such masks, one for each sample and head of the dense")):
        layer(x, x, x, attn_mask=torch.zeros(10, QUERIES, QUERIES))


@pytest.mark.parametrize("form", [(True, True, False, False), (False, False, True, True)], ids=str)
def test_gradients_and_steps_are_those_of_the_dense_one(form):
    torch.manual_seed(0)
    dense = attention(*form, batch_first=True).double()
    zero_heads_(dense, [1])
    plan = ShrinkPlan.of(dense, blocks(dense, KEPT))
    optimizer = torch.optim.SGD(dense.parameters(), lr=1e-3, momentum=0.9)
    args = [torch.randn(2, n, w).double() for n, w in ((QUERIES, WIDTH), (6, dense.kdim), (6, dense.vdim))]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model.train()(*args, need_weights=False)[0].square().sum().backward()
        optimizer.step()

    step(dense, optimizer)
    zero_heads_(dense, [1])
    for name, dims in blocks(dense, [1]).items():
        for dim, places in dims.items():
            optimizer.state[dense.get_parameter(name)]["momentum_buffer"].index_fill_(dim, torch.tensor(places), 0.0)
    with torch.no_grad():
        dense.out_proj.weight[:, SIZE : 2 * SIZE] = 0  # so that the head gets no gradient
    small = apply_plan(dense, plan)
    other = torch.optim.SGD(dense.parameters(), lr=1e-3, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shrink_optimizer_(optimizer, plan, dense, small)
    for _ in range(3):
        step(small, optimizer)
        step(dense, other)
        zero_heads_(dense, [1])
    torch.testing.assert_close(small(*args)[0], dense(*args)[0])


def test_dropout_draws_as_often_from_each_head():
    torch.manual_seed(0)
    dense = attention(True, False, False, False, batch_first=True, dropout=0.25)
    small, x = pruned(dense).train(), torch.randn(400, QUERIES, WIDTH)
    _, weights = small(x, x, x, average_attn_weights=False)
    assert 0.24 < (weights == 0).float().mean() < 0.26
    small.eval()
    assert torch.equal(small(x, x, x)[0], small(x, x, x)[0])


class Own(nn.MultiheadAttention):
    """A layer with code of its own around that of torch."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, attn_mask=mask, need_weights=False)[0] + x


class Between(nn.Module):
    """Attention between linear layers, whose weights of attention nobody reads."""

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(7, WIDTH), layer, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.first(x).relu()
        return self.last(self.attention(x, x, x, key_padding_mask=padding)[0])


class Averaged(Between):
    """The same; it puts out the weights of attention, averaged over heads."""

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Any:
        x = self.first(x).relu()
        y, weights = self.attention(x, x, x)
        return self.last(y), weights


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=options.get("batch_first", False))


class Masked(nn.Module):
    """A transformer of torch whose own code makes the mask of its targets."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(WIDTH, HEADS, 1, 1, 24, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x, y, tgt_mask=CAUSAL(y.shape[1]), tgt_is_causal=True)


def sequences(length: int = 7, samples: int = 3, width: int = WIDTH) -> Tensor:
    return torch.randn(samples, length, width)


PADDED = torch.arange(7) >= torch.tensor([[7], [4], [6]])
MODELS: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any], tuple[Any, ...]]] = {  # model, call, and another
    "self-attention": (Between(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)), (sequences(width=7),), {},
                       (sequences(4, 5, 7),)),
    "padded": (Between(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)), (sequences(width=7), PADDED), {},
               (sequences(width=7), PADDED.flip(0))),
    "own code": (Own(WIDTH, HEADS, batch_first=True), (sequences(),), {}, (sequences(1, 4),)),
    "mask of heads": (Own(WIDTH, HEADS, batch_first=True), (sequences(), torch.randn(3 * HEADS, 7, 7)), {},
                      (sequences(), torch.randn(3 * HEADS, 7, 7) > 1)),
    "encoder": (encoder(batch_first=True), (sequences(),), {}, (sequences(4, 1),)),
    "padded encoder": (encoder(batch_first=True), (sequences(),), {"src_key_padding_mask": PADDED}, (sequences(),)),
    "norms first": (encoder(norm_first=True, activation="gelu"), (sequences(),), {}, (sequences(4, 6),)),
    "decoder": (nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 24, batch_first=True), 1),
                (sequences(), sequences(5)), {"tgt_mask": CAUSAL(7), "tgt_is_causal": True},
                (sequences(), sequences(3))),
    "transformer": (Masked(), (sequences(), sequences(4)), {}, (sequences(2, 1), sequences(9, 1))),
}  # fmt: skip


def zero_groups_(model: nn.Module, channels: Any, which: Sequence[int]) -> None:
    with torch.no_grad():
        for member in channels.members:
            places = [place for place, group in enumerate(member.groups) if group in which]
            model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(places, dtype=torch.long), 0.0)


def heads_of(channels: Any) -> list[list[int]]:
    """Return the groups that are heads, by layer."""
    members = [m for m in channels.members if m.parameter.endswith(("in_proj_weight", "q_proj_weight"))]
    return [sorted(set(m.groups) - {-1}) for m in members]


SIBLINGS = ("own code", "padded", "encoder", "norms first", "decoder")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SIBLINGS else []) for n in MODELS])
def test_heads_of_whole_models_are_found_removed_saved_and_loaded(name):
    torch.manual_seed(1)
    dense, args, kwargs, others = MODELS[name]
    dense = drawn(copy.deepcopy(dense))
    channels = CoupledChannels(dense, args, example_kwargs=kwargs)
    heads = heads_of(channels)
    assert all(len(each) == HEADS for each in heads)
    zero_groups_(dense, channels, [each[number % HEADS] for number, each in enumerate(heads)])
    small = shrink(dense, args, example_kwargs=kwargs)
    assert not small.report.kept
    assert small.report.before.multiply_adds > small.report.after.multiply_adds > 0
    layers = [module for module in small.model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert [layer.num_heads for layer in layers] == [HEADS - 1] * len(heads)
    fresh = apply_plan(drawn(copy.deepcopy(dense)), ShrinkPlan.from_json(small.plan.to_json()))
    fresh.load_state_dict(small.model.state_dict())
    stored = io.BytesIO()
    torch.save(small.model, stored)
    stored.seek(0)
    copies = [fresh, pickle.loads(pickle.dumps(small.model)), copy.deepcopy(small.model)]
    copies.append(torch.load(stored, weights_only=False))
    with torch.no_grad():
        for call in (args, others):
            given = kwargs if call is args or name == "padded encoder" else {}
            expected, output = dense(*call, **given), small.model(*call, **given)
            assert difference(expected, output) < 2e-6
            assert all(torch.equal(output, each(*call, **given)) for each in copies)
    assert all(type(each) is type(dense) or isinstance(each, Own) for each in copies)


def test_a_plan_that_is_read_in_another_process_makes_the_same_model(tmp_path: Path):
    torch.manual_seed(0)
    dense = drawn(encoder(batch_first=True))
    layer: Any = dense
    for each in layer.layers:
        zero_heads_(each.self_attn, [1, 2])
    x = sequences()
    small = shrink(dense, x)
    (tmp_path / "plan.json").write_text(small.plan.to_json())
    torch.save({"state": small.model.state_dict(), "x": x, "y": small.model(x).detach()}, tmp_path / "saved.pt")
    code = f"""
        import torch
        from torch import nn
        from shrinkage import ShrinkPlan, apply_plan
        layer = nn.TransformerEncoderLayer({WIDTH}, {HEADS}, 24, batch_first=True)
        plan = ShrinkPlan.from_json(open("plan.json").read())
        saved = torch.load("saved.pt", weights_only=True)
        model = apply_plan(nn.TransformerEncoder(layer, 2), plan).eval()
        model.load_state_dict(saved["state"])
        assert torch.equal(model(saved["x"]), saved["y"])
        print([each.self_attn.kept_heads for each in model.layers])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.stdout == "[(0, 3), (0, 3)]\n", run.stderr


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_sequences_in_a_nested_tensor_are_attended_each_by_itself():
    torch.manual_seed(0)
    dense = attention(True, False, False, False, batch_first=True)
    zero_heads_(dense, [1])
    small = pruned(dense)
    rows = [torch.randn(n, WIDTH) for n in (4, 7, 1)]
    nested = torch.nested.as_nested_tensor(rows)
    with torch.no_grad():
        output, _ = small(nested, nested, nested, need_weights=False)
        for row, found in zip(rows, output.unbind(), strict=True):
            torch.testing.assert_close(found, dense(row, row, row)[0], rtol=1e-5, atol=1e-5)
        with pytest.raises(RuntimeError, match="pad them first"):
            small(nested, torch.nested.as_nested_tensor(rows), nested)


def test_weights_that_are_averaged_and_put_out_hold_the_heads():
    model = Averaged(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    model.attention = attention(True, False, False, False, batch_first=True)
    zero_heads_(model.attention, [1])
    x = sequences(width=7)
    (kept,) = (kept for kept in shrink(model, x).report.kept if kept.name.startswith("attention"))
    assert "mean over channels" in kept.reason


@pytest.mark.parametrize("what", ["values", "readers", "queries"])
def test_a_head_goes_if_its_values_or_its_readers_are_zero_and_not_by_its_queries(what):
    torch.manual_seed(0)
    model = Between(attention(True, False, False, False, batch_first=True))
    rows = slice(SIZE, 2 * SIZE)
    with torch.no_grad():
        if what == "readers":
            model.attention.out_proj.weight[:, rows] = 0
        else:
            part = 2 if what == "values" else 0
            model.attention.in_proj_weight.view(3, WIDTH, WIDTH)[part, rows] = 0  # the bias is folded
    small = shrink(model.eval(), sequences(width=7))
    assert small.model.attention.num_heads == (HEADS if what == "queries" else HEADS - 1)
    x = sequences(4, 2, 7)
    with torch.no_grad():
        assert difference(model(x), small.model(x)) < 1e-5


def test_the_size_of_a_single_head_becomes_smaller():
    torch.manual_seed(0)
    for separate in ({}, {"kdim": KEYS, "vdim": VALUES}):
        dense = nn.MultiheadAttention(WIDTH, 1, batch_first=True, **separate)
        args = (torch.randn(2, 5, WIDTH), torch.randn(2, 6, dense.kdim), torch.randn(2, 6, dense.vdim))
        drawn(dense)
        with torch.no_grad():
            for name in ("q", "k", "v") if separate else ():
                dense.get_parameter(f"{name}_proj_weight")[3:5] = 0
            if not separate:
                dense.in_proj_weight.view(3, WIDTH, WIDTH)[:, 3:5] = 0
            dense.in_proj_bias.view(3, WIDTH)[:, 3:5] = 0
        channels = CoupledChannels(Only(dense), args)
        assert channels.count == WIDTH
        small = shrink(Only(dense), args).model
        assert small.layer.out_proj.weight.shape == (WIDTH, WIDTH - 2)
        with torch.no_grad():
            assert difference(Only(dense)(*args), small(*args)) < 1e-6


class Only(nn.Module):
    """The outputs of attention alone."""

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Tensor) -> Any:
        return self.layer(*args, need_weights=False)[0]


def test_shrinking_twice_keeps_masks_of_the_dense_heads():
    torch.manual_seed(0)
    dense = attention(True, False, False, False, batch_first=True)
    x, mask = torch.randn(2, QUERIES, WIDTH), torch.randn(2 * HEADS, QUERIES, QUERIES)
    zero_heads_(dense, [1])
    small = pruned(dense)
    with torch.no_grad():
        dense.in_proj_weight.view(3, HEADS, SIZE, WIDTH)[:, 2] = 0
        dense.in_proj_bias.view(3, HEADS, SIZE)[:, 2] = 0
        small.in_proj_weight.view(3, HEADS - 1, SIZE, WIDTH)[:, 1] = 0
        small.in_proj_bias.view(3, HEADS - 1, SIZE)[:, 1] = 0
    twice = shrink(Only(small), (x, x, x)).model.layer
    assert twice.kept_heads == (0, 3)
    torch.testing.assert_close(twice(x, x, x, attn_mask=mask)[0], dense(x, x, x, attn_mask=mask)[0])


def test_its_weights_can_be_drawn_anew():
    small: Any = pruned(attention(True, True, False, False))
    before = small.in_proj_weight.clone()
    small._reset_parameters()
    assert not torch.equal(small.in_proj_weight, before)
    assert not small._qkv_same_embed_dim


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """Return an encoder with zero heads, and the same without these."""
    torch.manual_seed(0)
    dense = drawn(nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True))
    zero_heads_(dense.get_submodule("self_attn"), [1, 2])  # type: ignore[arg-type]
    return dense, shrink(dense, sequences()).model


def test_it_exports_for_other_numbers_of_samples(pair):
    dense, small = pair
    sizes = ({0: torch.export.Dim("samples", min=2, max=9), 1: torch.export.Dim("positions", min=2, max=9)},)
    program = torch.export.export(small, (sequences(),), dynamic_shapes=sizes)
    with torch.no_grad():
        for x in (sequences(), sequences(4, 6)):
            torch.testing.assert_close(program.module()(x), dense(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_it_compiles_as_one_graph(pair):
    dense, small = pair
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for x in (sequences(), sequences(4, 6)):
            torch.testing.assert_close(compiled(x), dense(x), rtol=1e-5, atol=1e-5)


def test_training_makes_heads_zero_and_goes_on_with_the_smaller_model():
    torch.manual_seed(0)
    model = encoder(batch_first=True, dropout=0.0)
    x, y = sequences(), sequences()
    channels = CoupledChannels(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    regularizer = Regularizer(model, GroupLasso(0.02, channels))
    regularizer.attach(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    regularizer.detach()
    small = shrink(model, x)
    assert sum(layer.self_attn.num_heads for layer in small.model.layers) < 2 * HEADS
    shrink_optimizer_(optimizer, small.plan, model, small.model)
    small.model.train()
    F.mse_loss(small.model(x), y).backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in small.model.parameters())


def test_multiply_adds_by_heads_are_known():
    model = encoder(batch_first=True)
    channels = CoupledChannels(model, sequences())
    sizes = [len(each) for each in heads_of(channels)]
    assert sizes == [HEADS, HEADS]
    whole = channels.kinds.multiply_adds()
    counts = [0] * (max(channels.kinds.of) + 1)
    dense = whole.left(counts)
    positions, samples = 7, 3
    heads = samples * positions * (4 * WIDTH * WIDTH + 2 * positions * WIDTH)
    assert dense == 2 * (heads + samples * positions * 2 * WIDTH * 24)


def cut(name: str, rows: Sequence[int]) -> dict[str, Any]:
    return {name: {0: tuple(rows)}}


@pytest.mark.parametrize(
    ("other", "keep"),
    [
        (False, cut("in_proj_weight", [*range(3), *range(20, 23), *range(40, 43)])),
        (False, cut("in_proj_weight", [*range(5), *range(20, 25), *range(45, 50)])),
        (False, cut("in_proj_weight", [*range(5), *range(25, 30), *range(40, 45)])),
        (True, cut("q_proj_weight", range(5))),
        (True, cut("q_proj_weight", range(5)) | cut("k_proj_weight", range(5))),
    ],
)
def test_a_plan_that_cuts_heads_in_two_is_refused(other, keep):
    with pytest.raises(PlanError, match="4 heads of 5 rows, which stay or go as a whole"):
        ShrinkPlan.of(attention(True, False, False, other), keep)


class Reading(nn.Module):
    """Code whose result nobody uses: with weights, which have to fit what they read, and without."""

    def __init__(self, weighs: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)
        self.aside = nn.Linear(8, 5) if weighs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        self.aside(x).softmax(-1).sum()
        return self.last(x)


@pytest.mark.parametrize("weighs", [True, False])
def test_what_nobody_uses_holds_nothing_and_still_runs(weighs):
    model, x = drawn(Reading(weighs)), torch.randn(4, 6)
    with torch.no_grad():
        model.first.weight[2] = model.first.bias[2] = 0
    small = shrink(model, x).model
    assert small.first.out_features == 7
    torch.testing.assert_close(small(x), model(x))
    if weighs:
        assert small.aside.weight.shape == (5, 7)


def test_heads_can_be_pinned():
    with pytest.raises(GroupError, match="pinned by you"):
        CoupledChannels(Only(nn.MultiheadAttention(WIDTH, HEADS)), (sequences(),) * 3, pin=["layer"])


def test_the_class_says_how_it_was_made():
    small: Any = pruned(attention(True, False, False, False))
    assert (small.kept_heads, small.dense_heads) == (KEPT, HEADS)
    assert type(small) is PrunedMultiheadAttention
