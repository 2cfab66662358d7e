"""The benchmarks, cut down to seconds: never how long something takes, but that what is timed is what its row says."""

import importlib.metadata
import importlib.util
import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import compilations, device, device_checks, memory, small, variants
from benchmarks.activities import PENALTIES, measure_activities, passes
from benchmarks.compilations import compilations_when_all_changes, compiled_graphs
from benchmarks.kernels import measure_kernels, rule_alone
from benchmarks.memory import extra_peak, require
from benchmarks.models import GPT, dense, resnet
from benchmarks.rivals import RIVALS
from benchmarks.scaling import Point, by_tensors, by_weights, slopes
from benchmarks.search import measure_search
from benchmarks.shapes import ARCHITECTURES, Architecture
from benchmarks.skipping import SkippedError, needs
from benchmarks.smaller import QUICK_SUBJECTS, SUBJECTS, halve_, measure_smaller, planned, shortened, tiny
from benchmarks.sparse import BATCHES, ZEROS, layers, measure_sparse
from benchmarks.tables import Settings, measure
from benchmarks.timing import CPU, Limits, interleaved, ratios
from benchmarks.training import KERAS, KERAS_L1, Task, images, measure_training, text, vectors
from benchmarks.variants import ADAMW, ADAMW_ALONE, KINDS, QUICK, SGD, Trial, Variant, own, rule, rules
from benchmarks.work import LEARNING_RATE, Work

TINY = Architecture("tiny", lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3, bias=False)))
SETTINGS = Settings(Limits(3, 60.0), steps=3)
PACKAGES = {"torchao lasso": "torchao", "torchao rows": "torchao", "Torch-Pruning": "torch_pruning"}
BY_NAME = {variant.name: variant for variant in [*own(), *own(compile=False), *RIVALS]}
of_others = pytest.mark.filterwarnings("ignore")  # packages that are measured may deprecate what they like


