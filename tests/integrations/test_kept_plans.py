"""Smaller models of Hugging Face come back by `from_pretrained` alone, as ordinary models that know their plan."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Trainer,
    TrainingArguments,
)

from late import peft
from shrinkage import PlanError, ShrinkPlan, apply_plan, shrink
from shrinkage.integrations.kept_plans import PlanEntry
from shrinkage.integrations.transformers import keep_plan

WORDS = {"input_ids": torch.randint(3, 48, (2, 7), generator=torch.Generator().manual_seed(1))}
IMAGES = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama(**options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **ENDS, "num_key_value_heads": 2, **options})).eval()


def rows(names, kept, others=()):
    """Return what a plan keeps: indices along the rows of some tensors, and along the columns of others."""
    return {**{name: {0: kept} for name in names}, **{name: {1: kept} for name in others}}


def cut_llama(model, widths=(20, 15), path="model.layers"):
    """Return `model` without some neurons of each layer, which were zero, and without two heads of the first."""
    keep = {}
    with torch.no_grad():
        for number, (layer, width) in enumerate(zip(model.get_submodule(path), widths, strict=True)):
            gone = slice(0, layer.mlp.up_proj.out_features - width)
            layer.mlp.up_proj.weight[gone] = 0
            kept = tuple(range(gone.stop, layer.mlp.up_proj.out_features))
            place = f"{path}.{number}.mlp"
            ups = [f"{place}.{name}_proj.weight" for name in ("up", "gate")]
            keep |= rows(ups, kept, [f"{place}.down_proj.weight"])
    return apply_plan(model, ShrinkPlan.of(model, keep))


def outputs(model, inputs=WORDS):
    with torch.no_grad():
        return model.eval()(**inputs)[0]


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.fixture
def dense():
    return llama()


def test_plain_from_pretrained_loads_what_save_pretrained_wrote(dense, tmp_path):
    small = cut_llama(dense)
    small.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    assert [layer.mlp.up_proj.out_features for layer in loaded.model.layers] == [20, 15]
    close(outputs(loaded), outputs(dense))
    generated = [m.generate(**WORDS, max_new_tokens=4, do_sample=False, min_new_tokens=4) for m in (dense, loaded)]
    assert torch.equal(*generated)
    assert getattr(dense.config, "quantization_config", None) is None


def test_a_loaded_model_is_an_ordinary_one(dense, tmp_path):
    cut_llama(dense).save_pretrained(tmp_path / "1")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    assert not hasattr(loaded, "hf_quantizer")
    assert not loaded.is_quantized
    loaded.save_pretrained(tmp_path / "2")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "2")
    again.save_pretrained(tmp_path / "3")
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "3")), outputs(dense))
    assert copy.deepcopy(loaded).half().dtype == torch.float16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "1", dtype=torch.bfloat16).dtype == torch.bfloat16
    loaded.bfloat16().save_pretrained(tmp_path / "half")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "1", device_map="cpu")), outputs(dense))


def test_shrunk_twice(dense, tmp_path):
    cut_llama(dense).save_pretrained(tmp_path / "1")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    cut_llama(loaded, (11, 15)).save_pretrained(tmp_path / "2")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "2")
    assert [layer.mlp.up_proj.out_features for layer in again.model.layers] == [11, 15]
    close(outputs(again), outputs(loaded))


def test_tied_weights_stay_tied(tmp_path):
    dense = llama(tie_word_embeddings=True)
    cut_llama(dense).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    close(outputs(loaded), outputs(dense))


def test_new_biases_come_back(dense, tmp_path):
    small = apply_plan(dense, ShrinkPlan.of(dense, {}, biases=("model.layers.0.mlp.down_proj",)))
    torch.nn.init.normal_(small.model.layers[0].mlp.down_proj.bias)
    small.save_pretrained(tmp_path / "1")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    assert torch.equal(outputs(loaded), outputs(small))
    cut_llama(loaded, (20, 15)).save_pretrained(tmp_path / "2")
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "2")), outputs(loaded))


def test_the_body_alone_and_with_another_head(dense, tmp_path):
    small = cut_llama(dense)
    small.save_pretrained(tmp_path / "1")
    body = AutoModel.from_pretrained(tmp_path / "1")
    close(outputs(body), outputs(small.model))
    body.save_pretrained(tmp_path / "2")
    headed = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "2", num_labels=3)
    close(outputs(headed.model), outputs(body))
    headed.save_pretrained(tmp_path / "3")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "3")
    assert torch.equal(outputs(again), outputs(headed))


def test_more_words(dense, tmp_path):
    cut_llama(dense).save_pretrained(tmp_path / "1")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    loaded.resize_token_embeddings(56)
    smaller = cut_llama(loaded, (11, 15))
    smaller.save_pretrained(tmp_path / "2")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "2")
    assert again.lm_head.weight.shape == (56, 16)
    assert torch.equal(outputs(again), outputs(smaller))


def test_names_that_are_saved_otherwise(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    dense = Dinov2ForImageClassification(Dinov2Config(**sizes, mlp_ratio=2, num_labels=3)).eval()
    up = next(name for name, layer in dense.named_modules() if name.endswith("fc1"))
    down = up.replace("fc1", "fc2")
    with torch.no_grad():
        dense.get_submodule(up).weight[:5] = dense.get_submodule(up).bias[:5] = 0
    small = shrink(dense, (), example_kwargs=IMAGES)
    assert small.model.get_submodule(down).in_features == 27
    small.model.save_pretrained(tmp_path)
    assert torch.equal(
        outputs(Dinov2ForImageClassification.from_pretrained(tmp_path), IMAGES), outputs(small.model, IMAGES)
    )


WITHOUT = """
import sys, torch, transformers
folder = sys.argv[1]
load = transformers.AutoModelForCausalLM.from_pretrained
try:
    load(folder)
