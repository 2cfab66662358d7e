"""Weights that are standardized by each filter, and shuffled channels: outputs go, and what the mean counts stays."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shrinkage import Coupled, CoupledChannels, ShrinkPlan, apply_plan, shrink
from zoo.case import randomize_

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OTHERS = 3 * torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(2))


class Convolution(nn.Conv2d):
    """A convolution whose weight is standardized at each call."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain, self.scale = nn.Parameter(torch.ones(outputs, 1, 1, 1)), self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardized(), self.bias, padding=1)


class ByMoments(Convolution):
    def standardized(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return self.gain * (self.weight - mean) / torch.sqrt(variance + 1e-10)


class ByMeans(Convolution):
    """Weight standardization as it was published."""

    def standardized(self) -> Tensor:
        mean = self.weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        weight = self.weight - mean
        deviation = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return self.gain * weight / deviation.expand_as(weight)


class ByBatchNorm(Convolution):
    """As in timm, with a gain and a scale."""

    def standardized(self) -> Tensor:
        gain = (self.gain * self.scale).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)


class ByLayerNorm(Convolution):
    def standardized(self) -> Tensor:
        return self.gain * F.layer_norm(self.weight, self.weight.shape[1:])


KINDS = [ByMoments, ByMeans, ByBatchNorm, ByLayerNorm]


def network(kind: type[Convolution]) -> nn.Module:
    torch.manual_seed(0)
    layers = kind(3, 8), nn.ReLU(), kind(8, 6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def zero_groups_(model: nn.Module, channels: Coupled, step: int = 3) -> None:
    for member in channels.members:
        places = [place for place, group in enumerate(member.groups) if group >= 0 and group % step == 0]
        model.get_parameter(member.parameter).index_fill_(member.dim, torch.tensor(places, dtype=torch.long), 0.0)


def assert_the_same(model: nn.Module, small: nn.Module, plan: ShrinkPlan, fresh: nn.Module) -> None:
    again = apply_plan(fresh, ShrinkPlan.from_json(plan.to_json()))
    again.load_state_dict(small.state_dict())
    again.eval()
    for x in (IMAGES, OTHERS, OTHERS[:1]):
        torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(again(x), small(x))


@pytest.mark.parametrize("kind", KINDS)
def test_filters_that_are_standardized_go(kind):
    """A filter that is zero is zero once it is standardized: it has no other mean than 0."""
    model = network(kind)
    channels = CoupledChannels(model, IMAGES)
    assert channels.count == 6
    assert channels.names == ("2.weight", "2.bias", "2.gain")
    zero_groups_(model, channels)
    result = shrink(model, IMAGES)
    assert result.model[2].out_channels == 4
    assert not result.report.kept
    assert_the_same(model, result.model, result.plan, network(kind))
    assert_the_same(model.train(), result.model.train(), result.plan, network(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_a_standardized_weight_stay_and_the_report_says_why(kind):
    """Their columns are part of the mean and of the variance, whatever the channels are."""
    model = network(kind)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[0].gain):
            tensor[:3] = 0
    result = shrink(model, IMAGES)
    assert result.model[0].out_channels == 8
    assert torch.equal(result.model(OTHERS), model(OTHERS))
    (kept,) = [each for each in result.report.kept if each.name == "0.weight"]
    assert kept.channels == 3
    assert "`2`" in kept.reason
    assert kept.advice


def by_view(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def by_reshape(x: Tensor, groups: int) -> Tensor:
    b, _, h, w = x.shape
    return x.view(b, groups, -1, h, w).transpose(1, 2).reshape(b, -1, h, w)


def by_unflatten(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


SHUFFLES = [by_view, by_reshape, by_unflatten, F.channel_shuffle]


def normed(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())))


class Split(nn.Module):
    """After ShuffleNet V2: one half passes, the other goes through a branch, and both are shuffled."""

    def __init__(self, shuffle):
        super().__init__()
        self.shuffle, self.stem = shuffle, normed(nn.Conv2d(3, 8, 3, padding=1, bias=False))
        self.branch = normed(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        return self.head(self.shuffle(torch.cat([left, self.branch(right)], 1), 2)).mean((2, 3))


class Grouped(nn.Module):
    """After ShuffleNet: a convolution in groups, whose channels are shuffled for the next."""

    def __init__(self, shuffle):
        super().__init__()
        self.shuffle, self.first = shuffle, normed(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3))
        self.depthwise, self.head = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.shuffle(self.first(x), 3)))


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("kind", [Split, Grouped])
def test_zero_channels_go_behind_a_shuffle(kind, shuffle):
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = kind(shuffle).eval()
        randomize_(model)
        return model

    model = make()
    channels = CoupledChannels(model, IMAGES)
    assert channels.count == 8
    zero_groups_(model, channels)
    result = shrink(model, IMAGES)
    assert not result.report.kept
    assert result.report.after.parameters < 0.6 * result.report.before.parameters
    assert_the_same(model, result.model, result.plan, make())