class Clock:
    """A clock that only steps move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def step(self, *seconds):
        """A step that takes so long, by turns."""
        durations = list(seconds)

        def step(*ignored):
            self.now += durations[0]
            durations.append(durations.pop(0))

        return step


def tiny_work():
    torch.manual_seed(0)
    return Work.of([(4, 6), (4,), (2, 3, 3, 3), (3, 4)], CPU)


def values(work):
    return [parameter.detach().clone() for parameter in work.parameters]


def stepped(name, strength, steps=1):
    """The work after steps of a variant."""
    work = tiny_work()
    step = BY_NAME[name].make(work, strength).step
    for _ in range(steps):
        step()
    return work


def test_rounds_are_interleaved_and_ratios_are_those_within_a_round():
    clock, seen = Clock(), []
    fast, slow = clock.step(1.0, 2.0, 4.0), clock.step(3.0, 2.0, 8.0)
    steps = {"fast": lambda: (seen.append("fast"), fast()), "slow": lambda: (seen.append("slow"), slow())}
    times = interleaved(steps, Limits(3, 1e9), clock=clock)
    assert times == {"fast": [1.0, 2.0, 4.0], "slow": [3.0, 2.0, 8.0]}
    assert seen == ["fast", "slow", "fast", "slow", "fast", "slow"]
    spread = ratios(times["slow"], times["fast"])
    assert (spread.median, spread.lower, spread.upper) == (2.0, 1.5, 2.5)


def test_everyone_comes_first_and_has_more_than_one_predecessor():
    clock, seen = Clock(), []
    steps = {name: lambda name=name: seen.append(name) for name in "abc"}
    interleaved(steps, Limits(6, 1e9), clock=clock)
    turns = [seen[start : start + 3] for start in range(0, 18, 3)]
    assert {turn[0] for turn in turns} == set("abc")
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    before = {pair for turn in turns for pair in pairwise(turn)}
    assert all(len({first for first, second in before if second == name}) == 2 for name in "abc")


def test_time_limits_rounds_but_three_are_made():
    clock = Clock()
    assert len(interleaved({"a": clock.step(10.0)}, Limits(9, 1.0), clock=clock)["a"]) == 3
    assert len(interleaved({"a": clock.step(10.0)}, Limits(9, 45.0), clock=clock)["a"]) == 5
    assert len(interleaved({"a": clock.step(10.0)}, Limits(2, 45.0), clock=clock)["a"]) == 2


def test_a_table_computes_what_its_columns_say(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(Work, "copy", clock.step(1.0))

    def taking(*seconds):
        return lambda work, strength: Trial(clock.step(*seconds), work.adamw())

    chosen = [Variant(ADAMW, taking(2.0)), Variant("rule", taking(6.0), bytes_per_weight=12)]
    result = measure(TINY, chosen, Settings(Limits(3, 1e9), clock=clock))
    alone, row = result.rows
    assert (result.tensors, result.penalized, result.weights, result.rounds) == (5, 2, 24 + 4 + 8 + 12, 3)
    assert result.copy_rate == 8 * 36
    assert (alone.milliseconds, alone.ratio.median, alone.gigabytes_per_second) == (2000, 1.0, None)
    assert (row.milliseconds, row.ratio.median, row.ratio.lower) == (6000, 3.0, 3.0)
    assert row.gigabytes_per_second == 12 * 36 / 4.0 / 1e9
    assert row.share_of_copy == pytest.approx(12 / 4.0 / 8)
    assert row.host_microseconds == pytest.approx(4e6 / 2)


@of_others
def test_a_table_has_all_variants_and_says_why_one_is_skipped(monkeypatch):
    for package in set(PACKAGES.values()):
        for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, name, None)
    chosen = [*own(compile=False), *RIVALS, Variant("broken", lambda work, strength: 1 / 0, rival=True)]
    result = measure(TINY, chosen, SETTINGS)
    assert [row.name for row in result.rows] == [variant.name for variant in chosen]
    skipped = {row.name: row.skipped for row in result.rows if row.skipped}
    missing = {name: f"{package} is not installed" for name, package in PACKAGES.items()}
    assert skipped == {**missing, "broken": "ZeroDivisionError: division by zero"}
    assert all(row.milliseconds > 0 for row in result.rows if not row.skipped)
    lines = str(result).splitlines()
    assert len(lines) == 3 + len(chosen) + len(skipped)
    assert "torchao lasso: torchao is not installed" in lines


def test_errors_of_our_own_are_not_skipped():
    with pytest.raises(ZeroDivisionError):
        measure(TINY, [ADAMW_ALONE, Variant("ours", lambda work, strength: 1 / 0)], SETTINGS)


def test_what_memory_is_too_short_for_is_skipped(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: memory.SPARE + 4 * 4 * 48)
    fits = measure(TINY, [ADAMW_ALONE, Variant("large", ADAMW_ALONE.make, copies=6)], SETTINGS)
    assert fits.rows[0].skipped is None
    assert fits.rows[1].skipped.startswith("needs 2.0 GB of memory")
    monkeypatch.setattr(memory, "free", lambda device: 0.0)
    assert str(measure(TINY, [ADAMW_ALONE], SETTINGS)).startswith("tiny: skipped, needs 2.0 GB of memory, 0.0 GB")
    with pytest.raises(SkippedError):
        require(1, CPU)


def test_a_package_that_does_not_load_is_skipped():
    with pytest.raises(SkippedError, match="torchao cannot be imported: built for another"), needs("torchao"):
        raise ImportError("built for another torch")


def steps_of(name, work):
    """The steps of the proximal operator that a variant's name promises, after one step of its optimizer."""
    if name.endswith("SGD"):
        return [LEARNING_RATE / (1 - 0.9)] * 4
    if "plain" in name:
        return [LEARNING_RATE] * 4
    correction = 1 - 0.999**10_001
    return [LEARNING_RATE / ((second / correction).sqrt() + 1e-8) for second in work.second]


PROXIMAL = [
    variant.name.removesuffix(", eager")
    for variant in own(compile=False)
    if variant.name not in (ADAMW, SGD, "L1, gradient") and not variant.name.startswith("channels")
]


@pytest.mark.parametrize("name", PROXIMAL)
def test_rules_follow_the_optimizer_by_the_prox_of_their_metric(name):
    strength = {"plain": 2e4, "SGD": 2e3}.get(name.split(", ")[1], 5.0)
    kind = KINDS[name.split(", ")[0]].penalty(strength)
    baseline = stepped(SGD if name.endswith("SGD") else ADAMW, 0.0)
    expected = [
        kind.prox(w, step) if w.dim() > 1 else w
        for w, step in zip(values(baseline), steps_of(name, baseline), strict=True)
    ]
    found = values(stepped(f"{name}, eager", strength))
    for w, moved, before in zip(found, expected, values(baseline), strict=True):
        assert torch.allclose(w, moved, rtol=1e-4, atol=1e-9)
        assert w.dim() == 1 or not torch.equal(w, before)


