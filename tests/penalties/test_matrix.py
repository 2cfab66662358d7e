"""Penalties of matrices: convolutions are flattened, Keras' formula, and the spectral one."""

import math

import pytest
import torch

from shrinkage import FusedLasso, GroupError, Nuclear, Orthogonal, Regularizer, SpectralBall


def test_a_convolution_is_flattened_to_out_times_rest():
    w = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    flat = w.reshape(5, 12)
    for penalty in (Nuclear(0.3), Orthogonal(0.3), Orthogonal(0.3, "spectral"), SpectralBall(0.5)):
        assert torch.equal(penalty.prox(w, 1.0), penalty.prox(flat, 1.0).reshape(w.shape))
        assert penalty.value(w) == penalty.value(flat)


def test_nuclear_gives_low_rank():
    w = torch.randn(20, 30, dtype=torch.float64)
    y = Nuclear(1.0).prox(w, torch.linalg.svdvals(w)[4].item())
    assert torch.linalg.matrix_rank(y) == 4
    y = Nuclear(1.0).prox(w, torch.full_like(w, torch.linalg.svdvals(w)[4].item()))
    assert torch.linalg.matrix_rank(y) == 4


def test_nuclear_residual_at_low_rank_knows_the_free_part():
    left, right = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    w = left @ right
    u, _, v = torch.linalg.svd(w)
    inside = u[:, 2:5] @ torch.diag(torch.tensor([0.9, -0.5, 0.1], dtype=torch.float64)) @ v[2:]
    subgradient = 0.7 * (u[:, :2] @ v[:2] + inside)
    assert Nuclear(0.7).residual(w, -subgradient) < 1e-10
    assert Nuclear(0.7).residual(w, -subgradient - 0.7 * inside) > 0.1
    assert Nuclear(0.7).residual(w, -0.5 * subgradient) > 0.1


def test_cosines_are_keras_formula():
    """keras.regularizers.OrthogonalRegularizer(factor, mode="rows"), from its documentation."""
    w = torch.randn(4, 7, dtype=torch.float64)
    rows = w / w.norm(dim=1, keepdim=True)
    products = rows @ rows.T
    pairs = 4 * 3 / 2
    expected = 0.01 * 0.5 * (products * (1 - torch.eye(4))).abs().sum() / pairs
    torch.testing.assert_close(Orthogonal(0.01).value(w), expected)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_spectral_form_uses_the_smaller_gram_matrix(shape):
    """An orthonormal matrix costs nothing, whether it has more rows or more columns."""
    w = torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64))
    assert Orthogonal(1.0, "spectral").value(w) < 1e-12
    gram = w @ w.T if shape[0] < shape[1] else w.T @ w
    torch.testing.assert_close(
        Orthogonal(1.0, "spectral").value(2 * w),
        torch.linalg.matrix_norm(4 * gram - torch.eye(4, dtype=torch.float64), 2),
    )


@pytest.mark.parametrize("form", ["cosines", "spectral"])
def test_training_with_nothing_but_the_penalty_makes_rows_orthogonal(form):
    torch.manual_seed(1)
    layer = torch.nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01 if form == "spectral" else 0.05)
    regularizer = Regularizer(layer, Orthogonal(1.0, form)).attach(optimizer)
    start = regularizer.value()
    for _ in range(2000):
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
    assert regularizer.value() < 0.1 * start


def test_one_row_and_zero_rows_are_orthogonal_to_everything():
    assert Orthogonal(1.0).value(torch.randn(1, 5)) == 0
    w = torch.randn(3, 5)
    w[1] = 0
    assert Orthogonal(1.0).value(w).isfinite()
    assert (Orthogonal(1.0).gradient(w)[1] == 0).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='form must be "cosines" or "spectral", got \'rows\''):
        Orthogonal(1.0, "rows")
    for penalty in (Nuclear(1.0), Orthogonal(1.0)):
        with pytest.raises(GroupError, match="two dimensions or more"):
            penalty.check_shape((3,))
    with pytest.raises(GroupError, match=r"needs a dimension 2, got shape \(3, 4\)"):
        FusedLasso(1.0, dim=2).check_shape((3, 4))
    with pytest.raises(TypeError, match="dim must be a whole number"):
        FusedLasso(1.0, dim=0.5)


def test_a_constant_costs_nothing_so_that_only_sums_of_zero_have_a_largest_strength():
    grad = torch.tensor([[1.0, 2.0, -3.0]])
    assert FusedLasso(1.0).strength_max(grad) == 3
    assert FusedLasso(1.0).strength_max(grad + 0.1) == math.inf


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_neighbours_along_any_dimension(dim):
    w = torch.randn(3, 4, 5, dtype=torch.float64)
    penalty = FusedLasso(0.4, dim=dim)
    along = w.movedim(dim, -1)
    expected = FusedLasso(0.4).prox(along.reshape(-1, along.shape[-1]), 0.7).reshape(along.shape).movedim(-1, dim)
    assert torch.equal(penalty.prox(w, 0.7), expected)
    torch.testing.assert_close(penalty.value(w), 0.4 * w.diff(dim=dim).abs().sum())
