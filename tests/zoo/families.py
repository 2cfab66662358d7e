"""Families of models as people write them: one small model each, whatever `shrink` makes of it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu, linear, relu, softmax, softplus

from zoo.case import Case, Normal, Tokens


class Maxout(nn.Module):
    """The largest of several linear pieces."""

    def __init__(self, pieces: int = 3):
        super().__init__()
        self.pieces = pieces
        self.inner, self.outer = nn.Linear(6, 12 * pieces), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.outer(x.view(*x.shape[:-1], x.shape[-1] // self.pieces, self.pieces).max(-1).values)


class MaxoutByWidth(Maxout):
    """Maxout with the width as a number."""

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).view(len(x), 12, self.pieces).amax(2))


class Splines(nn.Module):
    """A layer of a Kolmogorov-Arnold network: radial functions of each input, summed by `einsum`."""

    def __init__(self, inputs: int, outputs: int, grid: int = 5):
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, grid))
        self.coefficients = nn.Parameter(torch.randn(outputs, inputs, grid))
        self.base = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-((x[..., None] - self.grid) ** 2))
        return torch.einsum("big,oig->bo", basis, self.coefficients) + linear(nn.functional.silu(x), self.base)


class BSplines(Splines):
    """The same with B-splines by the recursion of Cox and de Boor."""

    def forward(self, x: Tensor) -> Tensor:
        knots, x_ = self.grid, x.clamp(-2, 1.99)[..., None]
        bases = ((x_ >= knots[:-1]) & (x_ < knots[1:])).to(x.dtype)
        for k in range(1, 3):
            left = (x_ - knots[: -(k + 1)]) / (knots[k:-1] - knots[: -(k + 1)]) * bases[..., :-1]
            right = (knots[k + 1 :] - x_) / (knots[k + 1 :] - knots[1:-k]) * bases[..., 1:]
            bases = left + right
        weight = self.coefficients[..., : bases.shape[-1]]
        return linear(bases.flatten(1), weight.flatten(1)) + linear(nn.functional.silu(x), self.base)


class GraphAttention(nn.Module):
    """A layer of graph attention over a list of edges: the softmax is taken by scattering."""

    def __init__(self, inputs: int, size: int, heads: int = 2, *, concat: bool = True):
        super().__init__()
        self.heads, self.size, self.concat = heads, size, concat
        self.weight = nn.Linear(inputs, heads * size, bias=False)
        self.source, self.target = (nn.Parameter(torch.randn(1, heads, size)) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.weight(x).view(-1, self.heads, self.size)
        scores = (h * self.source).sum(-1)[edges[0]] + (h * self.target).sum(-1)[edges[1]]
        scores = nn.functional.leaky_relu(scores, 0.2)
        scores = (scores - scores.max()).exp()
        total = torch.zeros(len(x), self.heads, dtype=x.dtype).index_add(0, edges[1], scores)
        weights = scores / (total[edges[1]] + 1e-9)
        messages = weights[..., None] * h[edges[0]]
        index = edges[1][:, None, None].expand_as(messages)
        result = torch.zeros_like(h).scatter_add(0, index, messages)
        return result.flatten(1) if self.concat else result.mean(1)


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GraphAttention(6, 8), GraphAttention(16, 4, concat=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(elu(self.first(x, edges)), edges)


class GraphConvolution(nn.Module):
    """Graph convolutions: messages are added up by index."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.first(x)
        h = relu(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))
        h = self.second(h)
        index = edges[1][:, None].expand_as(h[edges[0]])
        return torch.zeros_like(h).scatter_add(0, index, h[edges[0]])


