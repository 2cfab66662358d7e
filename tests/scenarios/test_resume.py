"""Runs that were saved, stopped and resumed end with the very weights of runs that were never stopped."""

import copy
import gc
import io
import os
import signal
import subprocess
import sys
import weakref

import pytest
import torch
import torch.distributed.checkpoint as dcp
from pytorch_optimizer import SAM
from torch import nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, Adam, AdamW
from torch.utils._pytree import tree_flatten

from models import batches, equal, loss_of, mlp, train
from shrinkage import L1, L2, GroupLasso, Regularizer, Rows, Toward, regularize
from shrinkage.optimizers.parameter_state import states_in

KEY = "shrinkage"


def halving(update):
    return 0.1 * 0.5**update


def start(make=lambda p: Adam(p, lr=0.01), model=None):
    """Everything that has a state: a schedule, averaged gradients, and a reference that is taken from the model."""
    model = mlp() if model is None else model
    optimizer = make(model.parameters())
    rules = {"0.weight": GroupLasso(halving, Rows()), "2.weight": L1(halving), "0.bias": Toward(L2(0.5))}
    return model, optimizer, Regularizer(model, rules, hold_zeros=0.9)


def written_and_read(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.01, fused=True)])
def test_the_optimizers_state_is_enough_to_resume(make, attach_first):
    straight, optimizer, regularizer = start(make)
    regularizer.attach(optimizer)
    train(straight, optimizer, 3)
    model_state, optimizer_state = written_and_read([straight.state_dict(), optimizer.state_dict()])
    train(straight, optimizer, 3)

    resumed = mlp()
    resumed.load_state_dict(model_state)  # so that the reference that is taken is another one, until it is loaded
    _, optimizer, regularizer = start(make, resumed)
    if attach_first:
        regularizer.attach(optimizer)
    optimizer.load_state_dict(optimizer_state)
    regularizer.attach(optimizer)
    assert KEY not in optimizer.param_groups[0]
    train(resumed, optimizer, 3)
    assert equal(straight, resumed)
    assert regularizer.state_dict()["updates"] == [6]


def test_an_optimizer_that_nothing_is_attached_to_ignores_the_state():
    model, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    bare = copy.deepcopy(state)
    del bare["param_groups"][0][KEY]
    trained = []
    for each in (state, bare):
        twin = mlp()
        plain = Adam(twin.parameters())
        plain.load_state_dict(each)
        train(twin, plain)
        trained.append(twin)
    assert equal(*trained)


def test_a_state_without_it_leaves_the_count_as_it_is():
    model, optimizer, regularizer = start()
    bare = optimizer.state_dict()
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    optimizer.load_state_dict(bare)
    assert regularizer.state_dict()["updates"] == [2]


def test_detached_it_no_longer_rides():
    _, optimizer, regularizer = start()
    before = copy.deepcopy(optimizer.state_dict())
    regularizer.attach(optimizer)
    assert KEY in optimizer.state_dict()["param_groups"][0]
    regularizer.detach()
    assert optimizer.state_dict() == before
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


def test_loading_both_is_harmless_and_its_own_state_wins():
    model, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    older = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 2)
    newer = copy.deepcopy((optimizer.state_dict(), regularizer.state_dict()))
    for optimizer_state in (older, newer[0]):
        _, optimizer, regularizer = start()
        regularizer.load_state_dict(newer[1])
        optimizer.load_state_dict(optimizer_state)
        regularizer.attach(optimizer)
        assert regularizer.state_dict()["updates"] == [4]
        assert KEY not in optimizer.param_groups[0]


def two(order, model):
    """Two regularizers that share an optimizer, attached in either order."""
    optimizer = SGD(model.parameters(), lr=0.1)
    rules = [{"0.weight": L1(halving)}, {"2.weight": L1(halving)}]
    regularizers = [Regularizer(model, each, hold_zeros=0.9) for each in rules]
    return optimizer, regularizers, [regularizers[i] for i in order]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("attach_first", [0, 1, 2])
