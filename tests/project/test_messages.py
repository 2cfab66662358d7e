"""No message shows a whole tensor, model or list: whatever is given by mistake, what is said about it stays short."""

import inspect

import pytest
import torch
from torch import nn

import shrinkage
from shrinkage import (
    L1,
    Coupled,
    Member,
    Regularizer,
    Rows,
    Rule,
    regularize,
    report,
    shrink,
    threshold_,
    to_sparse,
)

LONGEST = 600
KINDS = shrinkage.Penalty | shrinkage.penalties.groups.Groups
TENSOR = torch.randn(64, 64)
MODEL = nn.Sequential(*[nn.Linear(4, 4) for _ in range(300)])
STATE = MODEL.state_dict()
MISTAKES = {
    "tensor": TENSOR,
    "model": MODEL,
    "state_dict": STATE,
    "tensors": list(STATE.values()),
    "names": list(STATE) * 10,
    "text": "layer." * 2000,
    "optimizer": torch.optim.Adam([{"params": [each]} for each in MODEL.parameters()]),
    "array": TENSOR.numpy(),
}


def layer():
    return nn.Linear(8, 4)


def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def attached(**options):
    model = layer()
    return Regularizer(model, L1(0.1), **options).attach(optimizer(model))


CALLS = {
    "Regularizer(x)": lambda x: Regularizer(x, L1(0.1)),
    "Regularizer(_, x)": lambda x: Regularizer(layer(), x),
    "Regularizer(_, {glob: x})": lambda x: Regularizer(layer(), {"*": x}),
    "Regularizer(_, {x: _})": lambda x: Regularizer(layer(), {(x if x.__hash__ else str(x)): L1(0.1)}),
    "Regularizer(_, [x])": lambda x: Regularizer(layer(), [x]),
    "Regularizer(how=x)": lambda x: Regularizer(layer(), L1(0.1), how=x),
    "Regularizer(hold_zeros=x)": lambda x: Regularizer(layer(), L1(0.1), hold_zeros=x),
    "Regularizer(compile=x)": lambda x: Regularizer(layer(), L1(0.1), compile=x),
    "Rule(x)": Rule,
    "Rule(_, x)": lambda x: Regularizer(layer(), Rule(L1(0.1), x)),
    "Rule(every=x)": lambda x: Rule(L1(0.1), every=x),
    "attach(x)": lambda x: Regularizer(layer(), L1(0.1)).attach(x),
    "load_state_dict(x)": lambda x: attached().load_state_dict(x),
    "load_state_dict({updates: x})": lambda x: attached().load_state_dict({"version": 1, "updates": x}),
    "residuals(x)": lambda x: attached().residuals(lambda: x),
    "add_gradients_(x)": lambda x: attached().add_gradients_(x),
    "regularize(x)": lambda x: regularize(x, L1(0.1)) if not isinstance(x, nn.Module) else regularize(layer(), x),
    "regularize(_, x)": lambda x: regularize(layer(), x),
    "regularize(parameter=x)": lambda x: regularize(layer(), L1(0.1), parameter=x),
    "penalty + x": lambda x: L1(0.1) + x,
    "strength_max(_, x)": lambda x: shrinkage.strength_max(layer(), lambda: x, L1(0.1)),
    "report(x)": lambda x: report([x]),
    "threshold_(_, x)": lambda x: threshold_(layer(), x),
    "threshold_(parameters=x)": lambda x: threshold_(layer().state_dict(), 0.1, parameters=x),
    "shrink(x)": lambda x: shrink([x], torch.ones(1, 8)),
    "shrink(round_to=x)": lambda x: shrink(layer(), torch.ones(1, 8), round_to=x),
    "shrink(pin=x)": lambda x: shrink(layer(), torch.ones(1, 8), pin=[x]),
    "to_sparse(x)": lambda x: to_sparse(layer(), keep_if_faster=False, min_sparsity=x),
    "register_metric(x)": lambda x: shrinkage.register_metric(x, lambda group, state, w: 1.0),
    "register_sum(x)": shrinkage.register_sum,
    "Coupled([x])": lambda x: Coupled([x]),
    "Member(x)": lambda x: Member(x, 0, (0,)),
    "Member(_, x)": lambda x: Member("weight", x, (0,)),
    "Member(_, _, x)": lambda x: Member("weight", 0, x),
    "ShrinkPlan.from_json(x)": shrinkage.ShrinkPlan.from_json,
    "apply_plan(x)": lambda x: shrinkage.apply_plan([x], None),
}


def message(call):
    """What is said of a call that fails; of one that works, nothing."""
    try:
        call()
    except Exception as error:
        return str(error)
    return ""


def constructors():
    """Every public class that is a penalty or a way to group, with each of its arguments in turn."""
    good = {"penalty": L1(0.1), "groups": Rows(), "members": (), "weights": torch.ones(4, 8), "reference": None}
    for name in shrinkage.__all__:
        thing = getattr(shrinkage, name)
        if not inspect.isclass(thing) or not issubclass(thing, KINDS):
            continue
        parameters = inspect.signature(thing).parameters
        for wrong in parameters:
            yield f"{name}({wrong}=x)", thing, wrong, {key: good.get(key, 1) for key in parameters if key != wrong}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_said_of_a_mistake_is_short(call, mistake):
    said = message(lambda: CALLS[call](MISTAKES[mistake]))
    assert len(said) < LONGEST
    assert not said.isdigit()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_said_of_a_mistaken_argument_is_short(mistake):
    said = {
        name: message(lambda made=made, wrong=wrong, others=others: made(**{wrong: MISTAKES[mistake]}, **others))
        for name, made, wrong, others in constructors()
    }
    assert not {name: text[:80] for name, text in said.items() if len(text) >= LONGEST}
