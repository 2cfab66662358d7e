"""What is saved with `torch.save` as a whole: it loads under `weights_only=True`, and so do files of before."""

import copy
import io
import pickle
import pickletools
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from catalog import CONSTRAINTS, PENALTIES
from models import equal, mlp, train, train_step, zeros
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Blocks,
    Box,
    Columns,
    Coupled,
    ElasticNet,
    FusedLasso,
    Grouped,
    GroupLasso,
    GroupLInf,
    Heads,
    Huber,
    Kernels,
    L1Ball,
    LogSum,
    Lp,
    MaxNorm,
    Member,
    NofM,
    NonNegative,
    Nuclear,
    Orthogonal,
    Regularizer,
    Rows,
    Rule,
    ShrinkPlan,
    Simplex,
    SparseGroupLasso,
    SpectralBall,
    TopK,
    Toward,
    UnitNorm,
    Weighted,
    Whole,
    apply_plan,
    regularize,
)
from shrinkage.penalties.pickling import restored

FIXTURES = Path(__file__).parents[1] / "fixtures"  # written by version 0.1.0, by the code that the tests below repeat
LAYERS = [nn.Sequential, nn.Linear, nn.Tanh, nn.ReLU]


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer


def loaded(buffer, allowed=()):
    buffer.seek(0)
    with torch.serialization.safe_globals([*LAYERS, *allowed]):
        return torch.load(buffer, weights_only=True)


def globals_in(buffer):
    """The dotted names of what a file calls."""
    with zipfile.ZipFile(buffer) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return {argument.replace(" ", ".") for opcode, argument, _ in pickletools.genops(data) if opcode.name == "GLOBAL"}


def layer_of(shape):
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.randn(shape))
    return layer


def stepped(layer, steps=3):
    """The weight after some steps without a loss."""
    optimizer = SGD(layer.parameters(), lr=0.1)
    for _ in range(steps):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    return layer.weight.detach()


CASES = [(str(case), case.make(0.3), case.shape) for case in PENALTIES]
CASES += [(str(case), case.make(), case.shape) for case in CONSTRAINTS]