def test_regularizers_that_share_an_optimizer_find_their_own_states(order, attach_first):
    straight = mlp()
    optimizer, (first, second), _ = two((0, 1), straight)
    first.attach(optimizer)
    train(straight, optimizer, 2)
    second.attach(optimizer)
    train(straight, optimizer, 3)
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    train(straight, optimizer, 3)

    resumed = mlp()
    resumed.load_state_dict(saved[0])
    optimizer, (first, second), ordered = two(order, resumed)
    for regularizer in ordered[:attach_first]:
        regularizer.attach(optimizer)
    optimizer.load_state_dict(saved[1])
    for regularizer in ordered[attach_first:]:
        regularizer.attach(optimizer)
    train(resumed, optimizer, 3)
    assert equal(straight, resumed)
    assert (first.state_dict()["updates"], second.state_dict()["updates"]) == ([8], [6])


def test_what_nobody_has_taken_yet_is_saved_again():
    model = mlp()
    optimizer, (first, second), _ = two((0, 1), model)
    first.attach(optimizer)
    second.attach(optimizer)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer, (first, second), _ = two((0, 1), model)
    optimizer.load_state_dict(state)
    second.attach(optimizer)
    train(model, optimizer, 1)
    for _ in range(2):
        saved = optimizer.state_dict()["param_groups"][0][KEY]
        assert [(each["parameters"], each["updates"]) for each in saved] == [(["0.weight"], [2]), (["2.weight"], [3])]


def test_two_models_in_one_optimizer_may_have_the_same_names():
    def begin():
        parts = [nn.Linear(3, 2), nn.Linear(3, 4)]
        optimizer = SGD([*parts[0].parameters(), *parts[1].parameters()], lr=0.1)
        return parts, optimizer, [Regularizer(part, L1(halving), hold_zeros=0.9) for part in parts]

    parts, optimizer, (first, second) = begin()
    for regularizer in (first, second):
        regularizer.attach(optimizer)
        for part in parts:
            part.weight.grad = torch.ones_like(part.weight)
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    parts, optimizer, (first, second) = begin()
    first.attach(optimizer)
    second.attach(optimizer)
    optimizer.load_state_dict(state)
    assert (first.state_dict()["updates"], second.state_dict()["updates"]) == ([2], [1])
    assert second.state_dict()["averages"][0]["weight"]["total"].shape == (4, 3)


@pytest.mark.parametrize("attach_first", [True, False])
def test_two_models_with_the_same_names_may_be_attached_in_another_order(attach_first):
    def made():
        models = mlp(), mlp()
        optimizer = SGD([p for model in models for p in model.parameters()], lr=0.1)
        return *(Regularizer(model, {"0.weight": Toward(L1(halving))}) for model in models), optimizer

    one, two, optimizer = made()
    one.attach(optimizer).load_state_dict({**one.state_dict(), "updates": [3]})
    two.attach(optimizer).load_state_dict({**two.state_dict(), "updates": [5]})
    saved = optimizer.state_dict()
    one, two, optimizer = made()
    if attach_first:
        two.attach(optimizer)
        one.attach(optimizer)
    optimizer.load_state_dict(saved)
    two.attach(optimizer)
    one.attach(optimizer)
    assert (one.state_dict()["updates"], two.state_dict()["updates"]) == ([3], [5])


def test_other_rules_are_told_that_they_find_nothing():
    model, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    regularizer.detach()
    other = Regularizer(model, {"0.weight": L1(halving)}).attach(optimizer)
    found = (
        r"comes from a regularizer of 3 parameters \('0.weight', '0.bias', '2.weight'\); a regularizer of 1 .* nothing"
    )
    with pytest.warns(UserWarning, match=found):
        optimizer.load_state_dict(state)
    assert other.state_dict()["updates"] == [0]


def same(one, other):
    """Whether two nested states are equal, value for value."""
    (leaves, structure), (others, other_structure) = tree_flatten(one), tree_flatten(other)
    tensors = [
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(leaves, others, strict=False)
    ]
    return structure == other_structure and all(tensors)