@pytest.mark.parametrize("name", [*PROXIMAL, "softshrink by hand"])
def test_at_a_large_strength_the_matrices_become_zero_and_nothing_else(name):
    work = stepped(BY_NAME.get(f"{name}, eager", BY_NAME.get(name)).name, 1e9)
    assert all(not parameter.any() for parameter in work.penalized)
    assert work.parameters[1].all()


@pytest.mark.parametrize("metric", ["plain", "Adam's metric"])
def test_channels_are_rows_with_the_vectors_that_follow(metric):
    shapes = [(6, 4), (6,), (6,), (5, 3), (3,), (3,), (7, 2), (4,)]
    groups = variants.channels([torch.zeros(shape) for shape in shapes])
    found = {member.parameter: (member.dim, member.groups[0], len(member.groups)) for member in groups.members}
    rows, columns = {"0": (0, 0, 6), "1": (0, 0, 6), "2": (0, 0, 6)}, {"3": (1, 6, 3), "4": (0, 6, 3), "5": (0, 6, 3)}
    assert found == {**rows, **columns, "6": (0, 9, 7)}
    work = stepped(f"channels, {metric}, eager", 1e9)
    assert all(not parameter.any() for parameter in work.penalized)


@pytest.mark.parametrize("name", ["L1, gradient", "L1 in the loss", "L1 in hooks"])
def test_gradients_get_the_derivative(name):
    strength = 1e-3
    work = tiny_work()
    for parameter in work.penalized:
        parameter.grad += strength * parameter.detach().sign()
    work.adamw().step()
    for w, expected in zip(values(stepped(name, strength)), values(work), strict=True):
        assert torch.allclose(w, expected, rtol=0, atol=1e-10)
    unchanged = values(stepped(ADAMW, strength))
    assert not torch.equal(work.penalized[0], unchanged[0])


@of_others
@pytest.mark.parametrize("name", ["torchao lasso", "torchao rows"])
def test_torchao_thresholds_the_weights_after_the_step(name):
    pytest.importorskip("torchao")
    strength = 2e4
    baseline = values(stepped(ADAMW, 0.0, steps=2))
    for w, alone in zip(values(stepped(name, strength)), baseline, strict=True):
        rows = alone.flatten(1) if alone.dim() > 1 else alone
        threshold = LEARNING_RATE * strength * (1 if name.endswith("lasso") else rows.shape[-1] ** 0.5)
        size = rows.abs() if name.endswith("lasso") else rows.norm(dim=-1, keepdim=True)
        expected = (rows * (1 - threshold / size).clamp_min(0)).view_as(alone) if alone.dim() > 1 else alone
        assert torch.allclose(w, expected, rtol=1e-4, atol=1e-9)
        assert alone.dim() == 1 or not torch.equal(w, alone)


def small_resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


@of_others
def test_torch_pruning_regularizes_the_shared_parameters():
    pytest.importorskip("torch_pruning")
    pytest.importorskip("transformers")
    work = Work.on(Architecture("small", small_resnet, lambda: torch.zeros(1, 3, 32, 32)), CPU)
    before = [parameter.grad.clone() for parameter in work.parameters]
    BY_NAME["Torch-Pruning"].make(work, 1.0).step()
    changed = [not torch.equal(p.grad, grad) for p, grad in zip(work.parameters, before, strict=True)]
    assert all(moved for moved, p in zip(changed, work.parameters, strict=True) if p.dim() == 4)


def test_torch_pruning_is_skipped_where_it_traces_nothing():
    pytest.importorskip("torch_pruning")
    with pytest.raises(SkippedError, match="images"):
        BY_NAME["Torch-Pruning"].make(tiny_work(), 1.0)


