"""Models that people use: torchvision's at their own width, timm's and transformers' small ones."""

from functools import partial
from typing import Any

from torch import nn

from late import torchvision_models, transformers
from zoo.case import Case, Normal, Ones, Tokens

TUPLE = {"return_dict": False}  # the outputs are plain tensors
ENDS = {"bos_token_id": 1, "eos_token_id": 2}

SIZE = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = SIZE | {"intermediate_size": 96, "max_position_embeddings": 64}
LLAMA = BERT | ENDS | {"num_key_value_heads": 2, "pad_token_id": 0}
QWEN = LLAMA | {"head_dim": 16}
MIXTRAL = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = QWEN | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
OPT = SIZE | {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1}
GPT2 = ENDS | {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
DISTILBERT = {"vocab_size": 96, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 64}
T5 = {
    "vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = ENDS | {
    "vocab_size": 96, "d_model": 64, "pad_token_id": 0, "decoder_start_token_id": 1,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96,
}  # fmt: skip
WHISPER = BART | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16}
VIT = SIZE | {"intermediate_size": 96, "image_size": 32, "patch_size": 8, "num_labels": 5}
CONVNEXT = {"num_channels": 3, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "num_labels": 5}


def torchvision_model(name: str, **options: Any) -> nn.Module:
    """A model of torchvision."""
    return torchvision_models.models.get_model(name, **options)


def timm_model(name: str) -> nn.Module:
    """A model of timm with ten classes."""
    with torchvision_models.aside():
        import timm
    return timm.create_model(name, num_classes=10)


def vision(name: str, size: int = 64, *, slow: bool = True, **options: Any) -> Case:
    """A model of torchvision, without weights to download."""
    return Case(name, partial(torchvision_model, name, weights=None, **options), (Normal(2, 3, size, size),), slow=slow)


def small_vision(name: str) -> Case:
    """One of the models with which timm tests itself: its blocks, few and narrow."""
    return Case(f"timm-{name}", partial(timm_model, f"test_{name}"), (Normal(2, 3, 160, 160),))


def small_vision_transformer() -> nn.Module:
    """The vision transformer of torchvision, with two layers."""
    return torchvision_models.models.VisionTransformer(
        32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=96, num_classes=10
    )


def transformer(name: str, head: str, **config: Any) -> nn.Module:
    """The model `head` of transformers with a configuration of the kind `name`."""
    configuration = transformers.AutoConfig.for_model(name, **config)
    configuration.use_cache = False
    return getattr(transformers, head)(configuration)


def language(name: str, head: str, *, slow: bool = False, **config: Any) -> Case:
    """A model of transformers on tokens and a mask."""
    keywords = {"input_ids": Tokens(96, 2, 9), "attention_mask": Ones(2, 9)}
    return Case(name, partial(transformer, name, head, **config), keywords=keywords | TUPLE, slow=slow)


def translation(name: str, head: str, *, slow: bool = False, **config: Any) -> Case:
    """A model of transformers on two sequences of tokens."""
    keywords = {"input_ids": Tokens(96, 2, 9), "decoder_input_ids": Tokens(96, 2, 5)}
    return Case(name, partial(transformer, name, head, **config), keywords=keywords | TUPLE, slow=slow)


def pictures(name: str, head: str, **config: Any) -> Case:
    """A model of transformers on images."""
    keywords = {"pixel_values": Normal(2, 3, 32, 32)}
    return Case(name, partial(transformer, name, head, **config), keywords=keywords | TUPLE)


def speech(name: str, head: str, **config: Any) -> Case:
    """A model of transformers on sound and tokens."""
    keywords = {"input_features": Normal(2, 16, 40), "decoder_input_ids": Tokens(96, 2, 5)}
    return Case(name, partial(transformer, name, head, **config), keywords=keywords | TUPLE)


CASES = [
    vision("resnet50"),
    vision("mobilenet_v3_small"),
    vision("densenet121"),
    vision("efficientnet_b0"),
    vision("convnext_tiny"),
    vision("swin_t"),
    vision("swin_v2_t"),
    vision("vit_b_16", image_size=64),
    vision("maxvit_t", 224),
    vision("regnet_y_400mf"),
    vision("shufflenet_v2_x1_0"),
    vision("googlenet", aux_logits=False, init_weights=False),
    vision("inception_v3", 96, aux_logits=False, init_weights=False),
    vision("deeplabv3_resnet50", weights_backbone=None),
    vision("squeezenet1_1", slow=False),
    vision("vgg11_bn"),
    vision("mnasnet1_0"),
    small_vision("resnet"),
    small_vision("efficientnet"),
    small_vision("convnext"),
    small_vision("vit"),
    Case("vision-transformer-torchvision", small_vision_transformer, (Normal(2, 3, 32, 32),)),
    language("bert", "BertForSequenceClassification", **BERT),
    language("distilbert", "DistilBertForMaskedLM", **DISTILBERT),
    language("gpt2", "GPT2LMHeadModel", **GPT2),
    language("opt", "OPTForCausalLM", **OPT),
    language("gpt_neox", "GPTNeoXForCausalLM", **BERT),
    language("llama", "LlamaForCausalLM", **LLAMA),
    language("mistral", "MistralForCausalLM", slow=True, sliding_window=4, **LLAMA),
    language("qwen3", "Qwen3ForCausalLM", **QWEN),
    language("gemma", "GemmaForCausalLM", slow=True, **QWEN),
    language("gemma2", "Gemma2ForCausalLM", slow=True, **QWEN),
    language("phi3", "Phi3ForCausalLM", **LLAMA),
    language("mixtral", "MixtralForCausalLM", **MIXTRAL),
    language("qwen3_moe", "Qwen3MoeForCausalLM", slow=True, **QWEN_MOE),
    translation("t5", "T5ForConditionalGeneration", **T5),
    translation("bart", "BartForConditionalGeneration", slow=True, max_position_embeddings=64, **BART),
    pictures("vit", "ViTForImageClassification", **VIT),
    pictures("convnextv2", "ConvNextV2ForImageClassification", **CONVNEXT),
    speech("whisper", "WhisperForConditionalGeneration", **WHISPER),
]
