"""Models without half of their channels: how long making them smaller takes, what it needs, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import extra_peak, require
from benchmarks.skipping import SkippedError, needs
from benchmarks.tables import Settings
from benchmarks.timing import Spread, interleaved, ratios
from shrinkage import CoupledChannels, ShrinkPlan, shrink
from shrinkage.compression.calls.cost import byte_count, parameter_count
from shrinkage.compression.removal.analysis import analyzed
from shrinkage.compression.removal.bisection import Attempts, Checks, Choice
from shrinkage.compression.tracing.coupling import couple
from shrinkage.tables import table

Example = tuple[nn.Module, Tensor, dict[str, Any]]

BYTES = 4e9  # the models, their copies and activations


@dataclass(frozen=True)
class Subject:
    """A way to make a model with random weights, the input of a call, and its keyword arguments."""

    name: str
    make: Callable[[], Example]


@dataclass
class Smaller:
    """What became of one model; seconds are of one run each, bytes those of tensors beyond the model's own."""

    name: str
    parameters: tuple[int, int] = (0, 0)
    plan_seconds: float = 0.0
    shrink_seconds: float = 0.0
    model_bytes: int = 0
    extra_bytes: int = 0
    error: float = 0.0
    dense_milliseconds: float = 0.0
    small_milliseconds: float = 0.0
    speedup: Spread | None = None
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped or self.speedup is None:
            return f"{self.name}: skipped, {self.skipped}"
        rows = [
            ["parameters", f"{self.parameters[0]:,} to {self.parameters[1]:,}"],
            ["largest relative difference of outputs", f"{self.error:.1e}"],
            ["graph, plan and smaller model, s", f"{self.plan_seconds:.2f}"],
            ["the same with all comparisons and timing, s", f"{self.shrink_seconds:.2f}"],
            ["bytes at the peak, in sizes of the model", f"{1 + self.extra_bytes / self.model_bytes:.2f}"],
            ["one call, ms", f"{self.dense_milliseconds:.1f} to {self.small_milliseconds:.1f}"],
            ["times as fast", f"{self.speedup.median:.2f} ({self.speedup.lower:.2f} to {self.speedup.upper:.2f})"],
        ]
        return table([self.name, ""], rows, right=[1])


def resnet() -> Example:
    """Return ResNet-50 and four images."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000)), torch.randn(4, 3, 224, 224), {}


def resnet_channels_last() -> Example:
    """Return the same with the channels of a pixel beside each other in memory."""
    model, x, keywords = resnet()
    return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), keywords


def gpt() -> Example:
    """Return GPT-2 small and two sequences."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()), torch.randint(50257, (2, 64)), {"use_cache": False}


def tiny() -> Example:
    """Return a small convolutional network, for a quick look."""
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 3)]
    return nn.Sequential(*layers), torch.randn(4, 3, 32, 32), {}


class Recurrent(nn.Module):
    """An LSTM of 256 units, of which the last outputs are read."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(128, 256, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores for sequences of vectors."""
        scores: Tensor = self.head(self.lstm(x)[0][:, -1])
        return scores


def lstm() -> Example:
    """Return an LSTM and 32 sequences of 64 steps."""
    return Recurrent(), torch.randn(32, 64, 128), {}


class GptBlock(nn.Module):
    """A block as nanoGPT has it: sizes of its attention are read off the input, and are no attributes."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.n_head, self.n_embd = nn.LayerNorm(width), nn.LayerNorm(width), heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block makes of vectors of tokens."""
        B, T, C = x.size()
        q, k, v = self.c_attn(self.ln_1(x)).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


def gpt_blocks() -> Example:
    """Return blocks of a small GPT, and 16 sequences."""
    return nn.Sequential(GptBlock(), GptBlock()), torch.randn(16, 256, 64), {}


def gpt_token() -> Example:
    """Return the same and a single token, where the host's work decides."""
    return nn.Sequential(GptBlock(), GptBlock()), torch.randn(1, 1, 64), {}


