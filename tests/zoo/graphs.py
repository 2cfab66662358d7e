"""Random small models: a list of numbers says what they are made of, and any list says something valid.

A step of the recipe takes the shape that arrives, without the batch: (channels,), (tokens, channels) or
(channels, height, width). It returns a layer that fits, and the shape behind it is measured.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.case import Case, Normal

Shape = tuple[int, ...]
WIDTHS = (4, 6, 8, 12)
STARTS = ((6,), (5, 8), (3, 8, 8))


class Choices:
    """Decisions read from a list of numbers; when it is used up, the first option is always taken."""

    def __init__(self, numbers: Sequence[int]):
        self.numbers: Iterator[int] = iter(numbers)
        self.left = len(numbers)

    def pick(self, options: Sequence[Any]) -> Any:
        self.left = max(0, self.left - 1)
        return options[next(self.numbers, 0) % len(options)]


class Residual(nn.Module):
    """x + body(x); or x * body(x)."""

    def __init__(self, body: nn.Module, *, product: bool = False):
        super().__init__()
        self.body, self.product = body, product

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x) if self.product else x + self.body(x)


class Concat(nn.Module):
    """Several branches side by side."""

    def __init__(self, branches: Sequence[nn.Module], dim: int):
        super().__init__()
        self.branches, self.dim = nn.ModuleList(branches), dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], self.dim)


class Gated(nn.Module):
    """The halves of a layer, one gating the other."""

    def __init__(self, layer: nn.Module, dim: int):
        super().__init__()
        self.layer, self.dim = layer, dim

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.layer(x).chunk(2, self.dim)
        return F.silu(gate) * value


class SqueezeExcite(nn.Module):
    """A gate per channel of an image."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x)


