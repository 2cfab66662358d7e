"""Models of pictures, sound and physics: all of their channels can go but inputs and outputs, and outputs stay."""

import copy

import pytest
import torch
from test_families import largest_difference, zero_groups_
from torch import nn
from torch.utils._pytree import tree_leaves

from shrinkage import CoupledChannels, GroupError, load_smaller, save_smaller, shrink, shrink_optimizer_
from zoo.harness import difference, size
from zoo.signals import SIGNALS

GROUPS = {
    "mirrored": 10 + 8, "fourier-operator": 3 * 10 + 16, "state-space": 12 + 12, "pixel-net": 10 + 12 + 8,
    "synthesis": 12 + 8 + 10 + 8, "time-channel": 10 + 14, "conditioned": 12 + 10, "recurrent-decoder": 8 + 10,
    "masked-tokens": 12 + 16, "unpooled": 10, "straight-through": 12 + 8 + 10, "waves": 6 + 2 * 6 + 7, "ghost": 4 + 3,
    "fixed-queries": 10 + 3, "states": 8, "max-normed": 10, "complex": 10, "precise": 10 + 8, "capsules": 6 + 5,
}  # fmt: skip


@pytest.mark.parametrize("case", SIGNALS, ids=str)
def test_every_channel_is_a_group_and_goes(case):
    model, example = case.make(), case.example()[0]
    before = copy.deepcopy(model.state_dict())
    channels = CoupledChannels(model, example)
    assert channels.count == GROUPS[case.name]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    zero_groups_(model, channels)
    result = shrink(model, example)
    assert not result.report.kept
    assert largest_difference(case, model, result.model) < 1e-5
    assert size(result.model) < 0.8 * size(model)
    assert shrink(result.model, example).report.after.parameters == size(result.model)


@pytest.mark.parametrize("case", SIGNALS, ids=str)
def test_what_is_smaller_is_saved_and_trained_on(case, tmp_path):
    model, example = case.make(), case.example()[0]
    kind = torch.optim.SGD if case.name == "complex" else torch.optim.AdamW  # which takes no conjugated gradients
    optimizer = kind(model.parameters(), lr=1e-3)
    zero_groups_(model, CoupledChannels(model, example))
    small = shrink(model, example)
    save_smaller(tmp_path / "small.safetensors", small)
    again = load_smaller(tmp_path / "small.safetensors", case.build).model.eval()
    with torch.no_grad():
        for other in (again, copy.deepcopy(small.model)):
            assert difference(small.model(*example), other(*example)) < 1e-6
    shrink_optimizer_(optimizer, small.plan, model, small.model)
    sum(each.square().mean() for each in tree_leaves(small.model.train()(*example))).backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in small.model.parameters())


class Standardized(nn.Linear):
    """A layer that writes its weight anew, whose rows then have the mean 0."""

    def forward(self, x):
        self.weight.data = self.weight.data - self.weight.data.mean(1, keepdim=True)
        return super().forward(x)


def test_what_is_written_into_a_weight_counts():
    with pytest.raises(GroupError, match="mean over channels"):
        CoupledChannels(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Standardized(6, 3)), torch.randn(5, 4))


@pytest.mark.parametrize(
    ("between", "left"),
    [(torch.Tensor.detach, 4), (lambda x: x.view(torch.int32).view(torch.float32), 8)],
    ids=["detached", "bits"],
)
def test_what_a_zero_multiplies_is_not_needed_where_that_can_be_told(between, left):
    class Scaled(nn.Sequential):
        def forward(self, x):
            return self[3](between(self[2](self[1](self[0](x)))) * scale)

    model, x = Scaled(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2)).eval(), torch.randn(4, 5)
    scale = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    with torch.no_grad():
        model[2].weight[3:, :4] = 0
        small = shrink(model, x).model
        assert small[0].out_features == left
        assert difference(model(x), small(x)) < 1e-6


class Copied(nn.Module):
    """Channels that are copied twice, and a number that is copied for each of them."""

    def __init__(self):
        super().__init__()
        self.first, self.shift, self.last = nn.Linear(5, 12), nn.Parameter(torch.ones(1, 1)), nn.Linear(24, 2)

    def forward(self, x):
        return self.last((self.first(x) + self.shift.repeat(1, 12)).relu().repeat(1, 2))


def test_channels_that_are_copied_twice():
    model, x = Copied().eval(), torch.randn(4, 5)
    with torch.no_grad():
        model.first.weight[:5] = model.last.weight[:, [*range(5), *range(12, 17)]] = 0
        small = shrink(model, x).model
        assert small.last.in_features == 2 * 7
        assert difference(model(x), small(x)) < 1e-6


def test_a_transposed_layer_in_groups_loses_the_same_channels_of_each():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, groups=2), nn.Conv2d(12, 2, 1))
    x = torch.randn(2, 3, 5, 5)
    channels = CoupledChannels(model.eval(), x)
    assert channels.count == 8 // 2 + 12 // 2
    zero_groups_(model, channels)
    small = shrink(model, x).model
    assert small[2].in_channels < 8
    assert small[2].out_channels < 12
    with torch.no_grad():
        assert difference(model(x), small(x)) < 1e-6


class Aside(nn.Module):
    """Code that is run and whose results nobody uses: a sum of two layers in another shape, and a softmax of one."""

    def __init__(self, softmax=False):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 2)
        self.softmax = softmax

    def forward(self, x):
        one, other = self.first(x), self.second(x)
        if self.softmax:
            one.softmax(-1).log()
        else:
            one.view(-1, 3, 2) + other.view(-1, 3, 2)
        return self.last(torch.cat([one, other], -1))


def test_what_is_added_up_and_left_aside_in_another_shape_has_to_fit():
    x = torch.randn(5, 4)
    assert CoupledChannels(Aside(softmax=True), x).count == 12
    model = Aside()
    channels = CoupledChannels(model, x)
    assert channels.count == 3
    zero_groups_(model, channels)
    small = shrink(model, x)
    assert not small.report.kept
    with torch.no_grad():
        assert difference(model(x), small.model(x)) < 1e-6


def test_blocks_without_autocast_are_such_under_autocast():
    seen = []

    class Block(nn.Linear):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                seen.append(torch.is_autocast_enabled("cpu"))
                return super().forward(x.float())

    enter = torch.autocast.__enter__
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(GroupError, match="used by `wrap_with_autocast`"):
            CoupledChannels(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Block(6, 2)), torch.randn(3, 4))
        assert torch.is_autocast_enabled("cpu")
    assert not any(seen)
    assert torch.autocast.__enter__ is enter
