"""Models of linear layers, and what people write in `forward` around them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zoo.case import Case, Normal, Tokens


class Swiglu(nn.Module):
    """A residual block with a gate; tied, when the gate and the value are one layer."""

    def __init__(self, width: int = 12, hidden: int = 20, *, tied: bool = False):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=tied)
        self.up = self.gate if tied else nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class TiedWeights(nn.Module):
    """Two layers that share one weight and have a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(12, 20), nn.Linear(12, 20), nn.Linear(20, 5)
        self.up.weight = self.gate.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


class ChunkedGlu(nn.Module):
    """Gate and value are the halves of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.down = nn.Linear(12, 32), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.project(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


class SlicedGlu(ChunkedGlu):
    """Halves by slices with written bounds."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.project(x)
        return self.down(torch.tanh(hidden[:, :16]) * hidden[:, 16:])


class FunctionalGlu(ChunkedGlu):
    """Halves by `F.glu`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.project(x), dim=-1))


class LowRank(nn.Module):
    """Low-rank adapters: as a branch beside the layer, or added to its weight."""

    def __init__(self, *, merged: bool):
        super().__init__()
        self.merged = merged
        self.base, self.head = nn.Linear(12, 20), nn.Linear(20, 5)
        self.down, self.up = nn.Linear(12, 4, bias=False), nn.Linear(4, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            weight = self.base.weight + 0.5 * self.up.weight @ self.down.weight
            return self.head(F.relu(F.linear(x, weight, self.base.bias)))
        return self.head(F.relu(self.base(x) + 0.5 * self.up(self.down(x))))


class RawParameters(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(16, 12))
        self.first_bias = nn.Parameter(torch.zeros(16))
        self.second = nn.Parameter(torch.randn(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.first, self.first_bias)) @ self.second


class Recurrent(nn.Module):
    """One layer used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.step, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = self.embed(x)
        for _ in range(3):
            state = torch.tanh(self.step(state) + 0.3)
        return self.head(state)


class Nested(nn.Module):
    """One block under two names at two depths, with layers of its own between."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        self.first = nn.Sequential(shared, nn.LayerNorm(12))
        self.second = nn.ModuleDict({"inner": shared, "head": nn.Linear(12, 5)})

    def forward(self, x: Tensor) -> Tensor:
        return self.second["head"](self.second["inner"](self.first(x)))


class Unused(nn.Module):
    """A layer that is never called, and one whose result goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.never, self.nowhere = nn.Linear(16, 7), nn.Linear(16, 9)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        self.nowhere(hidden)
        return self.head(hidden)


class LayerScale(nn.Module):
    """Branches scaled by a buffer, and shifted by another one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 16))
        self.register_buffer("shift", torch.linspace(-1, 1, 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.first(x)) * self.scale
        return self.head(hidden + self.second(hidden) * self.scale + self.shift)


class Constants(nn.Module):
    """Tensors made inside `forward`: a ramp over channels, a number, and one of the shape of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x)) * torch.tensor(0.7)
        hidden = self.second(hidden) * torch.arange(16, device=x.device) / 16
        return self.head(F.relu(hidden + torch.full_like(hidden, 0.1)))


class Bilinear(nn.Module):
    """`nn.Bilinear` of two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 8), nn.Linear(12, 6)
        self.mix, self.head = nn.Bilinear(8, 6, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(F.relu(self.left(x)), torch.tanh(self.right(x)))))


class Einsum(nn.Module):
    """Layers written with `torch.einsum`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 12, 8)), nn.Parameter(torch.empty(4, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("bi,hij->bhj", x, self.first))
        return torch.einsum("bhj,hjo->bo", hidden, self.second)


class SoftmaxChannels(nn.Module):
    """Channels that compete: the zero of a channel takes part in the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).softmax(-1))


class Outputs(nn.Module):
    """Several outputs: a hidden layer that is also returned, and one that is not; as a tuple or as a dict."""

    def __init__(self, *, named: bool):
        super().__init__()
        self.named = named
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 16)
        self.left, self.right = nn.Linear(16, 5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, object] | tuple[Tensor, ...]:
        hidden = F.relu(self.first(x))
        features = F.relu(self.second(hidden))
        if self.named:
            return {"heads": [self.left(hidden), self.right(features)], "features": features}
        return self.left(hidden), self.right(features), features


class Undecided(nn.Module):
    """What runs depends on values, so that only the children can be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        self.positive = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
        self.negative = nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if x.sum() > 0:
            return self.positive(x)
        return self.negative(x)


class Assigned(nn.Module):
    """Hidden layers that are written into parts of a tensor, and changed in place through views of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(12, 8), nn.Linear(12, 10), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        joined = x.new_zeros(len(x), 18)
        joined[:, :8] = self.left(x)
        joined[:, 8:] = self.right(x)
        joined[:, 4:12] *= 2
        joined.view(-1, 9, 2)[..., 0].relu_()
        return self.head(joined)


class Lstm(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.head = nn.Linear(12, 16), nn.LSTM(16, 10, batch_first=True), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(F.relu(self.first(x)))
        return self.head(hidden)


class Reductions(nn.Module):
    """A hidden layer that is also summed over its channels, and one that is sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.first(x)), self.second(x)
        return self.head(left) * left.sum(-1, keepdim=True) + self.head(right.sort(-1).values) + right.amax(-1)[:, None]


