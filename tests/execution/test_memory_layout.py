"""Views of tensors in the order of memory."""

import pytest
import torch

from shrinkage import Blocks, Columns, Heads, Rows, Whole
from shrinkage.execution import memory_layout
from shrinkage.execution.memory_layout import fold, memory_order


@pytest.mark.parametrize(
    ("groups", "shape", "order", "found"),
    [
        (Rows(), (6, 4), (0, 1), ((6, 4), (1,))),
        (Rows(), (6, 4, 3, 3), (0, 1, 2, 3), ((6, 36), (1,))),
        (Columns(), (6, 4), (0, 1), ((6, 4), (0,))),
        (Columns(), (200, 4), (0, 1), ((200 // 8, 8, 4), (0, 1))),
        (Columns(), (6, 4, 3, 3), (0, 1, 2, 3), ((6, 4, 9), (0, 2))),
        (Columns(), (6, 4, 3, 3), (0, 2, 3, 1), ((54, 4), (0,))),
        (Columns(), (6, 4, 1, 1), (0, 1, 2, 3), ((6, 4), (0,))),
        (Heads(3), (6, 4), (0, 1), ((3, 8), (1,))),
        (Heads(3), (6, 4), (1, 0), None),
        (Blocks(2, 2), (6, 4), (0, 1), ((3, 2, 2, 2), (1, 3))),
        (Whole(), (6, 4), (0, 1), ((24,), (0,))),
        (Rows(), (6, 1), (0, 1), None),
    ],
)
def test_folding(groups, shape, order, found, monkeypatch):
    monkeypatch.setattr(memory_layout, "ROWS", 8 if shape[0] == 200 else 64)
    assert fold(groups.layout(shape), order) == found


def test_memory_order():
    w = torch.randn(4, 5, 3, 2)
    last = w.to(memory_format=torch.channels_last)
    assert memory_order(w, w.clone()) == (0, 1, 2, 3)
    assert memory_order(last, last.clone()) == (0, 2, 3, 1)
    assert memory_order(w, last) is None
    assert memory_order(w[:, ::2]) is None
