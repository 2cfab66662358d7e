"""What share of the parameters of a model can go: `PYTHONPATH=src:tests python -m benchmarks.reach [group ...]`.

A parameter can go if it makes or reads a channel of some group of `CoupledChannels`. The models are those of the tests'
zoo, written by hand, and models of timm and transformers from configurations, with random weights. Prints one line a
model, and the medians of each group: by default, with `residual=True`, and then as if no norm held the channels that it
is taken over.
"""

import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from shrinkage import CoupledChannels, GroupError
from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.compression.tracing.coupling import Coupling, couple
from zoo.case import Case, Normal, Tokens
from zoo.families import FAMILIES
from zoo.own import CASES
from zoo.real import BART, BERT, LLAMA, SIZE, TUPLE, VIT, language, pictures, timm_model, transformer
from zoo.real import CASES as REAL
from zoo.torchvision_models import aside

NORMS = ("layer norm", "normalized over the channels", "mean over channels")
WIDE = SIZE | {"image_size": 64, "patch_size": 8, "window_size": 4, "mlp_dim": 96, "output_channels": 32}
SOUND = {
    "conv_dim": [32, 32, 32], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
SEGMENTS = {
    "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 48,
    "num_attention_heads": [1, 2, 3, 4],
}  # fmt: skip
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
MARIAN = {name: value for name, value in BART.items() if name != "bos_token_id"} | {"max_position_embeddings": 64}
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
    language("modernbert", "ModernBertForMaskedLM", **BERT, pad_token_id=0, local_attention=4),
    Case("mamba", partial(transformer, "mamba", "MambaForCausalLM", vocab_size=96, hidden_size=64, num_hidden_layers=2,
                          state_size=8), keywords={"input_ids": Tokens(96, 2, 9)} | TUPLE),
    Case("marian", partial(transformer, "marian", "MarianMTModel", **MARIAN),
         keywords={"input_ids": Tokens(96, 2, 9), "decoder_input_ids": Tokens(96, 2, 5)} | TUPLE),
    pictures("dinov2", "Dinov2ForImageClassification", **VIT),
    pictures("beit", "BeitForImageClassification", **VIT),
    pictures("segformer", "SegformerForSemanticSegmentation", **SEGMENTS),
    pictures("swinv2", "Swinv2ForImageClassification", image_size=32, patch_size=4, embed_dim=32, depths=[1, 1],
             num_heads=[2, 4], window_size=4),
    Case("sam", partial(transformer, "sam_vision_model", "SamVisionModel", global_attn_indexes=[1], **WIDE),
         keywords={"pixel_values": Normal(2, 3, 64, 64)} | TUPLE),
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
    "hand": lambda: [*CASES, *FAMILIES],
    "timm": lambda: TIMM,
    "transformers": lambda: [*(case for case in REAL if not case.inputs), *TRANSFORMERS],
}


class Reach(NamedTuple):
    """How many parameters a model has, which share of them can go, with the residual stream, and but for norms."""

    parameters: int
    share: float
    residual: float
    but_for_norms: float


def reach(case: Case) -> Reach:
    """Return what can go of the model of a case."""
    model, (args, kwargs) = case.make(), case.example()
    coupling = couple(model, args, example_kwargs=kwargs)
    shares = []
    for residual in (False, True):
        goes = torch.zeros(coupling.labels.count, dtype=torch.bool)
        try:
            for member in CoupledChannels(model, args, example_kwargs=kwargs, residual=residual).members:
                inside = torch.tensor(member.groups) >= 0
                goes[coupling.axes[member.parameter, member.dim][inside]] = True
        except GroupError:  # which says that nothing can go
            pass
        shares.append(_share(model, coupling, goes))
    for root, reason in coupling.pinned.items():
        goes[root] |= any(phrase in reason for phrase in NORMS)
    return Reach(sum(p.numel() for p in model.parameters()), shares[0], shares[1], _share(model, coupling, goes))


def _share(model: nn.Module, coupling: Coupling, goes: torch.Tensor) -> float:
    """Return the share of the parameters that goes when all channels go that can."""
    own = {parameter: name for name, parameter in tensors_of(model).items() if isinstance(parameter, nn.Parameter)}
    left = sum(
        prod(int((~goes[coupling.axes[name, dim]]).sum()) for dim in range(parameter.dim()))
        for parameter, name in own.items()
    )
    return 1 - left / sum(parameter.numel() for parameter in own)


def measured(name: str) -> Iterator[Reach]:
    """Print and yield the reach of the models of a group."""
    for case in GROUPS[name]():
        try:
            found = reach(case)
        except Exception as error:  # Whatever the models of other versions of a package do.
            print(f"{name:14}{case.name:34}not measured: {str(error).splitlines()[0][:90]}", flush=True)
            continue
        shares = "".join(f"{share:8.3f}" for share in found[1:])
        print(f"{name:14}{case.name:34}{found.parameters:>11,}{shares}", flush=True)
        yield found


def main() -> None:
    warnings.simplefilter("ignore")
    tables = {name: list(measured(name)) for name in sys.argv[1:] or GROUPS}
    print(f"\n{'group':14}{'models':>8}{'default':>10}{'residual':>10}{'but for norms':>15}{'below half':>12}")
    for name, found in tables.items():
        medians = [statistics.median(each[column] for each in found) for column in (1, 2, 3)]
        below = sum(each.but_for_norms < 0.5 for each in found)
        print(f"{name:14}{len(found):>8}{medians[0]:>10.3f}{medians[1]:>10.3f}{medians[2]:>15.3f}{below:>12}")


if __name__ == "__main__":
    main()
