"""The demo, cut down to seconds: its numbers agree with each other, and its choices look at validation images only."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import shrinkage
from digits import data, timing, train, variants
from digits.choose import TOLERANCE, choose
from digits.command_line import main
from digits.publish import publish
from digits.results import SMALLER_HEADER, TABLE_HEADER, findings, smaller_finding, smaller_rows, table_rows
from digits.run import VARIANTS, Demo, Settings, run, train_variants
from digits.smaller import made_smaller

pytestmark = pytest.mark.xdist_group("digits")  # one process trains for all
SETTINGS = Settings(seeds=1, epochs=2, rounds=2, steps=1)


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load()


@pytest.fixture(scope="module")
def ticks() -> list[str]:
    return []


@pytest.fixture(scope="module")
def demo(digits: data.Digits, ticks: list[str]) -> Demo:
    return run(digits, SETTINGS, ticks.append)


@pytest.fixture(scope="module")
def folder(demo: Demo, digits: data.Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("<b> & demo")
    publish(demo, digits, folder)
    return folder


def trained(variant: variants.Variant, digits: data.Digits, epochs: int = 1) -> train.Run:
    return train.train(variant, digits, seed=0, epochs=epochs, after_epoch=lambda: None)


def test_sets_have_no_image_in_common_and_every_digit_its_share(digits: data.Digits) -> None:
    sets = (digits.train, digits.validation, digits.test)
    assert [len(images) for images in sets] == [1079, 359, 359]
    known = [{tuple(image.tolist()) for image in images.pixels} for images in sets]
    assert sum(map(len, known)) == len(set.union(*known)) == 1797
    for images in sets:
        shares = images.labels.bincount(minlength=10) / len(images)
        assert shares.min() > 0.09
        assert shares.max() < 0.11
        assert (images.pixels.min(), images.pixels.max()) == (0, 1)


def test_batches_go_through_every_image_once(digits: data.Digits) -> None:
    pixels, labels = zip(*digits.train.batches(64, torch.Generator().manual_seed(0)), strict=True)
    assert [len(batch) for batch in labels] == [64] * 16 + [55]
    pairs = [
        sorted((*image.tolist(), int(label)) for image, label in zip(*of, strict=True))
        for of in ((torch.cat(pixels), torch.cat(labels)), (digits.train.pixels, digits.train.labels))
    ]
    assert pairs[0] == pairs[1]


def test_progress_is_announced_exactly(demo: Demo, ticks: list[str]) -> None:
    assert len(ticks) == SETTINGS.ticks


def test_training_is_the_same_at_every_call(digits: data.Digits) -> None:
    first, second = (trained(variants.group_lasso(1e-3), digits) for _ in range(2))
    assert first.history == second.history
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_gradient_takes_the_steps_of_the_term_in_the_loss(digits: data.Digits) -> None:
    in_loss, gradient = (trained(make(3e-4), digits) for make in (variants.l1_in_loss, variants.l1_gradient))
    for weight, other in zip(in_loss.model.parameters(), gradient.model.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)


def test_only_proximal_l1_has_exact_zeros_from_the_beginning(demo: Demo) -> None:
    results = demo.results
    assert results["L1 proximal"].zeros > 0.01
    assert results["no penalty"].zeros == 0
    assert results["L1 in the loss"].zeros < results["L1 proximal"].zeros
    assert results["L1 gradient"].zeros < results["L1 proximal"].zeros


def test_group_lasso_removes_what_is_strongly_penalized(digits: data.Digits) -> None:
    model = trained(variants.group_lasso(0.1), digits, epochs=5).model
    zeros = shrinkage.report(model)
    assert zeros["hidden.weight"].zero_rows > 0
    assert zeros["output.weight"].zeros == 0


def test_numbers_are_those_of_the_trained_networks(demo: Demo, digits: data.Digits) -> None:
    for result, runs in zip(demo.results.variants, demo.runs, strict=True):
        assert result.name == runs[0].variant.name
        for seed, one in zip(result.seeds, runs, strict=True):
            assert seed.test_accuracy == train.accuracy(one.model, digits.test)
            assert seed.validation_accuracy == train.accuracy(one.model, digits.validation)
            weights = list(train.weights_of(one.model).values())
            assert seed.zeros == pytest.approx(sum(int((w == 0).sum()) for w in weights) / 17400)
            assert seed.zeros <= seed.small
            assert seed.zero_pixels == int((weights[0] == 0).all(0).sum())
            assert seed.zero_neurons == int((weights[1] == 0).all(1).sum())
            assert len(seed.history) == SETTINGS.epochs
            assert seed.history[-1].zeros == train.zeros_per_layer(one.model)


def test_smaller_networks_have_the_outputs_of_the_trained_ones(digits: data.Digits) -> None:
    one = trained(variants.group_lasso(2e-3), digits, epochs=5)
    zero = int((one.model.get_parameter("hidden.weight") == 0).all(1).sum())
    small = made_smaller(one, digits)
    assert small.neurons == (100, 100 - zero)
    assert 0 < zero < 100
    assert small.parameters == 17610 - zero * (100 + 1 + 10)
    assert small.difference < 1e-6
    torch.testing.assert_close(small.model(digits.test.pixels), one.model(digits.test.pixels))


def test_numbers_of_smaller_networks_are_in_the_results(demo: Demo) -> None:
    for result, smaller in zip(demo.results.variants, demo.smaller, strict=True):
        for seed, small in zip(result.seeds, smaller, strict=True):
            assert (seed.neurons_left, seed.parameters_left) == (small.neurons, small.parameters)
            assert seed.parameters_left == sum(parameter.numel() for parameter in small.model.parameters())
        assert result.difference == max(small.difference for small in smaller) < 1e-6
        assert result.milliseconds_per_call > 0


def test_timing_leaves_models_as_they_were(digits: data.Digits) -> None:
    runs = [trained(make, digits) for make in (variants.no_penalty(), variants.l1_proximal(1e-3))]
    before = [[p.clone() for p in one.model.parameters()] for one in runs]
    times = timing.time_steps(runs, digits.train, rounds=3, steps=1, after_round=lambda: None)
    for one, parameters in zip(runs, before, strict=True):
        assert all(map(torch.equal, one.model.parameters(), parameters))
    assert times[0].share == 0
    assert times[0].extra == timing.Spread(0, 0, 0)
    assert all(time.milliseconds.median > 0 for time in times)


def test_step_time_pairs_the_measurements_of_one_round() -> None:
    reference, times = [1.0, 10.0, 2.0], [2.0, 12.0, 5.0]
    measured = timing.step_time(times, reference)
    assert measured.milliseconds == timing.Spread(5.0, 3.5, 8.5)
    assert measured.extra == timing.Spread(2.0, 1.5, 2.5)
    assert measured.share == 0.4
    assert timing.spread([3.0]) == timing.Spread(3.0, 3.0, 3.0)


def fake_run(variant: variants.Variant, accuracy: float) -> train.Run:
    model = train.network()
    history = (train.Epoch(accuracy, {"input": 0.5}),)
    return train.Run(variant, 0, model, torch.optim.Adam(model.parameters()), history)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [((0.97, 0.965, 0.90), 3e-4), ((0.97, 0.90, 0.965), 1e-3), ((0.90, 0.90, 0.80), 1e-4)],
)
def test_choice_is_the_largest_strength_that_costs_little(accuracies: tuple[float, ...], expected: float) -> None:
    by_strength = dict(zip(variants.STRENGTHS, accuracies, strict=True))
    reference = [fake_run(variants.no_penalty(), 0.97)]
    choice = choose(
        variants.l1_proximal, lambda variant: (fake_run(variant, by_strength[variant.strength]),), reference
    )
    assert choice.strength == expected
    assert choice.runs[0].variant == variants.l1_proximal(expected)
    assert [c.strength for c in choice.candidates if c.chosen] == [expected]
    assert [c.validation_accuracy for c in choice.candidates] == list(accuracies)
    assert TOLERANCE == 0.01


def test_training_and_choice_do_without_test_images(digits: data.Digits) -> None:
    blind = replace(digits, test=data.Images(torch.empty(0, data.PIXELS), torch.empty(0)))
    with pytest.raises(ZeroDivisionError):
        train.accuracy(train.network(), blind.test)
    trained, candidates = train_variants(blind, Settings(seeds=1, epochs=1), lambda doing: None)
    assert (len(trained), len(candidates)) == (5, 6)


def test_one_thread_puts_the_number_of_threads_back() -> None:
    threads = torch.get_num_threads()
    with timing.one_thread():
        assert torch.get_num_threads() == 1
        assert torch.tensor(1e-40) * torch.tensor(1.0) == 0
    assert torch.get_num_threads() == threads
    assert torch.tensor(1e-40) * torch.tensor(1.0) != 0


def test_json_holds_the_numbers(demo: Demo, folder: Path) -> None:
    saved = json.loads((folder / "results.json").read_text())
    assert saved == json.loads(json.dumps(demo.results.to_dict()))
    assert saved["versions"].keys() == {"shrinkage", "torch", "python"}
    assert saved["configuration"]["epochs"] == SETTINGS.epochs
    assert len(saved["choice_of_strengths"]["candidates"]) == 2 * len(variants.STRENGTHS)
    names = [variant["name"] for variant in saved["variants"]]
    assert names == ["no penalty", "L1 in the loss", "L1 gradient", "L1 proximal", "group lasso"]
    for variant in saved["variants"]:
        (seed,) = variant["seeds"]
        assert variant["test_accuracy"] == seed["test_accuracy"]
        assert variant["test_accuracy_deviation"] is None
        assert [epoch["zeros"].keys() for epoch in seed["history"]] == [set(train.LAYERS)] * SETTINGS.epochs
        assert variant["time"]["milliseconds"].keys() == {"median", "lower_quartile", "upper_quartile"}


def test_table_has_a_row_per_variant(demo: Demo) -> None:
    rows = table_rows(demo.results)
    assert [row[0] for row in rows] == [variant.name for variant in demo.results.variants]
    assert {len(row) for row in rows} == {len(TABLE_HEADER)}
    assert rows[0][-1] == ""
    assert len(findings(demo.results)) == 4
    plain = demo.results["no penalty"]
    assert smaller_finding(plain, plain) == "`shrink` removes nothing from that network: no neuron is zero as a whole."
    smaller = smaller_rows(demo.results)
    assert [row[0] for row in smaller] == [row[0] for row in rows]
    assert {len(row) for row in smaller} == {len(SMALLER_HEADER)}
    assert len(rows) == VARIANTS


def test_folder_has_report_and_pictures(folder: Path) -> None:
    names = {
        "results.json",
        "report.html",
        "weight_histograms.svg",
        "zeros_per_layer.png",
        "pixels.png",
        "networks.png",
    }
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.glob("*.png"):
        assert imread(path)[..., :3].std() > 0.05, f"{path.name} is blank"
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt; &amp; demo" in page
    assert "<b>" not in page
    assert "://" not in page


@pytest.mark.parametrize(
    ("option", "value"), [("--seeds", "0"), ("--epochs", "-1"), ("--epochs", "many"), ("--output", "file")]
)
def test_bad_values_are_refused_in_one_line(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        main([option, value])
    said = capsys.readouterr().err or str(ended.value)
    assert ended.value.code not in (0, None)
    assert option in said or "cannot write to 'file'" in said


def test_command_prints_two_tables_and_says_where_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "folder"
    main(["--seeds", "1", "--epochs", "1", "--output", str(output)], SETTINGS)
    names = [variant["name"] for variant in json.loads((output / "results.json").read_text())["variants"]]
    printed = capsys.readouterr().out
    for name in names:
        assert sum(line.startswith(name) for line in printed.splitlines()) == 2
    assert "Wrote results.json, report.html" in printed
