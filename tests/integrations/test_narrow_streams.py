"""Hugging Face models whose residual stream is narrower are saved and loaded: by other numbers, or by a plan."""

import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from shrinkage import shrink
from shrinkage.integrations.kept_plans import PlanEntry
from zoo.only_dividing import Llama

WORDS = {"input_ids": torch.randint(3, 48, (2, 7), generator=torch.Generator().manual_seed(1))}
SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
REST = {"num_key_value_heads": 2, "rms_norm_eps": 0.05, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@torch.no_grad()
def narrow(model: nn.Module, dead: int) -> nn.Module:
    """The model when the first `dead` channels of its stream are zero for all who write to it."""
    model.model.embed_tokens.weight[:, :dead] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:dead] = 0
        layer.mlp.down_proj.weight[:dead] = 0
        layer.input_layernorm.weight.uniform_(-0.5, 1.5)
    return model.eval()


def made(kind: str, **options) -> nn.Module:
    torch.manual_seed(0)
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "gemma": (GemmaConfig, GemmaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[kind]
    return model(config(**SIZES, **REST, **options))


def close(one: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(**WORDS).logits, other(**WORDS).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_width_that_fits_is_a_number_of_the_configuration(tmp_path, tied):
    dense = narrow(made("llama", tie_word_embeddings=tied), 4)
    small = shrink(dense, (), example_kwargs=WORDS)
    small.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["hidden_size"], config["rms_norm_eps"], config["head_dim"]) == (12, 0.05 * 16 / 12, 4)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    close(loaded, dense)
    generated = [each.generate(**WORDS, max_new_tokens=4, do_sample=False) for each in (dense, loaded)]
    assert torch.equal(*generated)
    assert (dense.config.hidden_size, dense.config.rms_norm_eps) == (16, 0.05)


@pytest.mark.parametrize(
    ("kind", "dead"), [("llama", 3), ("gemma", 4), ("qwen3", 4)], ids=["no-multiple", "computes-with-it", "other-norms"]
)
def test_a_width_that_no_configuration_says_is_a_plan(tmp_path, kind, dead):
    """transformers asks for a multiple of the heads; Gemma multiplies by the root of it; Qwen 3 has norms of heads."""
    dense = narrow(made(kind, **({} if kind == "llama" else {"head_dim": 4})), dead)
    small = shrink(dense, (), example_kwargs=WORDS).model
    assert small.model.norm.weight.shape == (16 - dead,)
    small.save_pretrained(tmp_path / "1")
    assert "quantization_config" in json.loads((tmp_path / "1/config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    close(loaded, dense)
    again = shrink(narrow(loaded, 2), (), example_kwargs=WORDS).model
    again.save_pretrained(tmp_path / "2")
    close(AutoModelForCausalLM.from_pretrained(tmp_path / "2"), loaded)


def test_an_entry_has_scales_and_sizes():
    torch.manual_seed(0)
    dense = Llama()
    with torch.no_grad():
        dense.tok_embeddings.weight[:, :3] = 0
        for layer in dense.layers:
            layer.attention.wo.weight[:3] = 0
            layer.w2.weight[:3] = 0
    plan = shrink(dense, torch.randint(40, (2, 9))).plan
    known = PlanEntry.of(plan).shrink_plan
    assert plan.scales
    assert plan.sizes
    assert (known.scales, known.sizes, known.attributes) == (plan.scales, plan.sizes, plan.attributes)


class Scaled(LlamaForCausalLM):
    """Code that computes with the width that its configuration has."""

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.logits = found.logits * self.config.hidden_size**0.5
        return found


def test_a_width_by_which_code_multiplies_stays_in_the_configuration():
    torch.manual_seed(0)
    dense = narrow(Scaled(LlamaConfig(**SIZES, **REST)), 4)
    small = shrink(dense, (), example_kwargs=WORDS).model
    assert small.model.norm.weight.shape == (12,)
    assert small.config.hidden_size == 16
    close(small, dense)
