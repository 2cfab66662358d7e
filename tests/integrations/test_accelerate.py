"""Accelerate and Fabric: plain `attach`, before or after they set the optimizer up, against loops written by hand."""

import functools

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from test_lightning import (
    COUNT,
    adamw,
    add_gradients,
    by_hand,
    falling,
    fused_adamw,
    nothing,
    sgd,
    thresholds,
    with_overflow,
)
from torch.amp import GradScaler

from models import batches, equal, loss_of, mlp, zeros
from shrinkage import L1, L2, Regularizer, regularize

# Loops by hand take torch's roots, which kernels round otherwise.
pytestmark = pytest.mark.usefixtures("without_native")

HOWS = ["proximal", "gradient"]
RULES = {"proximal": L1(falling), "gradient": L2(0.5)}


@pytest.fixture(autouse=True)
def forget_settings():
    """Accelerate keeps its settings for the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def regularizer_of(model, how="proximal", hold_zeros=None):
    return Regularizer(model, {"*.weight": RULES[how]}, how=how, hold_zeros=hold_zeros)


def hand(make, how="proximal", **settings):
    """The loop written by hand with one of the two penalties."""
    around = {"before": add_gradients, "after": nothing} if how == "gradient" else {}
    return by_hand(make, **around, **settings)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("attach", ["before", "after", "twice"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_with_accumulation_and_clipping(how, attach, precision):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
    bare = mlp()
    optimizer = adamw(bare.parameters())
    regularizer = regularizer_of(bare, how)
    if attach != "after":
        regularizer.attach(optimizer)
    model, prepared = accelerator.prepare(bare, optimizer)
    if attach != "before":
        regularizer.attach(prepared)
    for batch in batches(COUNT):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.05)
            prepared.step()
            prepared.zero_grad()
    dtype = torch.bfloat16 if precision == "bf16" else None
    assert equal(bare, hand(adamw, how, accumulate=2, clip=0.05, dtype=dtype))
    assert regularizer.state_dict()["updates"] == [COUNT // 2]


@pytest.mark.parametrize("make", [sgd, adamw, fused_adamw])
@pytest.mark.parametrize("how", HOWS)
def test_accelerates_optimizer_with_a_scaler_and_an_overflow(make, how):
    """As on an accelerator: on a CPU, mixed_precision="fp16" scales no losses."""

    def scaler():
        return GradScaler("cpu", init_scale=1024.0)

    accelerator, bare = Accelerator(cpu=True), mlp()
    accelerator.scaler = scaler()
    optimizer = AcceleratedOptimizer(make(bare.parameters()), scaler=accelerator.scaler)
    regularizer = regularizer_of(bare, how).attach(optimizer)
    skipped = []
    for batch in with_overflow():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(bare, batch)
        accelerator.backward(loss)
        optimizer.step()
        skipped.append(optimizer.step_was_skipped)
    # Of a fused step Accelerate does not notice that it did nothing.
    assert skipped == [make is not fused_adamw and step == 3 for step in range(COUNT)]
    assert equal(bare, hand(make, how, data=with_overflow(), dtype=torch.float16, scaler=scaler()))
    assert regularizer.state_dict()["updates"] == [COUNT - 1]


def test_accelerate_saves_and_loads_the_state_with_the_optimizers(tmp_path):
    def begin():
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator, bare = Accelerator(cpu=True), mlp()
        optimizer = adamw(bare.parameters())
        regularizer = regularizer_of(bare, hold_zeros=0.9)
        model, prepared = accelerator.prepare(bare, optimizer)
        return accelerator, model, prepared, regularizer

    def train(model, optimizer, accelerator, data):
        for batch in data:
            optimizer.zero_grad()
            accelerator.backward(loss_of(model, batch))
            optimizer.step()

    accelerator, straight, optimizer, regularizer = begin()
    regularizer.attach(optimizer)
    train(straight, optimizer, accelerator, batches(COUNT)[:5])
    accelerator.save_state(str(tmp_path))
    train(straight, optimizer, accelerator, batches(COUNT)[5:])
    for attach_first in (True, False):
        accelerator, resumed, optimizer, regularizer = begin()
        if attach_first:
            regularizer.attach(optimizer)
        accelerator.load_state(str(tmp_path))
        regularizer.attach(optimizer)
        train(resumed, optimizer, accelerator, batches(COUNT)[5:])
        assert equal(straight, resumed)
        assert regularizer.state_dict()["updates"] == [COUNT]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("attach", ["before", "after", "twice"])
@pytest.mark.parametrize("closure", [False, True])
def test_fabric_with_clipping(how, attach, closure):
    fabric = Fabric(accelerator="cpu", devices=1)
    bare = mlp()
    optimizer = fused_adamw(bare.parameters())
    regularizer = regularizer_of(bare, how)
    if attach != "after":
        regularizer.attach(optimizer)
    model, wrapped = fabric.setup(bare, optimizer)
    if attach != "before":
        regularizer.attach(wrapped)
    for batch in batches(COUNT):

        def backward(batch=batch):
            wrapped.zero_grad()
            loss = loss_of(model, batch)
            fabric.backward(loss)
            fabric.clip_gradients(model, wrapped, max_norm=0.05)
            return loss

        if closure:
            wrapped.step(backward)
        else:
            backward()
            wrapped.step()
    assert equal(bare, hand(fused_adamw, how, clip=0.05))
    assert regularizer.state_dict()["updates"] == [COUNT]


@pytest.mark.parametrize(  # Fabric does not clip for a fused optimizer
    ("make", "clip"), [(adamw, None), (adamw, 0.05), (fused_adamw, None), (sgd, None), (sgd, 0.05)]
)
@pytest.mark.parametrize("how", HOWS)
def test_fabric_16_mixed_with_an_overflow(make, clip, how):
    def scaler():
        return GradScaler("cpu", init_scale=1024.0)

    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler())])
    bare = mlp()
    model, optimizer = fabric.setup(bare, make(bare.parameters()))
    regularizer = regularizer_of(bare, how).attach(optimizer)
    for batch in with_overflow():
        optimizer.zero_grad()
        fabric.backward(loss_of(model, batch))
        if clip:
            fabric.clip_gradients(model, optimizer, max_norm=clip, error_if_nonfinite=False)
        optimizer.step()
    settings = {"data": with_overflow(), "clip": clip, "dtype": torch.float16, "scaler": scaler()}
    assert equal(bare, hand(make, how, **settings))
    assert regularizer.state_dict()["updates"] == [COUNT - 1]


@pytest.mark.parametrize("attach_first", [True, False])
def test_fabric_saves_and_loads_the_state_with_the_optimizers(attach_first, tmp_path):
    def begin():
        bare = mlp()
        fabric = Fabric(accelerator="cpu", devices=1)
        model, optimizer = fabric.setup(bare, adamw(bare.parameters()))
        return fabric, model, optimizer, regularizer_of(bare, hold_zeros=0.9)

    def train(fabric, model, optimizer, data):
        for batch in data:
            optimizer.zero_grad()
            fabric.backward(loss_of(model, batch))
            optimizer.step()

    fabric, straight, optimizer, regularizer = begin()
    regularizer.attach(optimizer)
    train(fabric, straight, optimizer, batches(COUNT)[:5])
    fabric.save(tmp_path / "half.ckpt", {"model": straight, "optimizer": optimizer})
    train(fabric, straight, optimizer, batches(COUNT)[5:])
    fabric, resumed, optimizer, regularizer = begin()
    if attach_first:
        regularizer.attach(optimizer)
    fabric.load(tmp_path / "half.ckpt", {"model": resumed, "optimizer": optimizer})
    regularizer.attach(optimizer)
    train(fabric, resumed, optimizer, batches(COUNT)[5:])
    assert equal(straight, resumed)
    assert regularizer.state_dict()["updates"] == [COUNT]


@pytest.mark.parametrize("stack", ["accelerate", "fabric"])
def test_declared_layers_need_nothing(stack):
    bare = mlp()
    for layer in (bare[0], bare[2]):
        regularize(layer, L1(0.02))
    optimizer = adamw(bare.parameters())
    if stack == "accelerate":
        accelerator = Accelerator(cpu=True)
        model, prepared = accelerator.prepare(bare, optimizer)
        backward = accelerator.backward
    else:
        fabric = Fabric(accelerator="cpu", devices=1)
        model, prepared = fabric.setup(bare, optimizer)
        backward = fabric.backward
    for batch in batches(COUNT):
        prepared.zero_grad()
        backward(loss_of(model, batch))
        prepared.step()
    constant = functools.partial(thresholds, strength=lambda update: 0.02)
    assert equal(bare, by_hand(adamw, after=constant))
    assert zeros(bare) > 0