@of_others
def test_variants_share_one_state_and_leave_it_as_it_was():
    work = tiny_work()
    parameters, moments = values(work), [second.clone() for second in work.second]
    gradients = [parameter.grad.clone() for parameter in work.parameters]
    addresses = [tensor.data_ptr() for tensor in (*work.parameters, *work.first, *work.second)]
    trials = {}
    for variant in [*own(compile=False), *RIVALS]:
        try:
            trials[variant.name] = variant.make(work, variants.STRENGTH)
        except SkippedError:
            assert variant.name in PACKAGES
    for _ in range(20):
        for trial in trials.values():
            trial.step()
        work.copy()
    for name, trial in trials.items():
        for parameter, first, second in zip(work.parameters, work.first, work.second, strict=True):
            state = trial.optimizer.state[parameter]
            assert state["momentum_buffer" if "SGD" in name else "exp_avg"] is first, name
            assert state.get("exp_avg_sq", second) is second, name
    assert addresses == [tensor.data_ptr() for tensor in (*work.parameters, *work.first, *work.second)]
    assert all(torch.allclose(*pair, rtol=1e-2) for pair in zip(work.second, moments, strict=True))
    assert all(torch.allclose(*pair, atol=1e-3) for pair in zip(values(work), parameters, strict=True))
    for parameter, grad in zip(work.parameters, gradients, strict=True):
        assert torch.allclose(parameter.grad, grad, rtol=1e-2)


def test_second_moments_spread_over_four_decades():
    second = Work.of([(300, 300)], CPU).second[0]
    assert second.min() < 2e-10
    assert second.max() > 5e-7


def test_compiled_and_eager_rules_say_so_to_the_regularizer(monkeypatch):
    asked = []

    class Recorded(variants.Regularizer):
        def __init__(self, *args, compile, **options):
            asked.append(compile)
            super().__init__(*args, compile=False, **options)

    monkeypatch.setattr(variants, "Regularizer", Recorded)
    for variant in own():
        variant.make(tiny_work(), 0.0)
    compiled = [variant.compiled for variant in own() if variant.name not in (ADAMW, SGD)]
    assert asked == compiled
    assert compiled.count(True) == 2 * (len(KINDS) + 1) + len(QUICK)
    assert not any(variant.compiled for variant in own(compile=False))


def test_compilations_are_counted():
    @torch.compile(backend="eager", dynamic=True)
    def double(x):
        return 2 * x

    before = compiled_graphs()
    for _ in range(3):
        double(torch.ones(3))
    assert compiled_graphs() - before == 1

    def per_step(work, strength):
        trial = ADAMW_ALONE.make(work, strength)
        return Trial(lambda: torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)), trial.optimizer)

    assert compilations_when_all_changes(Variant("per step", per_step), tiny_work(), 4) >= 1
    assert compilations_when_all_changes(rule("L1", "proximal", compile=False), tiny_work(), 4) == 0


def test_the_first_step_carries_the_compiling():
    clock = Clock()
    assert compilations.first_and_later(clock.step(7.0, 3.0, 2.0), CPU, clock) == 5.0


def test_extra_memory_is_what_is_held_at_one_time():
    x = torch.ones(1 << 18)

    def one_after_the_other():
        for _ in range(3):
            x.add_(2 * x)

    assert extra_peak(lambda: x.add_(1), CPU) < 1024
    assert 1 << 20 <= extra_peak(one_after_the_other, CPU) < (1 << 20) + 1024
    assert 1 << 21 <= extra_peak(lambda: (x + 1) * (x + 2), CPU) < (1 << 22)


def test_kernels_are_rules_without_their_optimizer():
    work = tiny_work()
    trial = rule("L1", "decoupled", compile=False).make(work, 1e9)
    moments = [first.clone() for first in work.first]
    rule_alone(trial.optimizer)()
    assert all(not parameter.any() for parameter in work.penalized)
    assert all(torch.equal(*pair) for pair in zip(work.first, moments, strict=True))
    assert int(work.counts[0]) == 10_000


def test_kernels_are_compared_to_a_copy_of_their_bytes(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(Work, "copy", clock.step(2.0))
    monkeypatch.setattr("benchmarks.kernels.rule_alone", lambda optimizer: clock.step(6.0))
    chosen = rules(QUICK, compile=False)
    result = measure_kernels(chosen, 8, Settings(Limits(3, 1e9), clock=clock))
    assert [kernel.ratio.median for kernel in result.kernels] == pytest.approx([3.0, 2.0, 2.0, 1.2])
    assert result.copy_rate == 8 * 64 / 2.0
    assert len(str(result).splitlines()) == 3 + len(chosen)


def test_kernels_are_skipped_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 0.0)
    assert "skipped, needs" in str(measure_kernels(rules(QUICK, compile=False), 8, SETTINGS))


