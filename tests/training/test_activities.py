"""Penalties on what layers put out have the gradients of a term in the loss, whatever the loop does with the loss."""

import copy
import gc
import io
import pickle
import weakref
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import shrinkage
from catalog import EXPLICIT_PENALTIES
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    Activities,
    ActivityError,
    Budget,
    Columns,
    Coupled,
    ElasticNet,
    GroupError,
    GroupLasso,
    Huber,
    LogSum,
    MaxNorm,
    Member,
    Ramp,
    Rows,
    SelectionError,
    Toward,
    Weighted,
)

# torch's compiler makes what torch itself deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

S = 0.3
N = 32
EXACT = 1e-15


def network(dtype=torch.float64):
    torch.manual_seed(1)
    layers = nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)
    return nn.Sequential(*layers).to(dtype)


def data(count=N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 10, generator=generator, dtype=dtype)
    return x, torch.randint(0, 3, (count,), generator=generator)


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y)


def with_term(model, x, y, penalty=None, layers=(3,)):
    """The loss and the term, written by hand."""
    term, h = 0.0, x
    for index, layer in enumerate(model):
        h = layer(h)
        if index in layers:
            term = term + (S * h.abs().sum() if penalty is None else penalty.value(h)) / len(x)
    return F.cross_entropy(h, y) + term


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def difference(model, reference):
    return float((gradients(model) - gradients(reference)).abs().max())


def pair(rules=None, **options):
    """A model with penalties, what marks its losses, and a model without."""
    model = network()
    return model, Activities(model, {"3": L1(S)} if rules is None else rules, **options), network()


# The seven situations.


def test_plain():
    model, activities, reference = pair()
    activities.mark(loss_of(model, *data())).backward()
    with_term(reference, *data()).backward()
    assert difference(model, reference) <= EXACT
    unpenalized = network()
    loss_of(unpenalized, *data()).backward()
    assert difference(model, unpenalized) > 1e-3


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_accumulation_with_and_without_a_scale(scale):
    model, activities, reference = pair()
    optimizer = torch.optim.SGD(model.parameters())
    scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for x, y in zip(*(each.chunk(4) for each in data()), strict=True):
        scaler.scale(activities.mark(loss_of(model, x, y)) / 4).backward()
    scaler.unscale_(optimizer)
    with_term(reference, *data()).backward()
    assert difference(model, reference) <= EXACT


def test_uneven_parts_that_are_weighted_by_their_size():
    model, activities, reference = pair()
    for x, y in zip(*(each.split([20, 12]) for each in data()), strict=True):
        (activities.mark(loss_of(model, x, y)) * len(x) / N).backward()
    with_term(reference, *data()).backward()
    assert difference(model, reference) <= EXACT


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    model, activities, reference = pair()
    x, y = data()
    x.requires_grad_()
    h = checkpoint(model[:4], x, use_reentrant=reentrant)
    (activities.mark(F.cross_entropy(model[4](h), y)) / 4).backward()
    (with_term(reference, *data()) / 4).backward()
    assert difference(model, reference) <= EXACT


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_compiled():
    model, activities, reference = pair()
    call = compiled(model)
    for parts in (1, 4):
        for each in (model, reference):
            each.zero_grad()
        (activities.mark(loss_of(call, *data())) / parts).backward()
        (with_term(reference, *data()) / parts).backward()
        assert difference(model, reference) <= EXACT
    with pytest.raises(ActivityError, match="'3'"):
        loss_of(call, *data()).backward()


def test_a_compiled_loss():
    model, activities, reference = pair()
    call = compiled(lambda x, y: activities.mark(loss_of(model, x, y)))
    (call(*data()) / 4).backward()
    (with_term(reference, *data()) / 4).backward()
    assert difference(model, reference) <= EXACT


@pytest.mark.slow
def test_what_was_compiled_before_sees_penalties_that_come_and_go():
    """Models of one class share compiled code."""
    teacher, student = network(), network()
    calls = {each: compiled(each) for each in (teacher, student)}

    def check(model, activities, strength):
        model.zero_grad()
        reference = network()
        loss = loss_of(calls[model], *data())
        (loss if activities is None else activities.mark(loss)).backward()
        with_term(reference, *data(), L1(strength)).backward()
        assert difference(model, reference) <= EXACT

    check(teacher, None, 0.0)
    first = Activities(student, {"3": L1(0.3)})
    check(student, first, 0.3)
    first.remove()
    check(student, None, 0.0)
    second = Activities(student, {"3": L1(0.2)})
    check(student, second, 0.2)
    third = Activities(teacher, {"3": L1(0.1)})
    check(teacher, third, 0.1)
    check(student, second, 0.2)


