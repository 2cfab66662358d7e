"""A regularizer that a script leaves behind is told, once; whoever trains with the penalty is left alone."""

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW

from shrinkage import L1, L2, Regularizer, regularize
from shrinkage.errors import PACKAGES
from shrinkage.training.orphaned import Copied, _links

X = torch.ones(4, 3)


def model():
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def step(net, optimizer, count=1):
    for _ in range(count):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()


def closure_of(net, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    return closure


def attached(net, make=SGD, rules=None):
    optimizer = make(net.parameters(), lr=0.1)
    Regularizer(net, L1(0.01) if rules is None else rules).attach(optimizer)
    return optimizer


def told(function):
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    assert all(each.category is UserWarning for each in caught)
    assert all(each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught]


def once(function, pattern):
    messages = told(function)
    assert len(messages) == 1
    assert pattern in messages[0]
    assert "Call attach(optimizer)" in messages[0]


def test_a_script_beside_the_package_is_told_at_its_own_line():
    net = model()
    attached(net)
    script = f"{PACKAGES[1].rstrip(os.sep)}_train.py"
    optimizer = SGD(net.parameters(), lr=0.1)
    net(X).sum().backward()
    with pytest.warns(UserWarning, match="nothing penalizes it here") as caught:
        exec(compile("optimizer.step()", script, "exec"), {"optimizer": optimizer})
    assert [each.filename for each in caught] == [script]


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("kept", [False, True])
def test_an_optimizer_made_anew_each_epoch(make, kept):
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    regularizer = Regularizer(net, L1(0.01)).attach(optimizer)
    if not kept:
        del regularizer

    def epochs():
        nonlocal optimizer
        for _ in range(3):
            step(net, optimizer, 2)
            optimizer = make(net.parameters(), lr=0.05)

    once(
        epochs, f"this {make.__name__} steps '0.weight', '2.weight', which a Regularizer penalizes in another optimizer"
    )


def test_the_first_optimizer_of_a_process_made_anew():
    """It stays in a cycle with torch's import of its compiler, until that is collected."""
    code = """
import gc, torch, warnings
from shrinkage import L1, Regularizer
gc.disable()
layer = torch.nn.Linear(2, 2)
with warnings.catch_warnings(record=True) as caught:
    for epoch in range(3):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        if epoch == 0:
            Regularizer(layer, L1(0.1)).attach(optimizer)
        layer(torch.ones(2)).sum().backward()
        optimizer.step()
print(len(caught), caught[0].message)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.startswith("1 this SGD steps 'weight', which")


def test_an_optimizer_of_some_of_the_parameters():
    net = model()
    optimizer = attached(net)
    step(net, optimizer)
    del optimizer
    once(lambda: step(net, SGD(net[2].parameters(), lr=0.1)), "steps '2.weight', which")


def test_optimizers_that_step_nothing_of_it_are_left_alone():
    net, other = model(), model()
    optimizer = attached(net, rules={"0.weight": L1(0.1)})
    step(net, optimizer)
    del optimizer
    assert not told(lambda: step(net, SGD(net[2].parameters(), lr=0.1)))
    assert not told(lambda: step(other, SGD(other.parameters(), lr=0.1)))
    net[0].weight.requires_grad_(False)
    assert not told(lambda: step(net, SGD(net.parameters(), lr=0.1)))


def test_a_new_model_in_the_place_of_one_that_is_gone():
    net = model()
    optimizer = attached(net)
    step(net, optimizer)
    for _ in range(20):  # parameters with the same addresses
        del net, optimizer
        net = model()
        optimizer = SGD(net.parameters(), lr=0.1)
        assert not told(lambda: step(net, optimizer))  # noqa: B023


def test_whoever_attaches_anew_is_left_alone():
    net = model()
    regularizer = Regularizer(net, L1(0.01))

    def epochs():
        for _ in range(3):
            optimizer = SGD(net.parameters(), lr=0.1)
            regularizer.attach(optimizer)
            step(net, optimizer)

    assert not told(epochs)
    once(lambda: step(net, SGD(net.parameters(), lr=0.1)), "is gone")
    assert not told(lambda: step(net, SGD(net.parameters(), lr=0.1)))
    assert not told(epochs)
    once(lambda: step(net, SGD(net.parameters(), lr=0.1)), "is gone")  # left behind once more


def test_a_new_regularizer_for_each_optimizer_leaves_nothing_behind():
    net = model()

    def epochs():
        for _ in range(30):
            step(net, attached(net))

    assert not told(epochs)
    gc.collect()
    attached(net)
    assert sum(link.model() is net for link in _links) == 1


def test_detach_is_meant():
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    regularizer = Regularizer(net, L1(0.01)).attach(optimizer)
    step(net, optimizer)
    regularizer.detach()
    assert not told(lambda: step(net, SGD(net.parameters(), lr=0.1)))
    other, copied = copy.deepcopy((net, optimizer))
    assert not told(lambda: step(other, copied))
    assert not told(lambda: step(net, optimizer))


def test_attached_to_an_optimizer_that_is_never_used():
    net = model()
    unused = attached(net)
    once(lambda: step(net, SGD(net.parameters(), lr=0.1)), "has not stepped")
    net = model()
    other = attached(net, Adam)
    once(lambda: step(net, SGD(net.parameters(), lr=0.1), 2), "has not stepped")
    assert unused is not other


@pytest.mark.parametrize("first", [0, 1])
def test_optimizers_in_turn_are_left_alone(first):
    net = model()
    pair = [attached(net, Adam), SGD(net.parameters(), lr=0.1)]

    def turns():
        for turn in range(6):
            step(net, pair[(turn + first) % 2])

    assert not told(turns)


def test_two_optimizers_of_a_gan_are_left_alone():
    net = model()
    pair = [SGD(part.parameters(), lr=0.1) for part in (net[0], net[2])]
    Regularizer(net, {"0.weight": L1(0.01)}).attach(pair[0])

    def turns():
        for optimizer in reversed(pair):
            step(net, optimizer)

    assert not told(turns)


@pytest.mark.parametrize("gone", [False, True])
def test_lbfgs_after_adam_is_left_alone(gone):
    net = model()
    optimizer = attached(net, Adam)
    step(net, optimizer, 2)
    last = LBFGS(net.parameters())
    if gone:
        del optimizer
    assert not told(lambda: last.step(closure_of(net, last)))


@pytest.mark.parametrize("through", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), "save"])
def test_a_copy_of_model_and_optimizer_says_that_it_lost_its_regularizer(through):
    net = model()
    optimizer = attached(net)
    step(net, optimizer)
    if through == "save":
        buffer = io.BytesIO()
        torch.save((net, optimizer), buffer)
        buffer.seek(0)
        other, copied = torch.load(buffer, weights_only=False)
    else:
        other, copied = through((net, optimizer))
    once(lambda: step(other, copied, 3), "this SGD is a copy of one that a Regularizer was attached to")
    assert not told(lambda: step(net, optimizer, 2))


def test_a_copy_that_is_attached_to_is_left_alone():
    net = model()
    optimizer = attached(net)
    other, copied = copy.deepcopy((net, optimizer))
    Regularizer(other, L1(0.01)).attach(copied)
    assert not told(lambda: step(other, copied))
    third, again = copy.deepcopy((other, copied))
    once(lambda: step(third, again), "copy")


def test_a_copy_after_load_state_dict_knows_it_too():
    net = model()
    optimizer = attached(net)
    step(net, optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not told(lambda: step(net, optimizer))
    once(lambda: step(*copy.deepcopy((net, optimizer))), "copy")


def test_the_state_of_an_attached_optimizer_in_one_that_nothing_is_attached_to_is_left_alone():
    net, other = model(), model()
    optimizer = attached(net)
    step(net, optimizer)
    loaded = SGD(other.parameters(), lr=0.1)
    loaded.load_state_dict(optimizer.state_dict())
    assert not told(lambda: step(other, loaded, 2))


def test_an_unpickled_optimizer_in_a_process_that_attaches_nothing(tmp_path):
    net = model()
    path = tmp_path / "run.pickle"
    path.write_bytes(pickle.dumps((net, attached(net))))
    code = f"""
import pickle, torch, warnings
net, optimizer = pickle.load(open({str(path)!r}, "rb"))
net(torch.ones(2, 3)).sum().backward()
with warnings.catch_warnings(record=True) as caught:
    optimizer.step()
print([str(each.message) for each in caught])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Call attach(optimizer)" in output.stdout


def test_copies_of_what_is_declared_anyway_are_left_alone():
    net = model()
    regularize(net[0], L1(0.01))
    regularize(net[2], L1(0.01))
    optimizer = SGD(net.parameters(), lr=0.1)
    Regularizer(net).attach(optimizer)
    step(net, optimizer)
    other, copied = copy.deepcopy((net, optimizer))
    assert not told(lambda: step(other, copied))
    del optimizer
    assert not told(lambda: step(net, SGD(net.parameters(), lr=0.1)))


def test_what_is_declared_beside_it_hides_nothing():
    net = model()
    regularize(net[0], L1(0.01))
    optimizer = attached(net, rules={"2.weight": L1(0.01)})
    step(net, optimizer)
    other, copied = copy.deepcopy((net, optimizer))
    once(lambda: step(other, copied), "copy")
    del optimizer
    once(lambda: step(net, SGD(net.parameters(), lr=0.1)), "'2.weight', which")


def test_another_regularizer_that_penalizes_the_same_is_enough():
    net = model()
    optimizer = attached(net)
    step(net, optimizer)
    del optimizer
    assert not told(lambda: step(net, attached(net, rules=L2(0.1))))


def test_one_of_two_regularizers_is_left_behind():
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    weights = Regularizer(net, L1(0.01)).attach(optimizer)
    biases = Regularizer(net, {"*.bias": L2(0.1)}).attach(optimizer)
    step(net, optimizer)
    optimizer = SGD(net.parameters(), lr=0.1)
    biases.attach(optimizer)
    weights.attach(optimizer)
    assert not told(lambda: step(net, optimizer, 2))
    optimizer = SGD(net.parameters(), lr=0.1)
    biases.attach(optimizer)
    once(lambda: step(net, optimizer, 2), "steps '0.weight', '2.weight', which")


class Around(torch.optim.Optimizer):
    """An optimizer that hides another one in an object of its own, as no attribute shows."""

    def __init__(self, inner):
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.hidden = lambda: inner

    def step(self, closure=None):
        self.hidden().step()


class Sharpness(torch.optim.Optimizer):
    """The shape of SAM's published code."""

    def __init__(self, params, base, **options):
        super().__init__(params, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step()


@pytest.mark.parametrize("of", ["inner", "outer"])
def test_an_optimizer_around_another_is_left_alone(of):
    net = model()
    inner = SGD(net.parameters(), lr=0.1)
    outer = Around(inner)
    Regularizer(net, L2(0.01), how="gradient").attach(inner if of == "inner" else outer)
    assert not told(lambda: step(net, outer, 2))
    net = model()
    outer = Sharpness(net.parameters(), SGD, lr=0.1)
    Regularizer(net, L1(0.01)).attach(outer if of == "outer" else outer.base_optimizer)
    assert not told(lambda: step(net, outer, 2))


def test_an_optimizer_of_its_own_kind_inside_of_the_attached_one_is_left_alone():
    net = model()
    outer = Around(Around(SGD(net.parameters(), lr=0.1)))
    Regularizer(net, L2(0.01), how="gradient").attach(outer)
    assert not told(lambda: step(net, outer, 2))


def test_an_optimizer_around_another_that_is_made_anew():
    net = model()
    outer = Sharpness(net.parameters(), SGD, lr=0.1)
    Regularizer(net, L1(0.01)).attach(outer)
    step(net, outer)
    outer = Sharpness(net.parameters(), SGD, lr=0.1)
    gc.collect()
    once(lambda: step(net, outer, 3), "is gone")


def test_optimizers_inside_of_the_backward_pass():
    net = model()
    optimizers = {p: SGD([p], lr=0.1) for p in net.parameters()}
    regularizer = Regularizer(net, L1(0.01))
    for parameter in (net[0].weight, net[2].weight):
        regularizer.attach(optimizers[parameter])
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    assert not told(lambda: [net(X).sum().backward() for _ in range(2)])
    optimizers.update({p: SGD([p], lr=0.1) for p in net.parameters()})
    assert len(told(lambda: [net(X).sum().backward() for _ in range(2)])) == 1


def test_a_search_for_the_learning_rate_that_restores_states_is_left_alone():
    net = model()
    optimizer = attached(net, AdamW)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))

    def search():
        for rate in (0.001, 0.01):
            optimizer.param_groups[0]["lr"] = rate
            step(net, optimizer)
        net.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        step(net, optimizer)

    assert not told(search)


