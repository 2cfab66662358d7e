"""Which groups go: the target is met and hardly missed, whatever the scores and the sizes are."""

import random

import pytest
import torch

from shrinkage.penalties.group_choice import Stock, chosen
from shrinkage.penalties.kinds import amount


def stock_of(generator: random.Random) -> Stock:
    """Groups of some kinds, and a sum of products of lengths that they shorten."""
    kinds = [kind for kind in range(generator.randint(1, 5)) for _ in range(generator.randint(1, 12))]
    generator.shuffle(kinds)
    count = max(kinds) + 1
    lengths = []
    for _ in range(count + 2):
        own = generator.sample(range(count), generator.randint(1, min(2, count)))
        less = tuple((kind, generator.randint(1, 9)) for kind in own)
        lengths.append((sum(less * kinds.count(kind) for kind, less in less) + generator.randint(0, 3), less))
    products = [(generator.randint(1, 4), tuple(generator.sample(lengths, 2))) for _ in range(4)]
    # each kind shortens something
    products += [(1, ((kinds.count(kind) * (kind + 1), ((kind, kind + 1),)),)) for kind in range(count)]
    return Stock.of(kinds, amount(products))


def scores_of(stock: Stock, seed: int) -> torch.Tensor:
    """Scores with ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, (len(stock.kinds),), generator=generator).float()


def left_with(stock: Stock, counts: list[int], kind: int, more: int) -> int:
    """What is left when so many more of one kind are gone."""
    return stock.amount.left([n + more * (own == kind) for own, n in enumerate(counts)])


def finest_was_last(stock: Stock, gone: torch.Tensor, target: int) -> bool:
    """Whether too much is left without one of the groups, in the place of which no other leads nearer to the target."""
    counts, left = stock.counts(gone.nonzero().flatten()), stock.left(gone)
    for last in (kind for kind, n in enumerate(counts) if n):
        before = [n - (own == last) for own, n in enumerate(counts)]
        others = [left_with(stock, before, kind, 1) for kind, most in enumerate(stock.most) if before[kind] < most]
        if stock.amount.left(before) > target and all(other <= left for other in others):
            return True
    return False


@pytest.mark.parametrize("seed", range(100))
def test_a_ramp_ends_at_the_target_and_hardly_below(seed):
    generator = random.Random(seed)
    stock = stock_of(generator)
    target = generator.randint(stock.least, stock.whole - 1) if stock.least < stock.whole else stock.whole
    gone = torch.zeros(len(stock.kinds), dtype=torch.bool)
    for look in range(5):
        goal = stock.whole - (stock.whole - target) * look // 4
        before, gone = gone, chosen(stock, scores_of(stock, seed + look), gone, goal, last=look == 4)
        assert gone[before].all()
        if look < 4:
            assert stock.left(gone) >= goal
        counts = stock.counts(gone.nonzero().flatten())
        assert all(n < stock.kinds.tolist().count(kind) for kind, n in enumerate(counts))
    assert stock.left(gone) <= target
    assert stock.left(gone) == target or finest_was_last(stock, gone, target)


def test_the_lowest_scores_go_in_order_and_wait_where_one_would_cross():
    stock = Stock.of([0] * 6 + [1] * 3, amount([(1, ((130, ((0, 5), (1, 30))),))]))
    scores = torch.tensor([8.0, 1, 7, 2, 6, 5, 3, 9, 4])
    none = torch.zeros(9, dtype=torch.bool)
    assert chosen(stock, scores, none, 100).nonzero().flatten().tolist() == [1, 3]  # 6, of 30, would leave 90
    assert chosen(stock, scores, none, 89).nonzero().flatten().tolist() == [1, 3, 6]
    filled = chosen(stock, scores, none, 111, last=True)  # 5 fits, and 4 leads 1 below where 6 would lead 26 below
    assert filled.nonzero().flatten().tolist() == [1, 3, 4, 5]
    assert torch.equal(chosen(stock, scores, none, 110, last=True), filled)


def test_what_is_gone_stays_gone_whatever_its_score_becomes():
    stock = Stock.of([0] * 5, amount([(1, ((50, ((0, 10),)),))]))
    gone = torch.tensor([False, False, False, True, False])
    later = chosen(stock, torch.tensor([1.0, 2, 3, 100, 4]), gone, 20)
    assert later.tolist() == [True, True, False, True, False]


def test_groups_that_are_not_free_stay_and_spare_the_last_of_their_kind():
    free = torch.tensor([True, True, False, True, True])
    stock = Stock.of([0, 0, 0, 1, 1], amount([(1, ((50, ((0, 10), (1, 10))),))]), free)
    assert stock.most == (2, 1)
    going = chosen(stock, torch.arange(5.0), torch.zeros(5, dtype=torch.bool), 0, last=True)
    assert going.nonzero().flatten().tolist() == [0, 1, 3]


def test_a_number_that_is_no_number_stays():
    stock = Stock.of([0, 0, 0], amount([(1, ((30, ((0, 10),)),))]))
    scores = torch.tensor([float("nan"), 5.0, 4.0])
    assert chosen(stock, scores, torch.zeros(3, dtype=torch.bool), 10).tolist() == [False, True, True]
