"""Steps that are prepared: the same as by the general form, and whatever changes between steps is noticed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, NAdam, Optimizer, RMSprop

from catalog import CONSTRAINTS, OPTIMIZERS, PENALTIES, PenaltyCase
from shrinkage import (
    L1,
    MCP,
    AttachmentError,
    ElasticNet,
    GroupLasso,
    Regularizer,
    Rows,
    Rule,
    SparseGroupLasso,
    regularize,
)
from shrinkage.execution import native_build
from shrinkage.optimizers import registry
from shrinkage.training.attachment import Attachment
from shrinkage.training.prepared import Prepared

pytestmark = pytest.mark.skipif(native_build.library() is None, reason="there is no compiler for native kernels")

MAKERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.5),
    "plain sgd": lambda p: SGD(p, lr=0.1),
    "adamw": lambda p: AdamW(p, lr=0.02),
    "fused adamw": lambda p: AdamW(p, lr=0.02, fused=True, amsgrad=True),
}
HOLD = {"as they are": None, "zeros held": 0.9}


class Count:
    """How many steps were done by the prepared form."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        original = Prepared.after

        def after(prepared: Prepared) -> None:
            self.steps += 1
            original(prepared)

        monkeypatch.setattr(Prepared, "after", after)


@pytest.fixture
def count(monkeypatch) -> Count:
    return Count(monkeypatch)


def model_of(shape=(6, 4)) -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    model[0].weight, model[1].weight = (nn.Parameter(torch.randn(shape) * 0.3) for _ in range(2))
    return model


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = (0.3 * noise).to(parameter.dtype)


class Run:
    """A model, what trains it, and what penalizes it; by the prepared form, or by the plain one."""

    def __init__(self, make, penalty, *, compile: bool | str, hold: float | None = None, shape=(6, 4), **rule) -> None:
        self.model = model_of(shape)
        self.optimizer = make(self.model.parameters())
        self.regularizer = Regularizer(self.model, {"*.weight": penalty}, hold_zeros=hold, compile=compile, **rule)
        self.regularizer.attach(self.optimizer)
        self.made = 0

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            give_gradients(self.model, self.made)
            self.made += 1
            self.optimizer.step()

    @property
    def weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.model.parameters()]


def assert_same(quick: Run, plain: Run, *, exact: bool = False) -> None:
    """The same zeros, and numbers to rounding."""
    for one, other in zip(quick.weights, plain.weights, strict=True):
        assert torch.equal(one == 0, other == 0)
        torch.testing.assert_close(one, other, rtol=0 if exact else 2e-5, atol=0 if exact else 1e-6)
    assert quick.regularizer.state_dict()["updates"] == plain.regularizer.state_dict()["updates"]


GRID = [pytest.param(make, hold, marks=pytest.mark.slow) for make in MAKERS for hold in HOLD][1:-1]
GRID += [("sgd", "as they are"), ("fused adamw", "zeros held")]


@pytest.mark.parametrize(("make", "hold"), GRID)
@pytest.mark.parametrize("case", PENALTIES + CONSTRAINTS, ids=str)
def test_every_penalty_moves_as_by_the_plain_form(case, make, hold):
    """Those that there is a kernel for, and those that take the general form; on some of them averages have no say."""
    penalty = case.make(0.1) if isinstance(case, PenaltyCase) else case.make()
    runs = []
    for compile in ("auto", False):
        try:
            runs.append(Run(MAKERS[make], penalty, compile=compile, hold=HOLD[hold], shape=case.shape))
        except ValueError as error:
            pytest.skip(str(error))
        runs[-1].step(6)
    assert_same(*runs)


@pytest.mark.parametrize("penalty", [L1(0.1), ElasticNet(0.1, 0.1), MCP(0.1)], ids=str)
def test_elements_in_a_plain_metric_are_moved_bit_for_bit(penalty, count):
    quick, plain = (Run(MAKERS["sgd"], penalty, compile=compile) for compile in ("auto", False))
    for run in (quick, plain):
        run.step(30)
    assert_same(quick, plain, exact=True)
    assert count.steps == 29
    assert any((w == 0).any() for w in quick.weights)


def rising(update: int) -> float:
    return 0.02 * (1 + update)


RISING = {
    "L1": L1(rising),
    "rows": GroupLasso(rising, Rows()),
    "both": SparseGroupLasso(0.1, rising, Rows()),
}


@pytest.mark.parametrize("hold", HOLD)
@pytest.mark.parametrize("make", ["sgd", "adamw"])
@pytest.mark.parametrize("penalty", RISING)
def test_strengths_that_change_are_followed(penalty, make, hold, count):
    runs = [Run(MAKERS[make], RISING[penalty], compile=compile, hold=HOLD[hold]) for compile in ("auto", False)]
    for run in runs:
        run.step(12)
    assert count.steps == 11
    assert_same(*runs)
    assert any((w == 0).any() for w in runs[0].weights)


