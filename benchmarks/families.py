"""Models by group: the tests' zoo, and torchvision, timm and transformers, from configurations, with random weights.

They need `PYTHONPATH=src:tests`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.search import zero_
from late import transformers
from shrinkage import CoupledChannels, GroupError, Shrunk, shrink
from zoo.case import Case, Normal, Tokens
from zoo.families import FAMILIES
from zoo.own import CASES
from zoo.real import (
    BART,
    BERT,
    ENDS,
    LLAMA,
    SIZE,
    T5,
    TUPLE,
    VIT,
    language,
    pictures,
    timm_model,
    transformer,
)  # fmt: skip
from zoo.real import CASES as REAL
from zoo.signals import SIGNALS
from zoo.torchvision_models import aside

WIDE = SIZE | {"image_size": 64, "patch_size": 8, "window_size": 4, "mlp_dim": 96, "output_channels": 32}
SOUND = {
    "conv_dim": [32, 32, 32], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
SEGMENTS = {
    "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 48,
    "num_attention_heads": [1, 2, 3, 4],
}  # fmt: skip
HIDDEN = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96}
CLIP = {
    "text_config": HIDDEN | ENDS | {"vocab_size": 96, "max_position_embeddings": 32, "eos_token_id": 95},
    "vision_config": HIDDEN | {"image_size": 32, "patch_size": 8}, "projection_dim": 32,
}  # fmt: skip
DETR = {name: value for name, value in BART.items() if "token" not in name and name != "vocab_size"} | {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_queries": 10, "num_labels": 5,
}  # fmt: skip
MASKED = VIT | {
    "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}  # fmt: skip
HUBERT = SOUND | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BOTTLENECKS = {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
MARIAN = {name: value for name, value in BART.items() if name != "bos_token_id"} | {"max_position_embeddings": 64}


def detr() -> nn.Module:
    """A model that finds objects, on a small residual network."""
    kind = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "out_features": ["stage4"]}
    backbone = transformers.ResNetConfig(**kind)
    return transformer("detr", "DetrForObjectDetection", backbone_config=backbone, **DETR)


TRANSFORMERS = [
    *(language(kind, f"{name}ForCausalLM", **LLAMA) for kind, name in (
        ("olmo", "Olmo"), ("olmo2", "Olmo2"), ("granite", "Granite"), ("cohere", "Cohere"), ("phi", "Phi"),
        ("starcoder2", "Starcoder2"), ("stablelm", "StableLm"), ("qwen2", "Qwen2"), ("gemma3_text", "Gemma3"),
    )),
    *(language(kind, f"{name}ForSequenceClassification", **BERT) for kind, name in (
        ("roberta", "Roberta"), ("electra", "Electra"), ("albert", "Albert"), ("deberta-v2", "DebertaV2"),
    )),
    language("bloom", "BloomForCausalLM", vocab_size=96, hidden_size=64, n_layer=2, n_head=4),
    language("falcon", "FalconForCausalLM", **SIZE),
    language("gptj", "GPTJForCausalLM", vocab_size=96, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=64),
    language("gpt_neo", "GPTNeoForCausalLM", vocab_size=96, hidden_size=64, max_position_embeddings=64, **NEO),
    language("xglm", "XGLMForCausalLM", vocab_size=96, d_model=64, ffn_dim=96, num_layers=2, attention_heads=4),
    language("mobilebert", "MobileBertForSequenceClassification", **BERT, **BOTTLENECKS),
    language("modernbert", "ModernBertForMaskedLM", **BERT, pad_token_id=0, local_attention=4),
    Case("mamba", partial(transformer, "mamba", "MambaForCausalLM", vocab_size=96, hidden_size=64, num_hidden_layers=2,
                          state_size=8), keywords={"input_ids": Tokens(96, 2, 9)} | TUPLE),
    Case("marian", partial(transformer, "marian", "MarianMTModel", **MARIAN),
         keywords={"input_ids": Tokens(96, 2, 9), "decoder_input_ids": Tokens(96, 2, 5)} | TUPLE),
    Case("t5-v1.1", partial(transformer, "t5", "T5ForConditionalGeneration", **T5, feed_forward_proj="gated-gelu",
                            tie_word_embeddings=False),
         keywords={"input_ids": Tokens(96, 2, 9), "decoder_input_ids": Tokens(96, 2, 5)} | TUPLE),
    pictures("dinov2", "Dinov2ForImageClassification", **VIT),
    pictures("beit", "BeitForImageClassification", **VIT),
    pictures("segformer", "SegformerForSemanticSegmentation", **SEGMENTS),
    pictures("swinv2", "Swinv2ForImageClassification", image_size=32, patch_size=4, embed_dim=32, depths=[1, 1],
             num_heads=[2, 4], window_size=4),
    Case("sam", partial(transformer, "sam_vision_model", "SamVisionModel", global_attn_indexes=[1], **WIDE),
         keywords={"pixel_values": Normal(2, 3, 64, 64)} | TUPLE),
    Case("clip", partial(transformer, "clip", "CLIPModel", **CLIP),
         keywords={"input_ids": Tokens(95, 2, 9), "pixel_values": Normal(2, 3, 32, 32)} | TUPLE),
    Case("detr", detr, keywords={"pixel_values": Normal(2, 3, 64, 64)} | TUPLE),
    Case("vit_mae", partial(transformer, "vit_mae", "ViTMAEForPreTraining", **MASKED),
         keywords={"pixel_values": Normal(2, 3, 32, 32), "noise": Normal(2, 16)} | TUPLE),
    Case("ast", partial(transformer, "audio-spectrogram-transformer", "ASTForAudioClassification", **HIDDEN,
                        max_length=64, num_mel_bins=32), keywords={"input_values": Normal(2, 64, 32)} | TUPLE),
    Case("hubert", partial(transformer, "hubert", "HubertForCTC", **SIZE, intermediate_size=96, **HUBERT),
         keywords={"input_values": Normal(2, 800)} | TUPLE),
    Case("wav2vec2", partial(transformer, "wav2vec2", "Wav2Vec2ForCTC", **SIZE, intermediate_size=96, **SOUND),
         keywords={"input_values": Normal(2, 800)} | TUPLE),
]  # fmt: skip


def narrow(name: str, **options: Any) -> nn.Module:
    """A model of timm with ten classes, of another depth or width."""
    with aside():
        import timm
    return timm.create_model(name, num_classes=10, **options)


def timm(name: str, size: int = 64, **options: Any) -> Case:
    build = partial(narrow, name, **options) if options else partial(timm_model, name)
    return Case(name, build, (Normal(2, 3, size, size),))


SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
LEVIT = {"embed_dim": (32, 48, 64), "depth": (1, 1, 1), "num_heads": (2, 3, 4), "key_dim": 8}
TIMM = [
    timm("resnest14d"), timm("regnety_002"), timm("convnextv2_atto"), timm("ghostnet_050"), timm("repvgg_a0"),
    timm("tf_efficientnetv2_b0"), timm("cs3darknet_s"), timm("edgenext_xx_small"), timm("pvt_v2_b0"),
    timm("mobilevit_xxs"), timm("coatnet_pico_rw_224", 224), timm("nf_regnet_b0"), timm("levit_128s", 224, **LEVIT),
    timm("swinv2_tiny_window8_256", 256, **SWIN),
    *(timm(name, 224, depth=2) for name in (
        "vit_tiny_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224", "cait_xxs24_224",
        "eva02_tiny_patch14_224",
    )),
]  # fmt: skip
GROUPS: dict[str, Callable[[], list[Case]]] = {
    "hand": lambda: [*CASES, *FAMILIES, *SIGNALS],
    "torchvision": lambda: [case for case in REAL if case.inputs and not case.name.startswith("timm-")],
    "timm": lambda: TIMM,
    "transformers": lambda: [*(case for case in REAL if not case.inputs), *TRANSFORMERS],
}


def chosen(names: Sequence[str]) -> Iterator[tuple[str, Case]]:
    """Yield the models of groups, or called by `names`, each with its group; without names, all."""
    every = [(group, case) for group in GROUPS for case in GROUPS[group]()]
    for name in names:
        if name not in GROUPS and all(name != case.name for _, case in every):
            raise SystemExit(f"expected one of {', '.join(GROUPS)}, or the name of a model in them, got {name}")
    yield from ((group, case) for group, case in every if not names or group in names or case.name in names)


def smaller(case: Case, *, uniform: bool = False) -> tuple[nn.Module, Shrunk]:
    """Return the model of a case with zeros in a third of the groups of its channels, and the smaller model.

    Those of residual streams are groups too where there are no others.
    """
    model, (args, kwargs) = case.make(), case.example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of channels that are in no group
        try:
            channels = CoupledChannels(model, args, example_kwargs=kwargs, uniform=uniform)
        except GroupError:
            channels = CoupledChannels(model, args, example_kwargs=kwargs, uniform=uniform, residual=True)
        torch.manual_seed(0)
        zero_(model, channels)
        return model, shrink(model, args, example_kwargs=kwargs, uniform=uniform)