except RuntimeError:
    print("without: refused")
import shrinkage.integrations.transformers
found = load(folder)(torch.load(folder + "/words"))[0]
print("with:", torch.allclose(found, torch.load(folder + "/outputs"), atol=1e-5))
"""


def test_a_fresh_process_needs_the_import_and_says_so(dense, tmp_path):
    small = cut_llama(dense)
    small.save_pretrained(tmp_path)
    torch.save(WORDS["input_ids"], tmp_path / "words")
    torch.save(outputs(small), tmp_path / "outputs")
    run = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["without: refused", "with: True"]
    assert "got shrinkage, which `import shrinkage.integrations.transformers` makes known" in run.stderr


def training(folder, **options):
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    return TrainingArguments(str(folder), per_device_train_batch_size=2, max_steps=4, save_steps=2, **quiet, **options)


def trained_and_resumed(loader, folder, data):
    """Return the weights after a training of the model in `folder/small`, and after one that resumes it half-way."""

    def run(source, name, **resume):
        trainer = Trainer(loader.from_pretrained(source), training(folder / name), train_dataset=data)
        trainer.pop_callback("PrinterCallback")
        trainer.train(**resume)
        return trainer.model.state_dict()

    whole = run(folder / "small", "whole")
    checkpoint = str(folder / "whole/checkpoint-2")
    return whole, run(checkpoint, "resumed", resume_from_checkpoint=checkpoint)


def test_a_trainer_resumes_bit_for_bit(dense, tmp_path):
    cut_llama(dense).save_pretrained(tmp_path / "small")
    data = [{"input_ids": words, "labels": words} for words in torch.randint(3, 48, (8, 7))]
    whole, resumed = trained_and_resumed(AutoModelForCausalLM, tmp_path, data)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_lora_on_a_smaller_model(dense, tmp_path):
    cut_llama(dense).save_pretrained(tmp_path / "small")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["up_proj", "q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    close(outputs(again), outputs(adapted))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), outputs(again))


def test_an_entry_holds_no_indices():
    plan = PlanEntry.of(ShrinkPlan.of(torch.nn.Linear(4, 6), {"weight": {0: (1, 3)}, "bias": {0: (1, 3)}})).shrink_plan
    assert plan.keep == {"weight": {0: (0, 1)}, "bias": {0: (0, 1)}}


# Ordinary configurations, where one width fits all layers of a kind.


def without_heads(model, heads=(0, 1, 3), groups=None):
    """Return a plan's `keep` for `model`, a llama, that keeps some heads of its queries, and of keys and values."""
    size, keep = model.model.layers[0].self_attn.head_dim, {}

    def of(which):
        return tuple(head * size + place for head in which for place in range(size))

    for number in range(len(model.model.layers)):
        place = f"model.layers.{number}.self_attn"
        keep |= rows([f"{place}.q_proj.weight"], of(heads), [f"{place}.o_proj.weight"])
        if groups is not None:
            keep |= rows([f"{place}.{name}_proj.weight" for name in "kv"], of(groups))
    return keep


