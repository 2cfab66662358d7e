"""Models of convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, Normal


def conv(inputs: int, outputs: int, size: int = 3, *, activation: nn.Module | None = None, **options: int) -> nn.Module:
    """Convolution without bias, batch norm, activation."""
    layers = [nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation] if activation else []))


class Basic(nn.Module):
    """The residual block of ResNet-18."""

    def __init__(self, inputs: int, width: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, width, activation=nn.ReLU(inplace=True), stride=stride), conv(width, width)
        )
        projected = stride > 1 or inputs != width
        self.shortcut = conv(inputs, width, 1, stride=stride) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """The residual block of ResNet-50."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        relu = nn.ReLU()
        self.body = nn.Sequential(
            conv(inputs, width, 1, activation=relu), conv(width, width, activation=relu), conv(width, outputs, 1)
        )
        self.shortcut = conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu_()


class Inverted(nn.Module):
    """The inverted residual block of MobileNet: expand, depthwise, project."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, hidden, 1, activation=nn.ReLU6()),
            conv(hidden, hidden, activation=nn.Hardswish(), groups=hidden, stride=stride),
            conv(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Unet(nn.Module):
    """Down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self, *, transposed: bool):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        rescale = nn.Upsample(scale_factor=2, mode="bilinear")
        self.up = nn.ConvTranspose2d(16, 6, 2, stride=2) if transposed else nn.Sequential(nn.Conv2d(16, 6, 1), rescale)
        self.head = nn.Sequential(nn.Conv2d(14, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(torch.cat([self.up(self.middle(skip)), skip], dim=1))


class SqueezeExcite(nn.Module):
    """A gate per channel, from the means of all channels."""

    def __init__(self, width: int = 12, hidden: int = 4):
        super().__init__()
        self.stem, self.head = conv(3, width, activation=nn.SiLU()), nn.Conv2d(width, 5, 1)
        self.squeeze, self.excite = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.head(x * gate[:, :, None, None])


class Grouped(nn.Module):
    """A grouped convolution between dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, 16, activation=nn.ReLU())
        self.grouped, self.head = conv(16, 24, activation=nn.ReLU(), groups=4), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.first(x)))


class Flattened(nn.Module):
    """Channels times pixels are the features of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden, self.head = nn.Linear(8 * 4, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.first(x).flatten(1))))


class Generator(nn.Module):
    """Features of a linear layer become channels times pixels; then transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8 * 4)
        self.up = nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.grouped = nn.ConvTranspose2d(12, 8, 3, padding=1, groups=2)
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x)).view(-1, 8, 2, 2)
        return torch.tanh(self.head(F.relu(self.grouped(F.leaky_relu(self.norm(self.up(x)), 0.2)))))


class Shuffled(nn.Module):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 16, activation=nn.ReLU()), conv(16, 16, activation=nn.ReLU(), groups=4)
        self.third, self.head = conv(16, 16, activation=nn.ReLU(), groups=4), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 4, channels // 4, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.third(x))


class DenseNet(nn.Module):
    """Every layer sees all before it; the last halves are split off."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 6, 3, padding=1)) for width in (8, 14, 20)
        )
        self.norm, self.head = nn.BatchNorm2d(26), nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.adaptive_avg_pool2d(F.relu(self.norm(torch.cat(features, 1))), 1).flatten(1))


class Pooled(nn.Module):
    """Means over all pixels, then 1x1 convolutions; then another pooling to a grid that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12, activation=nn.ReLU())
        self.pool, self.mix = nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1)
        self.grid, self.head = nn.AdaptiveMaxPool2d(2), nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.relu(self.mix(self.pool(x)))
        return self.head(torch.flatten(self.grid(x), 1))


class PixelShuffled(nn.Module):
    """Sub-pixel convolution: channels become pixels; and a strided one back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
        self.shuffle, self.head = nn.PixelShuffle(2), nn.Conv2d(6, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shuffle(self.up(F.relu(self.first(x))))))


def unshuffled() -> nn.Module:
    """Pixels of a channel become channels, and after a convolution channels become pixels again."""
    return nn.Sequential(
        conv(3, 6, activation=nn.ReLU()), nn.PixelUnshuffle(2), conv(24, 16, activation=nn.ReLU()),
        nn.PixelShuffle(2), nn.Conv2d(4, 3, 3, padding=1),
    )  # fmt: skip


def channel_shuffled() -> nn.Module:
    """Channels of two branches change places, without a layer that knows of groups."""
    return nn.Sequential(
        conv(3, 16, activation=nn.ReLU()), nn.ChannelShuffle(4), conv(16, 12, activation=nn.ReLU()), nn.Conv2d(12, 5, 1)
    )


