"""Which groups go so that at least so much is left: the lowest scores first, and never the last of a kind."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shrinkage.penalties.kinds import Amount


class Stock(NamedTuple):
    """What there is to choose from.

    Args:
        kinds: the kind of each group, shape `(groups,)`.
        most: how many groups of each kind can go, by kind.
        free: whether each group can go at all, shape `(groups,)`.
        amount: what is left without some groups.
    """

    kinds: Tensor
    most: tuple[int, ...]
    free: Tensor
    amount: Amount

    @classmethod
    def of(cls, kinds: Sequence[int], amount: Amount, free: Tensor | None = None) -> "Stock":
        """Return the groups of these kinds; one of each kind stays, one that is not `free` if there is any."""
        kind = torch.tensor(kinds, dtype=torch.long)
        free = torch.ones(len(kinds), dtype=torch.bool) if free is None else free
        count = int(kind.max()) + 1
        can_go, all_of = (torch.bincount(each, minlength=count).tolist() for each in (kind[free], kind))
        return cls(kind, tuple(n - (n == of) for n, of in zip(can_go, all_of, strict=True)), free, amount)

    def counts(self, groups: Tensor) -> list[int]:
        """Return how many of `groups`, by number, there are of each kind."""
        found: list[int] = torch.bincount(self.kinds[groups], minlength=len(self.most)).tolist()
        return found

    def left(self, gone: Tensor) -> int:
        """Return what is left without the groups that are `gone`, one truth value for each."""
        return self.amount.left(self.counts(gone.nonzero().flatten()))

    @property
    def whole(self) -> int:
        """What there is while no group is gone."""
        return self.amount.left([0] * len(self.most))

    @property
    def least(self) -> int:
        """What is left when all groups are gone that can go."""
        return self.amount.left(self.most)

    def prices(self) -> Tensor:
        """Return how much the first of each group's kind takes along."""
        steps = [[int(kind == other) for other in range(len(self.most))] for kind in range(len(self.most))]
        lost = [self.whole - self.amount.left(step) for step in steps]
        return torch.tensor(lost, dtype=torch.double)[self.kinds]

    def in_order(self, scores: Tensor, gone: Tensor) -> Tensor:
        """Return the numbers of the groups that can go: those that are gone, then the lowest scores.

        Of each kind there are as many as can go; equal scores are in the order of the groups.
        """
        order = torch.where(gone, -torch.inf, scores.double()).sort(stable=True).indices
        order = order[self.free[order]]
        kinds = self.kinds[order]
        by_kind = kinds.sort(stable=True).indices
        sizes = torch.bincount(kinds, minlength=len(self.most))
        first = (sizes.cumsum(0) - sizes)[kinds[by_kind]]
        place = torch.empty_like(order)
        place[by_kind] = torch.arange(len(order)) - first
        return order[place < torch.tensor(self.most)[kinds]]


def chosen(stock: Stock, scores: Tensor, gone: Tensor, goal: int, *, last: bool = False) -> Tensor:
    """Return which groups go, one truth value for each: those that are `gone`, and the lowest scores besides.

    Args:
        stock: the groups.
        scores: of each group; the lowest go first.
        gone: the groups that are gone already.
        goal: how much is to be left, at least; if it is the `last` choice, at most.
        last: whether what is left comes as close to the goal as it can. Before, a group that would leave less than the
            goal waits, and so do those after it: taken by their sizes, good ones would go for good.

    >>> from shrinkage.penalties.kinds import amount
    >>> stock = Stock.of([0, 0, 0, 1, 1], amount([(1, ((90, ((0, 10), (1, 30))),))]))
    >>> scores, none = torch.tensor([4.0, 2.0, 5.0, 3.0, 6.0]), torch.zeros(5, dtype=torch.bool)
    >>> chosen(stock, scores, none, 65).tolist(), chosen(stock, scores, none, 65, last=True).tolist()
    ([False, True, False, False, False], [True, True, False, True, False])
    """
    line = stock.in_order(scores, gone)
    lengths = range(len(line) + 1)
    taken = bisect_right(lengths, -goal, key=lambda length: -stock.amount.left(stock.counts(line[:length]))) - 1
    result = gone.clone()
    result[line[:taken]] = True
    if last:
        result[filled_up(stock, line, taken, goal)] = True
    return result


def filled_up(stock: Stock, line: Tensor, taken: int, goal: int) -> list[int]:
    """Return the groups after the first `taken` of `line` that still fit, and one that leads to the goal or below.

    Of a kind of which one does not fit no other does later. The last one is that which leads least below.
    """
    counts = stock.counts(line[:taken])
    rest = line[taken:].tolist()
    kinds = stock.kinds[line[taken:]].tolist()
    found: list[int] = []
    too_much: dict[int, int] = {}  # by kind, the first group of it that leaves less than the goal
    after: dict[int, int] = {}
    for group, kind in zip(rest, kinds, strict=True):
        if kind in too_much:
            continue
        counts[kind] += 1
        if stock.amount.left(counts) >= goal:
            found.append(group)
        else:
            counts[kind] -= 1
            too_much[kind] = group
    if stock.amount.left(counts) > goal and too_much:
        for kind in too_much:
            counts[kind] += 1
            after[kind] = stock.amount.left(counts)
            counts[kind] -= 1
        found.append(too_much[max(after, key=lambda kind: after[kind])])
    return found
