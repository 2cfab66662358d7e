"""Weights that parametrizations, norms and masks compute from other parameters."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import SGD

from models import LR, STRENGTH, Alone, assert_refused_and_unchanged, equal, mlp, sgd, soft_, train
from shrinkage import (
    L1,
    ParameterError,
    Regularizer,
    regularize,
)


def silently(normalize):
    def quiet(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's word on its older functions
            return normalize(layer)

    return quiet


class Doubled(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, w):
        return 2 * w


COMPUTED = {
    "weight_norm": (parametrizations.weight_norm, "parametrizations.weight.original0", "the norms, makes its row"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.weight.original", "its scale is divided out"),
    "orthogonal": (parametrizations.orthogonal, "parametrizations.weight.original", "stays orthogonal"),
    "own": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
        "parametrizations.weight.original",
        "up to what computes that",
    ),
    "legacy weight_norm": (silently(nn.utils.weight_norm), "weight_g", "the norms, makes its row"),
    "legacy spectral_norm": (silently(nn.utils.spectral_norm), "weight_orig", "its scale is divided out"),
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", amount=2), "weight_orig", "prune.remove leaves"),
    "prune twice": (
        lambda layer: prune.ln_structured(prune.l1_unstructured(layer, "weight", amount=2), "weight", 1, 2, 0),
        "weight_orig",
        "prune.remove leaves",
    ),
}


@pytest.mark.parametrize(("compute", "source", "meaning"), COMPUTED.values(), ids=COMPUTED.keys())
@pytest.mark.parametrize("when", ["before", "after it was made", "after it was declared", "in the middle"])
def test_a_computed_weight_is_refused_with_the_names_of_what_it_is_computed_from(compute, source, meaning, when):
    model = mlp()
    prefix = "" if when == "after it was declared" else "0."
    message = rf"'{prefix}weight' is not a parameter: .* computes it from '{prefix}{source}'.* instead \(.*{meaning}"
    if when == "before":
        compute(model[0])
        with pytest.raises(ParameterError, match=message):
            Regularizer(model, {nn.Linear: L1(STRENGTH)})
        return
    optimizer = sgd(model)
    if when == "after it was declared":
        regularize(model[0], L1(STRENGTH))
    else:
        Regularizer(model, {nn.Linear: L1(STRENGTH)}).attach(optimizer)
    if when != "after it was made":
        train(model, optimizer, 1)
    compute(model[0])
    assert_refused_and_unchanged(model, optimizer, ParameterError, message)


@pytest.mark.parametrize(("compute", "source", "_"), COMPUTED.values(), ids=COMPUTED.keys())
def test_what_a_weight_is_computed_from_can_be_penalized(compute, source, _):
    model, plain = mlp(), mlp()
    optimizers = []
    for each in (model, plain):
        torch.manual_seed(4)
        compute(each[0])
        optimizers.append(SGD(each.parameters(), lr=LR))
    Regularizer(model, {f"0.{source}": L1(STRENGTH)}).attach(optimizers[0])
    train(model, optimizers[0])
    penalized = dict(plain.named_parameters())[f"0.{source}"]
    train(plain, optimizers[1], after=lambda: soft_(penalized, LR * STRENGTH))
    assert equal(model, plain)


@pytest.mark.parametrize("name", ["weight_norm", "legacy weight_norm"])
def test_a_zero_norm_is_a_zero_row_and_training_goes_on(name):
    compute, source, _ = COMPUTED[name]
    model = mlp()
    compute(model[0])
    optimizer = sgd(model)
    Regularizer(model, {f"0.{source}": L1(5.0)}).attach(optimizer)
    train(model, optimizer, 20)
    model(torch.ones(6))
    norms = dict(model.named_parameters())[f"0.{source}"]
    assert torch.equal((norms == 0).flatten(), (model[0].weight == 0).all(1))
    assert (norms == 0).any()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_zeros_of_a_penalty_and_of_a_mask_are_both_in_the_weight_after_prune_remove():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=10)
    optimizer = sgd(model)
    Regularizer(model, {"0.weight_orig": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer, 20)
    own, mask = model[0].weight_orig.detach() == 0, model[0].weight_mask == 0
    prune.remove(model[0], "weight")
    assert torch.equal(model[0].weight == 0, own | mask)
    assert (own & ~mask).any()
    assert mask.sum() == 10


def test_zeros_behind_a_spectral_norm_are_zeros_of_the_weight_and_its_scale_is_not_penalized():
    model = mlp()
    parametrizations.spectral_norm(model[0])
    optimizer = sgd(model)
    Regularizer(model, {"0.parametrizations.weight.original": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer, 20)
    model(torch.ones(6))
    original = model[0].parametrizations.weight.original
    model.eval()
    assert torch.equal(original == 0, model[0].weight == 0)
    assert (original == 0).any()
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        original *= 0.5
    torch.testing.assert_close(model[0].weight.detach(), before)


def test_parameters_of_a_users_own_with_names_like_those_of_torch_are_parameters():
    model = Alone(torch.ones(3))
    model.scale_g, model.scale_v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    model.mask_orig = nn.Parameter(torch.ones(3))
    assert [entry.name for entry in Regularizer(model, {"*": L1(0.1)}).plan] == ["w", "scale_g", "scale_v", "mask_orig"]
