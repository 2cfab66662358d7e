"""What a zero multiplies is needed by nobody: branches behind a scale, a gate or a gamma that is zero."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shrinkage import shrink

WIDTH, HIDDEN = 8, 16


class Residual(nn.Module):
    """A branch of `depth` hidden layers, added to what enters it as `joined` says, with a parameter of `shape`."""

    def __init__(self, joined, shape=(WIDTH,), depth=1):
        super().__init__()
        layers = [nn.Linear(WIDTH, HIDDEN), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(HIDDEN, HIDDEN), nn.GELU()]
        self.stem, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
        self.branch = nn.Sequential(*layers, nn.Linear(HIDDEN, WIDTH))
        self.scale = nn.Parameter(torch.zeros(shape))
        self.join = (joined,)  # in a tuple, so that it is no function of the module

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.join[0](x, self.branch(x), self.scale))


ZERO = {
    "LayerScale": (lambda x, y, a: x + a * y, (WIDTH,)),
    "from the right": (lambda x, y, a: y * a + x, (WIDTH,)),
    "ReZero": (lambda x, y, a: x + a * y, ()),
    "SkipInit": (lambda x, y, a: x + a * y, (1,)),
    "twice the scale": (lambda x, y, a: x + (2 * a) * y, ()),
    "a view of the scale": (lambda x, y, a: x + a[None, :] * y, (WIDTH,)),
    "an expanded scale": (lambda x, y, a: x + a.expand(WIDTH) * y, (1,)),
    "a gate that is odd": (lambda x, y, a: x + a.tanh() * y, ()),
    "a gate of the data": (lambda x, y, a: x + (a * x.sigmoid()) * y, ()),
    "gates in a row": (lambda x, y, a: x + x.sigmoid() * y * a, ()),
    "in place": (lambda x, y, a: y.mul_(a).add_(x), (WIDTH,)),
    "subtracted": (lambda x, y, a: x - y * a / 3, (WIDTH,)),
    "addcmul": (lambda x, y, a: torch.addcmul(x, a, y), (WIDTH,)),
    "lerp": (lambda x, y, a: torch.lerp(x, y, a), (WIDTH,)),
    "einsum": (lambda x, y, a: x + torch.einsum("bc,c->bc", y, a), (WIDTH,)),
    "a branch in a branch": (lambda x, y, a: x + a * F.relu(x + y), (WIDTH,)),
    "over all channels": (lambda x, y, a: x + a * y.softmax(-1), (WIDTH,)),
    "behind a reshape": (lambda x, y, a: x + (a * y.view(-1, 2, 4)).flatten(1), ()),
    "batch norm": (lambda x, y, a: x + F.batch_norm(y, torch.zeros(WIDTH), torch.ones(WIDTH), a, a), (WIDTH,)),
    "layer norm": (lambda x, y, a: x + F.layer_norm(y, (WIDTH,), a), (WIDTH,)),
    "RMS norm": (lambda x, y, a: x + F.rms_norm(y, (WIDTH,), a), (WIDTH,)),
    "group norm": (lambda x, y, a: x + F.group_norm(y, 2, a), (WIDTH,)),
}
LIVE = {
    "sigmoid": (lambda x, y, a: x + a.sigmoid() * y, ()),
    "one more": (lambda x, y, a: x + (1 + a) * y, (WIDTH,)),
    "read before": (lambda x, y, a: x + y.sum(-1, keepdim=True) + a * y, (WIDTH,)),
    "a view that is written to": (lambda x, y, a: written(x, y, a), (WIDTH,)),
    "a comparison": (lambda x, y, a: x + (y > a), (WIDTH,)),
}


def written(x, y, a):
    """All of `y` is kept in a view before it is multiplied by zero, but for what is written there later."""
    z, view = torch.zeros_like(y), None
    view = z[:, :4]
    view.copy_(y[:, 4:])
    return x + z + a * y


def compared(model, small):
    """The largest difference of outputs on new inputs."""
    x = torch.randn(7, 4)
    with torch.no_grad():
        return (model(x) - small(x)).abs().max()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("case", ZERO)
def test_a_branch_behind_a_zero_goes(case, depth):
    torch.manual_seed(0)
    model = Residual(*ZERO[case], depth=depth).eval()
    small = shrink(model, torch.randn(5, 4))
    left = [layer.out_features for layer in small.model.branch if isinstance(layer, nn.Linear)]
    assert left == [1] * depth + [WIDTH]
    assert compared(model, small.model) == 0


@pytest.mark.parametrize("case", LIVE)
def test_a_branch_that_is_heard_elsewhere_stays(case):
    torch.manual_seed(0)
    model = Residual(*LIVE[case]).eval()
    small = shrink(model, torch.randn(5, 4), verify=False)
    assert small.model.branch[0].out_features == HIDDEN
    assert compared(model, small.model) == 0


def test_as_much_goes_as_if_the_last_layer_were_zero():
    torch.manual_seed(0)
    model = Residual(*ZERO["LayerScale"])
    sizes = [sum(p.numel() for p in shrink(model, torch.randn(5, 4)).model.parameters())]
    nn.init.zeros_(model.branch[-1].weight), nn.init.zeros_(model.branch[-1].bias)
    sizes.append(sum(p.numel() for p in shrink(model, torch.randn(5, 4)).model.parameters()))
    assert sizes[0] == sizes[1] == 91


def test_neurons_that_only_dead_channels_read_go():
    torch.manual_seed(0)
    model = Residual(*ZERO["LayerScale"])
    with torch.no_grad():
        model.scale[5:] = 1.0
        model.branch[-1].weight[5:, :6] = 0  # so that these six are read for the first five channels alone
    small = shrink(model, torch.randn(5, 4))
    assert small.model.branch[0].out_features == HIDDEN - 6
    assert compared(model, small.model) < 1e-6


class Bottleneck(nn.Module):
    """The block of a residual network, whose last scale starts at zero, with sums and functions in place."""

    def __init__(self, groups):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        nn.init.zeros_(self.bn3.weight)
        nn.init.normal_(self.bn3.bias)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x
        return F.relu(out, inplace=True)


@pytest.mark.parametrize(("groups", "left"), [(1, 1), (4, 2), (8, 1)])
def test_a_residual_block_with_a_zero_gamma_goes(groups, left):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Bottleneck(groups), Bottleneck(groups), nn.Conv2d(4, 2, 1)).eval()
    small = shrink(model, torch.randn(2, 3, 6, 6)).model
    assert [small[1].conv1.out_channels, small[2].conv2.out_channels] == [left, left]
    x = torch.randn(3, 3, 7, 7)
    assert torch.equal(model(x), small(x))


class Experts(nn.Module):
    """Each sample goes to the one expert of many that a router chooses."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 20)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)) for _ in range(20))

    def forward(self, x):
        chosen = self.router(x).argmax(-1, keepdim=True)
        return sum((chosen == number) * expert(x) for number, expert in enumerate(self.experts))


def test_a_gate_that_the_example_happens_to_close_is_no_zero():
    torch.manual_seed(0)
    model = Experts()
    small = shrink(model, torch.randn(1, 4), verify=False)
    assert all(expert[0].out_features == 3 for expert in small.model.experts)


def test_a_scale_that_is_zero_still_learns():
    torch.manual_seed(0)
    model = shrink(Residual(*ZERO["LayerScale"]), torch.randn(5, 4)).model
    model(torch.randn(5, 4)).square().sum().backward()
    assert model.scale.grad.abs().min() > 0
