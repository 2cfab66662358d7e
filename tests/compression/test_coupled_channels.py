"""Channels as groups: training makes them zero as a whole, and then they are removed exactly."""

import warnings

import pytest
import torch
from torch import nn

from late import transformers
from models import train_step
from shrinkage import CoupledChannels, GroupError, GroupLasso, Regularizer, shrink
from shrinkage.compression.removal.trial import Trial
from shrinkage.compression.tracing.coupling import couple
from zoo.harness import difference
from zoo.own import CASES

STRENGTHS = {
    "mlp": 0.003,
    "resnet": 0.003,
    "mobilenet": 0.003,
    "swiglu": 0.003,
    "attention-chunked": 0.02,
    "grouped-queries-native": 0.02,
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in STRENGTHS], ids=str)
def test_training_gives_zero_channels_all_of_which_are_taken_out(case):
    model = case.make()
    arguments, keywords = case.example()
    channels = CoupledChannels(model, arguments, example_kwargs=keywords)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    Regularizer(model, GroupLasso(STRENGTHS[case.name], channels)).attach(optimizer)
    target = model(*arguments, **keywords).detach()
    for _ in range(80):
        train_step(optimizer, nn.functional.mse_loss(model(*arguments, **keywords), target))
    parameters = dict(model.named_parameters())
    zero = {
        number
        for number in range(channels.count)
        if all(
            not parameters[m.parameter].movedim(m.dim, 0)[[i for i, g in enumerate(m.groups) if g == number]].any()
            for m in channels.members
        )
    }
    assert zero
    small = shrink(model, arguments, example_kwargs=keywords)
    assert all("the last one" in kept.reason for kept in small.report.kept)
    with torch.no_grad():
        assert difference(model(*arguments, **keywords), small.model(*arguments, **keywords)) < 1e-5
    assert small.report.after.parameters < small.report.before.parameters


def test_a_group_holds_the_row_the_bias_and_the_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    channels = CoupledChannels(model, torch.randn(5, 4))
    assert {(m.parameter, m.dim, tuple(m.groups)) for m in channels.members} == {
        (name, 0, (0, 1, 2)) for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    }


def test_a_model_without_channels_that_can_go_is_refused():
    with pytest.raises(GroupError, match="some channel can go"):
        CoupledChannels(nn.Linear(4, 3), torch.randn(2, 4))


DECODERS = {
    "gpt2": {"n_layer": 1, "n_embd": 32, "n_head": 4, "n_positions": 32},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0},
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_that_put_out_a_cache_lose_heads_and_generate_as_before(name):
    """transformers' decoders put out a cache of keys and values unless told otherwise."""
    torch.manual_seed(0)
    tokens = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    configuration = transformers.AutoConfig.for_model(name, **tokens, **DECODERS[name])
    kind = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    model, ids = kind.from_config(configuration).eval(), torch.randint(3, 96, (2, 7))
    call = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :5]} if name == "t5" else {})
    channels = CoupledChannels(model, (), example_kwargs=call)
    assert any("att" in member.lower() for member in channels.names)
    with torch.no_grad():
        for member in channels.members:
            index = torch.tensor([place for place, group in enumerate(member.groups) if group >= 0 and group % 3 == 0])
            model.get_parameter(member.parameter).index_fill_(member.dim, index, 0.0)
    small = shrink(model, (), example_kwargs=call)
    assert small.report.kept == ()
    generated = [each.generate(ids, max_new_tokens=6, do_sample=False) for each in (model, small.model)]
    assert torch.equal(*generated)


@pytest.mark.parametrize(("heads", "size"), [(4, 4), (4, 8), (2, 2)])
def test_heads_go_where_their_size_is_as_large_as_their_number(heads, size):
    """Grouped queries: transformers' code has the size of a head as an attribute, and the number of heads nowhere."""
    configuration = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=heads * size, intermediate_size=24, num_attention_heads=heads,
        num_key_value_heads=heads // 2, vocab_size=50,
    )  # fmt: skip
    model, ids = transformers.LlamaForCausalLM(configuration).eval(), torch.randint(3, 50, (2, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        channels = CoupledChannels(model, (), example_kwargs={"input_ids": ids})
    assert sum("self_attn" in name for name in channels.names) == (3 if heads > 2 else 1)  # the last keys stay


class Stored(nn.Module):
    """What attention with the number of heads as an attribute, and one with the size of a head, have in common."""

    def __init__(self, **numbers):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 48), nn.Linear(16, 8)
        vars(self).update(numbers)


class AsMany(Stored):
    def forward(self, x):
        shape = (*x.shape[:2], self.count, -1)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return x + self.out(attended.transpose(1, 2).flatten(2))


class AsLarge(Stored):
    def forward(self, x):
        shape = (*x.shape[:2], -1, self.width)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        heads = attended.shape[1]
        return x + self.out(attended.reshape(len(x), heads, -1, self.width).transpose(1, 2).flatten(2))


def test_each_kind_of_layer_decides_by_itself_which_attributes_change():
    """A count of heads that has to change beside a size of a head, of the same number, that must not."""
    model, x = nn.Sequential(AsMany(count=4), AsLarge(width=4)).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        for layer in model:
            layer.qkv.weight.view(3, 4, 4, 8)[:, 1] = 0
            layer.qkv.bias.view(3, 4, 4)[:, 1] = 0
    small = shrink(model, x)
    assert small.report.kept == ()
    assert (small.model[0].count, small.model[1].width) == (3, 4)
    assert [layer.qkv.out_features for layer in small.model] == [36, 36]


def test_a_model_that_can_not_be_exported_as_a_whole_is_told_of():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)), nn.Linear(5, 2)

        def forward(self, x):
            x = self.body(x)
            return self.head(x) if x.sum() > 0 else self.head(-x)

    with pytest.warns(UserWarning, match="cannot be exported as a whole.*no group: ") as caught:
        channels = CoupledChannels(Branching(), torch.randn(3, 4))
    assert caught[0].filename == __file__
    assert channels.names == ("body.0.weight", "body.0.bias")


class RefusesZeros(nn.Sequential):
    """A model that can be called, and not with zeros in place of a channel."""

    def forward(self, x):
        if not torch.compiler.is_exporting() and any((layer.weight == 0).all(1).any() for layer in self[::2]):
            raise ValueError("a row of zeros")
        return super().forward(x)


def test_channels_without_which_nothing_can_be_compared_are_in_no_group():
    model = RefusesZeros(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.warns(UserWarning, match="the model fails"), pytest.raises(GroupError, match="the model fails"):
        CoupledChannels(model, torch.randn(5, 4))


def test_each_removal_is_compared_with_zeros_in_its_own_place():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(5, 4)
    coupling = couple(model, (x,))
    first, second, _ = coupling.axes["0.weight", 0].tolist()
    gone, held = torch.zeros(2, coupling.labels.count, dtype=torch.bool)
    gone[[first, second]] = held[second] = True
    trial = Trial(coupling, model, ((x,), {}), gone)
    assert trial.possible()
    assert trial.fits()
    assert trial.fits(held)
