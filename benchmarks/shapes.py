"""Models whose parameter lists are measured: made from configurations on the meta device, with nothing to download."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.skipping import needs

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A model: how to make it, and an input for those who trace it (`logits` are then read off its output)."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Tensor] | None = None

    def on_meta(self) -> nn.Module:
        """Return the model without memory."""
        with needs("transformers"), torch.device("meta"):
            return self.make()


def resnet50() -> nn.Module:
    """Return ResNet-50, 26 million weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000))


def mobilenet_v2() -> nn.Module:
    """Return MobileNetV2, 4 million weights in small tensors, many of them depthwise."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000))


def gpt2_small() -> nn.Module:
    """Return GPT-2 small with its whole vocabulary, 124 million weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def llama_1b() -> nn.Module:
    """Return a Llama with 1.1 billion weights, shaped as TinyLlama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32000}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=32, num_key_value_heads=4))


def image() -> Tensor:
    """Return a small image."""
    return torch.zeros(1, 3, 64, 64)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("ResNet-50", resnet50, image),
        Architecture("MobileNetV2", mobilenet_v2, image),
        Architecture("GPT-2-small", gpt2_small),
        Architecture("Llama-1B", llama_1b),
    )
}


def shapes_of(model: nn.Module) -> list[Shape]:
    """Return the shapes of a model's parameters; tied ones count once.

    >>> shapes_of(nn.Linear(3, 2))
    [(2, 3), (2,)]
    """
    return [tuple(parameter.shape) for parameter in model.parameters()]


def shrunk(shapes: list[Shape], factor: int) -> list[Shape]:
    """Return as many shapes of the same dimensions, each long one shorter by a factor.

    >>> shrunk([(768, 3072), (64, 3, 7, 7)], 16)
    [(48, 192), (8, 3, 7, 7)]
    """
    return [tuple(size if size <= 8 else max(size // factor, 8) for size in shape) for shape in shapes]
