"""Habits of people who write models: parameters that are cut, pixels from linear layers, frozen weights, experts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkage import CoupledChannels, GroupError, ShrinkError, shrink

X = torch.linspace(-2, 2, 48).reshape(2, 3, 8).sin()


class Positions(nn.Module):
    """A layer is called with a part of a parameter, and another one with copies of one."""

    def __init__(self):
        super().__init__()
        self.places, self.query = nn.Parameter(torch.randn(1, 6, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.drop, self.shift = nn.Dropout(0.1), nn.Linear(8, 8)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = x + self.drop(self.places[:, : x.shape[1]]) + self.shift(self.query.expand(len(x), -1, -1))
        return self.outer(torch.relu(self.inner(x)))


@pytest.mark.parametrize("verify", [True, False])
def test_layers_may_be_called_with_views_of_parameters(verify):
    torch.manual_seed(0)
    model = Positions().eval()
    with torch.no_grad():
        model.inner.weight[:5], model.inner.bias[:5] = 0, 0
    result = shrink(model, X, verify=verify)
    assert result.model.inner.out_features == 11
    assert result.report.before.multiply_adds == 6 * (8 * 16 + 16 * 3) + 2 * 8 * 8
    assert [layer.before.multiply_adds for layer in result.report.layers] == [6 * 8 * 16, 6 * 16 * 3]
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(result.model(X), model(X))


class Pixels(nn.Module):
    """A linear layer makes the pixels of an image, which a norm follows."""

    def __init__(self):
        super().__init__()
        self.pixels, self.norm, self.out = nn.Linear(8, 96), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.pixels(x).view(len(x), -1, 4, 4))))


def test_pixels_that_a_linear_layer_makes_go_with_their_channel():
    torch.manual_seed(0)
    model, x = Pixels().eval(), X[:, 0]
    channels = CoupledChannels(model, x)
    assert channels.count == 6
    assert channels.slices("pixels.weight").groups[:32] == (0,) * 16 + (1,) * 16
    with torch.no_grad():
        for name in channels.names:
            member = channels.slices(name)
            index = torch.tensor([place for place, group in enumerate(member.groups) if group in (1, 4)])
            model.get_parameter(name).index_fill_(member.dim, index, 0.0)
    small = shrink(model, x).model
    assert (small.pixels.out_features, small.norm.num_features, small.out.in_channels) == (64, 4, 4)
    torch.testing.assert_close(small(x), model(x))


def test_what_a_frozen_weight_makes_is_in_no_group():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    assert CoupledChannels(model, X).names == ("2.weight", "2.bias")
    model[2].weight.requires_grad_(False)
    with pytest.raises(GroupError, match="is trained"):
        CoupledChannels(model, X)
    with torch.no_grad():
        model[2].weight[1:] = 0  # what is zero stays so
    channels = CoupledChannels(model, X)
    assert (channels.names, channels.slices("2.bias").groups) == (("2.bias",), (-1, 0, 1, 2, 3))


def test_zero_channels_of_a_transposed_convolution_are_told_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    with torch.no_grad():
        model[0].weight[:, :3] = 0
        model[1].bias.fill_(0.5)
    (kept,) = shrink(model.eval(), torch.randn(2, 4, 5, 5)).report.kept
    assert (kept.name, kept.channels) == ("0.weight", 3)
    assert "penalize the bias" in kept.advice


class Experts(nn.Module):
    """Each sample goes to one of three experts."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(3))

    def forward(self, x):
        chosen, result = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            result[rows] = expert(x[rows])
        return result


def test_an_expert_that_no_sample_reaches_says_so():
    """Two samples leave one of three experts alone, whatever the gate says."""
    torch.manual_seed(0)
    model = Experts()
    with torch.no_grad():
        for expert in model.experts:
            expert[0].weight[:3], expert[0].bias[:3] = 0, 0
    kept = shrink(model, torch.randn(2, 4)).report.kept
    assert any(channels.name.startswith("experts.") for channels in kept)
    assert all("too few samples" in channels.reason for channels in kept)
    assert all("more samples" in channels.advice for channels in kept)


@pytest.mark.parametrize("verify", [True, False])
def test_inputs_of_another_kind_are_an_error_in_one_line(verify, capfd):
    for wrong in (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 7)):
        with pytest.raises(ShrinkError, match=r"with the example inputs failed: .*mat1 and mat2") as raised:
            shrink(nn.Linear(8, 2), wrong, verify=verify)
        assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


def test_a_part_of_a_channel_is_no_number_of_channels():
    with pytest.raises(ShrinkError, match=r"a whole number of 1 or more, found 2\.5"):
        shrink(nn.Linear(8, 2), X, round_to=2.5)