class DenseGraph(nn.Module):
    """Graph attention with an adjacency matrix as a mask."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 12, bias=False)
        self.a = nn.Parameter(torch.randn(24, 1))
        self.outer = nn.Linear(12, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.weight(x)
        width = h.shape[-1]
        scores = h @ self.a[:width] + (h @ self.a[width:]).T
        mask = (adjacency + torch.eye(len(x))) > 0
        scores = nn.functional.leaky_relu(scores, 0.2).masked_fill(~mask, -9e15)
        return self.outer(elu(softmax(scores, 1) @ h))


class GraphHeads(nn.Module):
    """Graph attention whose largest score is taken for each head, over a list of edges."""

    def __init__(self):
        super().__init__()
        self.heads, self.size = 4, 5
        self.weight, self.head = nn.Linear(6, 20, bias=False), nn.Linear(20, 4)
        self.source, self.target = (nn.Parameter(torch.randn(1, 4, 5)) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.weight(x).view(len(x), self.heads, self.size)
        scores = (h * self.source).sum(-1)[edges[0]] + (h * self.target).sum(-1)[edges[1]]
        scores = nn.functional.leaky_relu(scores, 0.2)
        scores = (scores - scores.amax(0)).exp()
        total = torch.zeros_like(h[:, :, 0]).index_add(0, edges[1], scores)
        messages = (scores / (total[edges[1]] + 1e-9))[..., None] * h[edges[0]]
        return self.head(elu(torch.zeros_like(h).index_add(0, edges[1], messages).flatten(1)))


class ConvLstmCell(nn.Module):
    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.conv = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = self.conv(torch.cat([x, h], 1)).split(self.hidden, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class ConvLstm(nn.Module):
    """A convolutional LSTM over the steps of a film."""

    def __init__(self):
        super().__init__()
        self.cell = ConvLstmCell(2, 6)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.cell.hidden, *x.shape[-2:])
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


class ConvLstmChunked(ConvLstm):
    """The same, whose first state is made from what is read."""

    def forward(self, x: Tensor) -> Tensor:
        h = c = None
        for t in range(x.shape[1]):
            if h is None:
                h = c = torch.zeros(len(x), self.head.in_channels, x.shape[3], x.shape[4])
            i, f, o, g = torch.chunk(self.cell.conv(torch.cat([x[:, t], h], dim=1)), 4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class ConvLstmFromInput(nn.Module):
    """The same with a convolution for what enters and one for the state, whose first one is as wide as it is."""

    def __init__(self):
        super().__init__()
        self.inner, self.recurrent = nn.Conv2d(2, 24, 3, padding=1), nn.Conv2d(6, 24, 3, padding=1, bias=False)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = None
        for step in x.unbind(1):
            gates = self.inner(step) if h is None else self.inner(step) + self.recurrent(h)
            i, f, o, g = gates.chunk(4, 1)
            kept = i.sigmoid() * g.tanh()
            c = kept if c is None else f.sigmoid() * c + kept
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class ResponseNorm(nn.Module):
    """Global response normalization."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNextV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.expand, self.response, self.project = nn.Linear(6, 16), ResponseNorm(16), nn.Linear(16, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(self.response(nn.functional.gelu(self.expand(y))))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Branching(nn.Module):
    """Code that asks what its input is."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = relu(self.inner(x))
        if x.sum() > 0:
            h = h * 2
        return self.outer(h)


class BranchingInside(nn.Module):
    """The same in a block, between layers that are exported."""

    def __init__(self):
        super().__init__()
        self.first, self.block = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6)), Branching()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x))


class Expert(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))


class SparseMixture(nn.Module):
    """A mixture of experts, each called with the tokens that are routed to it."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(6, 4, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = softmax(self.router(x), -1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            if len(rows):
                result.index_add_(0, rows, weights[rows, place, None] * expert(x[rows]))
        return self.head(x + result)


class DenseMixture(SparseMixture):
    """A mixture in which every expert is called with all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        values, chosen = scores.topk(2, dim=-1)
        gates = torch.zeros_like(scores).scatter(-1, chosen, softmax(values, -1))
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head(x + (gates[..., None] * outputs).sum(1))


class StackedMixture(nn.Module):
    """A mixture whose experts are one parameter, gathered by index."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 12, 6)), nn.Parameter(torch.randn(4, 6, 12))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        hidden = relu(torch.einsum("bkhd,bd->bkh", self.up[chosen], x))
        return (weights[..., None] * torch.einsum("bkdh,bkh->bkd", self.down[chosen], hidden)).sum(1)


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Unet(nn.Module):
    """A U-Net, whose decoder pads what it has brought up to the size of what it is concatenated with."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 6), block(6, 8), block(8, 12)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.up1 = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.side2, self.side1, self.head = block(16, 8), block(14, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        y = self.up2(self.bottom(self.pool(two)))
        dy, dx = two.size(2) - y.size(2), two.size(3) - y.size(3)
        y = nn.functional.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        y = self.side2(torch.cat([two, y], dim=1))
        return self.head(self.side1(torch.cat([one, self.up1(y)], dim=1)))


class Siamese(nn.Module):
    """Two inputs, one encoder, and the distance of what it gives."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.encoder(a), self.encoder(b)
        return self.head((a - b).abs()), nn.functional.cosine_similarity(a, b)


