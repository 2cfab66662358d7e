"""What people do with smaller models of Hugging Face: devices, half precision, pipelines, adapters, more training."""

import json

import pytest
import torch
from test_kept_plans import SIZES, WORDS, close, cut_llama, llama, outputs, trained_and_resumed
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)

from late import peft, transformers
from shrinkage import ShrinkPlan, apply_plan, shrink
from shrinkage.integrations.kept_plans import PlanEntry

WHERE = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
ON_DISK = WHERE | {"model.layers.0": "cpu", "model.layers.1": "disk"}


@pytest.fixture(scope="module")
def dense():
    """A model of whose layers some units are zero, another number in each."""
    model = llama()
    cut_llama(model)
    return model


@pytest.fixture(scope="module")
def folder(dense, tmp_path_factory):
    """A folder with the smaller model, in several files."""
    path = tmp_path_factory.mktemp("small")
    cut_llama(dense).save_pretrained(path, max_shard_size="10KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, ON_DISK], ids=["auto", "cpu", "whole", "disk"])
def test_parts_of_a_model_are_put_on_devices(dense, folder, device_map, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert loaded.model.layers[1].mlp.up_proj.out_features == 15
    assert loaded.model.layers[1].mlp.up_proj.weight.is_meta == (device_map == ON_DISK)
    close(outputs(loaded), outputs(dense))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_as_the_smaller_models_own(dense, folder, dtype):
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    small = cut_llama(dense)
    for parameter in small.parameters():  # and not the table of frequencies, which is no part of a file
        parameter.data = parameter.data.to(dtype)
    assert torch.equal(outputs(loaded), outputs(small))


def test_a_large_model_needs_a_short_entry_and_no_memory():
    with torch.device("meta"):
        dense = LlamaForCausalLM(LlamaConfig())  # of 7B
    widths = range(11_008 - 32, 11_008)  # another one in each layer
    keep = {}
    for number, width in enumerate(widths):
        place, kept = f"model.layers.{number}.mlp", tuple(range(0, width))
        keep |= {f"{place}.{name}_proj.weight": {0: kept} for name in ("gate", "up")}
        keep |= {f"{place}.down_proj.weight": {1: kept}}
    entry = PlanEntry.of(ShrinkPlan.of(dense, keep))
    assert len(entry.plan) < 5000
    small = apply_plan(dense, entry.shrink_plan)
    assert [layer.mlp.up_proj.out_features for layer in small.model.layers] == list(widths)
    assert all(parameter.is_meta for parameter in small.parameters())


def words_of(tokens):
    """A tokenizer of words called "0", "1", and so on."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(n): n for n in range(tokens)}, unk_token="0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="0", eos_token="2")


def test_a_pipeline_takes_the_folder_and_writes_what_the_dense_model_does(dense, folder):
    options = {"tokenizer": words_of(SIZES["vocab_size"]), "device": "cpu"}
    greedy = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "return_full_text": False}
    texts = [pipeline("text-generation", model=m, **options)("5 7 11", **greedy) for m in (str(folder), dense)]
    assert texts[0] == texts[1]
    assert len(texts[0][0]["generated_text"].split()) == 5


# Adapters


def adapted(base, **options):
    """Return `base` with random adapters."""
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=6, lora_alpha=9, target_modules=["up_proj", "q_proj"], **options)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("rslora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ranks_go_from_adapters_on_a_loaded_model(folder, tmp_path, rslora):
    model = adapted(AutoModelForCausalLM.from_pretrained(folder), use_rslora=rslora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name and "up_proj" in name:
                parameter[:4] = 0
    small = shrink(model, (), example_kwargs=WORDS).model
    small.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], sorted(saved["rank_pattern"].values())) == (6, [2, 2])
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    close(outputs(again), outputs(model))
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path)), outputs(model))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_a_model_and_its_adapters_are_cut_together(tmp_path):
    model = adapted(llama())
    with torch.no_grad():
        for number, layer in enumerate(model.base_model.model.model.layers):
            layer.mlp.gate_proj.weight[: 3 + number] = 0
    small = shrink(model, (), example_kwargs=WORDS).model
    widths = [layer.mlp.gate_proj.out_features for layer in small.base_model.model.model.layers]
    assert widths == [21, 20]
    small.save_pretrained(tmp_path / "adapter")
    merged = small.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    close(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), outputs(model))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_layers_that_are_trained_whole_beside_adapters_are_cut_too(tmp_path):
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    model = peft.get_peft_model(base, config).eval()
    pooler = base.bert.pooler.dense
    with torch.no_grad():
        pooler.weight[:5] = pooler.bias[:5] = 0
        base.classifier.modules_to_save["default"].weight.normal_()
    small = shrink(model, (), example_kwargs=WORDS).model
    small.merge_and_unload().save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.classifier.in_features == 11
    close(outputs(loaded), outputs(model))


class Classifier(nn.Module):
    """A model of someone's own, on a model of transformers."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = llama().model, nn.Linear(16, 3)

    def forward(self, **words):
        return self.head(self.encoder(**words, use_cache=False)[0].mean(1))


def test_a_part_of_another_model_is_saved_and_loaded(tmp_path):
    model = Classifier().eval()
    with torch.no_grad():
        for number, layer in enumerate(model.encoder.layers):
            layer.mlp.up_proj.weight[: 3 + number] = 0
    small = shrink(model, (), example_kwargs=WORDS).model
    small.encoder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert [layer.mlp.up_proj.out_features for layer in loaded.layers] == [21, 20]
    close(outputs(loaded), outputs(model.encoder))
    assert not hasattr(model.encoder.config, "quantization_config")


# Training


def test_a_model_whose_names_differ_in_files_resumes_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    dense = Dinov2ForImageClassification(Dinov2Config(**sizes, mlp_ratio=2, num_labels=3)).eval()
    up = next(layer for name, layer in dense.named_modules() if name.endswith("fc1"))
    with torch.no_grad():
        up.weight[:5] = up.bias[:5] = 0
    images = torch.randn(8, 3, 16, 16)
    shrink(dense, (), example_kwargs={"pixel_values": images[:2]}).model.save_pretrained(tmp_path / "small")
    data = [{"pixel_values": image, "labels": number % 3} for number, image in enumerate(images)]
    whole, resumed = trained_and_resumed(AutoModelForImageClassification, tmp_path, data)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    (token,) = (name for name in whole if name.endswith("cls_token"))
    assert not torch.equal(whole[token], dense.state_dict()[token])
