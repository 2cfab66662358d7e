"""Training that goes on with the smaller model takes the steps that the dense model would take."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from pytorch_optimizer import CAME, Lion
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adafactor, Adagrad, Adam, AdamW, Muon, NAdam, Optimizer, RMSprop, SparseAdam
from torch.optim.lr_scheduler import ExponentialLR

from catalog import OPTIMIZERS, OptimizerCase
from late import transformers
from models import closure_of, loss_of
from shrinkage import (
    L1,
    AttachmentError,
    GroupLasso,
    PlanError,
    Regularizer,
    Rows,
    ShrinkPlan,
    apply_plan,
    regularize,
    shrink,
    shrink_optimizer_,
)
from shrinkage.compression.plans.optimizer_state import cuts_of
from shrinkage.compression.plans.tensors import cut

KEPT, GONE = (0, 2, 3, 7), [1, 4, 5, 6]
LEFT, LOST = (0, 2, 5), [1, 3, 4]
KEEP = {
    **{f"1.{name}": {0: KEPT} for name in ("weight", "bias", "running_mean", "running_var")},
    "0.weight": {0: KEPT},
    "3.weight": {0: LEFT, 1: KEPT},
    "3.bias": {0: LEFT},
    "5.weight": {1: LEFT},
}
MORE = [
    OptimizerCase("Adam all", lambda p: Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True, capturable=False)),
    OptimizerCase("AdamW amsgrad", lambda p: AdamW(p, lr=0.01, amsgrad=True)),
    OptimizerCase("AdamW fused", lambda p: AdamW(p, lr=0.01, fused=True)),
    OptimizerCase("NAdam decay", lambda p: NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)),
    OptimizerCase("SGD decay", lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1)),
    OptimizerCase("Adagrad started", lambda p: Adagrad(p, lr=0.1, initial_accumulator_value=0.1)),
    OptimizerCase("Lion", lambda p: Lion(p, lr=0.01, betas=(0.9, 0.99))),
]
EXACT = [case for case in (*OPTIMIZERS, *MORE) if "Adafactor" not in case.name]


def network() -> nn.Sequential:
    """A network of which some hidden channels are zero in all that makes them, and in what reads them."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    with torch.no_grad():
        for rows in (model[0].weight, model[1].weight, model[1].bias, model[3].weight.T):
            rows[GONE] = 0
        for rows in (model[3].weight, model[3].bias, model[5].weight.T):
            rows[LOST] = 0
    return model


def train(model: nn.Module, optimizer: Optimizer, seed: int, steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = (torch.randn(16, width, generator=generator, dtype=torch.float64) for width in (5, 3))
        optimizer.step(torch.enable_grad()(closure_of(optimizer, functools.partial(loss_of, model, (x, y)))))


def started(make: Callable[[Iterable[Tensor]], Optimizer], steps: int = 4) -> tuple[nn.Sequential, Optimizer]:
    """A dense model and its optimizer after some steps."""
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, seed=1, steps=steps)
    return model, optimizer


def shrunk(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, ShrinkPlan]:
    plan = ShrinkPlan.of(model, KEEP)
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    return small, plan


def assert_equal(small: nn.Module, dense: nn.Module, plan: ShrinkPlan, tolerance: float = 1e-12) -> None:
    for name, tensor in dense.state_dict().items():
        expected = cut(tensor, plan.keep.get(name, {}))
        torch.testing.assert_close(small.state_dict()[name], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_steps_are_those_of_the_dense_model(case):
    model, optimizer = started(case.make)
    dense, of_dense = started(case.make)
    small, plan = shrunk(model, optimizer)
    before = copy.deepcopy(small.state_dict())
    train(dense, of_dense, seed=2)
    train(small, optimizer, seed=2)
    assert_equal(small, dense, plan)
    assert (dense[0].weight[GONE] == 0).all()
    assert (dense[5].weight[:, LOST] == 0).all()
    assert all(not torch.equal(small.state_dict()[name], before[name]) for name in before)


def test_without_its_state_training_would_go_another_way():
    model, optimizer = started(lambda p: Adam(p, lr=0.01))
    small, _ = shrunk(model, optimizer)
    fresh = copy.deepcopy(small)
    train(small, optimizer, seed=2)
    train(fresh, Adam(fresh.parameters(), lr=0.01), seed=2)
    assert (small[0].weight - fresh[0].weight).abs().max() > 1e-3


FACTORED = {
    "torch": lambda p: Adafactor(p, lr=0.01),
    "transformers": lambda p: transformers.Adafactor(p, lr=0.01, relative_step=False, scale_parameter=False),
    "CAME": lambda p: CAME(p, lr=0.01),
}


@pytest.mark.parametrize("case", FACTORED)
def test_factors_of_second_moments_are_cut_along_what_they_have(case):
    model, optimizer = started(FACTORED[case])
    before = dict(optimizer.state[model[3].weight])
    small, _ = shrunk(model, optimizer)
    after = optimizer.state[small[3].weight]
    row, column = ("row_var", "col_var") if case == "torch" else ("exp_avg_sq_row", "exp_avg_sq_col")
    assert torch.equal(after[row], before[row][list(LEFT)])
    assert torch.equal(after[column], before[column][..., list(KEPT)])
    assert after.keys() == before.keys()
    train(small, optimizer, seed=2)
    assert optimizer.state[small[3].weight][row].shape == after[row].shape


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("exp_avg", (6, 4), {0: "rows", 1: "columns"}),
        ("row_var", (6, 1), {0: "rows"}),
        ("col_var", (1, 4), {1: "columns"}),
        ("exp_avg_sq_row", (6,), {0: "rows"}),
        ("exp_avg_sq_col", (4,), {0: "columns"}),
        ("step", (), {}),
        ("step", (1,), {}),
        ("scale", (1, 1), {}),
        ("basis", (6, 6), None),
        ("flat", (24,), None),
        ("exp_avg_sq_row", (5,), None),
        ("other", (6,), None),
    ],
)
def test_what_is_cut_of_a_state(key, shape, expected):
    assert cuts_of(key, torch.zeros(shape), (6, 4), {0: "rows", 1: "columns"}) == expected