def test_an_error_of_a_schedule_comes_before_anything_is_changed(count):
    run = Run(MAKERS["sgd"], L1(lambda update: 0.1 if update < 4 else -1.0), compile="auto", hold=0.9)
    run.step(4)
    before = copy.deepcopy(run.weights)
    with pytest.raises(ValueError, match=r"schedule of '0.weight' at update 4"):
        run.step()
    assert count.steps == 3
    assert all(map(torch.equal, before, run.weights))


@pytest.mark.parametrize("how", ["proximal", "decoupled"])
@pytest.mark.parametrize("case", OPTIMIZERS, ids=str)
def test_every_optimizer_steps_as_by_the_plain_form(case, how):
    def make(parameters) -> Optimizer:
        return case.make(parameters)

    quick, plain = (Run(make, L1(0.05), compile=compile, how=how) for compile in ("auto", False))
    for run in (quick, plain):
        run.step(8)
    assert_same(quick, plain)


@pytest.mark.parametrize("hold", HOLD)
@pytest.mark.parametrize("make", [*MAKERS, "nadam", "rmsprop"])
def test_the_second_step_is_prepared(make, hold, count):
    more = {"nadam": lambda p: NAdam(p), "rmsprop": lambda p: RMSprop(p)}
    run = Run({**MAKERS, **more}[make], L1(0.01), compile="auto", hold=HOLD[hold])
    run.step(5)
    assert count.steps == 4


# What changes between steps. Each is a function of a run, called after some steps; two more follow.


def replace_a_parameter(run: Run) -> None:
    old = run.model[0].weight
    run.model[0].weight = nn.Parameter(torch.full_like(old, 0.5))
    parameters = run.optimizer.param_groups[0]["params"]
    parameters[[each is old for each in parameters].index(True)] = run.model[0].weight


def step_with_a_closure(run: Run) -> None:
    def closure() -> Tensor:
        give_gradients(run.model, 77)
        return torch.zeros(())

    run.optimizer.step(closure)


def load_the_state(run: Run) -> None:
    saved = copy.deepcopy(run.optimizer.state_dict())
    run.step()
    run.optimizer.load_state_dict(saved)


def replace_the_state_of_one(run: Run) -> None:
    own = run.optimizer.state
    for parameter in list(own):
        own[parameter] = {name: 2 * copy.deepcopy(value) for name, value in own[parameter].items()}


def add_a_group(run: Run) -> None:
    layer = nn.Linear(2, 3)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 0.05)
    run.model.append(layer)
    run.optimizer.add_param_group({"params": list(layer.parameters())})


def raise_once(run: Run) -> None:
    """Between the hooks, so that the second one does not run."""
    group = run.optimizer.param_groups[0]
    own, group["weight_decay"] = group["weight_decay"], None
    with pytest.raises(TypeError):
        run.step()
    group["weight_decay"] = own


def no_gradient_for_one(run: Run) -> None:
    give_gradients(run.model, 66)
    run.model[1].weight.grad = None
    run.optimizer.step()


def freeze_one(run: Run) -> None:
    run.model[0].weight.requires_grad_(False)
    run.model[0].weight.grad = None


def data_of_another_shape(run: Run) -> None:
    """In the same memory, which a kernel would read in the old order."""
    w = run.model[0].weight
    w.data = w.data.t()
    for name, value in run.optimizer.state.get(w, {}).items():
        if isinstance(value, Tensor) and value.dim() == 2:
            run.optimizer.state[w][name] = value.t()


def data_of_another_size(run: Run) -> None:
    """A few of the rows that were there."""
    w = run.model[0].weight
    w.data = w.data[:2]
    for name, value in run.optimizer.state.get(w, {}).items():
        if isinstance(value, Tensor) and value.dim() == 2:
            run.optimizer.state[w][name] = value[:2]


def other_numbers(**options: Any) -> Callable[[Run], None]:
    return lambda run: run.optimizer.param_groups[0].update(options)


