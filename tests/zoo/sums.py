"""Models that sum over channels otherwise than by a layer: norms, distances, products, bags, wide kernels."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear, normalize, relu, softmax

from zoo.case import Case, Input, Normal, Tokens


class FactorizationMachine(nn.Module):
    """Factors of each field, whose products in pairs are summed: the square of a sum less the sum of squares."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 8) for _ in range(3))
        self.first, self.deep = nn.Embedding(10, 1), nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, fields: Tensor) -> Tensor:
        v = torch.stack([table(fields[:, place]) for place, table in enumerate(self.tables)], 1)
        pairs = 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.first(fields).sum(1) + pairs + self.deep(v.flatten(1)))


class Recommender(nn.Module):
    """Bags of categories and a layer of numbers, of which all pairs are multiplied (DLRM)."""

    def __init__(self):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(12, 8, mode="sum") for _ in range(2))
        self.bottom = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8))
        self.top = nn.Sequential(nn.Linear(8 + 3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        x = self.bottom(x)
        rows = torch.stack([x, *(bag(categories[:, place]) for place, bag in enumerate(self.bags))], 1)
        products = torch.bmm(rows, rows.transpose(1, 2))
        one, other = torch.tril_indices(3, 3, offset=-1)
        return self.top(torch.cat([x, products[:, one, other]], 1))


class Bags(nn.Module):
    """A sum, a mean or the largest of the rows of each bag, and layers behind it."""

    def __init__(self, mode: str):
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 12, mode=mode)
        self.inner, self.outer = nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.outer(relu(self.inner(self.bag(tokens))))


class BagsByOffsets(Bags):
    """The same for bags in one row, each of which begins at an offset."""

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        return self.outer(relu(self.inner(self.bag(tokens, offsets))))


class WeightedBags(Bags):
    """The same, whose rows are weighed by what each sample is given."""

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        return self.outer(relu(self.inner(self.bag(tokens, per_sample_weights=weights))))


class Contrastive(nn.Module):
    """Similarities of all pairs of samples, whose codes have length 1."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12))

    def forward(self, x: Tensor) -> Tensor:
        z = normalize(self.encoder(x), dim=1)
        return z @ z.T / 0.5


class Twins(nn.Module):
    """Distances and similarities of the codes of two inputs."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.encoder(a), self.encoder(b)
        return torch.stack([(a - b).norm(dim=1), (a - b).norm(p=1, dim=1), cosine_similarity(a, b)], 1)


class Prototypes(nn.Module):
    """The distances of a code to prototypes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.prototypes = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.encoder(x), self.prototypes)


class Quantizer(nn.Module):
    """An autoencoder whose code is the nearest row of a table (VQ-VAE)."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.codes = nn.Embedding(10, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        z, codes = self.encoder(x), self.codes.weight
        distances = (z**2).sum(1, keepdim=True) + (codes**2).sum(1) - 2 * z @ codes.T
        nearest = self.codes(distances.argmin(1))
        return self.decoder(z + (nearest - z).detach())


class Angles(nn.Module):
    """A classifier by angles: both its input and the rows of its weight have length 1."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12))
        self.weight = nn.Parameter(torch.randn(4, 12))

    def forward(self, x: Tensor) -> Tensor:
        return 8 * linear(normalize(self.encoder(x)), normalize(self.weight))


class GraphEinsum(nn.Module):
    """A layer of graph attention whose scores are an `einsum` over the size of a head."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Linear(6, 20, bias=False), nn.Linear(20, 4)
        self.source, self.target = (nn.Parameter(torch.randn(4, 5)) for _ in range(2))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.weight(x).view(len(x), 4, -1)
        source, target = (torch.einsum("nhd,hd->nh", h, a) for a in (self.source, self.target))
        scores = nn.functional.leaky_relu(source[:, None] + target[None], 0.2)
        weights = softmax(scores.masked_fill(adjacency[..., None] == 0, -1e9), 1)
        return self.head(torch.einsum("nmh,mhd->nhd", weights, h).flatten(1))


class HeadsByEinsum(nn.Module):
    """Attention whose weights have an axis for heads and one for the size of a head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(8, 4, 3)) for _ in range(3))
        self.out, self.head = nn.Parameter(torch.randn(4, 3, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnc,chd->bnhd", x, weight) for weight in (self.q, self.k, self.v))
        weights = softmax(torch.einsum("bnhd,bmhd->bhnm", q, k) * 3**-0.5, -1)
        return self.head(x + torch.einsum("bnhd,hdc->bnc", torch.einsum("bhnm,bmhd->bnhd", weights, v), self.out))


class Pooled(nn.Module):
    """Attention to places by the largest channel of each and by the norm of all."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 6, 3)
        self.where, self.head = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.first(x))
        seen = torch.cat([x.amax(1, keepdim=True), x.norm(dim=1, keepdim=True)], 1)
        return self.head(relu(self.second(x * torch.sigmoid(self.where(seen)))).amax((2, 3)))