def test_a_schedule_in_a_compiled_model_compiles_nothing_anew():
    from torch._dynamo.testing import CompileCounterWithBackend  # which takes seconds to import

    model, activities, reference = pair({"3": L1(Ramp(1.0, 10))})
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    call = torch.compile(model, fullgraph=True, backend=counter)
    for update in range(4):
        for each in (model, reference):
            each.zero_grad()
        activities.mark(loss_of(call, *data()), update=update).backward()
        with_term(reference, *data(), L1(Ramp(1.0, 10)).at(update)).backward()
        assert difference(model, reference) <= EXACT
    assert counter.frame_count == 1


# Penalties.

KINDS = [L1(S), L2(S), ElasticNet(0.2, 0.1), Huber(S, 0.1), LogSum(0.1, 0.1), MCP(S)]
GROUPS = [GroupLasso(S, Rows(), weigh_by_size=False), GroupLasso(S, Columns())]


@pytest.mark.parametrize("penalty", [*KINDS, *GROUPS], ids=str)
def test_every_kind_of_penalty(penalty):
    model, activities, reference = pair({"[13]": penalty})
    activities.mark(loss_of(model, *data())).backward()
    with_term(reference, *data(), penalty, (1, 3)).backward()
    assert difference(model, reference) <= EXACT


@pytest.mark.parametrize("case", EXPLICIT_PENALTIES, ids=str)
def test_every_penalty_with_a_derivative(case):
    penalty = case.make(0.7)
    torch.manual_seed(0)
    a = torch.randn(case.shape, dtype=torch.float64, requires_grad=True)
    layer = nn.Identity()
    activities = Activities(layer, {"": penalty})
    activities.mark(layer(a).square().sum() / 3).backward()
    wanted = 2 * a.detach() / 3 + penalty.gradient(a.detach()) / len(a)
    assert torch.allclose(a.grad, wanted, rtol=1e-12, atol=1e-14)


def test_columns_of_a_batch_cost_the_root_mean_square_of_each_unit():
    layer, a = nn.Identity(), data()[0]
    activities = Activities(layer, {"": GroupLasso(S, Columns())})
    wanted = S * a.square().mean(0).sqrt().sum()
    assert torch.allclose(activities.value(lambda: layer(a)), wanted)


def test_weights_of_units_that_spread_over_samples():
    weights = torch.rand(1, 20, dtype=torch.float64)
    model, activities, reference = pair({"3": Weighted(L1(S), weights)})
    activities.mark(loss_of(model, *data())).backward()
    h = reference[:4](data()[0])
    (F.cross_entropy(reference[4](h), data()[1]) + S * (weights * h.abs()).sum() / N).backward()
    assert difference(model, reference) <= EXACT


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_samples_are_the_leading_dimensions(samples):
    x = data()[0].reshape(8, 4, 10)
    for penalty in (L1(S), GroupLasso(S, Columns())):
        layer = nn.Linear(10, 6).double()
        activities = Activities(layer, {"": penalty}, samples=samples)
        activities.mark(layer(x).square().mean()).backward()
        found = layer.weight.grad.clone()
        layer.zero_grad()
        activities.remove()
        h = layer(x)
        seen = h.flatten(0, 1) if samples == 2 else h
        (h.square().mean() + penalty.value(seen) / (1, 8, 32)[samples]).backward()
        assert torch.allclose(found, layer.weight.grad, rtol=1e-14, atol=EXACT)


# Gradients that others have too.


class Residual(nn.Module):
    """The gradient of the sum goes to both branches, as one tensor."""

    def __init__(self):
        super().__init__()
        self.inside, self.relu = nn.Linear(10, 10), nn.ReLU()

    def forward(self, x):
        return x + self.relu(self.inside(x))


