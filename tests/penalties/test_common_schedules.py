"""Schedules as values: what they give at each update, what they print, and that they compare and pickle."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD

from models import equal, mlp, train
from shrinkage import L1, L2, Cosine, Cubic, Grouped, Ramp, Regularizer, Rows, Steps, TopK, Weighted

ALL = [
    Ramp(0.5, 10),
    Ramp(0.5, 10, start=5, low=0.1, power=3),
    Cubic(0.5, 10, start=5),
    Cosine(0.1, 10, low=1.0),
    Steps({0: 0.0, 3: 0.5}),
]


@pytest.mark.parametrize("low", [0.0, 0.25, 2.0])
@pytest.mark.parametrize("start", [0, 7])
def test_each_rises_or_falls_by_its_formula(low, start):
    for update in range(40):
        done = min(max((update - start) / 20, 0.0), 1.0)
        given = {"start": start, "low": low}
        expected = {
            Ramp(0.5, 20, **given): low + (0.5 - low) * done,
            Ramp(0.5, 20, **given, power=3): low + (0.5 - low) * done**3,
            Cubic(0.5, 20, **given): 0.5 + (low - 0.5) * (1 - done) ** 3,
            Cosine(0.5, 20, **given): low + (0.5 - low) * (1 - math.cos(math.pi * done)) / 2,
        }
        for schedule, strength in expected.items():
            assert schedule(update) == pytest.approx(strength, abs=1e-15), (schedule, update)


@pytest.mark.parametrize("kind", [Ramp, Cubic, Cosine])
def test_both_ends_are_exact(kind):
    schedule = kind(0.1, 3, start=2, low=0.7)
    assert [schedule(update) for update in (0, 2, 5, 6, 10**9)] == [0.7, 0.7, 0.1, 0.1, 0.1]


def test_steps_hold_until_the_next():
    steps = Steps({5: 0.5, 0: 0.125, 2: 0.0})
    assert [steps(update) for update in range(8)] == [0.125, 0.125, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]


def test_what_a_plan_prints():
    texts = {
        "0 to 0.001 by 1000": Ramp(1e-3, 1000),
        "0.01 to 0.001 from 200 by 1200 (power 2)": Ramp(1e-3, 1000, start=200, low=0.01, power=2),
        "0 to 0.9 by 1000 (cubic)": Cubic(0.9, 1000),
        "0 to 0.9 by 1000 (cosine)": Cosine(0.9, 1000),
        "0, 0.0001 from 1000, 0.001 from 5000": Steps({0: 0.0, 1000: 1e-4, 5000: 1e-3}),
    }
    for text, schedule in texts.items():
        assert L1(schedule).describe((2, 2)).strength == text
    assert (2 * L1(Ramp(1.0, 10))).describe(None).strength == "2 x (0 to 1 by 10)"
    assert (L1(Ramp(1.0, 10)) + L1(0.5)).describe(None).strength == "0 to 1 by 10 + 0.5"
    assert TopK(Cubic(0.1, 10, low=1.0)).describe(None).strength == "density 1 to 0.1 by 10 (cubic)"
    assert TopK(lambda update: 0.5).describe(None).strength == "density schedule"


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_they_are_values(schedule):
    namespace = {kind.__name__: kind for kind in (Ramp, Cubic, Cosine, Steps)}
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), eval(repr(schedule), namespace)):
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert [other(update) for update in range(20)] == [schedule(update) for update in range(20)]
    assert sum(schedule == each for each in ALL) == 1
    file = io.BytesIO()
    torch.save(L1(schedule), file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == L1(schedule)


def test_what_cannot_be_a_schedule():
    for kind in (Ramp, Cubic, Cosine):
        with pytest.raises(ValueError, match=f"{kind.__name__}: high must be a finite number >= 0, got -1"):
            kind(-1, 10)
        with pytest.raises(ValueError, match=f"{kind.__name__}: low must be a finite number >= 0, got nan"):
            kind(1, 10, low=math.nan)
        with pytest.raises(TypeError, match="high must be a finite number >= 0, got 'much'"):
            kind("much", 10)
        for updates in (0, 2.5, True):
            with pytest.raises(ValueError, match=f"updates must be a whole number >= 1, got {updates}"):
                kind(1.0, updates)
        with pytest.raises(ValueError, match="start must be a whole number >= 0, got -5"):
            kind(1.0, 10, start=-5)
    with pytest.raises(ValueError, match="power must be a finite number > 0, got 0"):
        Ramp(1.0, 10, power=0)
    with pytest.raises(ValueError, match="the strength from update 0 on is missing"):
        Steps({10: 1.0})
    with pytest.raises(ValueError, match="the strength from update 3 on must be a finite number >= 0, got inf"):
        Steps({0: 0.0, 3: math.inf})
    with pytest.raises(ValueError, match=r"each key must be a whole number >= 0, got 1\.5"):
        Steps({0: 0.0, 1.5: 1.0})
    with pytest.raises(TypeError, match="expected strengths by update"):
        Steps([0.0, 1.0])


@pytest.mark.parametrize("penalty", [L1, lambda strength: Grouped(L2(strength), Rows())])
def test_training_is_that_of_the_function(penalty):
    schedule, models = Cubic(0.1, 6, start=2), [mlp(), mlp()]
    for model, strength in zip(models, (schedule, lambda update: schedule(update)), strict=True):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        Regularizer(model, penalty(strength)).attach(optimizer)
        train(model, optimizer, 10)
    assert equal(*models)


def test_weights_take_schedules_too():
    model = nn.Linear(2, 2)
    penalty = Weighted(L1(Ramp(0.5, 10)), torch.ones(2, 2))
    assert "0 to 0.5 by 10" in str(Regularizer(model, penalty))