class Bag(nn.Module):
    """Embeddings that are concatenated with numbers, as recommenders do."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(30, 8), nn.EmbeddingBag(40, 6, mode="sum")
        self.dense, self.hidden, self.head = nn.Linear(12, 10), nn.Linear(24, 16), nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor, x: Tensor) -> Tensor:
        features = torch.cat([self.user(user), self.item(item), F.relu(self.dense(x))], dim=-1)
        return self.head(F.relu(self.hidden(features)))


class Activations(nn.Module):
    """One hidden layer per activation, side by side."""

    KINDS = (
        nn.ELU(), nn.Softplus(), nn.Hardswish(), nn.LeakyReLU(0.1), nn.Mish(), nn.Softsign(), nn.Hardtanh(),
        nn.Sigmoid(),
        nn.Threshold(0.1, 0.5), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(0.1), nn.CELU(), nn.ReLU6(), nn.RReLU(),
        nn.Hardsigmoid(), nn.GELU("tanh"),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(12, 6), kind, nn.Linear(6, 5)) for kind in self.KINDS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 20, bias=False), nn.BatchNorm1d(20), nn.GELU(),
        nn.Linear(20, 5),
    )  # fmt: skip


def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 20), nn.SELU(), nn.AlphaDropout(0.2),
        nn.Linear(20, 5),
    )  # fmt: skip


def weight_normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(12, 16)), nn.ReLU(), nn.Linear(16, 5))


CASES = [
    Case("mlp", mlp, (Normal(4, 12),)),
    Case("swiglu", Swiglu, (Normal(2, 3, 12),)),
    Case("tied-swiglu", lambda: Swiglu(tied=True), (Normal(2, 3, 12),)),
    Case("tied-weights", TiedWeights, (Normal(4, 12),)),
    Case("chunked-glu", ChunkedGlu, (Normal(4, 12),)),
    Case("sliced-glu", SlicedGlu, (Normal(4, 12),)),
    Case("functional-glu", FunctionalGlu, (Normal(4, 12),)),
    Case("low-rank-branch", lambda: LowRank(merged=False), (Normal(4, 12),)),
    Case("low-rank-merged", lambda: LowRank(merged=True), (Normal(4, 12),)),
    Case("raw-parameters", RawParameters, (Normal(4, 12),)),
    Case("recurrent", Recurrent, (Normal(4, 12),)),
    Case("nested", Nested, (Normal(4, 12),)),
    Case("unused", Unused, (Normal(4, 12),)),
    Case("layer-scale", LayerScale, (Normal(4, 12),)),
    Case("constants", Constants, (Normal(4, 12),)),
    Case("bilinear", Bilinear, (Normal(4, 12),)),
    Case("einsum", Einsum, (Normal(4, 12),)),
    Case("softmax-channels", SoftmaxChannels, (Normal(4, 12),)),
    Case("outputs-tuple", lambda: Outputs(named=False), (Normal(4, 12),)),
    Case("outputs-dict", lambda: Outputs(named=True), (Normal(4, 12),)),
    Case("undecided", Undecided, (Normal(4, 12),), exports=False),
    Case("dropout", dropout, (Normal(4, 12),)),
    Case("assigned", Assigned, (Normal(4, 12),)),
    Case("lstm", Lstm, (Normal(2, 5, 12),)),
    Case("weight-norm", weight_normed, (Normal(4, 12),)),
    Case("activations", Activations, (Normal(4, 12),)),
    Case("reductions", Reductions, (Normal(4, 12),)),
    Case("bag", Bag, (Tokens(30, 4), Tokens(40, 4, 3), Normal(4, 12))),
]
