"""Networks of graphs: matrices with few entries, given or made inside, times what layers compute."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shrinkage import CoupledChannels, shrink
from shrinkage.compression.calls.inputs import varied
from shrinkage.compression.plans.tensors import zero_slices

pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|invariant)")  # of torch
torch.manual_seed(0)
EDGES = torch.where(torch.rand(9, 9) < 0.4, torch.rand(9, 9), 0.0)
EDGES[2], EDGES[:, 5] = 0, 0
X = torch.randn(9, 12)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coordinates": Tensor.to_sparse,
    "compressed rows": Tensor.to_sparse_csr,
    "dense": Tensor.clone,
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch.spmm": torch.spmm,
    "@": lambda edges, x: edges @ x,
    "torch.mm": torch.mm,
    "torch.sparse.mm": torch.sparse.mm,
    "torch.sparse.addmm": lambda edges, x: torch.sparse.addmm(x, edges, x),
}


class Convolution(nn.Module):
    """A graph convolution, with the edges as an input, or made from pairs of nodes."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], *, pairs: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(12, 16)), nn.Linear(16, 4)
        self.product, self.pairs = product, pairs
        with torch.no_grad():
            self.first[:, :5] = 0

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        if self.pairs:
            edges = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1]), (9, 9)).coalesce()
        return self.last(torch.relu(self.product(edges, x @ self.first)))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_channels_beside_the_edges_of_a_graph_go(layout: Callable[..., Tensor], product: Callable[..., Tensor]) -> None:
    model, edges = Convolution(product), layout(EDGES)
    assert CoupledChannels(model, (X, edges)).count == 16
    small = shrink(model, (X, edges))
    assert small.model.first.shape == (12, 11)
    assert small.report.error < 1e-5
    other = layout(torch.where(torch.rand(9, 9) < 0.5, torch.randn(9, 9), 0.0))
    torch.testing.assert_close(small.model(2 * X, other), model(2 * X, other))


def test_edges_that_are_made_from_pairs_of_nodes() -> None:
    model, pairs = Convolution(torch.sparse.mm, pairs=True), torch.randint(0, 9, (2, 7))
    small = shrink(model, (X, pairs)).model
    assert small.first.shape == (12, 11)
    torch.testing.assert_close(small(X, pairs.flip(1, 0)), model(X, pairs.flip(1, 0)))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_other_numbers_of_a_sparse_input_stand_at_the_same_places(layout: torch.layout) -> None:
    edges = EDGES.to_sparse(layout=layout)
    for number in (1, 2, 3):
        (other,) = varied([edges], number)
        assert other.layout == layout
        assert torch.equal(other.to_dense() != 0, EDGES != 0)
        assert not torch.equal(other.to_dense(), EDGES)
    for dim in (0, 1, -1):
        assert torch.equal(zero_slices(edges, dim), zero_slices(EDGES, dim))


class Holding(Convolution):
    """A graph convolution whose edges are constants of the model, a buffer and, if they can be, an attribute."""

    def __init__(self, edges: Tensor) -> None:
        super().__init__(torch.sparse.mm)
        self.register_buffer("edges", edges)
        self.kept = edges.clone()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, self.edges)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_channels_beside_edges_that_a_model_holds_go(layout: Callable[..., Tensor]) -> None:
    model = Holding(layout(EDGES))
    small = shrink(model, X).model
    assert small.first.shape == (12, 11)
    torch.testing.assert_close(small(2 * X), model(2 * X))
    small(X).sum().backward()
    assert small.edges.layout == small.kept.layout == layout(EDGES).layout


def test_channels_beside_weights_that_mix_positions_go() -> None:
    class Mixer(Convolution):
        def __init__(self) -> None:
            super().__init__(torch.matmul)
            self.mix = nn.Parameter(torch.randn(9, 9))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, self.mix)

    model, x = Mixer(), torch.randn(2, 9, 12)
    small = shrink(model, x).model
    assert small.first.shape == (12, 11)
    torch.testing.assert_close(small(2 * x), model(2 * x))
    with torch.no_grad():
        model.first.copy_(torch.randn(12, 16))
        model.mix[:, 1:] = 0  # which reads a single position
    assert shrink(model, x).model.first.shape == (12, 16)


def test_a_product_with_inputs_that_are_zero_in_the_example_depends_on_them() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.last = nn.Parameter(torch.randn(9, 9)), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.mix @ x)

    model = nn.Sequential(Mixed(), nn.ReLU(), nn.Linear(4, 4))
    small = shrink(model, torch.zeros(9, 12), verify=False).model
    torch.testing.assert_close(small(X), model(X))
    assert small[0].last.weight.shape == (4, 12)


def _by_node(index: Tensor, messages: Tensor) -> Tensor:
    return index[:, None].expand_as(messages)