class ConvNext(nn.Module):
    """Depthwise convolution, then a perceptron with the channels last; a parameter scales the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 12, 2, stride=2), nn.Conv2d(12, 12, 5, padding=2, groups=12)
        self.norm, self.expand, self.project = nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.scale, self.head = nn.Parameter(torch.full((12, 1, 1), 1e-6)), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        branch = self.project(F.gelu(self.expand(branch))).permute(0, 3, 1, 2)
        return self.head((x + self.scale * branch).mean([-2, -1]))


class SpatialGate(nn.Module):
    """A gate per pixel from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = (
            conv(3, 12, activation=nn.ReLU()),
            nn.Conv2d(2, 1, 3, padding=1),
            nn.Conv2d(12, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.head(x * torch.sigmoid(self.gate(seen)))


class Branches(nn.Module):
    """Split into unequal parts, as in inception blocks and cross-stage networks; joined in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(3, 14, activation=nn.ReLU()), conv(6, 6), conv(8, 10)
        self.head = nn.Conv2d(14 + 16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = torch.split(x, [6, 8], dim=1)
        return self.head(F.relu(torch.cat([self.right(right), self.left(left), x.flip(1)], 1)))


def resnet() -> nn.Module:
    return nn.Sequential(
        conv(3, 8, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1),
        Basic(8, 8), Basic(8, 12, stride=2), Bottleneck(12, 6, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def mobilenet() -> nn.Module:
    return nn.Sequential(
        conv(3, 8, stride=2, activation=nn.Hardswish()), Inverted(8, 24, 8), Inverted(8, 20, 12, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.GroupNorm(12, 12), nn.ReLU(),
        nn.Conv2d(12, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 5, 1),
    )  # fmt: skip


def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ReLU(),
        nn.Conv2d(12, 10, 3, padding=1), nn.InstanceNorm2d(10, affine=True, track_running_stats=True), nn.ReLU(),
        nn.Conv2d(10, 8, 3), nn.InstanceNorm2d(8), nn.Conv2d(8, 5, 1),
    )  # fmt: skip


def prelu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(12), nn.Conv2d(12, 10, 3, padding=1), nn.PReLU(), nn.Conv2d(10, 5, 1)
    )


def padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=2, dilation=2, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(12, 10, 3, padding=1, stride=2, padding_mode="circular"), nn.ReLU(), nn.ZeroPad2d((1, 2, 1, 0)),
        nn.Conv2d(10, 8, 3, padding="same", padding_mode="replicate"), nn.ReLU(), nn.ConstantPad2d(1, 0.5),
        nn.Conv2d(8, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 5, 1),
    )  # fmt: skip


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 10, 3, groups=2),
        nn.ReLU(), nn.ConvTranspose1d(10, 6, 2, stride=2), nn.ELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(6, 5),
    )  # fmt: skip


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.AvgPool3d(2),
        nn.Conv3d(8, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(3), nn.AvgPool2d(2), nn.Dropout2d(0.2),
        nn.Conv2d(12, 10, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(10, 5, 1),
        nn.AdaptiveAvgPool2d(2),
    )  # fmt: skip


IMAGES = (Normal(2, 3, 8, 8),)
CASES = [
    Case("resnet", resnet, (Normal(2, 3, 16, 16),)),
    Case("mobilenet", mobilenet, (Normal(2, 3, 16, 16),)),
    Case("unet", lambda: Unet(transposed=True), IMAGES),
    Case("unet-upsampled", lambda: Unet(transposed=False), IMAGES),
    Case("squeeze-excite", SqueezeExcite, IMAGES),
    Case("group-norm", group_norm, IMAGES),
    Case("grouped-conv", Grouped, IMAGES),
    Case("flattened", Flattened, IMAGES),
    Case("generator", Generator, (Normal(2, 6),)),
    Case("shuffled", Shuffled, IMAGES),
    Case("densenet", DenseNet, IMAGES),
    Case("pooled", Pooled, IMAGES),
    Case("pixel-shuffled", PixelShuffled, IMAGES),
    Case("pixel-unshuffled", unshuffled, IMAGES),
    Case("channel-shuffled", channel_shuffled, IMAGES),
    Case("convnext", ConvNext, IMAGES),
    Case("spatial-gate", SpatialGate, IMAGES),
    Case("branches", Branches, IMAGES),
    Case("instance-norm", instance_norm, IMAGES),
    Case("prelu", prelu, IMAGES),
    Case("padded", padded, IMAGES),
    Case("conv1d", conv1d, (Normal(2, 4, 16),)),
    Case("conv3d", conv3d, (Normal(2, 2, 4, 6, 6),)),
    Case("vgg", vgg, IMAGES),
]