class Variational(nn.Module):
    """A variational autoencoder, which draws its code at each call."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 12), nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6))
        self.mean, self.logvar = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = relu(self.encoder(x))
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        return self.decoder(z).sigmoid(), mean, logvar


class VariationalCodes(Variational):
    """The same without its statistics, so that the code is no output."""

    def forward(self, x: Tensor) -> Tensor:
        h = relu(self.encoder(x))
        mean, logvar = self.mean(h), self.logvar(h)
        return self.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))


class Hyper(nn.Module):
    """A network that computes the weights of another one."""

    def __init__(self):
        super().__init__()
        self.inner, self.weights, self.bias = nn.Linear(3, 10), nn.Linear(10, 4 * 6), nn.Linear(10, 4)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = relu(self.inner(context))
        return torch.bmm(self.weights(h).view(-1, 4, 6), x[..., None]).squeeze(-1) + self.bias(h)


class HyperLayers(nn.Module):
    """The same for two layers, whose hidden width is a number."""

    def __init__(self):
        super().__init__()
        self.code = nn.Parameter(torch.randn(3))
        self.inner, self.first, self.second = nn.Linear(3, 10), nn.Linear(10, 8 * 6), nn.Linear(10, 4 * 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.code).tanh()
        return linear(relu(linear(x, self.first(h).view(8, 6))), self.second(h).view(4, 8))


class Critic(nn.Module):
    """The critic of a Wasserstein GAN."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 12, 4, 2, 1, bias=False),
            nn.InstanceNorm2d(12, affine=True), nn.LeakyReLU(0.2), nn.Conv2d(12, 1, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).view(-1)


class Penalized(Critic):
    """The same, which gives the norm of its gradient too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score = super().forward(x)
            (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return score, gradient.flatten(1).norm(dim=1)


class Excited(nn.Module):
    """Squeeze and excitation with linear layers."""

    def __init__(self):
        super().__init__()
        self.conv = block(3, 12)
        self.squeeze, self.fc = nn.AdaptiveAvgPool2d(1), nn.Sequential(
            nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 12), nn.Sigmoid()
        )  # fmt: skip
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, _, _ = x.size()
        y = self.fc(self.squeeze(x).view(b, c)).view(b, c, 1, 1)
        return self.head(x * y.expand_as(x))


class Separable(nn.Sequential):
    """Depthwise separable convolutions."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
        )  # fmt: skip


class Multiplier(nn.Sequential):
    """A depthwise convolution that makes two channels of each."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.ReLU(),
            nn.Conv2d(12, 4, 1),
        )  # fmt: skip


class SuperResolution(nn.Module):
    """Convolutions and a pixel shuffle, by which four channels become one of twice the size."""

    def __init__(self):
        super().__init__()
        self.first, self.up, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 24, 3, padding=1),
            nn.Conv2d(6, 3, 1),
        )
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(relu(self.shuffle(self.up(relu(self.first(x))))))


class Highway(nn.Module):
    """A highway network: a gate between each layer and its input."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 4)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * relu(layer(x)) + (1 - t) * x
        return self.head(x)


class CellsByHand(nn.Module):
    """A recurrent network by a loop over a cell that adds two linear layers."""

    def __init__(self):
        super().__init__()
        self.hidden = 10
        self.inner, self.recurrent, self.head = nn.Linear(6, 10), nn.Linear(10, 10, bias=False), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden)
        for t in range(x.size(1)):
            h = torch.tanh(self.inner(x[:, t]) + self.recurrent(h))
        return self.head(h)


class CellsFromInput(CellsByHand):
    """The same with a first state that is as wide as what the layer puts out."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(self.inner(x[:, 0]))
        for t in range(x.size(1)):
            h = torch.tanh(self.inner(x[:, t]) + self.recurrent(h))
        return self.head(h)


class GatedByHand(nn.Module):
    """A gated recurrent unit by hand."""

    def __init__(self):
        super().__init__()
        self.inner, self.recurrent, self.head = nn.Linear(6, 30), nn.Linear(10, 30), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(self.inner(x[:, 0]).chunk(3, -1)[0])
        for step in x.unbind(1):
            (r, z, n), (hr, hz, hn) = self.inner(step).chunk(3, -1), self.recurrent(h).chunk(3, -1)
            r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
            h = (1 - z) * (n + r * hn).tanh() + z * h
        return self.head(h)


class GatedCells(nn.Module):
    """A loop over `nn.GRUCell`."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(20, 6), nn.GRUCell(6, 10), nn.Linear(10, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.zeros(len(tokens), self.cell.hidden_size)
        for t in range(tokens.shape[1]):
            h = self.cell(self.embed(tokens[:, t]), h)
        return self.head(h)