@pytest.mark.parametrize("penalty", [L1(S), L2(S), ElasticNet(S, S), Huber(S, 0.1)], ids=str)
def test_the_gradient_that_comes_in_is_not_written(penalty):
    model, x = Residual().double(), data()[0].requires_grad_()
    activities = Activities(model, {"relu": penalty})
    coming = torch.randn(N, 10, dtype=torch.float64)
    kept = coming.clone()
    out = model(x)
    loss = activities.mark((out * coming).sum())
    loss.backward()
    assert torch.equal(coming, kept)
    found, x.grad = x.grad, None
    activities.remove()
    (model(x) * coming).sum().add(penalty.value(model.relu(model.inside(x))) / N).backward()
    assert torch.allclose(found, x.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("penalty", [L1(S), L2(S)], ids=str)
def test_one_new_tensor_is_filled_in_place(penalty):
    a = torch.randn(512, 512)
    layer, a = nn.Identity(), a.requires_grad_()
    activities = Activities(layer, {"": penalty})
    loss = activities.mark(layer(a).sum())
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    made = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    assert made <= 1.1 * a.numel() * a.element_size()


def test_channels_last_stays():
    layer, formats = nn.Identity(), []
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    h = x.to(memory_format=torch.channels_last)
    h.register_hook(lambda grad: formats.append(grad.stride()))
    activities = Activities(layer, {"": L1(S)})
    activities.mark((layer(h) * torch.randn(2, 3, 6, 6)).sum()).backward()
    assert formats == [h.stride()]


# What a loop does.


def test_unmarked_losses_are_told():
    model, activities, _ = pair()
    with pytest.raises(ActivityError, match=r"'3', and its loss is not marked.*activities\.mark\(loss\)"):
        loss_of(model, *data()).backward()
    activities.mark(loss_of(model, *data())).backward()
    with pytest.raises(ActivityError):
        loss_of(model, *data()).backward()


def test_two_marked_losses_in_one_pass_are_told():
    model, activities, reference = pair()
    losses = [activities.mark(loss_of(model, *data())) for _ in range(2)]
    with pytest.raises(ActivityError, match="mark their sum"):
        (losses[0] + 2 * losses[1]).backward()
    model.zero_grad()
    activities.mark(loss_of(model, *data())).backward()  # what was left of the pass that raised is forgotten
    with_term(reference, *data()).backward()
    assert difference(model, reference) <= EXACT


def test_graphs_that_are_kept():
    model, activities, reference = pair()
    loss = activities.mark(loss_of(model, *data()))
    loss.backward(retain_graph=True)
    (2 * loss).backward()
    (3 * with_term(reference, *data())).backward()
    assert difference(model, reference) <= 2 * EXACT


def test_forwards_without_backward_and_without_gradients():
    model, activities, reference = pair()
    for _ in range(3):
        loss_of(model, *data())
    with torch.no_grad():
        assert activities.mark(loss_of(model, *data())).grad_fn is None
        assert torch.equal(model(data()[0]), reference(data()[0]))
    with torch.inference_mode():
        model.eval()(data()[0])
    activities.mark(loss_of(model, *data())).backward()
    with_term(reference, *data()).backward()
    assert difference(model, reference) <= EXACT


def test_a_layer_that_is_called_twice():
    model, activities, reference = pair({nn.Tanh: L1(S)})
    x, y = data()

    def twice(each):
        first = each[1](each[0](x))
        second = each[1](each[2](first))
        return first, second, each[4](second)

    *_, out = twice(model)
    activities.mark(F.cross_entropy(out, y)).backward()
    first, second, out = twice(reference)
    (F.cross_entropy(out, y) + S * (first.abs().sum() + second.abs().sum()) / N).backward()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=EXACT)