GATHERED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda h, source: h[source],
    "index_select": lambda h, source: h.index_select(0, source),
    "gather": lambda h, source: h.gather(0, source[:, None].expand(-1, h.shape[1])),
}
ADDED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "index_add": lambda h, to, m: torch.zeros_like(h).index_add(0, to, m),
    "index_add_": lambda h, to, m: h.new_zeros(h.shape).index_add_(-2, to, m),
    "index_copy": lambda h, to, m: torch.zeros_like(h).index_copy(0, to, m),
    "index_put": lambda h, to, m: torch.zeros_like(h).index_put((to,), m, accumulate=True),
    "index_put_": lambda h, to, m: h.new_zeros(h.shape).index_put_((to,), m, accumulate=True),
    "index_reduce": lambda h, to, m: torch.zeros_like(h).index_reduce(0, to, m, "amax"),
    "scatter": lambda h, to, m: torch.zeros_like(h).scatter(0, _by_node(to, m), m),
    "scatter_add": lambda h, to, m: torch.zeros_like(h).scatter_add(0, _by_node(to, m), m),
    "scatter_add_": lambda h, to, m: h.new_zeros(h.shape).scatter_add_(0, to[:, None].expand(-1, m.shape[1]), m),
    "scatter_reduce": lambda h, to, m: torch.zeros_like(h).scatter_reduce(0, _by_node(to, m), m, "mean"),
}


class Messages(nn.Module):
    """Messages along edges, added up at the nodes where these end."""

    def __init__(self, gathered: Callable[..., Tensor], added: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.gathered, self.added = gathered, added

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.first(x).relu()
        h = h + self.added(h, edges[1], self.gathered(self.second(h).relu(), edges[0]))
        return self.last(self.added(h, edges[1], self.gathered(h, edges[0])))


RING = torch.stack([torch.arange(9), torch.arange(1, 10) % 9])


@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("gathered", GATHERED.values(), ids=GATHERED)
def test_channels_of_messages_along_edges_go(gathered: Callable[..., Tensor], added: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model, edges = Messages(gathered, added), torch.randint(0, 9, (2, 20))
    with torch.no_grad():
        for layer, count in ((model.first, 5), (model.second, 3)):
            layer.weight[:count], layer.bias[:count] = 0, 0
    small = shrink(model, (X, edges)).model
    assert (small.first.out_features, small.second.out_features, small.last.in_features) == (13, 13, 13)
    torch.testing.assert_close(small(2 * X, edges), model(2 * X, edges))


@pytest.mark.parametrize(
    "written",
    {
        "a token at masked places": lambda h, mask, token: h.index_put((mask,), token),
        "a token in every sample": lambda h, mask, token: h.index_put(
            (mask.nonzero()[:, 0] * 0, mask[0].nonzero()[:1, 0]), token
        ),
        "a number at masked places": lambda h, mask, token: h.index_put((mask,), torch.tensor(2.0)) + token,
    }.items(),
    ids=lambda case: case[0],
)
def test_channels_that_are_written_at_an_index_go(written: tuple[str, Callable[..., Tensor]]) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 4)
            self.token = nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.last(written[1](self.first(x), mask, self.token))

    torch.manual_seed(0)
    model, x, mask = Masked(), torch.randn(2, 9, 12), torch.rand(2, 9) < 0.5
    with torch.no_grad():
        model.first.weight[:5], model.first.bias[:5], model.token[:7] = 0, 0, 0
    small = shrink(model, (x, mask)).model
    assert small.first.out_features == (16 if "number" in written[0] else 11)
    other = torch.rand(2, 9) < 0.5
    torch.testing.assert_close(small(2 * x, other), model(2 * x, other))


@pytest.mark.parametrize("added", ["index_add", "index_put"])
def test_a_constant_that_edges_add_up_is_none(added: str) -> None:
    torch.manual_seed(0)
    model = Messages(GATHERED["index"], ADDED[added])
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight[:3], layer.bias[:3] = 0, 1
    small = shrink(model, (X, RING), verify=False).model  # each node of a ring has one neighbor
    edges = torch.randint(0, 9, (2, 20))
    torch.testing.assert_close(small(X, edges), model(X, edges))


def test_channels_that_an_index_of_another_shape_reaches_stay() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 4)
            with torch.no_grad():
                for layer in (self.first, self.second):
                    layer.weight[:5], layer.bias[:5] = 0, 0

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            h, messages = self.first(x).relu(), self.second(x).relu()
            return self.last(h.scatter_add(0, index[:, None], messages))  # the first channel alone

    model = Part()
    small = shrink(model, (X, RING[1]), verify=False).model
    assert small.first.out_features == 16
    torch.testing.assert_close(small(X, RING[0]), model(X, RING[0]))
