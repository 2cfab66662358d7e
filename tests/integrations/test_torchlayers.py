"""torchlayers' convention, right where its wrapper is wrong."""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam

from models import batches, equal, loss_of, mlp
from shrinkage import SelectionError
from shrinkage.integrations import torchlayers


def run(declare, *, by_hand=None, accumulate=1, scale=None, fused=False):
    model = declare(mlp())
    optimizer = Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for i, batch in enumerate(batches(6)):
        scaler.scale(loss_of(model, batch) / accumulate).backward()
        if (i + 1) % accumulate == 0:
            if by_hand is not None:
                by_hand(model)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("decay", ["L1", "L2"])
@pytest.mark.parametrize("name", [None, "weight", "bias", "2."])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_layer_has_the_penalty_added_once_per_update(decay, name, accumulate):
    def by_hand(model):
        for own, parameter in model.named_parameters():
            if name is None or name in own:
                w = parameter.detach()
                parameter.grad.add_(w if decay == "L2" else w.sign(), alpha=0.05)

    found = run(lambda m: getattr(torchlayers, decay)(m, 0.05, name), accumulate=accumulate)
    expected = run(lambda m: m, by_hand=by_hand, accumulate=accumulate)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert not equal(found, run(lambda m: m, accumulate=accumulate))


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_does_not_divide_the_penalty(fused):
    plain = run(lambda m: torchlayers.L1(m, 0.05), fused=fused)
    scaled = run(lambda m: torchlayers.L1(m, 0.05), fused=fused, scale=65536.0)
    assert equal(plain, scaled)


def test_frozen_parameters_get_no_gradient():
    model = torchlayers.L2(mlp(), weight_decay=0.1)
    model[0].weight.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    loss_of(model, batches(1)[0]).backward()
    optimizer.step()
    assert model[0].weight.grad is None
    assert torch.equal(model[0].weight, before)


def test_the_module_comes_back_itself():
    layer = nn.Linear(3, 2)
    assert torchlayers.L1(layer, weight_decay=1e-5, name="weight") is layer
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_an_unmatched_name_is_refused():
    with pytest.raises(SelectionError, match=r"has no parameter '\*wieght\*'; nearest names: 'weight'"):
        torchlayers.L1(nn.Linear(3, 2), 0.1, name="wieght")
    with pytest.raises(ValueError, match=r"got -0\.1"):
        torchlayers.L2(nn.Linear(3, 2), -0.1)