def broken(state, change):
    state = copy.deepcopy(state)
    change(state)
    return state


BROKEN = [
    (lambda s: s["averages"][0].update(nowhere=s["averages"][0]["0.weight"]), r"'nowhere', which .* does not penalize"),
    (
        lambda s: s["averages"][0].update({"0.weight": s["averages"][0]["2.weight"]}),
        r"'0\.weight' .*\(3, 8\).*\(8, 6\)",
    ),
    (lambda s: s["averages"][0]["0.weight"].update(weight=torch.ones(2)), r"'0\.weight' .*'weight': \(2,\)"),
    (lambda s: s["averages"][0]["0.weight"].pop("weight"), r"expected the parameter's shape \(8, 6\) as its total"),
    (lambda s: s["averages"].append({}), "averages of 2 optimizers and updates of 1"),
    (lambda s: s["references"].pop("0.bias"), r"references of nothing, this regularizer of '0\.bias'"),
    (lambda s: s["references"].update({"0.bias": torch.ones(2)}), r"reference of '0\.bias' has shape \(2,\)"),
    (lambda s: s.update(version=2), r"expected \{'version': 1, 'updates'"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
@pytest.mark.parametrize("way", ["regularizer", "optimizer", "attach"])
def test_a_state_that_does_not_fit_changes_nothing(change, message, way):
    model, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    state = copy.deepcopy((optimizer.state_dict(), regularizer.state_dict()))
    train(model, optimizer, 1)
    if way == "attach":
        optimizer, regularizer = start(model=model)[1:]
        optimizer.load_state_dict(broken(state[0], lambda s: change(s["param_groups"][0][KEY][0])))
    before = copy.deepcopy((optimizer.state_dict(), regularizer.state_dict(), regularizer.plan))
    attempts = {
        "regularizer": lambda: regularizer.load_state_dict(broken(state[1], change)),
        "optimizer": lambda: optimizer.load_state_dict(
            broken(state[0], lambda s: change(s["param_groups"][0][KEY][0]))
        ),
        "attach": lambda: regularizer.attach(optimizer),
    }
    with pytest.raises(ValueError, match=message):
        attempts[way]()
    assert same((optimizer.state_dict(), regularizer.state_dict()), before[:2])
    assert regularizer.plan == before[2]
    assert ("not attached" in repr(regularizer)) == (way == "attach")


def test_a_state_that_the_optimizer_refuses_changes_nothing():
    model, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 1)
    state["param_groups"].append(state["param_groups"][0])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(state)
    assert regularizer.state_dict()["updates"] == [3]


def test_a_state_may_be_loaded_twice():
    model, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    for _ in range(2):
        train(model, optimizer, 1)
        optimizer.load_state_dict(state)
        assert regularizer.state_dict()["updates"] == [2]


def test_each_of_several_optimizers_takes_its_own_part_along():
    def begin(model):
        optimizers = [SGD(model[0].parameters(), lr=0.1), Adam(model[2].parameters(), lr=0.01)]
        regularizer = Regularizer(model, {"*.weight": Toward(L2(halving)), "*.bias": L1(halving)}, hold_zeros=0.9)
        for optimizer in optimizers:
            regularizer.attach(optimizer)
        return optimizers, regularizer

    def run(model, optimizers, count):
        for i, batch in enumerate(batches(count)):
            model.zero_grad()
            loss_of(model, batch).backward()
            for optimizer in optimizers[: 1 + i % 2]:
                optimizer.step()

    straight = mlp()
    optimizers, _ = begin(straight)
    run(straight, optimizers, 4)
    saved = copy.deepcopy((straight.state_dict(), [optimizer.state_dict() for optimizer in optimizers]))
    stored = [states_in(state["param_groups"][0]) for state in saved[1]]
    assert [[list(each["references"]) for each in states] for states in stored] == [[["0.weight"]], [["2.weight"]]]
    run(straight, optimizers, 4)
    resumed = mlp()
    resumed.load_state_dict(saved[0])
    optimizers, regularizer = begin(resumed)
    for optimizer, state in zip(optimizers, saved[1], strict=True):
        optimizer.load_state_dict(state)
    run(resumed, optimizers, 4)
    assert equal(straight, resumed)
    assert regularizer.state_dict()["updates"] == [8, 4]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_of_several_optimizers_goes_on_from_its_own_count_after_detach(order):
    model = mlp()
    optimizers = [SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
    regularizer = Regularizer(model, L1(0.1)).attach(optimizers[0]).attach(optimizers[1])
    for optimizer, count in zip(optimizers, (3, 1), strict=True):
        train(model, optimizer, count)
    for _ in range(2):
        regularizer.detach()
        for index in order:
            regularizer.attach(optimizers[index])
        assert regularizer.state_dict()["updates"] == [(3, 1)[index] for index in order]


@pytest.mark.parametrize("copied", [False, True])
def test_after_detach_other_optimizers_go_on_with_the_counts_of_their_parameters(copied):
    model = mlp()
    optimizers = [SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
    regularizer = Regularizer(model, L1(0.1)).attach(optimizers[0]).attach(optimizers[1])
    train(model, optimizers[0], 3)
    regularizer.detach()
    if copied:
        model, regularizer = copy.deepcopy((model, regularizer))
    others = [SGD(layer.parameters(), lr=0.1) for layer in (model[2], model[0])]
    regularizer.attach(others[0]).attach(others[1])
    assert regularizer.state_dict()["updates"] == [0, 3]


def test_a_wrapper_with_a_state_of_its_own_leaves_it_out_and_leaves_the_count_alone():
    model = mlp()
    optimizer = SAM(list(model.parameters()), base_optimizer=SGD, lr=0.1)
    regularizer = Regularizer(model, {"0.weight": L1(halving)}).attach(optimizer)
    train(model, optimizer, 3, closure=True)
    state = copy.deepcopy(optimizer.state_dict())
    assert KEY not in state["param_groups"][0]
    optimizer.load_state_dict(state)
    assert regularizer.state_dict()["updates"] == [3]


def test_a_parameter_group_that_came_later_is_part_of_the_state():
    def begin():
        model = mlp()
        optimizer = SGD(model[0].parameters(), lr=0.1)
        return model, optimizer, Regularizer(model, L1(halving), hold_zeros=0.9).attach(optimizer)

    straight, optimizer, _ = begin()
    train(straight, optimizer, 2)
    optimizer.add_param_group({"params": straight[2].parameters()})
    train(straight, optimizer, 2)
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    train(straight, optimizer, 2)
    resumed, optimizer, _ = begin()
    optimizer.add_param_group({"params": resumed[2].parameters()})
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(resumed, optimizer, 2)
    assert equal(straight, resumed)


# Of torch's distributed checkpoints in one process, and of those of torch 2.10.
of_checkpoints = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning",
    "ignore:TypedStorage is deprecated:UserWarning",
)


@of_checkpoints
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints_take_it_along_unless_they_are_flattened(flat, tmp_path):
    """Loading needs a template; making one steps the optimizer with a learning rate of 0."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def states(model, optimizer, regularizer):
        moments = get_optimizer_state_dict(model, optimizer, options=options)
        return {"model": model.state_dict(), "optimizer": moments, "regularizer": regularizer.state_dict()}

    straight, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    train(straight, optimizer, 3)
    dcp.save(states(straight, optimizer, regularizer), checkpoint_id=tmp_path)
    train(straight, optimizer, 3)

    resumed, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    state = states(resumed, optimizer, regularizer)
    dcp.load(state, checkpoint_id=tmp_path)
    resumed.load_state_dict(state["model"])
    set_optimizer_state_dict(resumed, optimizer, state["optimizer"], options=options)
    assert regularizer.state_dict()["updates"] == [0 if flat else 3]
    if flat:
        regularizer.load_state_dict(state["regularizer"])
    train(resumed, optimizer, 3)
    assert equal(straight, resumed)


@of_checkpoints
@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, lr=0.1), lambda p: Adam(p, lr=0.01), lambda p: AdamW(p, lr=torch.tensor(0.01))]
)
def test_the_step_that_a_distributed_checkpoint_makes_is_no_update(make):
    """Torch steps an optimizer that has no state, with gradients and learning rates of 0, also after a failed step."""
    model, optimizer, regularizer = start(make)
    regularizer.attach(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    for count in range(3):
        before = copy.deepcopy((model.state_dict(), regularizer.state_dict()))
        get_optimizer_state_dict(model, optimizer)
        assert same((model.state_dict(), regularizer.state_dict()), before)
        train(model, optimizer, 1)
        optimizer.zero_grad()
        assert regularizer.state_dict()["updates"] == [count + 1]


def test_an_update_that_warms_up_from_a_learning_rate_of_zero_counts():
    model, optimizer, regularizer = start(lambda p: SGD(p, lr=0.0))
    regularizer.attach(optimizer)
    train(model, optimizer, 2)
    assert regularizer.state_dict()["updates"] == [2]


@of_checkpoints
def test_the_step_that_a_distributed_checkpoint_makes_is_not_penalized_by_layers():
    model = mlp()
    regularize(model[0], L2(0.5), how="gradient")
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    get_optimizer_state_dict(model, optimizer)
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())


def test_what_is_saved_counts_updates_and_not_skipped_steps():
    model, optimizer, regularizer = start(lambda p: AdamW(p, lr=0.01, fused=True))
    regularizer.attach(optimizer)
    scaler = GradScaler("cpu", init_scale=1024.0)
    for i, batch in enumerate(batches(4)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if i == 1:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.state_dict()["param_groups"][0][KEY][0]["updates"] == [3]


def test_an_optimizer_is_not_kept_alive_by_its_passenger():
    model, optimizer, regularizer = start()
    regularizer.attach(optimizer)
    held = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert held() is None
    finally:
        gc.enable()
    assert regularizer.attach(Adam(model.parameters()))


RUN = """
import os, sys
import torch
from models import batches, loss_of, mlp
from shrinkage import L1, Regularizer

path, stop_in_step, stop_in_save = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def stop():
    print("here", flush=True)
    sys.stdin.read()

def schedule(update):
    if update == stop_in_step:
        stop()
    return 0.1 * 0.8**update

class StopsHalfWay(dict):
    def __reduce__(self):
        stop()

torch.set_num_threads(1)
model = mlp()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
regularizer = Regularizer(model, {"*.weight": L1(schedule)}, hold_zeros=0.9).attach(optimizer)
done = 0
if os.path.exists(path):
    saved = torch.load(path)
    done = saved["done"]
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
print(done, flush=True)
for done, batch in enumerate(batches(12)[done:], done + 1):
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()
    if done % 3 == 0:
        state = {"done": done, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "rest": StopsHalfWay()} if done == stop_in_save else state, path + ".new")
        os.replace(path + ".new", path)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_where_it_would_have_ended(tmp_path):
    def run(path, stop_in_step, stop_in_save):
        """Return where a run started and its exit code; it is killed where it stops."""
        command = [sys.executable, "-c", RUN, str(path), str(stop_in_step), str(stop_in_save)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            started = process.stdout.readline()
            if process.stdout.readline() == "here\n":
                process.send_signal(signal.SIGKILL)
        return int(started), process.returncode

    straight, resumed = tmp_path / "straight.pt", tmp_path / "resumed.pt"
    assert run(straight, -1, -1) == (0, 0)
    assert run(resumed, 4, -1) == (0, -signal.SIGKILL)  # inside of the step after the fourth
    assert run(resumed, -1, 9) == (3, -signal.SIGKILL)  # while it writes the file
    assert run(resumed, -1, -1) == (6, 0)
    assert same(torch.load(resumed), torch.load(straight))