class Sentences(nn.Module):
    """Convolutions over words whose kernels are as wide as a word is (TextCNN)."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 10)
        self.kernels = nn.ModuleList(nn.Conv2d(1, 6, (size, 10)) for size in (2, 3))
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)[:, None]
        return self.head(torch.cat([relu(kernel(x)).squeeze(3).amax(2) for kernel in self.kernels], 1))


class Interaction(nn.Module):
    """A bilinear layer between two encoders, and products of both with one vector."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 10), nn.Linear(6, 8)
        self.both, self.vector = nn.Bilinear(10, 8, 4), nn.Parameter(torch.randn(10))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.tanh(self.left(a)), torch.tanh(self.right(b))
        return self.both(a, b) + (a @ self.vector)[:, None]


class StackedExperts(nn.Module):
    """Experts in tensors of three dimensions, each for all tokens, by products of batches."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 12)), nn.Parameter(torch.randn(3, 12, 6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = relu(torch.bmm(x.expand(3, -1, -1), self.up))
        outputs = torch.bmm(hidden, self.down)
        return (self.router(x).softmax(-1).T[..., None] * outputs).sum(0)


class Offsets(Input):
    """Where bags begin in a row of tokens: all of one but the last, whose size is left."""

    def __init__(self, count: int):
        self.count = count

    def draw(self, generator: torch.Generator, batch: int | None = None) -> Tensor:
        return torch.arange(self.count)


class Neighbours(Normal):
    """An adjacency matrix."""

    def draw(self, generator: torch.Generator, batch: int | None = None) -> Tensor:
        size = batch or self.shape[0]
        return (torch.rand(size, size, generator=generator) < 0.4).float() + torch.eye(size)


ROWS, PAIR = (Normal(5, 6),), (Normal(5, 6), Normal(5, 6))
CASES = [
    Case("factorization-machine", FactorizationMachine, (Tokens(10, 5, 3),)),
    Case("recommender", Recommender, (Normal(5, 6), Tokens(12, 5, 2, 4))),
    Case("bags-sum", lambda: Bags("sum"), (Tokens(30, 5, 4),)),
    Case("bags-mean", lambda: Bags("mean"), (Tokens(30, 5, 4),)),
    Case("bags-max", lambda: Bags("max"), (Tokens(30, 5, 4),)),
    Case("bags-by-offsets", lambda: BagsByOffsets("mean"), (Tokens(30, 8), Offsets(3))),
    Case("bags-weighted", lambda: WeightedBags("sum"), (Tokens(30, 5, 4), Normal(5, 4))),
    Case("contrastive", Contrastive, ROWS),
    Case("twins", Twins, PAIR),
    Case("prototypes", Prototypes, ROWS),
    Case("quantizer", Quantizer, (Normal(9, 6),)),
    Case("angles", Angles, ROWS),
    Case("graph-einsum", GraphEinsum, (Normal(7, 6), Neighbours(7))),
    Case("heads-by-einsum", HeadsByEinsum, (Normal(2, 5, 8),)),
    Case("pooled-places", Pooled, (Normal(2, 3, 8, 8),)),
    Case("sentences", Sentences, (Tokens(30, 3, 7),)),
    Case("interaction", Interaction, PAIR),
    Case("stacked-experts", StackedExperts, ROWS),
]