def test_gradients_without_penalties():
    """A gradient penalty: the inner derivative is that of the outputs alone, the outer has the term."""
    model, activities, reference = pair()
    x, y = data()
    x.requires_grad_()

    def steepness(each):
        (slope,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        return slope.square().mean()

    with activities.paused():
        inner = steepness(model)
        inner.backward()
    activities.mark(loss_of(model, x, y)).backward()
    steepness(reference).backward()
    with_term(reference, x, y).backward()
    assert difference(model, reference) <= EXACT


def test_second_derivatives():
    model, activities, reference = pair({"1": L2(S)})
    losses = activities.mark(loss_of(model, *data())), with_term(reference, *data(), L2(S), (1,))
    for each, loss in zip((model, reference), losses, strict=True):
        first = torch.autograd.grad(loss, list(each.parameters()), create_graph=True)
        with activities.paused():
            sum(g.square().sum() for g in first).backward()
    assert difference(model, reference) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_a_scale(dtype):
    """Strengths that the type cannot hold act through the scale."""
    layer, a = nn.Identity(), torch.tensor([[1.5, -2.0, 0.0]], dtype=dtype, requires_grad=True)
    for penalty in (L1(1e-8), L2(1e-8), Huber(1e-8, 1e-3), GroupLasso(1e-8, Rows())):
        activities = Activities(layer, {"": penalty})
        a.grad = None
        (activities.mark(layer(a).float().sum() * 0) * 65536.0).backward()
        activities.remove()
        wanted = 65536 * penalty.gradient(a.detach().float())
        assert a.grad.dtype == dtype
        assert torch.allclose(a.grad.float(), wanted, rtol=1e-2)


def test_autocast():
    model, reference = network(torch.float32), network(torch.float32)
    activities = Activities(model, {"0": L1(S)})
    x, y = data(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        activities.mark(loss_of(model, x, y)).backward()
        h = reference[0](x)
        (F.cross_entropy(reference[1:](h), y) + S * h.abs().sum() / N).backward()
    assert difference(model, reference) <= 2e-3 * gradients(reference).abs().max()


def test_updates_that_a_scaler_skips():
    model, activities, reference = pair()
    for each, marked in ((model, True), (reference, False)):
        optimizer, scaler = torch.optim.SGD(each.parameters(), lr=0.1), GradScaler("cpu", init_scale=2.0**10)
        for step in range(4):
            optimizer.zero_grad()
            loss = activities.mark(loss_of(each, *data())) if marked else with_term(each, *data())
            scaler.scale(loss * (torch.inf if step == 1 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=EXACT)


Named = namedtuple("Named", ["count", "hidden"])
FORMS = {
    "tuple": lambda h: (h, h.detach()),
    "list": lambda h: [h],
    "named": lambda h: Named(3, h),
    "dict": lambda h: {"mask": h > 0, "hidden": h},
    "ordered": lambda h: OrderedDict(hidden=h, size=20),
    "nested": lambda h: ((h,), {"count": 1}),
}


class Puts(nn.Module):
    """Puts its input out in some form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return FORMS[self.form](x)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_tensor_of_several_outputs(form):
    layer, a = Puts(form), data()[0].requires_grad_()
    activities = Activities(layer, {Puts: L1(S)})
    out = layer(a)
    assert type(out) is type(FORMS[form](a))
    hidden = next(x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor) and x.requires_grad)
    activities.mark(hidden.sum()).backward()
    assert torch.allclose(a.grad, 1 + S * a.detach().sign() / N)


def test_recurrent_layers():
    layer = nn.LSTM(10, 5, batch_first=True).double()
    x = data()[0].reshape(8, 4, 10)
    activities = Activities(layer, {"": L1(S)}, samples=2)
    activities.mark(layer(x)[0].square().mean()).backward()
    found = layer.weight_ih_l0.grad.clone()
    activities.remove()
    layer.zero_grad()
    out = layer(x)[0]
    (out.square().mean() + S * out.abs().sum() / N).backward()
    assert torch.allclose(found, layer.weight_ih_l0.grad, rtol=0, atol=EXACT)


def test_outputs_that_are_modified_in_place():
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(inplace=True), nn.Linear(20, 3)).double()
    activities = Activities(model, {"0": L1(S)})
    with pytest.raises(RuntimeError, match=r"Output 0 of ActivitiesOutput(Backward)? is a view"):
        loss_of(model, *data()).backward()
    activities.remove()
    activities = Activities(model, {"0": L1(S)}, clone=True)
    activities.mark(loss_of(model, *data())).backward()
    found = gradients(model)
    activities.remove()
    model.zero_grad()
    h = model[0](data()[0])
    (F.cross_entropy(model[2](h.relu()), data()[1]) + S * h.abs().sum() / N).backward()
    assert torch.allclose(found, gradients(model), rtol=0, atol=EXACT)


def test_an_empty_batch_adds_nothing():
    model, activities, _ = pair()
    activities.mark(model(data(0)[0]).sum()).backward()
    assert gradients(model).eq(0).all()


# Values and schedules.


def test_the_value_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.ReLU()).double()
    activities = Activities(model, {nn.ReLU: L1(S), "0": L2(0.1)})
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = data()[0]
    found = activities.value(lambda: model(x))
    assert all(torch.equal(one, other) for one, other in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    wanted = S * model(x).abs().sum() / N + 0.05 * model[0](x).square().sum() / N
    assert torch.allclose(found, wanted)
    assert not found.requires_grad
    with pytest.raises(ActivityError, match="none of the penalized layers, such as '0'"):
        activities.value(lambda: None)


def test_the_value_of_a_compiled_model():
    model, activities, _ = pair()
    call = compiled(model)
    call(data()[0])
    wanted = S * model[:4](data()[0]).abs().sum() / N
    assert torch.allclose(activities.value(lambda: call(data()[0])), wanted)


def test_schedules():
    model, activities, reference = pair({"3": ElasticNet(Ramp(1.0, 10), 0.1)})
    for update in (0, 5):
        activities.mark(loss_of(model, *data()), update=update).backward()
        with_term(reference, *data(), ElasticNet(0.1 * update, 0.1)).backward()
    assert difference(model, reference) <= EXACT
    value = activities.value(lambda: model(data()[0]), update=5)
    assert torch.allclose(value, ElasticNet(0.5, 0.1).value(model[:4](data()[0])) / N)
    with pytest.raises(ValueError, match="is a schedule of the update count: give it, mark"):
        activities.mark(loss_of(model, *data()))
    with pytest.raises(ValueError, match=">= 0, got -1"):
        activities.mark(loss_of(model, *data()), update=-1)


# Copies, pickles, removal.


def copied(thing):
    return copy.deepcopy(thing)


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copied, pickled, saved])
def test_a_copy_with_its_activities_is_penalized_and_one_alone_is_not(way):
    model, activities, reference = pair()
    other, others = way((model, activities))
    others.mark(loss_of(other, *data())).backward()
    with_term(reference, *data()).backward()
    assert difference(other, reference) <= EXACT
    assert all(p.grad is None for p in model.parameters())
    alone, reference = way(model), network()
    loss_of(alone, *data()).backward()
    loss_of(reference, *data()).backward()
    assert difference(alone, reference) == 0
    mine = Activities(alone, {"3": L1(S)})
    alone.zero_grad()
    mine.mark(loss_of(alone, *data())).backward()
    assert difference(alone, other) <= EXACT
    others.remove()
    other.zero_grad()
    loss_of(other, *data()).backward()
    assert difference(other, reference) == 0


def test_a_model_with_a_schedule_that_cannot_be_pickled_can_be():
    model = network()
    Activities(model, {"3": L1(lambda update: 0.1)})
    assert torch.equal(pickled(model)(data()[0]), model(data()[0]))


def test_removal_leaves_the_model_as_it_was():
    model = network()
    before = [dict(vars(module)) for module in model.modules()]
    activities, others = Activities(model, {"3": L1(S)}), Activities(model, {nn.ReLU: L2(S)})
    reference = network()
    others.mark(activities.mark(loss_of(model, *data()))).backward()
    with_term(reference, *data(), ElasticNet(S, S)).backward()
    assert difference(model, reference) <= EXACT
    pending = activities.mark(loss_of(model, *data()))
    activities.remove()
    model.zero_grad()
    others.mark(pending).backward()
    others.remove()
    reference.zero_grad()
    with_term(reference, *data(), L2(S)).backward()
    assert difference(model, reference) <= EXACT
    assert [dict(vars(module)) for module in model.modules()] == before
    assert activities.mark(pending) is pending
    assert "removed" in repr(activities)


def test_the_model_is_freed():
    model = network()
    activities = Activities(model, {"3": L1(S)})
    activities.mark(loss_of(model, *data())).backward()
    references = [weakref.ref(each) for each in (model, activities)]
    del model, activities
    gc.collect()
    assert [each() for each in references] == [None, None]


def test_exported_and_smaller_models():
    model = network(torch.float32)
    with torch.no_grad():
        model[2].weight[:5] = 0
        model[2].bias[:5] = 0
    activities = Activities(model, {"3": L1(S)})
    x = data(dtype=torch.float32)[0]
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))
    small = shrinkage.shrink(model, x).model
    assert small[2].weight.shape == (15, 20)
    small(x).sum().backward()
    activities.mark(model(x).sum()).backward()


# Which layers.


def test_selectors():
    def layers(rules):
        return [line.split()[0] for line in repr(Activities(network(), rules)).splitlines()[3:]]

    assert layers({nn.ReLU: L1(S)}) == ["3"]
    assert layers({"[13]": L1(S)}) == ["1", "3"]
    assert layers({"1": None, "[13]": L1(S)}) == ["3"]
    assert layers({lambda name, module: isinstance(module, nn.Linear) and module.out_features == 3: L1(S)}) == ["4"]
    assert layers({nn.Sequential: L1(S)}) == ["(model)"]
    model = network()
    assert repr(Activities(model, {model[1]: L1(S)})).splitlines()[3].split() == ["1", "Tanh", "L1", "0.3", "-"]


def test_names_are_those_of_the_bare_model():
    model = nn.Sequential(OrderedDict(encoder=torch.compile(network(), backend="aot_eager"), last=nn.ReLU()))
    whole = torch.compile(model, backend="aot_eager")
    assert "encoder.3" in repr(Activities(whole, {"encoder.3": L1(S)}))
    assert "encoder " in repr(Activities(whole, {model.encoder: L1(S)}))


def test_one_layer_under_two_names():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(10, 20), relu, nn.Linear(20, 3), relu)
    assert "1 layer" in repr(Activities(model, {nn.ReLU: L1(S)}))
    with pytest.raises(SelectionError, match="'1' and '3' are one layer"):
        Activities(model, {"1": L1(S), "3": L1(2 * S)})


ERRORS = [
    ({}, {}, TypeError, "a mapping from layers to penalties"),
    (L1(S), {}, TypeError, "a mapping from layers to penalties"),
    ({"3": 0.1}, {}, TypeError, "rule '3': expected a penalty"),
    ({3: L1(S)}, {}, TypeError, "a glob on their name, a module class"),
    ({"0.weight": L1(S)}, {}, SelectionError, "matches no layer of the model; nearest names: '0'"),
    ({"*": L1(S), "3": L2(S)}, {}, SelectionError, "never applies.*earlier rule such as '\\*'"),
    ({"3": None}, {}, SelectionError, "no rule penalizes a layer"),
    ({"3": MaxNorm(1.0)}, {}, ValueError, "no derivative to follow"),
    ({"3": L0(1.0)}, {}, ValueError, "no derivative to follow"),
    ({"3": Budget(zeros=0.5, updates=1000)}, {}, ValueError, "no derivative to follow"),
    ({"3": Toward(L2(S))}, {}, ValueError, "give it a tensor"),
    ({"3": GroupLasso(S, Coupled([Member("0.weight", 0, range(20))]))}, {}, ValueError, "groups such as Columns"),
    ({"3": L1(S)}, {"samples": -1}, ValueError, "samples must be a whole number >= 0"),
    ({"3": L1(S)}, {"samples": True}, ValueError, "samples must be a whole number >= 0"),
]


@pytest.mark.parametrize(("rules", "options", "error", "message"), ERRORS)
def test_errors_at_construction(rules, options, error, message):
    model = network()
    with pytest.raises(error, match=message):
        Activities(model, rules, **options)
    assert not any(module._forward_hooks for module in model.modules())


def test_errors_of_a_model():
    with pytest.raises(TypeError, match="expected a module"):
        Activities([nn.ReLU()], {"": L1(S)})
    with pytest.raises(TypeError, match="use DistributedDataParallel"):
        Activities(nn.DataParallel(network()), {"3": L1(S)})


def test_errors_of_a_loss():
    _, activities, _ = pair()
    with pytest.raises(TypeError, match="takes the loss, a tensor with a single number, got "):
        activities.mark(0.5)
    with pytest.raises(ValueError, match=r"got shape \(3,\): take its mean"):
        activities.mark(torch.ones(3))


@pytest.mark.parametrize(
    ("out", "options", "error", "message"),
    [
        (lambda a: a.sum(), {}, ValueError, r"has shape \(\), and samples=1"),
        (lambda a: a, {"samples": 3}, ValueError, r"has shape \(32, 10\), and samples=3"),
        (lambda a: a.to(torch.complex128), {}, TypeError, "complex128"),
        (lambda a: "text", {}, TypeError, "puts out 'text', without a tensor"),
        (lambda a: a.reshape(-1), {"rules": {"": GroupLasso(S, Columns())}}, GroupError, "the output of ''"),
    ],
)
def test_errors_of_outputs(out, options, error, message):
    class Layer(nn.Module):
        def forward(self, a):
            return out(a)

    layer = Layer()
    Activities(layer, **{"rules": {"": L1(S)}, **options})
    with pytest.raises(error, match=message):
        layer(data()[0].requires_grad_())


def test_a_layer_that_no_backward_pass_reaches_is_told():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.skipped = nn.Linear(10, 3).double(), nn.ReLU()

        def forward(self, x):
            return self.used(x)

    model = Skips()
    activities = Activities(model, {"used": L1(S), "skipped": L1(S)})
    for _ in range(9):
        activities.mark(loss_of(model, *data())).backward()
    with pytest.warns(UserWarning, match="went through the outputs of 'skipped'"):
        activities.mark(loss_of(model, *data())).backward()
    activities.mark(loss_of(model, *data())).backward()
