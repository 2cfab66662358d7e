"""Weights over their norms: temporal convolutions, WaveNet, vocoders, and discriminators of GANs.

The older hooks and the parametrizations of torch take turns.
"""

import warnings
from collections.abc import Callable
from itertools import pairwise
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm

from zoo.case import Case, Normal

Wrap = Callable[[nn.Module], nn.Module]


def older_weight_norm(layer: nn.Module, dim: int | None = 0) -> nn.Module:
    """The hook, without the warning that a parametrization took its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, dim=dim)


@torch.no_grad()
def settle_(model: nn.Module) -> None:
    """Let spectral norms find the largest singular values of weights that were set from outside."""
    for module in model.modules():
        if isinstance(module, parametrizations._SpectralNorm) and module._u.numel():
            (chain,) = (each for each in model.modules() if module in each.children())
            module._power_method(module._reshape_weight_to_matrix(chain.original), 30)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                for _ in range(30):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=True))


class Chomp(nn.Module):
    """Cuts off the last steps, so that no output sees the future."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.steps].contiguous()


class TemporalBlock(nn.Module):
    """Two causal convolutions and a residual path, as in the TCN of Bai, Kolter and Koltun."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, wrap: Wrap):
        super().__init__()
        steps = (kernel - 1) * dilation
        self.conv1 = wrap(nn.Conv1d(inputs, outputs, kernel, padding=steps, dilation=dilation))
        self.conv2 = wrap(nn.Conv1d(outputs, outputs, kernel, padding=steps, dilation=dilation))
        self.net = nn.Sequential(
            self.conv1, Chomp(steps), nn.ReLU(), nn.Dropout(0.2), self.conv2, Chomp(steps), nn.ReLU(), nn.Dropout(0.2)
        )
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return (self.net(x) + residual).relu()


class TCN(nn.Module):
    def __init__(self, wrap: Wrap):
        super().__init__()
        widths = (3, 8, 8, 10)
        blocks = [TemporalBlock(i, o, 3, 2**n, wrap) for n, (i, o) in enumerate(pairwise(widths))]
        self.network, self.head = nn.Sequential(*blocks), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.network(x)[:, :, -1])


class WaveNet(nn.Module):
    """Gated convolutions that add to a residual stream and to one of skips, as in WN of WaveGlow and VITS."""

    def __init__(self, wrap: Wrap, layers: int = 3, width: int = 8):
        super().__init__()
        self.width, self.start = width, wrap(nn.Conv1d(4, width, 1))
        self.inner = nn.ModuleList(
            wrap(nn.Conv1d(width, 2 * width, 3, padding=2**n, dilation=2**n)) for n in range(layers)
        )
        self.residual = nn.ModuleList(wrap(nn.Conv1d(width, width, 1)) for _ in range(layers))
        self.skip = nn.ModuleList(wrap(nn.Conv1d(width, width, 1)) for _ in range(layers))
        self.end = nn.Conv1d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total: Tensor | int = 0
        for inner, residual, skip in zip(self.inner, self.residual, self.skip, strict=True):
            filtered, gate = inner(x).chunk(2, 1)
            gated = filtered.tanh() * gate.sigmoid()
            x, total = x + residual(gated), total + skip(gated)
        return self.end(total)


class Generator(nn.Module):
    """Transposed convolutions, each with residual blocks of several kernels, as in HiFi-GAN."""

    def __init__(self, wrap: Wrap, widths: tuple[int, ...] = (12, 8, 6)):
        super().__init__()
        self.pre, self.post = wrap(nn.Conv1d(5, widths[0], 7, padding=3)), wrap(nn.Conv1d(widths[-1], 1, 7, padding=3))
        pairs = list(pairwise(widths))
        self.ups = nn.ModuleList(wrap(nn.ConvTranspose1d(i, o, 4, stride=2, padding=1)) for i, o in pairs)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(
                    [wrap(nn.Conv1d(o, o, k, padding=k // 2 * d, dilation=d)), wrap(nn.Conv1d(o, o, k, padding=k // 2))]
                )
                for k, d in ((3, 1), (5, 2))
            )
            for _, o in pairs
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x, total = up(leaky_relu(x, 0.1)), 0
            for first, second in blocks:
                total = total + x + second(leaky_relu(first(leaky_relu(x, 0.1)), 0.1))
            x = total / len(blocks)
        return self.post(leaky_relu(x, 0.1)).tanh()


class Codec(nn.Module):
    """A residual unit between strided convolutions that are padded by reflection, as in the SEANet of EnCodec."""

    def __init__(self, wrap: Wrap, width: int = 6):
        super().__init__()
        self.stem = wrap(nn.Conv1d(2, width, 7))
        self.narrow, self.wide = wrap(nn.Conv1d(width, width // 2, 3)), wrap(nn.Conv1d(width // 2, width, 1))
        self.shortcut, self.down = wrap(nn.Conv1d(width, width, 1)), wrap(nn.Conv1d(width, 2 * width, 4, stride=2))
        self.up, self.last = wrap(nn.ConvTranspose1d(2 * width, width, 4, stride=2)), wrap(nn.Conv1d(width, 2, 7))
        self.elu = nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(pad(x, (3, 3), mode="reflect"))
        inner = self.narrow(pad(self.elu(x), (1, 1), mode="reflect"))
        x = self.shortcut(x) + self.wide(self.elu(inner))
        x = self.elu(self.down(pad(self.elu(x), (1, 1), mode="reflect")))
        return self.last(pad(self.elu(self.up(x)[..., 1:-1]), (3, 3), mode="reflect"))


class DiscriminatorBlock(nn.Module):
    """Two convolutions and a shortcut, each under a spectral norm, as in SNGAN."""

    def __init__(self, inputs: int, outputs: int, wrap: Wrap):
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut, self.pool = wrap(nn.Conv2d(inputs, outputs, 1)), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv2(self.conv1(x.relu()).relu())) + self.pool(self.shortcut(x))


class Discriminator(nn.Module):
    def __init__(self, wrap: Wrap):
        super().__init__()
        self.blocks = nn.Sequential(DiscriminatorBlock(3, 8, wrap), DiscriminatorBlock(8, 10, wrap))
        self.head = wrap(nn.Linear(10, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).relu().sum((2, 3)))


def critic(wrap: Wrap) -> nn.Module:
    """Strided convolutions in a chain, as in DCGAN."""
    widths = (3, 8, 10, 12)
    layers = [
        layer
        for i, o in pairwise(widths)
        for layer in (wrap(nn.Conv2d(i, o, 4, stride=2, padding=1)), nn.LeakyReLU(0.1))
    ]
    return nn.Sequential(*layers, nn.Flatten(), wrap(nn.Linear(12, 1)))


class Sequence(nn.Module):
    """Rows as sequences of one step."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)