def test_sparse_layers_are_compared_to_the_dense_one(monkeypatch):
    clock = Clock()
    steps = {"dense": clock.step(6.0), **{str(zeros): clock.step(2.0) for zeros in ZEROS}}
    monkeypatch.setattr("benchmarks.sparse.layers", lambda *ignored: steps)
    result = measure_sparse(8, Settings(Limits(3, 1e9), clock=clock))
    assert [(point.batch, point.zeros) for point in result.points] == [(b, z) for b in BATCHES for z in ZEROS]
    assert all(point.speedup.median == 3 and point.dense_milliseconds == 6000 for point in result.points)
    assert len(str(result).splitlines()) == 3 + len(result.points)


def test_penalties_on_activations_are_compared_to_the_term_in_the_loss(monkeypatch):
    clock = Clock()
    steps = {"no penalty": clock.step(1.0), "term in the loss": clock.step(5.0), "Activities": clock.step(2.0)}
    monkeypatch.setattr("benchmarks.activities.passes", lambda *ignored: steps)
    result = measure_activities(8, Settings(Limits(3, 1e9), clock=clock))
    assert [row.added for row in result.rows] == pytest.approx(2 * [0, 4000, 1000])
    assert str(result).count("0.25") == 2


def test_activations_are_penalized_alike():
    a = torch.randn(4, 6, requires_grad=True)
    gradients = []
    for step in passes(a, PENALTIES[0]).values():
        step()
        gradients.append(a.grad)
    alone, term, ours = gradients
    assert torch.allclose(term, ours)
    assert not torch.equal(alone, ours)


@of_others
def test_smaller_models_lose_half_of_their_channels():
    model, x, keywords = tiny()
    halve_(model, x, keywords)
    assert int((model[0].weight == 0).flatten(1).all(1).sum()) == 16
    assert planned(model, x, keywords).shape_after("0.weight") == (16, 3, 3, 3)
    result = measure_smaller(QUICK_SUBJECTS[0], Settings(Limits(3, 60.0)))
    before, after = result.parameters
    assert before == 32 * 28 + 64 + 8 * (32 * 9 + 1)
    assert before - after == 16 * (28 + 2 + 8 * 9)
    assert result.error < 1e-5
    assert result.extra_bytes > 0
    assert "times as fast" in str(result)


@pytest.mark.parametrize("subject", [each for each in SUBJECTS if "LSTM of" in each.name or "nanoGPT" in each.name])
def test_a_short_call_is_one_that_the_model_takes(subject):
    model, x, keywords = subject.make()
    assert len(model.eval()(shortened(x), **keywords)) == 1


def test_a_model_that_does_not_fit_is_not_made_smaller(monkeypatch):
    monkeypatch.setattr("benchmarks.memory.free", lambda device: 1e9)
    assert "skipped, needs 6.0 GB" in str(measure_smaller(SUBJECTS[0], SETTINGS))


def test_models_are_searched_and_lose_a_share_of_their_channels(monkeypatch):
    timm = SimpleNamespace(create_model=lambda name, num_classes: tiny()[0])
    monkeypatch.setattr("benchmarks.search.imported", lambda: timm)
    result = measure_search("any", 16, {})
    assert result.groups == 32
    assert result.parameters[0] - result.parameters[1] == 11 * (28 + 2 + 8 * 9)
    assert result.error < 1e-5
    assert "both, s" in str(result)
    monkeypatch.setattr("benchmarks.search.imported", lambda: SimpleNamespace(create_model=lambda *_, **__: nn.ReLU()))
    assert "skipped, expected a model of which some channel can go" in str(measure_search("any", 16, {}))


def test_sparse_layers_have_the_share_of_zeros_that_their_row_says(monkeypatch):
    found = layers(200, ZEROS, CPU)
    assert [found[str(zeros)].density for zeros in ZEROS] == pytest.approx([1 - zeros for zeros in ZEROS], abs=0.01)
    present = found["0.8"].weight != 0
    assert torch.equal(found["0.8"].weight[present], found["dense"].weight[present])
    monkeypatch.setattr(memory, "free", lambda device: 0.0)
    assert "skipped, needs" in str(measure_sparse(8, SETTINGS))


