"""What is left of a model without some channels, told beforehand: to the last parameter and multiply-add."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from late import transformers
from shrinkage import Coupled, CoupledChannels, GroupError, shrink
from shrinkage.compression.calls.cost import multiply_adds, parameter_count
from shrinkage.compression.calls.counted_operators import CountedOperator, multiply_adds_left
from zoo import only_dividing, own, real


@torch.no_grad()
def without(model: nn.Module, channels: Coupled, gone: Tensor) -> nn.Module:
    """A copy of the model in which some groups are zero."""
    result = copy.deepcopy(model)
    for name in channels.names:
        member = channels.slices(name)
        at = torch.isin(torch.tensor(member.groups), gone).nonzero().flatten()
        result.get_parameter(name).index_fill_(member.dim, at, 0.0)
    return result


def drawn(of: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """Some groups, never the last of a kind."""
    kinds = torch.tensor(of)
    gone = torch.rand(len(of), generator=generator) < share
    for kind in range(max(of) + 1):
        own = (kinds == kind).nonzero().flatten()
        if gone[own].all():
            gone[own[0]] = False
    return gone.nonzero().flatten()


def check(
    model: nn.Module, arguments: tuple, keywords: dict, shares: tuple[float, ...] = (0.3, 0.8), **options: bool
) -> Coupled:
    """Compare what is said to be left with what `shrink` leaves, for random channels."""
    generator = torch.Generator().manual_seed(1)
    channels = CoupledChannels(model, arguments, example_kwargs=keywords, **options)
    kinds = channels.kinds
    multiply_adds_left = kinds.counted_multiply_adds()
    nothing = [0] * (max(kinds.of) + 1)
    assert kinds.parameters.left(nothing) == parameter_count(model)
    assert multiply_adds_left.left(nothing) == multiply_adds(model, (arguments, keywords))[""]
    for share in shares:
        gone = drawn(kinds.of, share, generator)
        counts = torch.bincount(torch.tensor(kinds.of)[gone], minlength=len(nothing)).tolist()
        small = shrink(without(model, channels, gone), arguments, example_kwargs=keywords).model
        assert kinds.parameters.left(counts) == parameter_count(small)
        assert multiply_adds_left.left(counts) == multiply_adds(small, (arguments, keywords))[""]
    return channels


NAMES = ("mlp", "resnet", "mobilenet", "nested", "densenet", "attention-chunked", "grouped-queries-native")
CASES = [case for case in own.CASES if case.name in NAMES]
LARGE = [case for case in real.CASES if case.name in ("resnet50", "mobilenet_v3_small", "mobilenet_v2", "vit_b_16")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_left_of_small_models(case):
    check(case.make(), *case.example())


@pytest.mark.parametrize("case", only_dividing.CASES, ids=str)
def test_what_is_left_of_residual_streams(case):
    check(case.make(), *case.example(), shares=(0.4,), residual=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_what_is_left_of_large_models(case):
    check(case.make(), *case.example(), shares=(0.5,))


@pytest.mark.slow
def test_what_is_left_of_a_decoder():
    config = transformers.GPT2Config(vocab_size=500, n_layer=3, n_embd=96, n_head=6, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).eval()
    check(model, (torch.randint(500, (2, 16)),), {"use_cache": False}, shares=(0.5,))


def convolutional() -> nn.Sequential:
    """Three convolutions for images of 8 by 8."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )


def least(kinds) -> list[int]:
    """How many of each kind can go, by kind."""
    return [kinds.of.count(kind) - 1 for kind in range(max(kinds.of) + 1)]


def test_the_whole_and_the_least_of_a_convolutional_network():
    kinds = CoupledChannels(convolutional().eval(), torch.rand(2, 64)).kinds
    assert len(kinds.of) == 80
    assert kinds.parameters.left([0, 0, 0]) == 15_498
    assert kinds.parameters.left(least(kinds)) == 86
    assert kinds.counted_multiply_adds().left([0, 0, 0]) == 242_176


def test_two_makers_of_one_norm_are_two_kinds():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 6), nn.Linear(5, 6)
            self.norm, self.out = nn.BatchNorm1d(12), nn.Linear(12, 3)

        def forward(self, x):
            return self.out(self.norm(torch.cat([self.one(x[:, :4]), self.other(x)], 1)).relu())

    channels = check(Joined().eval(), (torch.randn(7, 5),), {})
    assert len(channels.families()) == 1
    assert sorted(map(channels.kinds.of.count, set(channels.kinds.of))) == [6, 6]


def test_operations_are_counted_when_they_are_asked_for_and_kept_in_a_pickle():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    channels = CoupledChannels(model, torch.randn(5, 4))
    assert pickle.loads(pickle.dumps(channels)).kinds.counted_multiply_adds() is None
    assert copy.deepcopy(channels).kinds is channels.kinds
    assert channels.kinds.counted_multiply_adds().left([1]) == 5 * 2 * (4 + 2)
    loaded = pickle.loads(pickle.dumps(channels))
    assert loaded == channels
    assert loaded.kinds.counted_multiply_adds() == channels.kinds.counted_multiply_adds()


class Padded(nn.Module):
    """Its hidden width is rounded up, so that it does not follow from the number of channels."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x).relu()
        square = h.new_ones(-(-h.shape[1] // 4), 3) @ h.new_ones(3, 3)
        return self.last(h) + 0 * square.sum()


def test_operations_that_do_not_follow_from_the_channels_are_refused():
    channels = CoupledChannels(Padded(), torch.randn(5, 4))
    with pytest.raises(GroupError, match="do not follow from how many channels"):
        channels.kinds.counted_multiply_adds()


def test_other_operators_in_a_smaller_model_are_refused():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.first(x).relu()
            extra = x @ x.new_ones(4, 4) if h.shape[1] < 8 else x
            return self.last(h) + 0 * extra.sum()

    channels = CoupledChannels(Branching(), torch.randn(5, 4))
    with pytest.raises(GroupError, match="other operators"):
        channels.kinds.counted_multiply_adds()


def call_of(formula, *lengths: int) -> CountedOperator:
    """A call of an operator with one tensor, whose operations have this formula."""
    leaves, structure = tree_flatten(((lengths,), {}, None))
    return CountedOperator("an operator", formula, leaves, structure, formula(lengths, out_val=None))


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (lambda shape, out_val: 2 * (shape[0] // 2), "no sum of products of lengths"),
        (lambda shape, out_val: shape[0] * shape[1], "odd number"),
    ],
    ids=["a quotient", "an odd number"],
)
def test_formulas_that_are_no_pairs_of_products_and_sums_are_refused(formula, text):
    with pytest.raises(GroupError, match=text):
        multiply_adds_left([call_of(formula, 8, 3)], {0: [call_of(formula, 7, 3)]})


def test_formulas_may_compare_lengths_and_take_remainders():
    def formula(shape, out_val):
        heads, keys, size = shape
        if heads < keys or heads % keys or not heads > 0 or 6 % keys:
            raise ValueError("heads")
        return 2 * sum([heads, 1]) * size

    left = multiply_adds_left([call_of(formula, 6, 3, 5)], {1: [call_of(formula, 4, 2, 5)]})
    assert [left.left([0, gone]) for gone in range(3)] == [35, 25, 15]
