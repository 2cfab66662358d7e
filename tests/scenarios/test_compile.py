"""torch.compile of the model, of the step and of the whole train step, against the same loop without it."""

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim import SGD, Adam, AdamW

from models import attached, batches, closure_of, equal, loss_of, mlp, train, zeros
from shrinkage import L1, L2, GroupLasso, Regularizer, Rows, Rule, regularize

STRENGTH = 0.05
RULES = [Rule(L1(STRENGTH), "0.weight"), Rule(L2(STRENGTH), "*.bias", "gradient"), Rule(L1(0.5), "2.*", "decoupled")]
# A compiled step takes torch's foreach form up to torch 2.11, which rounds otherwise than its plain loop.
MAKES = [lambda p: SGD(p, lr=0.1, momentum=0.5, foreach=True), lambda p: AdamW(p, lr=0.01, fused=True)]


def adam(p):
    return Adam(p, lr=0.01)


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def run_compiled(which, backend, model, optimizer, count=6):
    """Train with one part compiled."""
    forward = torch.compile(model, backend=backend) if which == "model" else model
    step = torch.compile(optimizer.step, backend=backend) if which == "step" else optimizer.step

    def train_step(batch):
        optimizer.zero_grad()
        loss_of(forward, batch).backward()
        step()

    if which == "train step":
        train_step = torch.compile(train_step, backend=backend)
    for batch in batches(count):
        train_step(batch)


@pytest.mark.parametrize("which", ["model", "step", "train step"])
@pytest.mark.parametrize("make", MAKES, ids=["SGD", "AdamW fused"])
def test_what_is_compiled_is_penalized_as_what_is_not(which, make):
    plain, optimizer, _ = attached(make, RULES)
    train(plain, optimizer, 6)
    ours, optimizer, regularizer = attached(make, RULES)
    run_compiled(which, "eager", ours, optimizer)
    assert equal(ours, plain)
    assert regularizer.state_dict()["updates"] == [6]
    assert zeros(ours) > 3


@pytest.mark.slow
@pytest.mark.parametrize("which", ["model", "step", "train step"])
def test_inductor(which):
    plain, optimizer, _ = attached(adam, RULES)
    train(plain, optimizer, 6)
    ours, optimizer, regularizer = attached(adam, RULES)
    run_compiled(which, "inductor", ours, optimizer)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):  # other formulas, which round otherwise
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert zeros(ours) == zeros(plain)
    assert regularizer.state_dict()["updates"] == [6]


@pytest.mark.parametrize(
    ("which", "how"), [("step", "gradient"), ("train step", "gradient"), ("step", "proximal"), ("model", "decoupled")]
)
def test_a_strength_and_a_learning_rate_that_change_compile_nothing_anew(which, how):
    """As many graphs as the loop without a regularizer, and none after the learning rate was found to vary."""
    counts = []
    for rules in (None, {"*.weight": L1(lambda update: STRENGTH / (1 + update))}):
        torch.compiler.reset()
        model = mlp()
        optimizer = SGD(model.parameters(), lr=torch.tensor(0.1))
        if rules:
            regularizer = Regularizer(model, rules, how=how).attach(optimizer)
        counter = CompileCounter()
        seen = []

        def schedule(counter=counter, seen=seen, optimizer=optimizer):
            seen.append(counter.frame_count)
            optimizer.param_groups[0]["lr"].mul_(0.9)

        optimizer.register_step_post_hook(torch.compiler.disable(lambda *_: schedule()))
        run_compiled(which, counter, model, optimizer, count=12)
        assert len(seen) == 12
        assert seen[-1] == seen[2]
        counts.append(seen[-1])
    assert counts[0] == counts[1] > 0
    assert regularizer.state_dict()["updates"] == [12]


@pytest.mark.parametrize("how", ["gradient", "decoupled", "proximal"])
def test_a_regularizer_comes_and_goes_after_the_step_was_compiled(how):
    """torch traces `step` once; hooks that are registered, or removed, after that are seen."""
    ours = mlp()
    optimizer = SGD(ours.parameters(), lr=0.1, foreach=True)
    step = torch.compile(optimizer.step, backend="eager")
    regularizer = Regularizer(ours, L1(STRENGTH), how=how)
    for update, batch in enumerate(batches(9)):
        if update == 3:
            regularizer.attach(optimizer)
        if update == 6:
            regularizer.detach()
        optimizer.zero_grad()
        loss_of(ours, batch).backward()
        step()
    assert regularizer.state_dict()["updates"] == [3]
    plain = mlp()
    optimizer = SGD(plain.parameters(), lr=0.1, foreach=True)
    Regularizer(plain, L1(lambda update: STRENGTH if 3 <= update < 6 else 0.0), how=how).attach(optimizer)
    train(plain, optimizer, 9)
    assert equal(ours, plain)


def test_a_compiled_train_step_that_clips_with_the_penalty():
    def run(compiled):
        model = mlp()
        optimizer = SGD(model.parameters(), lr=0.1, foreach=True)
        regularizer = Regularizer(model, L1(0.5), how="gradient").attach(optimizer)

        def train_step(batch):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            regularizer.add_gradients_()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()

        step = torch.compile(train_step, backend="eager") if compiled else train_step
        for batch in batches(6):
            step(batch)
        return model

    assert equal(run(True), run(False))


def test_declarations_in_a_compiled_train_step():
    plain, optimizer, _ = attached(MAKES[0], {"0.weight": GroupLasso(0.1, Rows())})
    train(plain, optimizer, 6)
    ours = mlp()
    regularize(ours[0], GroupLasso(0.1, Rows()))
    run_compiled("train step", "eager", ours, MAKES[0](ours.parameters()))
    assert equal(ours, plain)
    assert not equal(ours, mlp())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks there
def test_a_closure_in_a_compiled_step():
    plain, optimizer, _ = attached(MAKES[0], RULES)
    train(plain, optimizer, 6)
    ours, optimizer, _ = attached(MAKES[0], RULES)
    step = torch.compile(optimizer.step, backend="eager")
    for batch in batches(6):
        step(closure_of(optimizer, functools.partial(loss_of, ours, batch)))
    assert equal(ours, plain)