class NoisyLinear(nn.Module):
    """Weights with noise of a size that is learned, in training mode alone."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.mean, self.size = (nn.Parameter(torch.randn(outputs, inputs)) for _ in range(2))
        self.bias, self.bias_size = (nn.Parameter(torch.randn(outputs)) for _ in range(2))
        self.register_buffer("noise", torch.randn(outputs, inputs))

    def forward(self, x):
        if self.training:
            return F.linear(x, self.mean + self.size * self.noise, self.bias + self.bias_size)
        return F.linear(x, self.mean, self.bias)


def test_what_training_alone_reads_goes_with_what_it_meets_there():
    torch.manual_seed(0)
    model = nn.Sequential(NoisyLinear(6, 12), nn.ReLU(), NoisyLinear(12, 12), nn.Tanh(), NoisyLinear(12, 3)).eval()
    channels, x = CoupledChannels(model, torch.randn(4, 6)), torch.randn(5, 6)
    assert channels.count == 24
    made = [(member.parameter, member.dim) for member in channels.members if member.parameter.endswith("size")]
    assert made == [("0.size", 0), ("0.bias_size", 0), ("2.size", 0), ("2.bias_size", 0)]
    with torch.no_grad():
        for name in ("mean", "size", "bias", "bias_size"):
            for layer, count in ((model[0], 5), (model[2], 4)):
                getattr(layer, name)[:count] = 0
    small = shrink(model, x).model
    assert [tuple(small[number].size.shape) for number in (0, 2, 4)] == [(7, 6), (8, 7), (3, 8)]
    assert [tuple(small[number].noise.shape) for number in (0, 2, 4)] == [(7, 6), (8, 7), (3, 8)]
    for training in (False, True):  # the noise of what is left is that of the dense model
        torch.testing.assert_close(small.train(training)(x), model.train(training)(x))


class Codes(nn.Module):
    """Rows of a table, the nearest to each sample, and averages of these samples, which training keeps."""

    def __init__(self, width):
        super().__init__()
        self.table, self.count = nn.Embedding(5, width), nn.Parameter(torch.ones(5), requires_grad=False)
        self.register_buffer("average", torch.randn(5, width))

    def forward(self, x):
        chosen = F.one_hot(torch.cdist(x, self.table.weight).argmin(1), 5).to(x.dtype)
        if self.training:
            self.average.mul_(0.9).add_(chosen.t() @ x, alpha=0.1)
        return chosen @ self.table.weight


def test_averages_that_training_keeps_have_the_width_of_what_they_average():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Codes(8), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight[:3] = model[0].bias[:3] = model[1].table.weight[:, :3] = model[1].average[:, :3] = 0
    x = torch.randn(7, 6)
    small = shrink(model, x).model
    assert small[1].average.shape == small[1].table.weight.shape == (5, 5)
    torch.testing.assert_close(small.train()(x), model.train()(x))
    torch.testing.assert_close(small[1].average, model[1].average[:, 3:])


class Policy(nn.Module):
    """The logarithm of the probability of an action, by a distribution that checks its numbers."""

    def __init__(self):
        super().__init__()
        self.hidden, self.mean, self.size = nn.Linear(6, 12), nn.Linear(12, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x, action):
        of = torch.distributions.Normal(self.mean(self.hidden(x).tanh()), self.size.exp())
        return of.log_prob(action).sum(-1), of.entropy()


def test_distributions_are_followed_and_check_their_numbers_as_before(monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # torch.compile turns it off for good
    torch.manual_seed(0)
    model, call = Policy().eval(), (torch.randn(4, 6), torch.randn(4, 2))
    assert CoupledChannels(model, call).count == 12
    with torch.no_grad():
        model.hidden.weight[:5] = model.hidden.bias[:5] = 0
    small = shrink(model, call).model
    assert len(small.hidden.weight) == 7
    torch.testing.assert_close(small(*call), model(*call))
    for each in (model, small):
        with pytest.raises(ValueError, match="parameter loc"):
            each(torch.full((4, 6), float("nan")), call[1])


class Retention(nn.Module):
    """Heads with weights of their own, which a norm in groups holds together."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(6, 4, bias=False) for _ in range(3)])
        self.norm, self.out = nn.GroupNorm(3, 12), nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.out(self.norm(torch.cat([head(x) for head in self.heads], -1)))


def test_weights_of_which_nothing_would_be_left_are_in_no_group():
    model = Retention().eval()
    channels = CoupledChannels(model, torch.randn(5, 6))  # without a warning
    assert set(channels.names) == {"out.0.weight", "out.0.bias"}
    with torch.no_grad():
        for tensor in (model.heads[1].weight, model.norm.weight[4:8], model.norm.bias[4:8]):
            tensor.zero_()
    report = shrink(model, torch.randn(5, 6)).report
    reasons = {kept.reason for kept in report.kept}
    assert reasons == {"all channels along an axis of a tensor are coupled, so that none would be left"}


class PooledWords(nn.Module):
    """Means over the words of a text, by a window as long as the text that leaves the channels as they are."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.table, self.head = pool, nn.Embedding(20, 12), nn.Linear(12, 3)

    def forward(self, words):
        return self.head(self.pool(self.table(words)).squeeze(1))


@pytest.mark.parametrize(
    ("pool", "count"),
    [
        (lambda x: F.avg_pool2d(x, (x.shape[1], 1)), 12),
        (lambda x: F.max_pool2d(x, (x.shape[1], 1), stride=(1, 1)), 12),
        (lambda x: F.avg_pool2d(x, (x.shape[1], 1), stride=1), 12),
        (lambda x: F.avg_pool2d(x, (x.shape[1], 3), stride=1, padding=(0, 1)), 0),
        (lambda x: F.max_pool2d(x, (x.shape[1], 1), stride=(1, 2)).repeat(1, 1, 2), 0),
        (lambda x: F.adaptive_avg_pool2d(x, (1, 12)), 0),
    ],
)
def test_windows_of_one_place_leave_channels_as_they_are(pool, count):
    torch.manual_seed(0)
    model, words = PooledWords(pool).eval(), torch.randint(20, (4, 5))
    if count == 0:
        with pytest.raises(GroupError, match="some channel can go"):
            CoupledChannels(model, words)
        return
    assert CoupledChannels(model, words).count == count
    with torch.no_grad():
        model.table.weight[:, :5] = 0
    small = shrink(model, words).model
    assert small.table.embedding_dim == 7
    for other in (words, torch.randint(20, (3, 7))):
        torch.testing.assert_close(small(other), model(other))