SUBJECTS = (
    Subject("ResNet-50, 4 images of 224 x 224", resnet),
    Subject("ResNet-50, channels last, 4 images", resnet_channels_last),
    Subject("GPT-2 small, 2 x 64 tokens", gpt),
    Subject("LSTM of 128 to 256, 32 x 64 steps", lstm),
    Subject("blocks of nanoGPT, width 64, 16 x 256 tokens", gpt_blocks),
    Subject("blocks of nanoGPT, width 64, a single token", gpt_token),
)
QUICK_SUBJECTS = (Subject("a small network, 4 images of 32 x 32", tiny),)


@torch.no_grad()
def halve_(model: nn.Module, x: Tensor, keywords: dict[str, Any]) -> None:
    """Set a random half of the channels of each layer to zero, each with all that makes it."""
    channels = CoupledChannels(model, x, example_kwargs=keywords)
    gone = torch.zeros(channels.count, dtype=torch.bool)
    for names in channels.families():
        own = torch.tensor(sorted({group for name in names for group in channels.slices(name).groups} - {-1}))
        gone[own[torch.randperm(len(own))[: len(own) // 2]]] = True
    for member in channels.members:
        groups = torch.tensor(member.groups)
        zero = (groups >= 0) & gone[groups.clamp_min(0)]
        model.get_parameter(member.parameter).index_fill_(member.dim, zero.nonzero().reshape(-1), 0.0)


def measure_smaller(subject: Subject, settings: Settings) -> Smaller:
    """Return what making a model smaller costs and gives."""
    torch.manual_seed(0)
    try:
        require(BYTES, settings.device)
        with needs("transformers"):
            model, x, keywords = subject.make()
    except SkippedError as error:
        return Smaller(subject.name, skipped=str(error))
    model, x = model.to(settings.device).eval(), x.to(settings.device)
    halve_(model, x, keywords)
    plan_seconds, _ = timed(lambda: planned(model, x, keywords))
    shrink_seconds, small = timed(lambda: shrink(model, x, example_kwargs=keywords))
    short, sized = shortened(x), bool(small.plan.sizes)  # which are corrected where models are compared alone
    extra = extra_peak(lambda: shrink(model, short, example_kwargs=keywords, verify=sized), settings.device)
    steps = {name: call_of(one, x, keywords) for name, one in (("dense", model), ("small", small.model))}
    times = interleaved(steps, settings.limits, settings.device, settings.clock)
    dense_milliseconds, small_milliseconds = (1e3 * median(several) for several in times.values())
    return Smaller(
        subject.name, (parameter_count(model), parameter_count(small.model)), plan_seconds, shrink_seconds,
        byte_count(model), extra, small.report.error, dense_milliseconds, small_milliseconds,
        ratios(times["dense"], times["small"]),
    )  # fmt: skip


def shortened(x: Tensor) -> Tensor:
    """Return one small picture, or the start of one sequence of tokens or vectors: so little but the model counts."""
    return x[:1, :, :64, :64] if x.dim() == 4 else x[:1, :16]


def planned(model: nn.Module, x: Tensor, keywords: dict[str, Any]) -> ShrinkPlan:
    """Return the plan of the smaller model, with nothing compared and nothing timed."""
    coupling = couple(model, x, example_kwargs=keywords)
    attempts = Attempts(analyzed(model, coupling), ((x,), keywords), 1, Checks(0.0))
    _, _, plan = attempts.built(Choice(torch.zeros(coupling.labels.count, dtype=torch.bool)))
    return plan


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work` takes, and what it gives."""
    start = perf_counter()
    result = work()
    return perf_counter() - start, result


def call_of(model: nn.Module, x: Tensor, keywords: dict[str, Any]) -> Callable[[], object]:
    """Return a call of `model` without gradients."""

    def call() -> object:
        with torch.no_grad():
            return model(x, **keywords)

    return call
