"""The examples, cut down to seconds: smaller models are smaller, the same, and of one size; all numbers are written."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import residual_network
import small_gpt
import sparse_digits
from comparison import BUDGET, CHANNELS, DENSE, MAGNITUDE, PENALTY, SCRATCH, Settings, Task, Training, compare
from digits.data import load
from magnitude import TOLERANCE, magnitudes, places, pruned_to, removal_order, without
from results import Row, verdict
from shrinkage import Coupled, CoupledChannels, Member

pytestmark = [
    pytest.mark.xdist_group("comparison"),  # one process trains for all
    # Models that are trained for seconds lose whole layers but for one channel, and the budget says so.
    pytest.mark.filterwarnings("ignore:.*leaves a single channel of its kind:UserWarning"),
]
EXAMPLES = {"residual_network": residual_network.main, "small_gpt": small_gpt.main}


@dataclass(frozen=True)
class Example:
    """What an example returned, printed and wrote."""

    numbers: dict
    printed: str
    written: Path

    def of(self, key):
        return {each["variant"]: each for each in self.numbers[key]}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "below" / "numbers.json"
    with redirect_stdout(io.StringIO()) as printed:
        numbers = EXAMPLES[request.param](["--quick", "--output", str(path)])
    return Example(numbers, printed.getvalue(), path)


def test_models_become_smaller_and_stay_the_same(example):
    rows, trained = example.of("rows"), example.of("trained")
    for variant in (BUDGET, PENALTY, MAGNITUDE, SCRATCH):
        for measure in ("parameters", "multiply_adds", "bytes"):
            assert rows[variant][measure] < 0.95 * rows[DENSE][measure], (variant, measure)
    for variant in (BUDGET, PENALTY):
        cut = trained[variant]["cut"]
        assert cut["error"] < 1e-5
        assert cut["validation_after"] == pytest.approx(cut["validation_before"], rel=1e-3)
    assert trained[DENSE]["cut"] is trained[SCRATCH]["cut"] is None


def test_all_models_have_the_size_that_is_asked_for(example):
    rows, target = example.of("rows"), example.numbers["settings"]["target"]
    assert 0.98 * target <= rows[BUDGET]["parameters"] <= target
    for variant in (MAGNITUDE, SCRATCH):
        assert rows[variant]["parameters"] == pytest.approx(target, rel=TOLERANCE)


@pytest.mark.filterwarnings("ignore:Budget.*floor")  # sizes in so short a training are those of the start
def test_single_weights_become_zero_by_all_methods(tmp_path):
    rows = {
        row["variant"]: row
        for row in sparse_digits.main(["--quick", "--output", str(tmp_path / "numbers.json")])["rows"]
    }
    assert rows[DENSE]["nonzero"] == 50_610
    assert rows[BUDGET]["nonzero"] == rows[MAGNITUDE]["nonzero"] == 2_920  # 5% of 50,200 weights, and all 410 biases
    assert rows[PENALTY]["nonzero"] < 0.5 * 50_610
    assert rows[SCRATCH]["parameters"] == pytest.approx(2_920, rel=TOLERANCE)


def test_the_table_shows_what_is_written(example):
    assert json.loads(example.written.read_text()) == json.loads(json.dumps(example.numbers))
    lines = {line.split()[0]: line for line in example.printed.splitlines() if line}
    for variant, row in example.of("rows").items():
        assert f"{row['quality']:.2f}" in lines[variant]
        assert f"{row['parameters']:,.0f}" in lines[variant]
        assert f"{row['milliseconds']:.2f}" in lines[variant]
    for sentence in example.numbers["findings"]:
        assert sentence in example.printed


def layers():
    """Eight neurons and four behind them; the weights of neuron n are n."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.arange(1.0, len(layer.weight) + 1)[:, None].expand_as(layer.weight))
            layer.bias.copy_(layer.weight[:, 0])
    return model


def test_channels_are_ordered_by_their_root_mean_square_in_their_layer():
    model = layers()
    channels = CoupledChannels(model, torch.randn(5, 3))
    expected = torch.cat([torch.arange(1.0, 9) / 4.5, torch.arange(1.0, 5) / 2.5])
    torch.testing.assert_close(magnitudes(model, channels), expected)
    order = removal_order(expected, channels)
    assert set(range(12)) - set(order) == {7, 11}
    assert [float(expected[each]) for each in order] == sorted(float(expected[each]) for each in order)


def test_a_small_model_loses_the_same_share_of_each_layer():
    model, x = layers(), torch.randn(5, 3)
    channels = CoupledChannels(model, x)
    torch.testing.assert_close(places(channels), torch.cat([torch.arange(8, 0, -1) / 8, torch.arange(4, 0, -1) / 4]))
    small = pruned_to(model, channels, places(channels), x, parameters=32).model
    assert [tuple(small[layer].weight.shape) for layer in (0, 2, 4)] == [(4, 3), (2, 4), (2, 2)]


