"""Where the weights are in what programs save."""

import pytest
import torch
from torch import nn

from shrinkage.diagnostics.checkpoint_files import chosen
from shrinkage.errors import listed, shown

WEIGHTS = nn.Linear(3, 2).state_dict()
AVERAGE = nn.Linear(3, 2).state_dict()


@pytest.mark.parametrize(
    ("checkpoint", "key"),
    [
        (WEIGHTS, "."),
        ({"scale": torch.tensor(2.0)}, "."),
        ({"model": WEIGHTS, "epoch": 3}, "model"),
        ({"model": WEIGHTS, "ema": AVERAGE}, "model"),
        ({"params_ema": AVERAGE, "params": WEIGHTS}, "params"),
        ({"ema": WEIGHTS}, "ema"),
        ({"best": {"loss": 0.1, "checkpoint": {"state_dict": WEIGHTS}}}, "best.checkpoint.state_dict"),
        ({"model": {"state_dict": WEIGHTS}, "teacher": {"state_dict": AVERAGE}, "net": WEIGHTS}, "net"),
        ({"model": WEIGHTS, "accuracy": torch.tensor(0.9), "rng": torch.zeros(9, dtype=torch.uint8)}, "model"),
        ({"model": WEIGHTS, "optimizer": {"state.weight.exp_avg": torch.ones(2, 3)}}, "model"),
        ({"models": [WEIGHTS]}, "models.0"),
        ({"optimal": WEIGHTS, "optim": {"exp_avg": torch.ones(2, 3)}}, "optimal"),
        ({"trained": WEIGHTS, "optim_state": {"exp_avg": torch.ones(2, 3)}}, "trained"),
    ],
)
def test_the_weights_are_found(checkpoint, key):
    found, weights, _ = chosen(checkpoint)
    assert found == key
    assert weights == (checkpoint if checkpoint.keys() == weights.keys() else WEIGHTS)


def test_what_is_kept_beside_the_weights_is_not_taken_for_them():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for state in (optimizer.state_dict(), [optimizer.state_dict()]):
        key, _, others = chosen({"trained": WEIGHTS, "solver": state, "odd_extra_state": {"x": torch.ones(3)}})
        assert (key, others) == ("trained", [])
    flat = {
        "trained": WEIGHTS,
        "optimizer": {"weight.exp_avg": torch.ones(2, 3)},
        "rng": torch.zeros(9, dtype=torch.uint8),
    }
    assert chosen(flat) == ("trained", WEIGHTS, [])


@pytest.mark.parametrize(
    "checkpoint", [{"a": WEIGHTS, "b": WEIGHTS}, {"model": WEIGHTS, "net": AVERAGE}, {**WEIGHTS, "statistics": AVERAGE}]
)
def test_of_several_none_is_taken(checkpoint):
    with pytest.raises(ValueError, match=r"2 state_dicts, .*say which"):
        chosen(checkpoint)
    for key in ("a", "net", "statistics", "."):
        if key in checkpoint or (key == "." and "weight" in checkpoint):
            assert chosen(checkpoint, key)[0] == key


def test_a_checkpoint_that_holds_itself_ends():
    checkpoint = {"model": WEIGHTS}
    checkpoint["self"] = checkpoint
    assert chosen(checkpoint)[0] == "model"


def test_values_are_shown_in_few_words():
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(100)])
    many = [torch.ones(100, 100), model, [model] * 100, {"a": model}, "x" * 9999, dict.fromkeys(range(9999)), 10**999]
    for value in [*many, torch.optim.SGD(model.parameters(), lr=0.1)]:
        assert len(shown(value)) < 200
        assert "\n" not in shown(value)
    assert len(listed(map(str, range(9999)))) < 60
    assert shown("a glob.*") == "'a glob.*'"