class Attention(nn.Module):
    """Attention with a residual; as many heads for queries as `groups` times those for keys and values."""

    def __init__(self, width: int, *, fused: bool, groups: int):
        super().__init__()
        self.fused, self.size, self.groups = fused, 2, 1 if fused else groups
        self.q = nn.Linear(width, 24 if fused else 8)
        self.kv = nn.ModuleList() if fused else nn.ModuleList(nn.Linear(width, 8 // groups) for _ in range(2))
        self.out = nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.q(x).chunk(3, -1) if self.fused else [self.q(x), *(layer(x) for layer in self.kv)]
        q, k, v = (part.view(*x.shape[:-1], -1, self.size).transpose(1, 2) for part in parts)
        k, v = (part.repeat_interleave(self.groups, 1) for part in (k, v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """Pixels become tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """The mean over tokens, or over pixels."""

    def __init__(self, *dims: int):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


class Measured(nn.Module):
    """A gate from one number that all channels make together: a norm, a sum, the largest, products with a vector."""

    def __init__(self, kind: str, dim: int, width: int):
        super().__init__()
        self.kind, self.dim, self.weights = kind, dim, nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "sum":
            size = torch.tanh(x).sum(self.dim, keepdim=True)
        elif self.kind == "largest":
            size = F.relu(x).amax(self.dim, keepdim=True)
        elif self.kind == "vector":
            size = (x.movedim(self.dim, -1) @ self.weights).unsqueeze(self.dim)
        else:
            size = torch.linalg.vector_norm(x, float(self.kind), self.dim, keepdim=True)
        return x / (1 + size.abs())


def channels(shape: Shape) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


def channel_dim(shape: Shape) -> int:
    return 1 if len(shape) == 3 else -1


def pointwise(shape: Shape, width: int, *, bias: bool = True) -> nn.Module:
    """A linear layer over channels."""
    return nn.Conv2d(shape[0], width, 1, bias=bias) if len(shape) == 3 else nn.Linear(shape[-1], width, bias=bias)


def linear(shape: Shape, choices: Choices) -> nn.Module:
    return pointwise(shape, choices.pick(WIDTHS), bias=choices.pick((True, False)))


def activation(shape: Shape, choices: Choices) -> nn.Module:
    return choices.pick((nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.ELU, nn.Sigmoid, nn.Softplus))()


def norm(shape: Shape, choices: Choices) -> nn.Module:
    width = channels(shape)
    if len(shape) == 1:
        return nn.BatchNorm1d(width)
    if len(shape) == 2:
        return choices.pick((nn.LayerNorm, nn.RMSNorm))(width)
    groups = choices.pick([count for count in (2, 3, width) if width % count == 0])
    return choices.pick((nn.BatchNorm2d(width), nn.GroupNorm(groups, width), nn.InstanceNorm2d(width, affine=True)))


def measured(shape: Shape, choices: Choices) -> nn.Module:
    return Measured(choices.pick(("2", "1", "inf", "sum", "largest", "vector")), channel_dim(shape), channels(shape))


def convolution(shape: Shape, choices: Choices) -> nn.Module:
    inputs, width = shape[0], choices.pick(WIDTHS)
    groups = choices.pick([count for count in (1, 2, 3) if inputs % count == 0 and width % count == 0])
    size = choices.pick((3, 1))
    stride = choices.pick((1, 2) if min(shape[1:]) >= 4 else (1,))
    mode = choices.pick(("zeros", "zeros", "circular"))
    return nn.Conv2d(
        inputs, width, size, stride, size // 2, groups=groups, bias=choices.pick((True, False)), padding_mode=mode
    )


def depthwise(shape: Shape, choices: Choices) -> nn.Module:
    return nn.Conv2d(shape[0], shape[0] * choices.pick((1, 1, 2)), 3, padding=1, groups=shape[0])


def up(shape: Shape, choices: Choices) -> nn.Module:
    if max(shape[1:]) > 8:
        return nn.AvgPool2d(2)
    width = choices.pick(WIDTHS)
    transposed = nn.ConvTranspose2d(shape[0], width, 2, 2)
    return choices.pick((transposed, nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")))


def down(shape: Shape, choices: Choices) -> nn.Module:
    if min(shape[1:]) < 4:
        return nn.Identity()
    return choices.pick((nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2)))


def excite(shape: Shape, choices: Choices) -> nn.Module:
    return SqueezeExcite(shape[0])


def gate(shape: Shape, choices: Choices) -> nn.Module:
    return Gated(pointwise(shape, 2 * choices.pick(WIDTHS)), channel_dim(shape))


def attention(shape: Shape, choices: Choices) -> nn.Module:
    return Attention(shape[-1], fused=choices.pick((False, True)), groups=choices.pick((1, 2)))


def residual(shape: Shape, choices: Choices) -> nn.Module:
    """A few steps that leave the shape alone, and a layer back to the number of channels."""
    body, inner = steps(shape, choices, INNER[len(shape)], choices.pick((1, 2, 3)))
    return Residual(nn.Sequential(*body, pointwise(inner, channels(shape))), product=choices.pick((False, False, True)))


def concat(shape: Shape, choices: Choices) -> nn.Module:
    """Two branches, and in some the input itself."""
    branches = [steps(shape, choices, INNER[len(shape)], choices.pick((1, 2)))[0] for _ in range(2)]
    rest = choices.pick(([], [nn.Identity()]))
    return Concat([*(nn.Sequential(*branch) for branch in branches), *rest], channel_dim(shape))


def flat(shape: Shape, choices: Choices) -> nn.Module:
    kinds = {2: (Mean(1), nn.Flatten()), 3: (nn.Flatten(), Mean(2, 3), Tokens())}
    return choices.pick(kinds[len(shape)])


def image(shape: Shape, choices: Choices) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], choices.pick(WIDTHS) * 4), nn.Unflatten(1, (-1, 2, 2)))


def twice(shape: Shape, choices: Choices) -> nn.Module:
    """One layer in two places."""
    layer = pointwise(shape, channels(shape))
    return nn.Sequential(layer, nn.Tanh(), layer)


Step = Callable[[Shape, Choices], nn.Module]
EVERYWHERE: tuple[Step, ...] = (linear, activation, norm, measured)
INNER: dict[int, tuple[Step, ...]] = {  # they keep the sizes of images and the number of tokens
    1: (*EVERYWHERE, gate),
    2: (*EVERYWHERE, gate, attention),
    3: (*EVERYWHERE, gate, depthwise, excite),
}
OUTER: dict[int, tuple[Step, ...]] = {
    1: (*INNER[1], residual, concat, twice, image),
    2: (*INNER[2], residual, concat, twice, flat),
    3: (convolution, *INNER[3], residual, concat, twice, up, down, convolution, flat),
}


def steps(
    shape: Shape, choices: Choices, options: Sequence[Step] | None = None, count: int | None = None
) -> tuple[list[nn.Module], Shape]:
    """Layers in a row and the shape behind them: `count` of them, or as many as there are decisions for."""
    layers: list[nn.Module] = []
    while choices.left if count is None else len(layers) < count:
        layer = choices.pick(options or OUTER[len(shape)])(shape, choices)
        with torch.no_grad():
            shape = tuple(layer.eval()(torch.zeros(2, *shape)).shape[1:])
        layers.append(layer)
    return layers, shape


def build(numbers: Sequence[int]) -> nn.Sequential:
    """The model that the numbers stand for, with three outputs per token or pixel."""
    choices = Choices(numbers)
    start: Shape = choices.pick(STARTS)
    first, shape = steps(start, choices, (linear,), 1)
    layers, shape = steps(shape, choices)
    return nn.Sequential(*first, *layers, pointwise(shape, 3))


def case(numbers: Sequence[int]) -> Case:
    """The model as a case; its name is the list that makes it again."""
    numbers = tuple(numbers)
    start = Choices(numbers).pick(STARTS)
    return Case(f"graph{list(numbers)}", lambda: build(numbers), (Normal(2, *start),))


def cases(largest: int = 20) -> st.SearchStrategy[Case]:
    """Random cases; hypothesis shortens the list of one that fails."""
    return st.lists(st.integers(0, 59), min_size=2, max_size=largest).map(case)


def at_random(seed: int, length: int = 20) -> Case:
    """One case from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return case(torch.randint(60, (length,), generator=generator).tolist())