def test_factors_of_a_square_matrix_are_told_apart():
    dims = {0: (1, 2)}
    assert cuts_of("exp_avg_sq_row", torch.zeros(6), (6, 6), dims) == dims
    assert cuts_of("exp_avg_sq_col", torch.zeros(6), (6, 6), dims) == {}
    assert cuts_of("exp_avg_sq_row", torch.zeros(9, 6), (9, 6, 6), {1: (0,), 2: (3,)}) == {1: (0,)}
    assert cuts_of("exp_avg_sq_col", torch.zeros(9, 6), (9, 6, 6), {1: (0,), 2: (3,)}) == {1: (3,)}


def test_lists_and_numbers_of_a_state():
    dims = {0: (1, 2)}
    for value in (3, 0.5, None, "mode", torch.tensor(2), (1, 2), [torch.tensor(1.0)]):
        assert cuts_of("key", value, (6, 4), dims) == {}
    assert cuts_of("key", [torch.zeros(6, 4)], (6, 4), dims) is None
    assert cuts_of("key", [torch.zeros(6, 4)], (6, 4), {}) == {}, "of a parameter that stays whole all stays"


class Whitened(SGD):
    """Keeps a square matrix per parameter that nobody can cut."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("basis", torch.eye(p.numel()))
        return loss


def test_states_that_can_not_be_cut_start_anew_with_a_word():
    model, optimizer = started(lambda p: Whitened(p, lr=0.1, momentum=0.9))
    kept = optimizer.state[model[5].bias]
    plan = ShrinkPlan.of(model, KEEP)
    small = apply_plan(model, plan)
    with pytest.warns(UserWarning, match="starts anew") as caught:
        shrink_optimizer_(optimizer, plan, model, small)
    assert "of '0.weight' starts anew: its 'basis' ((40, 40)) does not have the shape (8, 5)" in str(caught[0].message)
    assert len(caught) == 6
    assert all(warning.filename == __file__ for warning in caught)
    assert list(optimizer.state) == [small[5].bias]
    assert optimizer.state[small[5].bias].keys() == kept.keys()
    train(small, optimizer, seed=2)


def test_a_warning_that_is_an_error_changes_nothing():
    model, optimizer = started(lambda p: Whitened(p, lr=0.1, momentum=0.9))
    before = optimizer.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="starts anew"):
            shrunk(model, optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert all(torch.equal(optimizer.state[p]["basis"], torch.eye(p.numel())) for p in model.parameters())


def test_groups_and_their_options_stay():
    model = network()
    groups = [{"params": list(model[3].parameters()), "lr": 0.5}, {"params": list(model[0].parameters())}]
    optimizer = SGD(groups, lr=0.1, momentum=0.9)
    scheduler = ExponentialLR(optimizer, gamma=0.5)
    held = [group["params"] for group in optimizer.param_groups]
    train(model, optimizer, seed=1)
    small, _ = shrunk(model, optimizer)
    expected = [list(map(id, small[place].parameters())) for place in (3, 0)]
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == expected
    assert all(group["params"] is before for group, before in zip(optimizer.param_groups, held, strict=True))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.05]


def test_a_state_dict_fits_an_optimizer_made_for_the_smaller_model():
    model = network()
    optimizer = AdamW(model.named_parameters(), lr=0.01)
    train(model, optimizer, seed=1)
    plan = ShrinkPlan.of(model, KEEP, biases=("0",))
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    train(small, optimizer, seed=2)
    again = copy.deepcopy(small)
    other = AdamW(again.named_parameters(), lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in small.named_parameters()]
    train(small, optimizer, seed=3)
    train(again, other, seed=3)
    assert_equal(again, small, ShrinkPlan.of(small, {}), 0)


@pytest.mark.parametrize("case", [*OPTIMIZERS, *MORE], ids=str)
def test_new_biases_join_the_group_of_their_weight(case):
    model = network()
    groups = [{"params": [model[5].weight]}, {"params": [model[1].bias, model[0].weight, model[1].weight]}]
    optimizer = case.make(groups)
    train(model, optimizer, seed=1)
    plan = ShrinkPlan.of(model, KEEP, biases=("0",))
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    expected = [[small[5].weight], [small[1].bias, small[0].weight, small[0].bias, small[1].weight]]
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [list(map(id, e)) for e in expected]
    small[1].eval()  # a norm by the batch would take the bias out again
    train(small, optimizer, seed=2)
    assert small[0].bias.abs().max() > 0


def test_new_biases_before_the_first_step():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    plan = ShrinkPlan.of(model, KEEP, biases=("0",))
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    assert not optimizer.state
    train(small, optimizer, seed=2)


@pytest.mark.parametrize("fused", [False, True])
def test_new_biases_are_new_to_adagrad_too(fused):
    model = network()
    optimizer = Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.3, fused=fused)
    plan = ShrinkPlan.of(model, {}, biases=("0",))
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    state = optimizer.state[small[0].bias]
    assert state["step"] == 0
    assert torch.equal(state["sum"], torch.full((8,), 0.3, dtype=torch.float64))


def test_biases_of_weights_that_are_not_trained_are_not_either():
    model = network()
    optimizer = SGD(model[5].parameters(), lr=0.1)
    plan = ShrinkPlan.of(model, {}, biases=("0",))
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, small[5].parameters()))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.words.weight


def test_tied_parameters_are_swapped_once():
    model = Tied()
    optimizer = Adam(model.parameters(), lr=0.1)
    model.head(model.words(torch.arange(7))).sum().backward()
    optimizer.step()
    plan = ShrinkPlan.of(model, {"words.weight": {1: (0, 2)}}, biases=("head",))
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    assert list(map(id, optimizer.param_groups[0]["params"])) == [id(small.words.weight), id(small.head.bias)]
    assert optimizer.state[small.head.weight]["exp_avg"].shape == (7, 2)


def test_sparse_states():
    model = nn.Sequential(nn.Embedding(7, 6, sparse=True))
    optimizer = SparseAdam(model.parameters(), lr=0.1)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    plan = ShrinkPlan.of(model, {"0.weight": {0: (1, 2, 3)}})
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, model, small)
    assert (optimizer.state[small[0].weight]["exp_avg"] != 0).any(1).tolist() == [True, True, False]


def test_parameters_of_others_are_left_alone():
    model, scale = network(), nn.Parameter(torch.ones(3))
    optimizer = SGD([*model.parameters(), scale], lr=0.1, momentum=0.9)
    scale.grad = torch.ones(3)
    optimizer.step()
    small, _ = shrunk(model, optimizer)
    assert list(map(id, optimizer.param_groups[0]["params"])) == [*map(id, small.parameters()), id(scale)]
    assert optimizer.state[scale]["momentum_buffer"].tolist() == [1, 1, 1]


def test_parameters_without_a_state_get_none():
    model = network()
    optimizer = Adam(model.parameters(), lr=0.1)
    small, _ = shrunk(model, optimizer)
    assert not optimizer.state
    train(small, optimizer, seed=1)


def test_muon_and_schedule_free_go_on():
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    plan = ShrinkPlan.of(model, {"0.weight": {0: KEPT}, "2.weight": {1: KEPT}})
    for optimizer in (Muon(model.parameters(), lr=0.01), AdamWScheduleFree(model.parameters(), lr=0.01)):
        getattr(optimizer, "train", lambda: None)()
        train(model, optimizer, seed=1)
        small = apply_plan(model, plan)
        shrink_optimizer_(optimizer, plan, model, small)
        train(small, optimizer, seed=2)
        key = "momentum_buffer" if isinstance(optimizer, Muon) else "z"
        assert [tuple(optimizer.state[p][key].shape) for p in small.parameters()] == [(4, 5), (3, 4)]


def test_compiled_models_have_the_names_of_their_own():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    plan = ShrinkPlan.of(model, KEEP)
    small = apply_plan(model, plan)
    shrink_optimizer_(optimizer, plan, torch.compile(model), torch.compile(small))
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, small.parameters()))


# Regularizers.


def test_a_regularizer_is_attached_anew():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    penalty = GroupLasso(0.01, Rows(), weigh_by_size=False)
    regularizer = Regularizer(model, {"0.weight": penalty}).attach(optimizer)
    train(model, optimizer, seed=1)
    regularizer.detach()
    dense, of_dense = copy.deepcopy((model, optimizer))
    small, plan = shrunk(model, optimizer)
    Regularizer(small, {"0.weight": penalty}).attach(optimizer)
    Regularizer(dense, {"0.weight": penalty}).attach(of_dense)
    train(small, optimizer, seed=2)
    train(dense, of_dense, seed=2)
    assert_equal(small, dense, plan)


def test_a_regularizer_that_stays_attached_says_so():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, {"0.weight": L1(0.1)}).attach(optimizer)
    train(model, optimizer, seed=1)
    small, _ = shrunk(model, optimizer)
    with pytest.raises(AttachmentError):
        train(small, optimizer, seed=2)


def test_declared_layers_are_penalized_on():
    model = network()
    regularize(model[3], L1(0.05))
    optimizer = RMSprop(model.parameters(), lr=0.01)
    train(model, optimizer, seed=1)
    dense, of_dense = copy.deepcopy((model, optimizer))
    small, plan = shrunk(model, optimizer)
    train(small, optimizer, seed=2)
    train(dense, of_dense, seed=2)
    assert_equal(small, dense, plan)
    assert (small[3].weight == 0).any()


# Errors.


def test_optimizers_that_can_not_go_on():
    model = network()
    plan = ShrinkPlan.of(model, KEEP)
    small = apply_plan(model, plan)
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got list"):
        shrink_optimizer_([], plan, model, small)
    with pytest.raises(PlanError, match="LBFGS keeps a history of all parameters in one vector"):
        shrink_optimizer_(LBFGS(model.parameters()), plan, model, small)
    outer = SGD(model.parameters(), lr=0.1)
    outer.inner = SGD(model.parameters(), lr=0.1)
    with pytest.raises(PlanError, match="SGD keeps another optimizer that has groups of its own"):
        shrink_optimizer_(outer, plan, model, small)
    outer.inner.param_groups = outer.param_groups
    shrink_optimizer_(outer, plan, model, small)
    assert list(map(id, outer.inner.param_groups[0]["params"])) == list(map(id, small.parameters()))


def other_width() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 9))


@pytest.mark.parametrize(
    ("dense", "small", "message"),
    [
        (copy.deepcopy, None, "holds none of the dense model's parameters: pass the model that it was made for"),
        (None, lambda _: network(), r"'0\.weight' has shape \(8, 5\) in the dense model and \(8, 5\) in the smaller"),
        (None, lambda _: other_width(), r"and \(9, 5\) in the smaller one, the plan says \(8, 5\) and \(4, 5\)"),
        (None, lambda small: small[:3], r"'3\.weight' has shape \(6, 8\) in the dense model and None"),
        (lambda model: nn.Sequential(*model, nn.Linear(3, 3)), None, r"'6\.weight' .* the plan says None and None"),
    ],
    ids=["a copy", "not small", "another", "a part", "longer"],
)
def test_models_that_do_not_belong_together(dense, small, message):
    model, optimizer = started(lambda p: Adam(p, lr=0.1))
    plan = ShrinkPlan.of(model, KEEP)
    smaller = apply_plan(model, plan)
    before, state = list(map(id, optimizer.param_groups[0]["params"])), dict(optimizer.state)
    with pytest.raises(PlanError, match=message):
        shrink_optimizer_(optimizer, plan, dense(model) if dense else model, small(smaller) if small else smaller)
    assert list(map(id, optimizer.param_groups[0]["params"])) == before
    assert all(optimizer.state[p] is state[p] for p in model.parameters())


def test_an_optimizer_is_shrunk_once():
    model, optimizer = started(lambda p: Adam(p, lr=0.1))
    small, plan = shrunk(model, optimizer)
    with pytest.raises(PlanError, match="holds parameters of the smaller model already"):
        shrink_optimizer_(optimizer, plan, model, small)


def test_biases_that_are_missing():
    model = network()
    plan = ShrinkPlan.of(model, {}, biases=("0",))
    with pytest.raises(PlanError, match="gives '0' a bias: the smaller model has none there"):
        shrink_optimizer_(SGD(model.parameters(), lr=0.1), plan, model, copy.deepcopy(model))


# What `shrink` returns.


def test_what_shrink_returns_trains_on():
    model, optimizer = started(lambda p: AdamW(p, lr=0.01))
    dense, of_dense = started(lambda p: AdamW(p, lr=0.01))
    small = shrink(model, torch.randn(4, 5, dtype=torch.float64))
    assert small.plan.shape_after("3.weight") == (3, 4)
    shrink_optimizer_(optimizer, small.plan, model, small.model)
    train(small.model, optimizer, seed=2)
    train(dense, of_dense, seed=2)
    assert_equal(small.model, dense, small.plan)