@pytest.mark.parametrize(("penalty", "shape"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_declared_layer_loads_safely_whatever_its_penalty(penalty, shape):
    layer = regularize(layer_of(shape), penalty)
    buffer = saved(nn.Sequential(layer))
    (copied,) = loaded(buffer)
    assert {name for name in globals_in(buffer) if name.startswith("shrinkage")} == {"shrinkage._restored"}
    before = layer.weight.detach().clone()
    assert torch.equal(stepped(copied), stepped(layer))
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(("penalty", "shape"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize(
    "through", [lambda p: loaded(saved(p)), copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_a_penalty_comes_back_as_it_was(penalty, shape, through):
    other = through(penalty)
    w = torch.randn(shape)
    assert type(other) is type(penalty)
    assert torch.equal(other.prox(w, 0.5), penalty.prox(w, 0.5))
    assert other == penalty
    assert hash(other) == hash(penalty)


def test_a_whole_model_loads_safely_and_is_penalized_on():
    model = mlp()
    regularize(model[0], L1(0.05))
    regularize(model[2], L2(0.05), parameter="bias", how="gradient")
    copied = loaded(saved(model))
    for each in (model, copied):
        train(each, SGD(each.parameters(), lr=0.1))
    assert equal(copied, model)
    assert zeros(model) > 0
    again = loaded(saved(copied))  # by a layer that the declaration knows by its dicts alone
    assert equal(again, model)
    regularize(again[0], None)
    again[0].weight.data.fill_(1e-6)
    assert (stepped(again[0]) != 0).all()


def test_a_loaded_layer_that_is_gone_leaves_its_rules_to_its_parameters():
    model = loaded(saved(nn.Sequential(regularize(nn.Linear(3, 3), L1(100.0)))))
    other = nn.Linear(3, 3)
    other.weight = model[0].weight
    del model
    assert (stepped(other, 1) == 0).all()


def test_parameters_of_a_loaded_layer_that_are_replaced_are_found():
    layer = loaded(saved(regularize(nn.Linear(3, 3), L1(100.0))))
    layer.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()}, assign=True)
    assert (stepped(layer, 1) == 0).all()


def test_tied_and_shared_layers_load_safely():
    shared = regularize(nn.Linear(4, 4, bias=False), L1(100.0))
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 4, bias=False))
    model[3].weight = shared.weight
    copied = loaded(saved(model))
    assert copied[0] is copied[2]
    assert copied[3].weight is copied[0].weight
    assert (stepped(copied[3], 1) == 0).all()


def test_a_declared_block_loads_safely():
    model = regularize(mlp(), L1(100.0), parameter="*.weight")
    copied = loaded(saved(model))
    train(copied, SGD(copied.parameters(), lr=0.1), 1)
    assert (copied[0].weight == 0).all()
    assert (copied[2].weight == 0).all()


@pytest.mark.parametrize("number", [numpy.float64(0.1), numpy.float32(0.1)])
def test_strengths_that_are_numbers_of_numpy_load_safely(number):
    assert loaded(saved(L1(number))) == L1(float(number))


THINGS = [
    Rule(GroupLasso(0.1, Heads(2)), "*.weight", "decoupled"),
    Rule(L1(0.1), "*.weight", every=3),
    Coupled([Member("a.weight", 0, range(4)), Member("b.weight", 1, [0, 0, 1, -1])]),
    TopK(0.5, Rows()),
]


@pytest.mark.parametrize("thing", THINGS, ids=repr)
def test_rules_and_groups_load_safely(thing):
    assert loaded(saved(thing)) == thing


def rising(update):
    return 0.1 * update


def test_a_schedule_is_allowed_by_whoever_wrote_it():
    with pytest.raises(pickle.UnpicklingError, match=r"test_pickling\.rising"):
        loaded(saved(L1(rising)))
    assert loaded(saved(L1(rising)), [rising]) == L1(rising)


@dataclass(frozen=True)
class Own(L1):
    """Somebody else's penalty."""

    tag: str = ""


@dataclass(frozen=True, slots=True)
class WithSlots(L1):
    """The same, with a slot for its own field."""

    tag: str = ""


class WithCache(Own):
    """One with an attribute that is no field, in a slot."""

    __slots__ = ("seen",)


@pytest.mark.parametrize("kind", [Own, WithSlots, WithCache])
def test_a_penalty_of_somebody_else_is_pickled_as_ever(kind):
    penalty = kind(0.1, "mine")
    if kind is WithCache:
        object.__setattr__(penalty, "seen", 3)
    for again in (pickle.loads(pickle.dumps(penalty)), copy.deepcopy(penalty)):
        assert again == penalty  # the class included
        assert getattr(again, "seen", None) == getattr(penalty, "seen", None)
    layer = regularize(nn.Linear(2, 2), kind(100.0, "mine"))
    with pytest.raises(pickle.UnpicklingError, match=rf"test_pickling\.{kind.__name__}"):
        loaded(saved(layer))
    assert (stepped(loaded(saved(layer), [kind]), 1) == 0).all()


def test_what_a_newer_version_saved_is_refused_by_name():
    with pytest.raises(ValueError, match=r"has a L7 of shrinkage, which this version does not know"):
        restored("L7", {"strength": 0.1})


def test_fields_that_a_file_does_not_have_yet_take_their_defaults():
    assert restored("MCP", {"strength": 0.1}) == MCP(0.1)
    plan = ShrinkPlan.of(nn.Linear(3, 2), {"weight": {0: (1,)}, "bias": {0: (1,)}})
    state = {name: value for name, value in vars(plan).items() if name not in ("sizes", "attributes")}
    earlier = ShrinkPlan.__new__(ShrinkPlan)
    earlier.__setstate__(state)
    assert earlier == replace(plan, attributes={})


def test_nothing_else_is_made_by_name():
    for name in ("Penalty.__init__", "Regularizer", "object", "os.system", ""):
        with pytest.raises(ValueError, match="does not know"):
            restored(name, {})


def old(name):
    return torch.load(FIXTURES / name, weights_only=False)


def test_a_declared_model_of_version_0_1_0_is_penalized_on():
    torch.manual_seed(0)
    model = nn.Sequential(regularize(nn.Linear(6, 8), L1(0.05)), nn.Tanh(), nn.Linear(8, 3))
    regularize(model[2], L2(0.05), parameter="bias", how="gradient")
    before = old("declared_model.pt")
    again = loaded(saved(before))  # what is saved anew loads safely
    copied = copy.deepcopy(before)
    for each in (model, before, again, copied):
        train(each, SGD(each.parameters(), lr=0.1))
    assert zeros(model) > 0
    assert all(equal(each, model) for each in (before, again, copied))
    with pytest.raises(ValueError, match="penalized already: L1"):
        regularize(before[0], L1(0.1))


def test_a_declared_block_of_version_0_1_0_is_penalized_on():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    regularize(block, Weighted(L1(0.05), torch.ones(4, 6)), parameter="0.weight")
    regularize(block, Toward(GroupLasso(0.1, Rows()), torch.zeros(2, 4)), parameter="2.weight")
    before = old("declared_block.pt")
    x = torch.randn(16, 6)
    for each in (block, before):
        optimizer = SGD(each.parameters(), lr=0.1)
        for _ in range(20):
            train_step(optimizer, each(x).square().mean())
    assert zeros(block) > 0
    assert equal(before, block)


def test_penalties_and_rules_of_version_0_1_0():
    penalties, rule = old("penalties.pt")
    assert rule == Rule(L1(0.1), "*.weight", "decoupled")
    members = [Member("a.weight", 0, (0, 1)), Member("b.weight", 1, (0, 1))]
    assert penalties == [
        L1(0.1),
        ElasticNet(0.1, 0.2),
        MCP(0.1),
        GroupLasso(0.1, Heads(2)),
        SparseGroupLasso(0.1, 0.2, Columns()),
        NonNegative(L1(0.2)),
        Box(-1.0, 1.0),
        TopK(0.5, Rows()),
        NofM(2, 4),
        Grouped(Weighted(L1(0.1), torch.ones(4)), Rows()),
        GroupLasso(0.1, Coupled(members)),
    ]


def test_every_other_penalty_of_version_0_1_0():
    assert old("all_penalties.pt") == [
        UnitNorm(Columns()),
        Box(-2.0, 1.0),
        NonNegative(),
        TopK(0.25),
        MaxNorm(2.0),
        L1Ball(2.0),
        Simplex(1.0),
        SpectralBall(1.0),
        FusedLasso(0.1),
        Nuclear(0.1),
        Orthogonal(0.1),
        GroupLInf(0.1, Rows()),
        Huber(0.1, delta=0.5),
        SCAD(0.1),
        LogSum(0.1, epsilon=0.5),
        L0(0.1),
        Lp(0.1, p=0.5),
        L2(0.1),
        GroupLasso(0.1, Blocks(2, 2)),
        GroupLasso(0.1, Kernels()),
        GroupLasso(0.1, Whole()),
    ]


def test_states_and_plans_of_version_0_1_0():
    state = torch.load(FIXTURES / "run.pt")
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = Adam(net.parameters(), lr=0.1)
    regularizer = Regularizer(net, {"0.weight": GroupLasso(0.2, Rows())}, hold_zeros=0.9).attach(optimizer)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert regularizer.state_dict()["updates"] == [12]
    regularizer.load_state_dict(state["regularizer"])
    small = apply_plan(net, ShrinkPlan.from_json((FIXTURES / "plan.json").read_text()))
    assert small[0].weight.shape == (1, 6)


def test_sparse_models_and_plans_of_version_0_1_0():
    file = old("sparse_and_plan.pt")
    dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    dense.load_state_dict(file["dense"])
    x = torch.randn(5, 6)
    torch.testing.assert_close(file["sparse"](x), dense(x))
    assert apply_plan(dense, file["plan"])[0].weight.shape == (2, 6)