PLAIN = """
import sys, torch, transformers
folder = sys.argv[1]
found = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.load(folder + "/words"))[0]
print("shrinkage" in sys.modules, torch.allclose(found, torch.load(folder + "/outputs"), atol=1e-5))
"""


def test_one_width_loads_without_the_library(dense, tmp_path):
    small = cut_llama(dense, (20, 20))
    assert (small.config.intermediate_size, dense.config.intermediate_size) == (20, 24)
    small.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    torch.save(WORDS["input_ids"], tmp_path / "words")
    torch.save(outputs(small), tmp_path / "outputs")
    run = subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_a_plan_can_be_forced(dense, tmp_path):
    plan = ShrinkPlan.of(dense, rows([f"model.layers.{n}.mlp.{k}_proj.weight" for n in (0, 1) for k in ("up", "gate")],
        (1, 2, 5), [f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1)]))  # fmt: skip
    small = apply_plan(dense, plan)
    assert small.config.intermediate_size == 3
    for _ in range(2):  # the second changes nothing
        keep_plan(small, plan)
        assert small.config.intermediate_size == 24
        small.save_pretrained(tmp_path)
        assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path)), outputs(small))


def test_narrow_models_are_cut_again(dense, tmp_path):
    first = cut_llama(dense, (20, 20))
    second = cut_llama(first, (20, 15))
    assert second.config.intermediate_size == 20
    second.save_pretrained(tmp_path)
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path)), outputs(first))
    assert cut_llama(first, (9, 9)).config.intermediate_size == 9


def test_heads_go_with_their_size_written_out(tmp_path):
    dense = llama(num_key_value_heads=4)
    small = apply_plan(dense, ShrinkPlan.of(dense, without_heads(dense, (0, 3), (0, 3))))
    config = small.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 2, 4)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(loaded.config, "quantization_config")
    close(outputs(loaded), outputs(small))


def test_a_count_of_heads_that_transformers_refuses_stays_a_plan(tmp_path):
    dense = llama(num_key_value_heads=4)
    small = apply_plan(dense, ShrinkPlan.of(dense, without_heads(dense, (0, 1, 3), (0, 1, 3))))
    assert small.config.num_attention_heads == 4
    small.save_pretrained(tmp_path)
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path)), outputs(small))


def test_gpt2_has_a_width_where_its_configuration_has_none(tmp_path):
    torch.manual_seed(0)
    dense = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=16, **ENDS)).eval()
    keep = {}
    for number in range(2):
        place = f"transformer.h.{number}.mlp"
        keep |= {f"{place}.c_fc.weight": {1: (0, 1, 5)}, f"{place}.c_fc.bias": {0: (0, 1, 5)}}
        keep |= {f"{place}.c_proj.weight": {0: (0, 1, 5)}}
    small = apply_plan(dense, ShrinkPlan.of(dense, keep))
    assert (small.config.n_inner, dense.config.n_inner) == (3, None)
    small.save_pretrained(tmp_path)
    assert torch.equal(outputs(GPT2LMHeadModel.from_pretrained(tmp_path)), outputs(small))


def test_uniform_layers_have_an_ordinary_configuration(tmp_path):
    torch.manual_seed(0)
    dense = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=16, **ENDS)).eval()
    with torch.no_grad():
        for layer, units in zip(dense.transformer.h, (list(range(20)), list(range(5, 35))), strict=True):
            layer.mlp.c_fc.weight[:, units] = 0
            layer.mlp.c_fc.bias[units] = 0
    small = shrink(dense, (), example_kwargs=WORDS, uniform=True).model
    assert small.config.n_inner == 44
    small.save_pretrained(tmp_path)
    close(outputs(GPT2LMHeadModel.from_pretrained(tmp_path)), outputs(dense))


