"""Budgets of channels: at most so many parameters or multiply-adds are left, and that is exact."""

import copy
import functools
import io
import math
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import closure_of
from shrinkage import (
    L1,
    AttachmentError,
    Budget,
    Coupled,
    CoupledChannels,
    GroupError,
    Member,
    Regularizer,
    Rule,
    SelectionError,
    shrink,
    shrink_optimizer_,
)
from shrinkage.compression.calls.cost import multiply_adds, parameter_count
from shrinkage.optimizers.parameter_state import smaller_state

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}:UserWarning") for text in ("of its kind", "than it may")]


def images(count: int = 160) -> tuple[Tensor, Tensor]:
    """Images of 8 by 8 and their classes, which can be learned."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 64, generator=generator)
    return x, x.reshape(count, 8, 8).mean(1)[:, :4].argmax(1)


def convolutional() -> nn.Sequential:
    """A small network of convolutions with batch norm, the same at each call."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12 * 16, 4)),
    )


X, Y = images()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One step on one of the batches, in turns."""
    at = torch.arange(32) + 32 * (number % 5)
    optimizer.zero_grad()
    F.cross_entropy(model(X[at]), Y[at]).backward()
    optimizer.step()


Attached = tuple[nn.Module, torch.optim.Optimizer, Regularizer]


def attached(make=torch.optim.AdamW, lr: float = 2e-3, **target) -> Attached:
    """A model, its optimizer, and a regularizer with a budget of 60 updates."""
    model = convolutional()
    optimizer = make(model.parameters(), lr=lr)
    budget = Budget(updates=60, groups=CoupledChannels(model, X[:2]), **target)
    return model, optimizer, Regularizer(model, budget).attach(optimizer)


def zero_groups(model: nn.Module, channels: Coupled) -> set[int]:
    """The groups that are exactly zero."""
    found = set(range(channels.count))
    for name in channels.names:
        member = channels.slices(name)
        rows = model.get_parameter(name).detach().movedim(member.dim, 0)
        alive = (rows != 0).reshape(len(rows), -1).any(1).tolist()
        found -= {group for group, lives in zip(member.groups, alive, strict=True) if lives}
    return found


OPTIMIZERS = {
    "SGD": (torch.optim.SGD, 0.05),
    "AdamW": (torch.optim.AdamW, 2e-3),
    "Adagrad": (torch.optim.Adagrad, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_at_most_so_many_parameters_are_left_after_shrink(name):
    make, lr = OPTIMIZERS[name]
    model, optimizer, regularizer = attached(make, lr, parameters=900)
    before = parameter_count(model)
    for number in range(60):
        step(model, optimizer, number)
    small = shrink(model.eval(), X[:2]).model
    (progress,) = regularizer.progress()
    assert progress.phase == "done"
    assert progress.of == before
    assert progress.reached == parameter_count(small) <= 900
    assert 900 - parameter_count(small) < 60  # a channel of the last layer has 141, with all others there
    torch.testing.assert_close(small(X), model(X))


def test_at_most_so_many_multiply_adds_are_left_after_shrink():
    model, optimizer, regularizer = attached(multiply_adds=20_000)
    for number in range(60):
        step(model, optimizer, number)
    small = shrink(model.eval(), X[:2]).model
    (progress,) = regularizer.progress()
    assert progress.unit == "multiply-adds"
    assert progress.reached == multiply_adds(small, ((X[:2],), {}))[""] <= 20_000


def test_so_many_elements_of_the_groups_are_zero():
    model, optimizer, regularizer = attached(zeros=0.5)
    channels = CoupledChannels(model, X[:2])
    for number in range(60):
        step(model, optimizer, number)
    count = sum(channels.sized({name: model.get_parameter(name).shape for name in channels.names}).sizes)
    zero = sum(int((model.get_parameter(name) == 0).sum()) for name in channels.names)
    (progress,) = regularizer.progress()
    assert progress.unit == "zeros"
    assert progress.target == math.ceil(0.5 * count)
    assert progress.target <= progress.reached == zero < progress.target + 111  # elements of the dearest group


def test_between_looks_what_is_gone_is_held_and_what_is_due_shrinks():
    model, optimizer, regularizer = attached(torch.optim.SGD, 0.0, parameters=900)
    channels = CoupledChannels(model, X[:2])
    gone: set[int] = set()
    for number in range(60):
        before = copy.deepcopy(model)
        step(model, optimizer, number)
        now = zero_groups(model, channels)
        assert gone <= now
        if (number + 1 - 6) % 10 and number + 1 != 30:
            assert now == gone
        gone = now
        (progress,) = regularizer.progress()
        smaller = 0
        for name in ("1.weight", "4.weight"):
            old, new = before.get_parameter(name), model.get_parameter(name)
            rows = (old != new).flatten(1).any(1) & (new != 0).flatten(1).any(1)
            assert torch.allclose(new[rows], old[rows] * math.exp(-2 / 6))
            smaller += int(rows.sum())
        assert smaller == (progress.due or 0)
    assert gone
    assert not any((p.signbit() & (p == 0)).any() for p in map(model.get_parameter, channels.names))  # +0.0


def test_the_ramp_is_never_behind_and_never_ahead():
    model, optimizer, regularizer = attached(parameters=900)
    for number in range(60):
        step(model, optimizer, number)
        (progress,) = regularizer.progress()
        if 6 <= number + 1 < 30:
            assert progress.phase == "ramp"
            assert progress.wanted <= progress.reached < progress.wanted + 141
        elif number + 1 < 6:
            assert (progress.phase, progress.reached) == ("waiting", None)
    assert progress.reached <= progress.target == 900


@pytest.mark.parametrize("at", [3, 6, 13, 30, 31, 45])
@pytest.mark.parametrize("saved_by", ["optimizer", "regularizer"])
def test_training_resumes_bit_for_bit(at, saved_by):
    model, optimizer, regularizer = attached(parameters=900)
    for number in range(at):
        step(model, optimizer, number)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), regularizer.state_dict()), file)
    other, again, second = attached(parameters=900)
    weights, state, own = torch.load(io.BytesIO(file.getvalue()))
    other.load_state_dict(weights)
    if saved_by == "regularizer":
        own = copy.deepcopy(own)
        again.load_state_dict({**state, "param_groups": [plain(group) for group in state["param_groups"]]})
        second.load_state_dict(own)
    else:
        again.load_state_dict(state)
    for number in range(at, 60):
        step(model, optimizer, number)
        step(other, again, number)
        assert second.progress()[0].due == regularizer.progress()[0].due
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    one, two = (replace(*each.progress(), changed=None) for each in (regularizer, second))  # which is not saved
    assert one == two


def plain(group: dict) -> dict:
    """A parameter group of an optimizer that was saved without a regularizer."""
    return {key: value for key, value in group.items() if "shrinkage" not in key}


def test_the_state_is_five_bytes_a_channel_and_then_one():
    model, optimizer, regularizer = attached(parameters=900)

    def size() -> int:
        (state,) = regularizer.state_dict()["budgets"]
        return sum(each.nbytes for each in state["0"].values() if isinstance(each, Tensor))

    step(model, optimizer, 0)
    assert size() == 5 * 20
    for number in range(1, 30):
        step(model, optimizer, number)
    assert size() == 20


def test_a_target_that_can_not_be_reached_is_refused_with_what_can():
    model = convolutional()
    channels = CoupledChannels(model, X[:2])
    with pytest.raises(SelectionError, match=r"50 parameters cannot be reached: with one channel of each kind 92 of"):
        Regularizer(model, Budget(parameters=50, updates=100, groups=channels))
    with pytest.raises(SelectionError, match="ask for fewer"):
        Regularizer(model, Budget(parameters=10**6, updates=100, groups=channels))


def test_the_plan_says_what_can_be_reached():
    model = convolutional()
    plan = str(Regularizer(model, Budget(parameters=900, updates=100, groups=CoupledChannels(model, X[:2]))).plan)
    assert (
        "Budget: at most 900 of 1,768 parameters by update 50 (from 10 on) of 100; 20 channels of 2 kinds, at least 1 "
        "of each stays: 92 cannot go" in plan
    )
    assert "8x12   8 x Coupled   Budget   900 parameters  held once zero" in plan


@pytest.mark.parametrize("unit", ["parameters", "multiply_adds"])
def test_a_share_is_one_of_the_whole_model(unit):
    model = convolutional()
    channels = CoupledChannels(model, X[:2])
    with pytest.raises(SelectionError) as error:
        Regularizer(model, Budget(**{unit: 10**9}, updates=100, groups=channels))
    whole = int(re.search(r"there are ([\d,]+)", str(error.value))[1].replace(",", ""))

    def plan_for(amount: float) -> str:
        return str(Regularizer(model, Budget(**{unit: amount}, updates=100, groups=channels)).plan)

    assert plan_for(0.5) == plan_for(whole // 2)
    assert plan_for(0.3) == plan_for(whole * 3 // 10)


def members() -> Coupled:
    """Groups that are told by hand."""
    return Coupled([Member("1.weight", 0, range(8)), Member("2.weight", 0, range(8)), Member("2.bias", 0, range(8))])


def test_groups_made_by_hand_have_zeros_and_nothing_else():
    model = convolutional()
    with pytest.raises(GroupError, match="does not know what reads its channels"):
        Regularizer(model, Budget(parameters=900, updates=100, groups=members()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, Budget(zeros=0.5, updates=60, groups=members())).attach(optimizer)
    for number in range(40):
        step(model, optimizer, number)
    assert len(zero_groups(model, members())) == 4
    assert regularizer.progress()[0].reached == 4 * 11


def test_frozen_channels_are_part_of_what_can_not_go():
    model = convolutional()
    channels = CoupledChannels(model, X[:2])
    model[1].weight.requires_grad_(False)
    budget = Budget(parameters=240, updates=60, groups=channels)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    regularizer = Regularizer(model, budget).attach(optimizer)
    weight = model[1].weight.clone()
    for number in range(60):
        step(model, optimizer, number)
    assert torch.equal(model[1].weight, weight)
    assert regularizer.progress()[0].reached == parameter_count(shrink(model.eval(), X[:2]).model) <= 240
    assert regularizer.progress()[0].layers["1"].stay == 8


def test_by_size_the_smallest_go():
    model = convolutional()
    with torch.no_grad():
        model[1].weight[2:6] *= 1e-3
        for name in ("1.bias", "2.weight", "2.bias"):
            model.get_parameter(name)[2:6] *= 1e-3
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    budget = Budget(zeros=0.4, updates=60, groups=members(), score="size")
    Regularizer(model, budget).attach(optimizer)
    for number in range(40):
        step(model, optimizer, number)
    assert zero_groups(model, members()) == {2, 3, 4, 5}


def test_channels_without_an_effect_on_the_loss_go_first():
    model = convolutional()
    with torch.no_grad():
        model[4].weight[:, 2:6] = 0.0  # nobody reads them
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, Budget(zeros=0.5, updates=60, groups=members())).attach(optimizer)
    for number in range(40):
        step(model, optimizer, number)
    assert zero_groups(model, members()) == {2, 3, 4, 5}


def test_effects_are_divided_by_prices():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 6, bias=False), nn.Linear(6, 30, bias=False), nn.Linear(30, 2, bias=False))
    channels = CoupledChannels(model, torch.randn(3, 40))  # 70 and 8 parameters each
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    regularizer = Regularizer(model, Budget(parameters=410, updates=60, groups=channels)).attach(optimizer)
    for _ in range(40):
        optimizer.zero_grad()
        sum((p * (2 / p.detach()).clamp(-1, 1)).sum() for p in model.parameters()).backward()
        optimizer.step()
    stay = {name: each.stay for name, each in regularizer.progress()[0].layers.items()}
    assert stay == {"0": 5, "1": 30}


def test_a_closure_is_read_once():
    model, optimizer, regularizer = attached(torch.optim.SGD, 0.05, parameters=900)
    other, plainly, _ = attached(torch.optim.SGD, 0.05, parameters=900)
    for number in range(40):
        at = torch.arange(32) + 32 * (number % 5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X[at]), Y[at])  # noqa: B023  it is called before the loop goes on
            loss.backward()
            return loss

        optimizer.step(closure)
        step(other, plainly, number)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert regularizer.progress()[0].phase == "done"


def test_a_loss_scale_is_divided_out_and_an_overflow_leaves_effects_alone():
    def effects(regularizer: Regularizer) -> Tensor:
        return regularizer.state_dict()["budgets"][0]["0"]["effects"]

    model, optimizer, regularizer = attached(functools.partial(torch.optim.SGD, fused=True), 0.05, parameters=900)
    other, plainly, second = attached(torch.optim.SGD, 0.05, parameters=900)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    for number in range(8):
        at = torch.arange(32) + 32 * (number % 5)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X[at]), Y[at])
        scaler.scale(loss * (math.inf if number == 7 else 1)).backward()
        before = effects(regularizer)
        scaler.step(optimizer)
        scaler.update()
        if number < 7:
            step(other, plainly, number)
    torch.testing.assert_close(effects(regularizer), effects(second), rtol=1e-3, atol=1e-12)
    assert torch.equal(effects(regularizer), before)
    assert regularizer.progress()[0].update == 7


def test_a_step_without_gradients_moves_nothing():
    model, optimizer, regularizer = attached(parameters=900)
    for number in range(16):
        step(model, optimizer, number)
    before = regularizer.progress(), copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    optimizer.step()
    assert regularizer.progress() == before[0]
    assert all(torch.equal(model.state_dict()[name], old) for name, old in before[1].items())


def test_groups_in_two_optimizers_are_refused():
    model = convolutional()
    regularizer = Regularizer(model, Budget(parameters=900, updates=60, groups=CoupledChannels(model, X[:2])))
    with pytest.raises(AttachmentError, match="share groups"):
        regularizer.attach(torch.optim.SGD(list(model.parameters())[:1], lr=0.1))


def test_another_budget_does_not_go_on():
    model, optimizer, regularizer = attached(parameters=900)
    step(model, optimizer, 0)
    _, _, other = attached(parameters=800)
    with pytest.raises(ValueError, match="the state was saved with"):
        other.load_state_dict(regularizer.state_dict())


def test_beside_a_penalty_of_other_parameters():
    model = convolutional()
    channels = CoupledChannels(model, X[:2])
    rules = [Rule(Budget(parameters=900, updates=60, groups=channels)), Rule(L1(1e-2), "8.weight")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, rules).attach(optimizer)
    for number in range(60):
        step(model, optimizer, number)
    assert parameter_count(shrink(model.eval(), X[:2]).model) <= 900
    assert regularizer.value() > 0
    assert (model[8].weight == 0).any()


def test_after_shrink_a_new_budget_goes_on_with_the_count():
    model, optimizer, regularizer = attached(parameters=1200)
    for number in range(32):
        step(model, optimizer, number)
    regularizer.detach()
    shrunk = shrink(model.eval(), X[:2])
    small = shrunk.model.train()
    shrink_optimizer_(optimizer, shrunk.plan, model, small)
    left = parameter_count(small)
    assert left <= 1200
    budget = Budget(parameters=600, updates=60, begin=0.55, end=0.7, groups=CoupledChannels(small, X[:2]))
    second = Regularizer(small, budget).attach(optimizer)
    assert str(*second.progress()) == f"update 32 of 60, waiting: 600 of {left:,} parameters in the end"
    for number in range(32, 60):
        step(small, optimizer, number)
    assert parameter_count(shrink(small.eval(), X[:2]).model) <= 600


def test_progress_prints_what_is_left():
    model, optimizer, regularizer = attached(parameters=900)
    assert str(*regularizer.progress()) == "update 0 of 60, waiting: 900 of 1,768 parameters in the end"
    for number in range(15):
        step(model, optimizer, number)
    text = str(*regularizer.progress())
    assert text.startswith("update 15 of 60, ramp: 1,768 of 1,768 parameters left (wanted 1,768, in the end 900)")
    assert "; 0 of 20 channels gone, " in text


def test_progress_tells_which_kind_has_a_single_channel_left():
    model, optimizer, regularizer = attached(parameters=100)
    for number in range(29):
        step(model, optimizer, number)
    with pytest.warns(UserWarning, match="leaves a single channel of its kind in 1, 4; more cannot go there"):
        step(model, optimizer, 29)
    assert str(*regularizer.progress()).endswith("channels gone, 0 due; last of its kind: 1, 4")


def test_a_line_search_steps_on_what_is_left():
    model = convolutional()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
    budget = Budget(parameters=900, updates=20, groups=CoupledChannels(model, X[:2]))
    regularizer = Regularizer(model, budget).attach(optimizer)
    for _ in range(20):
        optimizer.step(closure_of(optimizer, lambda: F.cross_entropy(model(X), Y)))
    assert regularizer.progress()[0].reached == parameter_count(shrink(model.eval(), X[:2]).model) <= 900


def test_a_regularizer_that_is_detached_goes_on_where_it_was():
    model, optimizer, _ = attached(parameters=900)
    other, again, second = attached(parameters=900)
    for number in range(60):
        step(model, optimizer, number)
        step(other, again, number)
        if number == 17:
            second.detach()
            second.attach(again)
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_a_regularizer_with_channels_can_be_pickled():
    model, optimizer, regularizer = attached(parameters=900)
    for number in range(17):
        step(model, optimizer, number)
    other, again, second = pickle.loads(pickle.dumps((model, optimizer, regularizer)))
    second.attach(again)
    for number in range(17, 60):
        step(model, optimizer, number)
        step(other, again, number)
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_multiply_adds_that_a_file_lacks_are_asked_for():
    channels = pickle.loads(pickle.dumps(CoupledChannels(convolutional(), X[:2])))
    with pytest.raises(GroupError, match="comes from a file without its multiply-adds"):
        Regularizer(convolutional(), Budget(multiply_adds=9_000, updates=60, groups=channels))


def test_a_slack_that_is_large_is_told():
    model = nn.Sequential(nn.Linear(50, 3, bias=False), nn.ReLU(), nn.Linear(3, 50, bias=False))
    channels = CoupledChannels(model, torch.randn(2, 50))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    Regularizer(model, Budget(parameters=290, updates=20, groups=channels)).attach(optimizer)

    def train() -> None:
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 50)).square().mean().backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="leaves 200 parameters, 90 fewer than it may"):
        train()


def test_what_a_budget_ranked_does_not_go_to_a_smaller_model():
    assert smaller_state({"updates": 3, "budgets": [{}]}, {}) == {"updates": 3}
