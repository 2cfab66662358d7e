"""Adapters of peft: the names of the bare model find them, and copies that peft trains."""

import pytest
import torch
from torch import nn

from models import LR, STRENGTH, equal, sgd, soft_, train
from shrinkage import (
    L1,
    L2,
    Nuclear,
    Regularizer,
    SelectionError,
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.query, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.query(x)))


def adapted(model=None, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["head"], r=2, **options)
    bare = model or Attention()
    torch.manual_seed(5)
    return peft.get_peft_model(bare, config)


def test_the_names_of_the_bare_model_find_its_parameters_in_a_peft_model():
    model = adapted()
    plan = Regularizer(model, {"*": L1(0.1)}).plan
    assert [entry.name for entry in plan] == [
        "query.weight",
        "query.bias",
        "query.lora_A.default.weight",
        "query.lora_B.default.weight",
        "head.original_module.weight",
        "head.original_module.bias",
        "head.weight",
        "head.bias",
    ]
    held = dict(model.named_parameters())
    found = {entry.name: entry.shape for entry in Regularizer(model, {"head.weight": L1(0.1)}).plan}
    assert found == {"head.weight": (3, 6)}
    assert held["base_model.model.head.modules_to_save.default.weight"].requires_grad


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_the_trained_copy_of_a_head_and_the_adapters_are_penalized(first, whole):
    """Also by a regularizer that was made before the model became a PEFT model."""
    names = ("query.lora_A.default.weight", "head.modules_to_save.default.weight")

    def penalized_of(model):
        return [value for name, value in model.named_parameters() if name.endswith(names)]

    bare = Attention()
    early = Regularizer(bare, {"head.weight": L1(STRENGTH)}) if first else None
    model, plain = adapted(bare), adapted()
    seen = model if whole else bare
    optimizer = sgd(model)
    (early or Regularizer(seen, {"head.weight": L1(STRENGTH)})).attach(optimizer)
    Regularizer(seen, {"*lora_A*": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer)
    train(plain, sgd(plain), after=lambda: [soft_(w, LR * STRENGTH) for w in penalized_of(plain)])
    assert (penalized_of(plain)[1] == 0).any()
    assert equal(model, plain)


def test_a_rule_for_a_weight_that_peft_froze_warns_and_says_so():
    model = adapted()
    with pytest.warns(UserWarning, match=r"'query\.weight' matches frozen parameters only"):
        regularizer = Regularizer(model, {"query.weight": L1(0.1), "head.weight": L1(0.1)})
    assert repr(regularizer).endswith("frozen, so not penalized: 'query.weight'")


def test_two_adapters_keep_their_names_apart():
    model = adapted()
    model.add_adapter("other", model.peft_config["default"])
    names = [entry.name for entry in Regularizer(model, {"head.*.weight": L1(0.1)}).plan]
    assert names == [
        f"head.{name}.weight" for name in ("original_module", "modules_to_save.default", "modules_to_save.other")
    ]
    with pytest.raises(SelectionError, match=r"nearest names: .*'head\.original_module\.weight'"):
        Regularizer(model, {"head.weight": L1(0.1)})


def test_a_model_of_a_users_own_keeps_the_names_that_peft_uses_too():
    model = nn.ModuleDict({"base_model": nn.ModuleDict({"model": nn.Linear(2, 2)}), "base_layer": nn.Linear(2, 2)})
    assert [entry.name for entry in Regularizer(model, L1(0.1)).plan] == [
        "base_model.model.weight",
        "base_layer.weight",
    ]


def test_l2_of_the_factors_is_the_nuclear_norm_of_their_product_at_best():
    left, values, right = torch.linalg.svd(torch.randn(6, 6, dtype=torch.float64))
    b, a = left[:, :2] * values[:2].sqrt(), values[:2, None].sqrt() * right[:2]
    found = [(L2(1.0).value(b / scale) + L2(1.0).value(a * scale)).item() for scale in (1.0, 0.9, 1.1, 3.0)]
    assert found[0] == pytest.approx(Nuclear(1.0).value(b @ a).item())
    assert found[0] == min(found)
    assert found[3] > 1.5 * found[0]
