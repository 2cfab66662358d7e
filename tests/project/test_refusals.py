"""What cannot work says why, and what to do instead."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD

from shrinkage import L1, Regularizer, SelectionError, ShrinkError, shrink, to_sparse


def test_a_bare_penalty_that_finds_nothing_says_what_it_is_for_and_what_to_write():
    with pytest.raises(SelectionError, match=r"'weight' of Embedding; name .* \{'weight': L1\(1e-3\)\}") as raised:
        Regularizer(nn.Embedding(10, 4), L1(0.1))
    assert "outside of norms and embeddings" in str(raised.value)
    many = nn.Sequential(*[nn.LayerNorm(4) for _ in range(100)], nn.Embedding(5, 4))
    with pytest.raises(
        SelectionError, match=r"'0\.weight' of LayerNorm, .* and 198 others.*\{'100\.weight': L1"
    ) as raised:
        Regularizer(many, L1(0.1))
    assert len(str(raised.value)) < 500
    with pytest.raises(SelectionError, match="there are no parameters"):
        Regularizer(nn.ReLU(), L1(0.1))
    Regularizer(nn.Embedding(10, 4), {"weight": L1(1e-3)})  # as the message says


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda optimizer: [optimizer], "a list of 1: call attach for each"),
        (lambda optimizer: (optimizer, optimizer), "a tuple of 2: call attach for each"),
        (lambda optimizer: {"first": optimizer}, "a dict of 1: call attach for each"),
        (lambda optimizer: SGD, r"the class SGD: make one, SGD\(model\.parameters\(\)"),
        (lambda optimizer: optimizer.param_groups, "got list$"),
        (lambda optimizer: nn.Linear(2, 2), "got Linear$"),
        (lambda optimizer: None, "got NoneType$"),
    ],
)
def test_what_is_no_optimizer_is_named(given, said):
    model = nn.Linear(4, 2)
    with pytest.raises(TypeError, match=f"expected a torch.optim.Optimizer, got .*{said.removeprefix('got ')}"):
        Regularizer(model, L1(0.1)).attach(given(SGD(model.parameters(), lr=0.1)))


def test_a_model_without_linear_layers_is_said_to_have_none():
    model, report = to_sparse(nn.Sequential(nn.Conv2d(3, 8, 3)), example_inputs=torch.randn(1, 3, 8, 8))
    assert "the model has no nn.Linear" in str(report)
    assert isinstance(model[0], nn.Conv2d)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_quantized_model_is_to_be_made_smaller_before(layers):
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(ShrinkError, match=r"quantized, '0' of class Linear.*call shrink before quantizing"):
        shrink(quantized, torch.randn(2, 8))
    shrink(model, torch.randn(2, 8))
