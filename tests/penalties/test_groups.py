import pytest
import torch

from shrinkage import Blocks, Columns, GroupError, Heads, Kernels, Rows, Whole

VIEWS = [Rows(), Columns(), Kernels(), Heads(2), Heads(3, dim=1), Heads(2, dim=2), Whole()]


@pytest.mark.parametrize("groups", VIEWS, ids=str)
def test_view_and_restore_are_inverse(groups):
    w = torch.randn(4, 6, 2, 5)
    matrix = groups.view(w)
    layout = groups.layout(w.shape)
    assert matrix.shape == (layout.count, layout.size)
    assert torch.equal(groups.restore(matrix, w.shape), w)


def test_groups_are_the_slices_they_say():
    w = torch.arange(48.0).reshape(4, 6, 2)
    assert torch.equal(Rows().view(w)[2], w[2].flatten())
    assert torch.equal(Columns().view(w)[2], w[:, 2].flatten())
    assert torch.equal(Kernels().view(w)[2 * 6 + 3], w[2, 3])
    assert torch.equal(Heads(2).view(w)[1], w[2:].flatten())
    assert torch.equal(Heads(3, dim=1).view(w)[1], w[:, 2:4].flatten())
    assert torch.equal(Whole().view(w)[0], w.flatten())


@pytest.mark.parametrize("groups", VIEWS, ids=str)
def test_norms_are_those_of_the_view(groups):
    w = torch.randn(4, 6, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(groups.norms(w), groups.view(w).square().sum(1).sqrt())


def test_norms_of_half_precision_are_computed_in_float32():
    w = torch.full((1, 4), 60_000.0, dtype=torch.float16)
    assert Rows().norms(w).item() == pytest.approx(120_000.0)


def test_rows_of_a_bias_are_its_elements():
    assert Rows().view(torch.arange(3)).tolist() == [[0], [1], [2]]


def test_something_always_runs_within_a_group():
    for groups, shape in ((Rows(), (3,)), (Whole(), ()), (Heads(3), (3,)), (Columns(), (2, 3)), (Kernels(), (2, 3, 4))):
        assert groups.layout(shape).within


def test_groups_of_an_empty_tensor():
    assert Rows().norms(torch.zeros(3, 0)).tolist() == [0, 0, 0]
    assert Rows().norms(torch.zeros(0, 3)).tolist() == []


@pytest.mark.parametrize(
    ("groups", "shape", "message"),
    [
        (Heads(5), (12, 4), r"multiple of 5, got 12 in shape \(12, 4\)"),
        (Heads(2, dim=1), (12,), r"at least 2 dimensions, got shape \(12,\)"),
        (Rows(), (), r"at least 1 dimension, got shape \(\)"),
        (Columns(), (3,), r"at least 2 dimensions, got shape \(3,\)"),
        (Kernels(), (3, 4), r"at least 3 dimensions, got shape \(3, 4\)"),
    ],
)
def test_a_tensor_that_does_not_fall_into_the_groups_is_refused(groups, shape, message):
    with pytest.raises(GroupError, match=message):
        groups.layout(shape)


@pytest.mark.parametrize(("count", "dim"), [(0, 0), (-1, 0), (2, -1)])
def test_heads_check_their_arguments(count, dim):
    with pytest.raises(ValueError, match="Heads"):
        Heads(count, dim)


def test_blocks_are_rectangles():
    w = torch.arange(24).reshape(4, 6)
    assert torch.equal(Blocks(2, 3).view(w)[0], torch.tensor([0, 1, 2, 6, 7, 8]))
    assert torch.equal(Blocks(2, 3).view(w)[3], torch.tensor([15, 16, 17, 21, 22, 23]))
    kernels = torch.randn(4, 6, 3, 3)
    assert Blocks(2, 3).view(kernels).shape == (4, 54)
    assert torch.equal(Blocks(2, 3).restore(Blocks(2, 3).view(kernels), kernels.shape), kernels)


@pytest.mark.parametrize("bad", [(0, 1), (1, 0), (1.0, 2), (True, 2)])
def test_blocks_have_whole_sizes(bad):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        Blocks(*bad)


def test_blocks_have_to_fit():
    with pytest.raises(GroupError, match=r"multiples of 2 and 4, got shape \(4, 6\)"):
        Blocks(2, 4).layout((4, 6))


def test_values_of_groups_are_spread_over_their_elements():
    for groups in (Rows(), Columns(), Heads(2), Blocks(2, 3), Whole()):
        w = torch.randn(4, 6)
        norms = groups.norms(w)
        spread = groups.spread(norms, w.shape)
        assert torch.equal(groups.view(spread), norms[:, None].expand_as(groups.view(w)))