def test_schedulers_and_scaling_are_left_alone():
    net = model()
    optimizer = attached(net)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu")

    def loop(optimizer, scheduler):
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(net(X).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()

    assert not told(lambda pair=(optimizer, scheduler): loop(*pair))
    del optimizer, scheduler
    optimizer = SGD(net.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    once(lambda: step(net, optimizer), "is gone")


def test_nothing_is_kept_alive_and_nothing_grows():
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    regularizer = Regularizer(net, L1(0.01)).attach(optimizer)
    step(net, optimizer)
    held = weakref.ref(net), weakref.ref(optimizer), weakref.ref(regularizer)
    del net, optimizer, regularizer
    gc.collect()
    assert [each() for each in held] == [None, None, None]
    attached(model())
    before = len(_links)  # models of other tests may be alive
    for _ in range(20):
        attached(model())
    gc.collect()
    attached(model())
    assert len(_links) <= before + 1


def test_the_mark_of_copies_is_invisible():
    net, plain = model(), model()
    plain.load_state_dict(net.state_dict())
    optimizer, other = attached(net, Adam, L1(0.0)), Adam(plain.parameters(), lr=0.1)
    step(net, optimizer)
    step(plain, other)
    assert isinstance(optimizer.state.default_factory, Copied)
    assert repr(optimizer) == repr(other)
    assert all(type(state) is dict for state in optimizer.state.values())
    assert optimizer.param_groups[0].keys() == other.param_groups[0].keys()
    assert optimizer.defaults == other.defaults
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.state[torch.ones(())] == {}
    regularizer = Regularizer(plain, L1(0.1)).attach(other)
    regularizer.detach()
    assert other.state.default_factory is dict