def test_a_number_of_any_name_is_the_width_of_experts(tmp_path):
    torch.manual_seed(0)
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 1}
    dense = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **ENDS, **experts, num_key_value_heads=2, head_dim=4)).eval()
    kept, keep, numbers = (0, 2, 3, 5, 6, 9, 10, 11), {}, {}
    for number in range(2):
        place = f"model.layers.{number}.mlp.experts"
        keep |= {f"{place}.gate_up_proj": {1: (*kept, *(12 + unit for unit in kept))}, f"{place}.down_proj": {2: kept}}
        numbers[f"{place}.intermediate_dim"] = 8
    small = apply_plan(dense, ShrinkPlan.of(dense, keep, attributes=numbers))
    assert (small.config.moe_intermediate_size, small.config.intermediate_size) == (8, 24)
    small.save_pretrained(tmp_path)
    assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path)), outputs(small))


def test_no_configuration_says_that_a_pooler_is_narrow():
    torch.manual_seed(0)
    dense = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    name, kept = "bert.pooler.dense", (0, 3, 4)
    keep = {**rows([f"{name}.weight", f"{name}.bias"], kept), "classifier.weight": {1: kept}}
    small = apply_plan(dense, ShrinkPlan.of(dense, keep))
    assert isinstance(small.config.quantization_config, PlanEntry)
    assert small.config.hidden_size == 16
    reason = small.config.quantization_config.reason
    assert reason.startswith("'bert.pooler.dense.weight' is (3, 16), and would be (16, 16), whatever number")


def reason_of(model, keep, **rest):
    return apply_plan(model, ShrinkPlan.of(model, keep, **rest)).config.quantization_config.reason


def test_the_entry_says_why_no_configuration_fits(dense, tmp_path):
    small = cut_llama(dense)
    told = "'model.layers.0.mlp.gate_proj.weight' is (20, 16), and 'model.layers.1.mlp.gate_proj.weight' (15, 16)"
    assert small.config.quantization_config.reason == told
    small.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.quantization_config.reason == told
    path = "model.layers.0.mlp.down_proj"
    assert reason_of(dense, {}, biases=(path,)) == f"'{path}' has a bias that the dense model does not have"
    assert "transformers does not accept" in reason_of(
        llama(num_key_value_heads=4), without_heads(dense, groups=(0, 1, 3))
    )


# What does not fit.


def test_other_lengths_where_something_is_cut(dense, tmp_path):
    cut_llama(dense).save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"should have 24 entries along dimension 0.*has shape \(32, 16\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path, intermediate_size=32)


def test_another_class_and_a_damaged_entry(dense, tmp_path):
    cut_llama(dense).save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"tensors that the plan cuts are not in BertFor.*with transformers 5"):
        BertForSequenceClassification.from_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["quantization_config"]["plan"] = content["quantization_config"]["plan"][:-9]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(PlanError, match="should hold a plan, and holds none that can be read"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_another_version_is_told(dense, tmp_path, monkeypatch):
    small = cut_llama(dense)
    small.config.quantization_config.transformers_version = "5.0.0"
    small.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"saved with transformers 5\.0\.0, and this is"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_plan_is_no_way_of_quantizing(dense, tmp_path):
    dense.save_pretrained(tmp_path)
    with pytest.raises(PlanError, match="a plan is no way of quantizing"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=PlanEntry())


def test_what_cannot_keep_a_plan(dense):
    plan = ShrinkPlan.of(dense, {})
    with pytest.raises(TypeError, match="expected a PreTrainedModel, found Linear"):
        keep_plan(torch.nn.Linear(2, 2), plan)
    dense.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(PlanError, match="has a `quantization_config` already"):
        keep_plan(dense, plan)
    with pytest.warns(UserWarning, match="`from_pretrained` will not load what"):
        apply_plan(dense, plan)


def test_a_buffer_that_is_not_saved_is_told():
    dense = llama()
    dense.register_buffer("mask", torch.ones(5), persistent=False)
    with pytest.warns(UserWarning, match=r"'mask' is a buffer that the plan cuts .* use `save_smaller`"):
        apply_plan(dense, ShrinkPlan.of(dense, {"mask": {0: (0, 1)}}))


def test_the_guides_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, names = (Path(__file__).parents[2] / "docs/hugging_face.md").read_text(), {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    sizes = [sum(parameter.numel() for parameter in names[name].parameters()) for name in ("again", "model")]
    assert sizes[0] <= 0.9 * sizes[1]
    assert "c_fc" in capsys.readouterr().out
