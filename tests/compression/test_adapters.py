"""Adapters of peft that lose ranks: what is saved loads on the dense base, with the same outputs."""

import copy
import json

import pytest
import torch
from torch import nn

from late import peft, transformers
from shrinkage import shrink

TOKENS = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(0))
LLAMA = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b, self.c = (
            nn.Embedding(20, 8),
            nn.Linear(8, 16),
            nn.Conv1d(16, 16, 1),
            nn.Linear(16, 2),
        )

    def forward(self, x):
        return self.c(self.b(torch.relu(self.a(self.table(x))).mT).mT)


def adapted(base, zeros, **options):
    """Return `base` with random adapters, of which the first ranks are zero: as many as `zeros` says by layer."""
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=12, target_modules=list(zeros), **options)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                gone = next(count for layer, count in zeros.items() if f".{layer}." in name)
                tensor.normal_(0, 0.3)
                if "magnitude" not in name:
                    tensor.narrow(0 if "_A" in name else 1, 0, gone).zero_()
    return model


@pytest.mark.parametrize(
    ("zeros", "options", "rank", "ranks"),
    [
        ({"a": 3, "b": 3, "c": 3}, {}, 5, {}),
        ({"a": 1, "b": 2, "c": 5}, {}, 7, {"^b": 6, "^c": 3}),
        ({"a": 1, "b": 2, "c": 5}, {"use_rslora": True}, 7, {"^b": 6, "^c": 3}),
        ({"a": 2, "c": 2}, {"use_dora": True}, 6, {}),
        ({"table": 2, "a": 1}, {}, 7, {"^table": 6}),
        ({"a": 1, "b": 1}, {"rank_pattern": {"a": 4}, "alpha_pattern": {"b": 3}}, 7, {"^a": 3}),
    ],
    ids=["one rank", "ranks that differ", "rslora", "dora", "embedding", "patterns before"],
)
def test_an_adapter_with_fewer_ranks_is_saved_and_loaded(zeros, options, rank, ranks, tmp_path):
    base = Net().eval()
    model = adapted(copy.deepcopy(base), zeros, **options)
    small = shrink(model, TOKENS).model
    small.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], saved["rank_pattern"]) == (rank, ranks)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(TOKENS), model(TOKENS))
    torch.testing.assert_close(loaded.merge_and_unload()(TOKENS), model(TOKENS), atol=1e-4, rtol=1e-4)
    assert model.peft_config["default"].r == 8


def test_each_of_two_adapters_has_ranks_of_its_own(tmp_path):
    base = Net().eval()
    model = adapted(copy.deepcopy(base), {"a": 2})
    model.add_adapter("other", peft.LoraConfig(r=4, target_modules=["c"]))
    small = shrink(model, TOKENS).model
    small.save_pretrained(str(tmp_path))
    assert (small.peft_config["default"].r, small.peft_config["other"].r) == (6, 4)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(TOKENS), model(TOKENS))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_causal_model_with_adapters_loses_ranks_with_and_without_a_word_about_its_cache(tmp_path):
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    model = adapted(copy.deepcopy(base), {"q_proj": 3, "up_proj": 5})
    call = {"input_ids": TOKENS}
    plain, told = (shrink(model, (), example_kwargs=call | more) for more in ({}, {"use_cache": False}))
    assert plain.plan.keep == told.plan.keep != {}
    assert not plain.report.not_exported
    plain.model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)


def test_other_adapters_keep_their_ranks_and_it_is_said():
    model = peft.get_peft_model(Net(), peft.LoHaConfig(r=8, target_modules=["a"])).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "hada" in name:
                tensor.normal_()
                tensor.narrow(1 if name.split(".")[-2].endswith("_a") else 0, 0, 3).zero_()
    report = shrink(model, TOKENS).report
    assert report.after.parameters == report.before.parameters
    assert {kept.channels for kept in report.kept} == {3}
    assert all("use LoRA" in kept.reason for kept in report.kept)