def test_all_that_makes_a_channel_becomes_zero_in_a_copy():
    model = layers()
    channels = Coupled(
        [Member("0.weight", 0, range(8)), Member("0.bias", 0, range(8)), Member("2.weight", 0, [-1] * 4)]
    )
    small = without(model, channels, [0, 5])
    zero = [n in (0, 5) for n in range(8)]
    assert (small[0].weight == 0).all(dim=1).tolist() == (small[0].bias == 0).tolist() == zero
    assert torch.equal(small[2].weight, model[2].weight)
    assert (model[0].weight != 0).all()


def tiny_task(seen):
    """Numbers are to be told from their squares; notes the batches that are asked for."""

    def batch(seed, number):
        seen.append((seed, number))
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(100 * seed + number))
        return x, (x.sum(1) > 0).long()

    def quality(model):
        assert not model.training
        return 0.0

    def build():
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    def optimizer(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    return Task("tiny", "none", True, build, optimizer, 0.1, torch.randn(4, 3), batch, quality, quality)


def test_all_variants_make_the_same_updates():
    seen, ticks, settings = (
        [],
        [],
        Settings(updates=10, seeds=2, target=32, strength=0.01, penalty_from=0.2, shrink_after=0.5, prune_after=0.7),
    )
    outcomes = compare(tiny_task(seen), settings, CHANNELS, ticks.append)
    assert [(each.variant, each.seed) for each in outcomes] == [
        (variant, seed) for seed in (0, 1) for variant in CHANNELS
    ]
    assert len(ticks) == 2 * 10 * len(CHANNELS)
    assert seen == [(seed, number) for seed in (0, 1) for _ in CHANNELS for number in range(10)]


def test_weights_of_a_small_model_are_drawn_for_its_size():
    settings = Settings(1, seeds=1, target=26, strength=0.0, penalty_from=0.0, shrink_after=0.5, prune_after=0.5)
    training = Training.begin(tiny_task([]), settings, seed=3)
    CHANNELS[SCRATCH](training, lambda: None)  # its learning rate is 0 in the first update
    torch.manual_seed(3)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    assert torch.equal(training.model[0].weight, first.weight)
    assert torch.equal(training.model[2].weight, second.weight)


def test_the_penalty_begins_at_its_moment_and_rises():
    settings = Settings(100, seeds=1, target=1, strength=2.0, penalty_from=0.3, shrink_after=0.7, prune_after=0.5)
    assert [settings.strength_at(update) for update in (0, 30, 35, 40, 70)] == pytest.approx([0, 0, 1, 2, 2])


def row(variant, *qualities):
    return Row(variant, qualities, 1.0, 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize(
    ("ours", "others", "higher", "lower"),
    [
        ([3.0], [2.0], "A is better by 1.00; one seed", "B is better by 1.00; one seed"),
        ([3.0, 3.1, 3.2], [2.0, 2.2, 2.1], "A is better by 1.00 ±", "B is better by 1.00 ±"),
        ([1.0, 3.0], [2.0, 1.9], "no difference that 2 seeds can tell", "no difference that 2 seeds can tell"),
    ],
)
def test_which_variant_is_better_follows_from_the_numbers(ours, others, higher, lower, higher_is_better):
    task = tiny_task([])
    task = Task(**{**vars(task), "higher_is_better": higher_is_better})
    said = verdict(task, row("A", *ours), row("B", *others))
    assert said.startswith(higher if higher_is_better else lower)


def test_an_epoch_goes_through_all_digits():
    images = load().train
    parts = [residual_network.batch(images, 0, number) for number in range(34)]
    for epoch in (parts[:17], parts[17:]):
        assert sum(len(labels) for _, labels in epoch) == len(images)
        sums = torch.cat([pixels.sum(1) for pixels, _ in epoch]).sort().values
        torch.testing.assert_close(sums, images.pixels.sum(1).sort().values)
    assert not torch.equal(parts[0][1], parts[17][1])


def test_texts_are_of_different_files_and_labels_are_the_next_bytes():
    texts = small_gpt.load()
    pieces = [
        {bytes(piece.tolist()) for piece in each[: len(each) // 4096 * 4096].view(-1, 4096)}
        for each in (texts.train, texts.validation, texts.test)
    ]
    assert min(map(len, pieces)) > 50
    assert not pieces[0] & pieces[1]
    assert not pieces[0] & pieces[2]
    assert not pieces[1] & pieces[2]
    inputs, following = small_gpt.batch(texts.train, seed=0, number=0)
    assert inputs.shape == following.shape == (small_gpt.BATCH, small_gpt.CONTEXT)
    assert torch.equal(inputs[:, 1:], following[:, :-1])