def in_double(run: Run) -> None:
    run.model.double()
    for state in run.optimizer.state.values():
        state.update(
            {name: value.double() for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
        )


def maximize(run: Run) -> None:
    run.optimizer.param_groups[0]["maximize"] = True


CHANGES = {
    "nothing": lambda run: None,
    "lr": other_numbers(lr=0.01),
    "lr of 0": other_numbers(lr=0.0),
    "lr in a tensor": other_numbers(lr=torch.tensor(0.03)),
    "momentum": other_numbers(momentum=0.8, betas=(0.8, 0.9), eps=1e-3),
    "maximize": maximize,
    "a parameter replaced": replace_a_parameter,
    "another type": in_double,
    "another order in memory": data_of_another_shape,
    "a closure": step_with_a_closure,
    "a state loaded": load_the_state,
    "the state of one replaced": replace_the_state_of_one,
    "a new group": add_a_group,
    "a step that was not finished": raise_once,
    "no gradient for one": no_gradient_for_one,
    "one frozen": freeze_one,
}


def attachment_of(run: Run) -> Attachment:
    ((_, attachment),) = run.regularizer._attached.pairs()
    return attachment


@pytest.mark.parametrize("hold", HOLD)
@pytest.mark.parametrize("make", ["sgd", "adamw"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_is_noticed(change, make, hold, count):
    runs = [Run(MAKERS[make], L1(0.1), compile=compile, hold=HOLD[hold], shape=(5, 5)) for compile in ("auto", False)]
    for run in runs:
        run.step(4)
        CHANGES[change](run)
        run.step(3)
    assert count.steps >= 3
    assert_same(*runs)


@pytest.mark.parametrize("make", ["sgd", "adamw"])
def test_fewer_rows_under_the_same_parameter_are_noticed(make, count):
    """Memory beyond them is somebody else's by now."""
    runs = [Run(MAKERS[make], GroupLasso(0.1, Rows()), compile=compile) for compile in ("auto", False)]
    for run in runs:
        run.step(4)
        whole = run.model[0].weight.data
        data_of_another_size(run)
        rest = whole[2:].clone()
        run.step(3)
        assert torch.equal(whole[2:], rest)
    assert count.steps >= 3
    assert_same(*runs)


@pytest.mark.parametrize("bad", ["transposed", "sparse"])
def test_gradients_that_kernels_cannot_read_are_averaged_all_the_same(bad, count):
    runs = [Run(MAKERS["plain sgd"], L1(0.1), compile=compile, hold=0.9) for compile in ("auto", False)]
    for run in runs:
        run.step(4)
        give_gradients(run.model, 9)
        w = run.model[0].weight
        w.grad = w.grad.to_sparse() if bad == "sparse" else w.grad.t().contiguous().t()
        run.optimizer.step()
        run.step(2)
    assert count.steps == 5
    assert_same(*runs)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_a_step_that_a_scaler_skips_is_no_update(found_inf, count):
    runs = [Run(MAKERS["fused adamw"], L1(0.1), compile=compile, hold=0.9) for compile in ("auto", False)]
    for run in runs:
        run.step(4)
        before = run.weights[0].clone()
        run.optimizer.grad_scale, run.optimizer.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
        run.step()
        run.optimizer.grad_scale = run.optimizer.found_inf = None
        assert torch.equal(run.weights[0], before) == bool(found_inf)
        run.step(2)
    assert_same(*runs)
    assert count.steps >= 4


UNUSUAL = {
    "seldom": Rule(L1(0.1), "*.weight", every=2),
    "in the gradient": Rule(L1(0.1), "*.weight", how="gradient"),
    "half": Rule(L1(0.1), "*.weight"),
    "compiles nothing": Rule(L1(0.1), "*.weight"),
}


@pytest.mark.parametrize("rule", UNUSUAL)
def test_what_is_not_usual_takes_the_general_form(rule, count):
    model = model_of().to(torch.bfloat16 if rule == "half" else torch.float32)
    optimizer = SGD(model.parameters(), lr=0.1)
    compile = rule != "compiles nothing" and "auto"
    Regularizer(model, [UNUSUAL[rule]], compile=compile).attach(optimizer)
    for step in range(5):
        give_gradients(model, step)
        optimizer.step()
    assert count.steps == 0


class Nested(SGD):
    """Steps by its parent's step."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_inside_of_a_step_is_one(count, monkeypatch):
    monkeypatch.setitem(registry._metrics, Nested, registry._metrics[SGD])
    runs = [Run(lambda p: Nested(p, lr=0.1), L1(0.1), compile=compile) for compile in ("auto", False)]
    for run in runs:
        run.step(5)
    assert count.steps == 4
    assert_same(*runs)


def test_a_copy_starts_afresh(count):
    run = Run(MAKERS["adamw"], L1(0.1), compile="auto", hold=0.9)
    run.step(4)
    attachment = attachment_of(run)
    copied = copy.deepcopy(attachment._usual)
    assert attachment._usual._prepared is not None
    assert copied._prepared is None
    model, optimizer = copy.deepcopy((run.model, run.optimizer))
    again = Regularizer(model, {"*.weight": L1(0.1)}, hold_zeros=0.9).attach(optimizer)
    again.load_state_dict(run.regularizer.state_dict())
    other = Run(MAKERS["adamw"], L1(0.1), compile="auto", hold=0.9)
    other.model, other.optimizer, other.made, other.regularizer = model, optimizer, run.made, again
    for each in (run, other):
        each.step(3)
    assert_same(run, other, exact=True)


def test_a_state_that_was_taken_stays_as_it_was(count):
    """Averages are written to in turns; not those that somebody has."""
    run = Run(MAKERS["sgd"], L1(0.1), compile="auto", hold=0.9)
    run.step(5)
    taken = run.regularizer.state_dict()
    kept = copy.deepcopy(taken)
    run.step(5)
    assert count.steps == 9
    for name, average in taken["averages"][0].items():
        assert torch.equal(average["total"], kept["averages"][0][name]["total"])
        assert torch.equal(average["weight"], kept["averages"][0][name]["weight"])


def test_a_state_that_was_taken_in_the_middle_stays_as_it_was(count):
    """By a hook between what comes before a step and what comes after it."""
    runs = [Run(MAKERS["sgd"], L1(0.1), compile=compile, hold=0.9) for compile in ("auto", False)]
    taken = []
    for run in runs:
        run.step(3)
        hook = run.optimizer.register_step_post_hook(lambda *_, run=run: taken.append(run.regularizer.state_dict()))
        run.optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)
        run.step()
        hook.remove()
        kept = copy.deepcopy(taken[-1]["averages"])
        run.step(4)
        assert str(taken[-1]["averages"]) == str(kept)
    assert count.steps == 7
    assert str(taken[0]["averages"][0].keys()) == str(taken[1]["averages"][0].keys())
    assert_same(*runs)


def test_a_state_that_was_taken_stays_where_a_parameter_had_no_gradient(count):
    """Its average did not change then, and is not written to afterwards."""
    runs = [Run(MAKERS["plain sgd"], L1(0.1), compile=compile, hold=0.9) for compile in ("auto", False)]
    for run in runs:
        run.step(3)
        taken = run.regularizer.state_dict()
        kept = copy.deepcopy(taken["averages"])
        no_gradient_for_one(run)
        run.step(4)
        assert str(taken["averages"]) == str(kept)
    assert count.steps == 6
    assert_same(*runs)


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_groups_have_rates_of_their_own(make, count):
    def grouped(parameters) -> Optimizer:
        first, *others = parameters
        return make([{"params": [first], "lr": 0.02}, {"params": others}], lr=0.01)

    runs = [Run(grouped, L1(0.5), compile=compile) for compile in ("auto", False)]
    for run in runs:
        run.step(4)
        run.optimizer.param_groups[1]["lr"] = 0.05
        run.step(2)
    assert count.steps == 5
    assert_same(*runs)


@pytest.mark.parametrize("change", ["nothing", "another order in memory", "another type", "no gradient for one"])
@pytest.mark.parametrize("make", ["sgd", "adamw"])
def test_python_finds_tensors_where_kernels_cannot(change, make, count, monkeypatch):
    monkeypatch.setattr(native_build.library(), "shrinkage_searches", lambda: 0)
    runs = [Run(MAKERS[make], L1(0.1), compile=compile, hold=0.9, shape=(5, 5)) for compile in ("auto", False)]
    for run in runs:
        run.step(4)
        CHANGES[change](run)
        run.step(3)
    assert count.steps >= 3
    assert_same(*runs)


def test_a_parameter_that_comes_back_into_the_model_is_found(count):
    """A rule penalizes it, and the optimizer steps it, though the model did not hold it for a while."""
    runs = []
    for compile in ("auto", False):
        run = Run(MAKERS["sgd"], L1(0.1), compile=compile)
        run.step(3)
        away, run.model[0].weight = run.model[0].weight, nn.Parameter(torch.ones(6, 4))
        with pytest.raises(AttachmentError, match="was replaced in the model"):
            run.step()
        run.model[0].weight = away
        run.step(3)
        runs.append(run)
    assert count.steps >= 4
    assert_same(*runs)


def test_layers_that_declare_are_prepared_too(count):
    weights = []
    for compile in (True, False):
        model = model_of()
        optimizer = SGD(model.parameters(), lr=0.1)
        if compile:
            for layer in model:
                regularize(layer, L1(0.1))
        else:
            Regularizer(model, {"*.weight": L1(0.1)}, compile=False).attach(optimizer)
        for step in range(5):
            give_gradients(model, step)
            optimizer.step()
        weights.append([parameter.detach() for parameter in model.parameters()])
    assert count.steps == 4
    assert all(map(torch.equal, *weights))


def test_autograd_sees_that_weights_were_written_to(count):
    run = Run(MAKERS["sgd"], L1(0.1), compile="auto")
    run.step(3)
    w = run.model[0].weight
    product = (w * w).sum()
    run.step()
    assert count.steps == 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