def test_the_slope_is_of_what_a_rule_adds():
    points = [Point(size, {}, {"rule": 1.0 + 0.002 * size}) for size in (10, 100, 1000, 2000)]
    found = slopes([*points, Point(4000, {}, {}, "no memory")], [ADAMW_ALONE, Variant("rule", ADAMW_ALONE.make)], 1e3)
    assert found == pytest.approx({"rule": 2.0})


def test_sweeps_have_a_point_per_size_and_a_picture(monkeypatch, tmp_path):
    draw = pytest.importorskip("matplotlib") and importlib.import_module("benchmarks.pictures").draw
    chosen = [ADAMW_ALONE, *rules(QUICK, compile=False)]
    monkeypatch.setattr(memory, "free", lambda device: memory.SPARE + 16 * 2000)
    sweeps = [by_weights(chosen, (10, 100, 1000, 10_000), SETTINGS)]
    assert [point.skipped is None for point in sweeps[0].points] == [True, True, True, False]
    assert "10000 weights: skipped, needs" in str(sweeps[0])
    monkeypatch.undo()
    sweeps.append(by_tensors(chosen, (2, 4), SETTINGS))
    for sweep in sweeps:
        names = [variant.name for variant in chosen]
        assert all(list(point.milliseconds) == names for point in sweep.points if not point.skipped)
        assert list(sweep.slopes) == names[1:]
    draw(sweeps, "tiny", tmp_path / "runs" / "scaling.png")
    assert (tmp_path / "runs" / "scaling.png").stat().st_size > 1000


SMALL_TASKS = [
    Task("images", lambda: resnet(1, 4), lambda: images(2, 8)),
    Task("texts", lambda: GPT(1, 8, 2, 6, 5), lambda: text(2, 6, 5)),
    Task("vectors", lambda: dense((5, 4, 3)), lambda: vectors(4, 5, 3)),
]


@pytest.mark.parametrize("task", SMALL_TASKS, ids=lambda task: task.name)
def test_training_steps_train_with_every_rule(task):
    chosen = [ADAMW_ALONE, *rules(QUICK, compile=False), *RIVALS[1:3]]
    result = measure_training(task, chosen, SETTINGS)
    assert [row.name for row in result.rows] == [variant.name for variant in chosen]
    assert result.rows[0].ratio.median == result.rows[0].by_parts == 1
    assert all(row.milliseconds > 0 for row in result.rows)
    assert len(str(result).splitlines()) == 3 + len(chosen)


KERAS_TASK = Task("vectors", lambda: dense((5, 4, 3)), lambda: vectors(4, 5, 3), (5, 4, 3))


@of_others
def test_keras_is_divided_by_itself():
    if importlib.util.find_spec("keras") is None:  # to import keras before its backend is chosen sets it
        pytest.skip("keras is not installed")
    result = measure_training(KERAS_TASK, [ADAMW_ALONE], SETTINGS)
    assert [row.name for row in result.rows] == [ADAMW, KERAS, KERAS_L1]
    assert result.rows[1].ratio.median == 1


def test_keras_is_skipped_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    result = measure_training(KERAS_TASK, [ADAMW_ALONE], SETTINGS)
    assert result.skipped == [f"{KERAS_L1}: skipped, keras is not installed"]
    assert len(result.rows) == 1


@pytest.mark.parametrize(
    ("name", "tensors", "millions"),
    [("ResNet-50", 161, 25.6), ("MobileNetV2", 158, 3.5), ("GPT-2-small", 148, 124.4), ("Llama-1B", 201, 1100.0)],
)
def test_the_models_have_their_known_size(name, tensors, millions):
    pytest.importorskip("transformers")
    parameters = list(ARCHITECTURES[name].on_meta().parameters())
    assert len(parameters) == tensors
    assert sum(parameter.numel() for parameter in parameters) / 1e6 == pytest.approx(millions, rel=0.01)
    assert all(parameter.is_meta for parameter in parameters)


def test_the_trained_gpt_has_about_ten_million_weights():
    assert sum(parameter.numel() for parameter in GPT().parameters()) / 1e6 == pytest.approx(10.9, abs=0.1)


