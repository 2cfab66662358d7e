"""Which labels are one and the same: disjoint sets, united many at a time."""

import torch
from torch import Tensor


class DisjointSets:
    """Disjoint sets of the integers 0, 1, 2, ...; the least of a set stands for it.

    All operations take whole tensors, so that a model with millions of labels takes a few calls per operator.

    >>> labels = DisjointSets()
    >>> left, right = labels.new(3), labels.new(3)
    >>> labels.unite(left, right)
    >>> labels.find(right).tolist()
    [0, 1, 2]

    Reference: R. Tarjan (1975), Efficiency of a good but not linear set union algorithm; path halving over whole
    tensors as in Y. Shiloach and U. Vishkin (1982), An O(log n) parallel connectivity algorithm.
    """

    def __init__(self) -> None:
        self.count = 0
        self.of_parameters = 0
        self._parent = torch.arange(1024)
        self._pins: list[tuple[Tensor, str]] = []

    def new(self, count: int) -> Tensor:
        """Return `count` labels, each in a set of its own."""
        first, self.count = self.count, self.count + count
        if self.count > len(self._parent):
            more = torch.arange(len(self._parent), 2 * self.count)
            self._parent = torch.cat([self._parent, more])
        return torch.arange(first, self.count)

    def find(self, labels: Tensor) -> Tensor:
        """Return the least label of the set of each of `labels`, in their shape."""
        parent = self._parent
        root = parent[labels]
        while True:
            above = parent[root]
            if torch.equal(above, root):
                return root
            parent[labels] = root = above

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Make the set of each of `left` one with the set of the `right` that it meets, shapes being broadcast."""
        left, right = (left + 0 * right).reshape(-1), (right + 0 * left).reshape(-1)
        while True:
            left, right = self.find(left), self.find(right)
            differ = left != right
            if not differ.any():
                return
            left, right = left[differ], right[differ]
            low, high = torch.minimum(left, right), torch.maximum(left, right)
            self._parent.scatter_reduce_(0, high, low, "amin")

    def are_loose(self, labels: Tensor) -> bool:
        """Return whether no parameter has any of `labels`: those below `of_parameters` are the parameters'."""
        return bool((self.find(labels) >= self.of_parameters).all())

    def pin(self, labels: Tensor, reason: str) -> None:
        """Note that `labels` cannot go, and why."""
        self._pins.append((labels.reshape(-1), reason))

    def are_pinned(self, labels: Tensor) -> bool:
        """Return whether none of `labels` can go, as far as is noted by now."""
        held = [each for each, _ in self._pins]
        return bool(held) and bool(torch.isin(self.find(labels), self.find(torch.cat(held))).all())

    def reasons(self, *, last: bool = False) -> dict[int, str]:
        """Return the first (or last) reason for which each set that cannot go is held, by the set's least label."""
        found: dict[int, str] = {}
        for labels, reason in reversed(self._pins) if last else self._pins:
            for root in distinct(self.find(labels)).tolist():
                found.setdefault(root, reason)
        return found


def distinct(labels: Tensor) -> Tensor:
    """Return the different ones of `labels`, in order."""
    different: Tensor = torch.unique(labels)
    return different