class LstmCells(nn.Module):
    """A loop over `nn.LSTMCell`."""

    def __init__(self):
        super().__init__()
        self.inner, self.cell, self.head = nn.Linear(6, 8), nn.LSTMCell(8, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 10)
        for step in x.unbind(1):
            h, c = self.cell(relu(self.inner(step)), (h, c))
        return self.head(h)


class DenseBlock(nn.Module):
    """A block of a dense net: a list of features that grows, with a norm before each convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * n), nn.ReLU(), nn.Conv2d(6 + 4 * n, 4, 3, padding=1)) for n in range(3)
        )
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class Modulated(nn.Module):
    """A convolution whose filters each sample scales, as in StyleGAN2: samples become groups."""

    def __init__(self):
        super().__init__()
        self.style, self.weight = nn.Linear(5, 6), nn.Parameter(torch.randn(8, 6, 3, 3))
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        weight = self.weight[None] * self.style(style)[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        y = conv2d(x.reshape(1, b * c, h, w), weight.flatten(0, 1), padding=1, groups=b)
        return self.head(softplus(y.reshape(b, -1, h, w)))


class Edges(Tokens):
    """A list of edges between nodes."""

    def draw(self, generator: torch.Generator, batch: int | None = None) -> Tensor:
        return super().draw(generator)


class Adjacent(Normal):
    """An adjacency matrix."""

    def draw(self, generator: torch.Generator, batch: int | None = None) -> Tensor:
        size = batch or self.shape[0]
        return (torch.rand(size, size, generator=generator) < 0.4).float()


ROWS, IMAGES, STEPS = (Normal(5, 6),), (Normal(2, 3, 8, 8),), (Normal(3, 4, 6),)
FAMILIES: list[Case] = [
    Case("maxout", Maxout, ROWS),
    Case("maxout-by-width", MaxoutByWidth, ROWS),
    Case("kan-radial", lambda: nn.Sequential(Splines(6, 8), Splines(8, 4)), ROWS),
    Case("kan-bsplines", lambda: nn.Sequential(BSplines(6, 8), BSplines(8, 4)), ROWS),
    Case("graph-attention-edges", GraphNet, (Normal(7, 6), Edges(3, 2, 15))),
    Case("graph-attention-dense", DenseGraph, (Normal(7, 6), Adjacent(7))),
    Case("graph-convolution", GraphConvolution, (Normal(7, 6), Edges(3, 2, 15))),
    Case("graph-attention-heads", GraphHeads, (Normal(7, 6), Edges(3, 2, 15))),
    Case("conv-lstm-from-input", ConvLstmFromInput, (Normal(2, 3, 2, 6, 6),)),
    Case("cells-from-input", CellsFromInput, STEPS),
    Case("gru-by-hand", GatedByHand, STEPS),
    Case("conv-lstm", ConvLstm, (Normal(2, 3, 2, 6, 6),)),
    Case("conv-lstm-chunked", ConvLstmChunked, (Normal(2, 3, 2, 6, 6),)),
    Case("convnext-v2", ConvNextV2, IMAGES),
    Case("branching", Branching, ROWS, exports=False),
    Case("branching-inside", BranchingInside, ROWS, exports=False),
    Case("mixture-sparse", SparseMixture, ROWS, exports=False),
    Case("mixture-dense", DenseMixture, ROWS),
    Case("mixture-stacked", StackedMixture, ROWS),
    Case("unet-padded", Unet, (Normal(2, 3, 12, 12),)),
    Case("siamese", Siamese, (Normal(5, 6), Normal(5, 6))),
    Case("variational", Variational, ROWS),
    Case("variational-codes", VariationalCodes, ROWS),
    Case("hyper", Hyper, (Normal(5, 6), Normal(5, 3))),
    Case("hyper-layers", HyperLayers, ROWS),
    Case("critic", Critic, IMAGES),
    Case("critic-penalized", Penalized, IMAGES, exports=False),
    Case("squeeze-excitation", Excited, IMAGES),
    Case("separable", Separable, IMAGES),
    Case("depth-multiplier", Multiplier, IMAGES),
    Case("pixel-shuffle", SuperResolution, IMAGES),
    Case("highway", Highway, ROWS),
    Case("cells-by-hand", CellsByHand, STEPS),
    Case("gru-cells", GatedCells, (Tokens(20, 3, 4),)),
    Case("lstm-cells", LstmCells, STEPS),
    Case("dense-block", DenseBlock, IMAGES),
    Case("modulated", Modulated, (Normal(2, 3, 8, 8), Normal(2, 5))),
]