@of_others
@pytest.mark.slow
def test_the_command_writes_all_parts(tmp_path, monkeypatch, capsys):
    def tiny_plan(options):
        sizes = {"side": 8, "tensors": (2, 4), "weights": (10, 100), "tasks": 1, "steps": 2}
        return command.Plan(("tiny",), QUICK, 2, 1.0, device=CPU, compile=False, output=options.output, **sizes)

    monkeypatch.setitem(command.ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(command, "TASKS", SMALL_TASKS)
    monkeypatch.setattr(command, "plan_of", tiny_plan)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--threads", "1", "--quick", "--output", str(tmp_path / "runs")])
    command.main()
    torch.set_flush_denormal(False)
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    assert written.keys() == command.PARTS.keys()
    for numbers in written.values():
        assert numbers["versions"]["torch"] == importlib.metadata.version("torch")
        assert (numbers["threads"], bool(numbers["device"])) == (1, True)
    assert written["tables"]["results"][0]["rows"][1]["ratio"].keys() == {"median", "lower", "upper"}
    assert (tmp_path / "runs" / "scaling.png").exists()
    assert "Torch-Pruning" in capsys.readouterr().out


def test_a_device_is_checked_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device_checks, "HOWS", ("gradient",))
    monkeypatch.setattr(device, "variants", lambda: [ADAMW_ALONE, rule("L1", "decoupled", compile=False)])
    monkeypatch.setattr(device, "gpt2", lambda *sizes: [(4, 6), (6,)])
    monkeypatch.setattr(device, "llama", lambda *sizes: [(6, 4)])
    monkeypatch.setattr(sys, "argv", ["device", "--device", "cpu", "--seconds", "0.1", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        device.main()
    torch.set_flush_denormal(False)
    assert end.value.code == 0
    numbers = json.loads((tmp_path / "device-cpu.json").read_text())
    assert [check["passed"] for check in numbers["checks"]] == [True, None, None, None, True]
    *tables, training = numbers["results"]
    assert [len(table["rows"]) for table in tables] == [2, 2, 2, 2]
    assert tables[0]["rows"][1]["floor"] == pytest.approx(1 + 2 * 24 / (7 * 30))
    assert len(training["rows"]) == 2
    assert "skipped  no waiting: is for CUDA, not for cpu" in capsys.readouterr().out


def test_a_device_that_gives_other_numbers_fails(monkeypatch):
    exact = device_checks.trained
    monkeypatch.setattr(device_checks, "HOWS", ("gradient",))
    monkeypatch.setattr(device_checks, "trained", lambda *args: exact(*args) * (1.001 if "device" in args[-1] else 1.0))
    first = next(device_checks.run_checks(torch.device("cpu")))
    assert first.passed is False
    assert "AssertionError: 86 of 172 differ" in first.detail
    assert "L1, gradient, SGD with momentum, float32" in first.detail


def test_a_small_network_is_measured_with_every_rule(monkeypatch):
    """What is timed penalizes; figures are medians over processes."""
    monkeypatch.setattr(small, "AT_ONCE", 1)
    monkeypatch.setattr(small, "FEW", 2)
    monkeypatch.setattr(small, "MANY", 3)
    make = small.OPTIMIZERS["fused AdamW"]
    found = small.training_ratios(make, Limits(1, 60.0))
    assert found.keys() == {small.IN_LOSS, *small.RULES}
    assert small.further_tensors(make, Limits(1, 60.0)).keys() == small.RULES.keys()
    figures = small.joined([{"SGD": {"L1": 1.0}}, {"SGD": {"L1": 4.0}}, {"SGD": {"L1": 2.0}}])
    assert str(figures["SGD"]["L1"]) == "2.00 (1.00 to 4.00)"
    assert "L1    2.00" in str(small.Small(3, figures, figures))


def test_the_command_refuses_a_part_that_does_not_exist(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "pictures"])
    with pytest.raises(SystemExit):
        command.main()
    assert (
        "expected one of tables, kernels, scaling, training, sparse, shrink, small, activities, search, got pictures"
        in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK)
@pytest.mark.parametrize("how", ["decoupled", "proximal"])
def test_nothing_is_compiled_again_when_rates_strengths_and_shapes_change(kind, how):
    compiled = rule(kind, how, compile=True)
    compiled.make(tiny_work(), variants.STRENGTH).step()
    assert compilations_when_all_changes(compiled, Work.of([(7, 5), (9, 2, 3)], CPU), 100) == 0
