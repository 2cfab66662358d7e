"""Nothing that a step does waits for an accelerator: run on tensors that say they are on one and hold no numbers.

Whatever reads a number back, to decide or to compute with it on the host, is an error there. What a build of torch
without CUDA cannot do with such tensors has a stand-in here, which does the same by another operation.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RAdam, RMSprop

from catalog import CONSTRAINTS, PENALTIES, PenaltyCase
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    Bound,
    Columns,
    Corrected,
    Coupled,
    GroupLasso,
    Member,
    Regularizer,
    Rows,
    Rule,
)

# They iterate until nothing changes, count singular values, or run on the host: an accelerator is waited for.
WAITING = ("Nuclear", "SpectralBall", "FusedLasso", "Orthogonal")

MAKES = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=0.1),
    "AdamW fused": lambda p: AdamW(p, lr=0.1, fused=True),
    "AdamW capturable": lambda p: AdamW(p, lr=0.1, capturable=True),
    "RMSprop": lambda p: RMSprop(p, lr=0.1),
    "Adagrad": lambda p: Adagrad(p, lr=0.1),
    "NAdam": lambda p: NAdam(p, lr=0.1),
    "RAdam": lambda p: RAdam(p, lr=0.1),
}


def sliced(tensor, index):
    """`tensor[index]`, by slices, numbers and one row of indices."""
    dim = 0
    for each in index if isinstance(index, tuple) else (index,):
        if isinstance(each, int):
            tensor = tensor.select(dim, each)
            continue
        if each is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(each, torch.Tensor):
            tensor = tensor.index_select(dim, each)
        else:
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, each.start, each.stop, each.step or 1)
        dim += 1
    return tensor


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: torch._foreach_copy_([self], [other]) or self)
    monkeypatch.setattr(torch.Tensor, "__invert__", lambda self: self.eq(False))
    monkeypatch.setattr(torch.Tensor, "__getitem__", sliced)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def run(make, rules, *, shape=(4, 6), stepped=lambda: None, **options):
    """Two steps of a model with two penalized parameters and one that is not."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = nn.ParameterDict({name: nn.Parameter(torch.empty(shape, device="cuda")) for name in ("a", "b", "c")})
        optimizer = make(model.parameters())
        Regularizer(model, rules, compile=False, **options).attach(optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.empty(shape, device="cuda")
        for _ in range(2):
            optimizer.step()
            stepped()


@pytest.mark.parametrize(
    ("how", "make"),  # what knows only the learning rate, or the gradient, is the same for all optimizers
    [
        *(("proximal", make) for make in ("SGD", "AdamW fused", "AdamW capturable")),
        ("decoupled", "AdamW capturable"),
        ("gradient", "SGD"),
    ],
)
@pytest.mark.parametrize("case", PENALTIES + CONSTRAINTS, ids=str)
def test_every_penalty(case, make, how):
    penalty = case.make(0.1) if isinstance(case, PenaltyCase) else case.make()
    if how == "gradient" and not penalty.explicit:
        pytest.skip("it does not act through a derivative")
    if "Weighted" in case.name:
        pytest.skip("its weights are checked when the plan is made, which reads them")
    if case.name.startswith(WAITING) and not (how == "gradient" and case.name.startswith("FusedLasso")):
        with pytest.raises((DataDependentOutputException, RuntimeError)):
            run(MAKES[make], Rule(penalty, "a", how), shape=case.shape)
        return
    shared = penalty.with_tensors(torch.Tensor.detach) is penalty  # others are compared when the plan is made
    run(MAKES[make], Rule(penalty, "[ab]" if shared else "a", how), shape=case.shape)


@pytest.mark.parametrize("make", MAKES)
def test_every_optimizer(make):
    run(MAKES[make], {"a": L1(0.1), "b": GroupLasso(0.1, Rows())})


@pytest.mark.parametrize("options", [{"hold_zeros": 0.9}, {"how": "decoupled"}], ids=str)
def test_options(options):
    run(MAKES["AdamW fused"], {"a": L1(0.1), "b": L1(lambda update: 0.1 / (1 + update))}, **options)
    run(MAKES["AdamW fused"], Rule(GroupLasso(0.1, Rows()), "a", every=2))


@pytest.fixture
def log(monkeypatch):
    """What happens to copies of tensors on the host: they have numbers once their event was waited for."""
    happened = []

    class Event:
        def __init__(self, device):
            assert device == "cuda"

        def record(self):
            happened.append("copied")

        def synchronize(self):
            happened.append("arrived")

    class Copy:
        def __init__(self, shape):
            self.shape = shape

        def tolist(self):
            assert happened[-1] == "arrived", "read before it was there"
            rows, columns = self.shape
            return [[1.0] * columns for _ in range(rows - 1)] + [[0.0] * columns]

    convert = torch.Tensor.to

    def to(tensor, *target, non_blocking=False):
        if target != ("cpu",):
            return convert(tensor, *target)
        assert non_blocking, "a copy that is waited for"
        return Copy(tuple(tensor.shape))

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return happened


COUPLED = Coupled([Member("a", 0, range(4)), Member("b", 0, range(4))])


@pytest.mark.parametrize("make", ["SGD", "AdamW fused", "AdamW capturable"])
@pytest.mark.parametrize(
    "rules",
    [
        {"a": L1(Bound(2.0)), "b": GroupLasso(Bound(2.0), Columns())},
        Rule(L2(Bound(2.0, rate=0.1)), "[ab]", "decoupled"),
        [Rule(GroupLasso(Bound(2.0), COUPLED))],
    ],
    ids=["elements and groups", "rate", "coupled"],
)
def test_what_controls_measure_is_read_an_update_later(make, rules, log):
    run(MAKES[make], rules, stepped=lambda: log.append("stepped"))
    assert log == ["copied", "stepped", "arrived", "copied", "stepped"]


def test_the_learning_rate_is_read_on_the_host(log):
    run(MAKES["AdamW fused"], Rule(L2(Corrected(0.1)), "[ab]", "decoupled"))
    assert log == []


def test_a_number_that_is_read_back_is_noticed():
    class Reads(L1):
        def prox(self, w, step):
            return w * w.sum().item()

    with pytest.raises(DataDependentOutputException):
        run(MAKES["SGD"], {"a": Reads(0.1)})


@pytest.mark.parametrize(
    ("rules", "options", "frozen"),
    [
        (Rule(L1(lambda update: 0.1), "a"), {}, "a scheduled strength"),
        (Rule(L1(0.1), "a"), {"hold_zeros": 0.9}, "hold_zeros="),
        (Rule(L1(0.1), "a", every=2), {}, "every="),
        (Rule(L1(0.1), "a"), {}, None),
    ],
)
def test_a_graph_that_is_recorded_does_not_freeze_what_changes(monkeypatch, rules, options, frozen):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    if frozen is None:
        run(MAKES["SGD"], rules, **options)
        return
    with pytest.raises(AttachmentError, match=f"'a' of shape \\(4, 6\\) is penalized with {frozen}"):
        run(MAKES["SGD"], rules, **options)