def perceptron() -> nn.Module:
    """One length for all of a weight, one per column, and one per row of a convolution by groups."""
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(12, 16), dim=None), nn.ReLU(),
        older_weight_norm(nn.Linear(16, 20), dim=1), nn.GELU(),
        Sequence(), parametrizations.weight_norm(nn.Conv1d(20, 20, 1, groups=20)), nn.ReLU(),
        older_weight_norm(nn.Conv1d(20, 8, 1, groups=4)), nn.Flatten(), parametrizations.weight_norm(nn.Linear(8, 3)),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Joined(nn.Module):
    """Two layers side by side, or one gate of the other."""

    def __init__(self, left: nn.Module, right: nn.Module, gated: bool):
        super().__init__()
        self.left, self.right, self.gated = left, right, gated

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return left.tanh() * right.sigmoid() if self.gated else torch.cat([left, right], 1)


NORMS: tuple[Wrap, ...] = (
    lambda layer: layer,
    parametrizations.weight_norm,
    older_weight_norm,
    lambda layer: parametrizations.weight_norm(layer, dim=1),
    lambda layer: parametrizations.weight_norm(layer, dim=2),
    lambda layer: older_weight_norm(layer, dim=None),
    parametrizations.spectral_norm,
    nn.utils.spectral_norm,
)


@torch.no_grad()
def at_random(seed: int) -> nn.Sequential:
    """Convolutions of all kinds under all norms, one behind the other, beside it and around it, in double precision."""
    draw = Random(seed)

    def layer(inputs: int, outputs: int) -> nn.Module:
        wrap, bias = draw.choice(NORMS), draw.random() < 0.7
        if draw.random() < 0.2:
            return wrap(nn.ConvTranspose1d(inputs, outputs, 3, padding=1, bias=bias))
        groups = draw.choice([1, 1, 1, 2, inputs]) if inputs == outputs else 1
        kernel = draw.choice([1, 3])
        return wrap(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias))

    def function() -> nn.Module:
        return draw.choice([nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid])()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = draw.choice([4, 6, 8])
        layers = [layer(3, width), function()]
        for _ in range(draw.randint(2, 6)):
            kind = draw.choice(["plain", "plain", "residual", "joined", "gated", "norm"])
            if kind == "plain":
                outputs = draw.choice([4, 6, 8])
                layers, width = [*layers, layer(width, outputs)], outputs
            elif kind == "residual":
                layers.append(Residual(nn.Sequential(layer(width, 6), function(), layer(6, width))))
            elif kind == "norm":
                layers.append(nn.BatchNorm1d(width))
            else:
                halves = (6, 6) if kind == "gated" else (4, 2)
                layers, width = [*layers, Joined(*(layer(width, half) for half in halves), kind == "gated")], 6
            layers.append(function())
        model = nn.Sequential(*layers, layer(width, 2)).double().eval()
        for parameter in model.parameters():
            parameter.normal_()
        settle_(model)
    return model


weight_norm, spectral_norm = parametrizations.weight_norm, parametrizations.spectral_norm


class Settled(Case):
    """A case whose spectral norms are those of its random weights."""

    def make(self, seed: int = 0) -> nn.Module:
        model = super().make(seed)
        with torch.random.fork_rng(devices=[]):
            settle_(model)
        return model


CASES = [
    Case("temporal", lambda: TCN(older_weight_norm), (Normal(2, 3, 12),)),
    Case("temporal-parametrized", lambda: TCN(weight_norm), (Normal(2, 3, 12),)),
    Case("wavenet", lambda: WaveNet(weight_norm), (Normal(2, 4, 12),)),
    Case("vocoder", lambda: Generator(older_weight_norm), (Normal(2, 5, 6),)),
    Case("vocoder-parametrized", lambda: Generator(weight_norm), (Normal(2, 5, 6),)),
    Case("codec", lambda: Codec(weight_norm), (Normal(2, 2, 16),)),
    Case("weight-norms", perceptron, (Normal(4, 12),)),
    Settled("discriminator", lambda: Discriminator(nn.utils.spectral_norm), (Normal(2, 3, 8, 8),)),
    Settled("discriminator-parametrized", lambda: Discriminator(spectral_norm), (Normal(2, 3, 8, 8),)),
    Settled("chain-discriminator", lambda: critic(spectral_norm), (Normal(2, 3, 8, 8),)),
]
