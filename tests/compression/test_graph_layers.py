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
