import copy
import gc
import io
import operator
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.distributed.pipelining import pipeline
from torch.optim import SGD, Adam

from models import batches, equal, loss_of, mlp, train, zeros
from shrinkage import (
    L1,
    L2,
    Columns,
    GroupError,
    GroupLasso,
    MetricError,
    ParameterError,
    Regularizer,
    Rule,
    SelectionError,
    Toward,
    regularize,
    report,
)
from shrinkage.selection.declaration import living

STRENGTH = 0.05


def declared():
    model = mlp()
    regularize(model[0], L1(STRENGTH))
    regularize(model[2], L2(STRENGTH), parameter="bias", how="gradient")
    return model


def explicit():
    """The same penalizes through a `Regularizer`, and the optimizer they are attached to."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, [Rule(L1(STRENGTH), "0.weight"), Rule(L2(STRENGTH), "2.bias", "gradient")]).attach(optimizer)
    return model, optimizer


def trained_explicitly(count=5):
    model, optimizer = explicit()
    train(model, optimizer, count)
    assert zeros(model) > 0
    return model


def test_a_declaration_needs_no_other_line():
    model = declared()
    train(model, SGD(model.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())


def test_the_layer_stays_what_it_was():
    layer = nn.Linear(6, 8)
    assert regularize(layer, L1(STRENGTH)) is layer
    assert type(layer) is nn.Linear
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert repr(layer) == repr(nn.Linear(6, 8))
    assert [name for name, _ in layer.named_modules()] == [""]
    assert not list(layer.named_buffers())
    assert not layer._forward_hooks
    assert not layer._backward_hooks
    nn.Linear(6, 8).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("wrap", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: nn.Sequential(*m)])
def test_copies_and_containers_keep_the_declarations(wrap):
    model = wrap(declared())
    gc.collect()
    train(model, SGD(model.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())


def test_a_copy_and_its_original_are_penalized_each_by_itself():
    original = declared()
    model = copy.deepcopy(original)
    regularize(original[0], None)
    train(model, SGD(model.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())
    train(original, SGD(original.parameters(), lr=0.1))
    assert zeros(original) == 0


def test_a_copy_of_one_layer_keeps_its_declaration():
    layer = copy.deepcopy(declared()[0])
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 3))
    train(model, SGD(model.parameters(), lr=0.1))
    assert zeros(model) > 0


def test_torch_save_of_the_whole_model():
    buffer = io.BytesIO()
    torch.save(declared(), buffer)
    buffer.seek(0)
    model = torch.load(buffer, weights_only=False)
    train(model, SGD(model.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())


def test_a_pickle_is_penalized_in_a_process_that_never_calls_regularize(tmp_path):
    path = tmp_path / "model.pickle"
    model = nn.Sequential(regularize(nn.Linear(6, 8), L1(10.0)))
    path.write_bytes(pickle.dumps(model))
    code = f"""
import pickle, torch
model = pickle.load(open({str(path)!r}, "rb"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.ones(6)).sum().backward()
optimizer.step()
print(int((model[0].weight == 0).sum()))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "48"


def test_to_another_type_and_load_state_dict_keep_it():
    model = declared().to(torch.float64)
    train(model, SGD(model.parameters(), lr=0.1))
    assert zeros(model) > 0
    model = declared()
    model.load_state_dict({name: value.clone() for name, value in mlp().state_dict().items()}, assign=True)
    train(model, SGD(model.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())


def test_parameters_replaced_during_training_are_found():
    model = declared()
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, 4)
    reference, optimizer = explicit()
    train(reference, optimizer, 1)
    train(reference, optimizer, 4)
    assert equal(model, reference)


def test_a_compiled_model():
    model = declared()
    compiled = torch.compile(model, backend="eager")
    train(compiled, SGD(compiled.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())


def test_a_compiled_train_step():
    model = declared()
    optimizer = SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def step(batch):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()

    for batch in batches(5):
        step(batch)
    reference = trained_explicitly()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_two_optimizers_penalize_each_their_own():
    model = declared()
    parts = [SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)]
    for batch in batches(5):
        model.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in parts:
            optimizer.step()
    assert equal(model, trained_explicitly())


def test_a_step_of_another_optimizer_penalizes_nothing():
    model, other = declared(), mlp()
    before = copy.deepcopy(model)
    loss_of(model, batches(1)[0]).backward()
    train(other, SGD(other.parameters(), lr=0.1))
    assert equal(model, before)


def test_a_closure():
    model = declared()
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer, closure=True)
    assert equal(model, trained_explicitly())


def test_a_regularizer_attached_later_takes_over_and_gives_back():
    model = declared()
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 2)
    regularizer = Regularizer(model).attach(optimizer)
    train(model, optimizer, 2)
    regularizer.detach()
    train(model, optimizer, 2)
    reference, optimizer = explicit()
    for _ in range(3):
        train(reference, optimizer, 2)
    assert equal(model, reference)


@pytest.mark.parametrize("directly", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_a_regularizer_takes_over_what_is_tied_to_its_parameters_later(held, directly):
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in ("first", "declared", "tied")})
    regularize(model["declared"], L1(1.0))
    optimizer = SGD([layer.weight for name, layer in model.items() if held or name != "tied"], lr=0.1)
    Regularizer(model, {"first.weight": L1(1.0), "tied.weight": L1(1.0)}).attach(optimizer)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    if directly:  # as fully_shard does
        model["tied"]._parameters["weight"] = model["declared"].weight
    else:
        model["tied"].weight = model["declared"].weight
    optimizer.step()
    torch.testing.assert_close(model["declared"].weight.detach(), torch.full((3, 3), 0.8))


def test_a_declaration_after_a_clashing_regularizer_is_refused_at_the_step():
    model, optimizer = explicit()
    regularize(model[0], L2(0.3))
    before = copy.deepcopy(model)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(SelectionError, match=r"two rules clash on '0\.weight': its layer declares L2.*another .* L1"):
        optimizer.step()
    assert equal(model, before)


def test_tied_layers_declare_once_or_clash():
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    other.weight = one.weight
    model = nn.Sequential(regularize(one, L1(0.5)), regularize(other, L1(0.5)))
    before = one.weight.detach().clone()
    optimizer = SGD(model.parameters(), lr=0.1)
    one.weight.grad = torch.zeros_like(one.weight)
    optimizer.step()
    torch.testing.assert_close(one.weight.detach(), before - before.clamp(-0.05, 0.05))
    regularize(regularize(other, None), L2(0.5))
    with pytest.raises(SelectionError, match="two rules clash on 'weight of Linear'"):
        optimizer.step()
    with pytest.raises(SelectionError, match=r"two rules clash on '0\.weight'"):
        Regularizer(model)


def test_a_declaration_can_be_taken_back_and_made_again():
    model = mlp()
    layer = regularize(model[0], L1(STRENGTH))
    with pytest.raises(
        SelectionError, match=r"'weight' of this Linear is penalized already: L1.*regularize\(layer, None"
    ):
        regularize(layer, L1(2.0))
    regularize(layer, None)
    train(model, SGD(model.parameters(), lr=0.1))
    assert zeros(model) == 0
    with pytest.raises(SelectionError, match="declares no penalty for 'weight' to take back"):
        regularize(layer, None)
    regularize(layer, L1(2.0))


def test_a_block_declares_with_a_glob():
    model = regularize(mlp(), L1(STRENGTH), parameter="*.weight")
    train(model, SGD(model.parameters(), lr=0.1))
    reference = mlp()
    optimizer = SGD(reference.parameters(), lr=0.1)
    Regularizer(reference, L1(STRENGTH)).attach(optimizer)
    train(reference, optimizer)
    assert equal(model, reference)


def test_bad_declarations_are_refused_at_once():
    with pytest.raises(SelectionError, match=r"this Sequential has no parameter 'weight'; nearest names: '0\.weight'"):
        regularize(nn.Sequential(nn.Linear(3, 2)), L1(0.1))
    with pytest.raises(SelectionError, match="this Linear has no parameter 'bias'"):
        regularize(nn.Linear(3, 2, bias=False), L1(0.1), parameter="bias")
    with pytest.raises(GroupError, match=r"'bias' of shape \(2,\)"):
        regularize(nn.Linear(3, 2), GroupLasso(0.1, Columns()), parameter="bias")
    with pytest.raises(ParameterError, match="'weight' is not a parameter"):
        regularize(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), L1(0.1))
    with pytest.raises(TypeError, match="expected a penalty"):
        regularize(nn.Linear(3, 2), 0.1)
    with pytest.raises(ValueError, match="how must be one of"):
        regularize(nn.Linear(3, 2), L1(0.1), how="prox")
    assert not living.numbered


def test_a_block_around_a_layer_that_declares_is_refused_at_once():
    model = nn.Sequential(regularize(nn.Linear(3, 2), L1(0.1)), nn.Linear(2, 2))
    with pytest.raises(SelectionError, match=r"'0\.weight' of this Sequential is penalized already: L1"):
        regularize(model, L2(0.1), parameter="*.weight")


def test_an_optimizer_without_a_metric_is_refused_at_its_first_step():
    model = declared()
    optimizer = torch.optim.LBFGS(model.parameters())
    before = copy.deepcopy(model)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(MetricError, match="LBFGS"):
        optimizer.step(lambda: torch.zeros(()))
    assert equal(model, before)


def test_a_layer_parametrized_after_its_declaration_is_refused():
    model = declared()
    optimizer = SGD(model.parameters(), lr=0.1)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ParameterError, match="'weight' is not a parameter"):
        optimizer.step()


class Sharpness(torch.optim.Optimizer):
    """The shape of SAM's published code: an optimizer around another one, on the same parameters."""

    def __init__(self, params, base, **options):
        super().__init__(params, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step()


def test_an_optimizer_around_another_penalizes_once():
    model = declared()
    train(model, Sharpness(model.parameters(), SGD, lr=0.1))
    assert equal(model, trained_explicitly())


def test_declared_layers_are_not_kept_alive():
    layer = regularize(nn.Linear(3, 2), L1(0.1))
    optimizer = Adam(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    held = weakref.ref(layer)
    del layer
    assert held() is None
    assert not living.numbered
    optimizer.step()


def declared_block():
    model = regularize(mlp(), L1(STRENGTH), parameter="0.weight")
    return regularize(model, L2(STRENGTH), parameter="2.bias", how="gradient")


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def assigned(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    return model


def in_a_cycle(model):
    vars(model)["itself"] = model
    return model


def rewrapped(model):
    return nn.Sequential(*model.children())


def stage(model):
    return pipeline(model, mb_args=(torch.ones(2, 6),)).get_stage_module(0)


MAKES = [lambda model: model, copy.deepcopy, pickled, assigned, in_a_cycle, copy.copy]


@pytest.mark.parametrize("trained", [0, 2])
@pytest.mark.parametrize(
    ("hold", "make"),
    [(stage, MAKES[0]), *((hold, make) for hold in (torch.fx.symbolic_trace, rewrapped) for make in MAKES)],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch.export
def test_parameters_that_outlive_their_layer_are_penalized_on(hold, make, trained):
    model = make(declared_block())
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer, trained)
    other = hold(model)
    assert all(map(operator.is_, other.parameters(), model.parameters()))
    del model
    gc.collect()
    train(other, optimizer, 5)
    hand, optimizer = explicit()
    train(hand, optimizer, trained)
    train(hand, optimizer, 5)
    assert equal(other, hand)


def test_what_a_layer_that_is_gone_declared_may_be_declared_anew_or_ruled_otherwise():
    for penalized_one in (
        lambda layer, optimizer: regularize(layer, L2(STRENGTH), how="gradient"),
        lambda layer, optimizer: Regularizer(layer, L2(STRENGTH), how="gradient").attach(optimizer),
    ):
        layer, other, plain = regularize(nn.Linear(6, 3), L1(STRENGTH)), nn.Linear(6, 3), nn.Linear(6, 3)
        plain.load_state_dict(layer.state_dict())
        other.weight, other.bias = layer.weight, layer.bias
        del layer
        for model in (other, plain):
            optimizer = SGD(model.parameters(), lr=0.1)
            penalized_one(model, optimizer)
            model(torch.ones(6)).sum().backward()
            optimizer.step()
        assert equal(other, plain)


@pytest.mark.parametrize("of", [lambda layer: layer, copy.copy])
def test_what_was_taken_back_or_replaced_is_not_penalized_when_the_layer_is_gone(of):
    taken, replaced = regularize(nn.Linear(2, 2), L1(1.0)), regularize(nn.Linear(2, 2), L1(1.0))
    parameters = [taken.weight, replaced.weight]
    optimizer = SGD(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in parameters]
    taken, replaced = of(taken), of(replaced)
    regularize(taken, None)
    replaced.weight = nn.Parameter(torch.ones(2, 2))
    del taken, replaced
    gc.collect()
    optimizer.step()
    assert all(map(torch.equal, parameters, before))


def test_parameters_that_outlive_their_layer_are_not_kept_alive():
    layer = regularize(nn.Linear(3, 2), Toward(L1(0.1), torch.zeros(2, 3)))
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].weight = layer.weight
    optimizer = Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    gc.collect()
    gc.disable()
    try:
        held = weakref.ref(layer), weakref.ref(layer.weight), weakref.ref(layer.bias)
        del layer
        optimizer.step()
        assert [each() is None for each in held] == [True, False, True]
        assert list(living.left) == [model[0].weight]
        del model, optimizer
        assert held[1]() is None
    finally:
        gc.enable()
    assert not living.left


def test_lazy_layers():
    model = nn.Sequential(regularize(nn.LazyLinear(8), L1(STRENGTH)), nn.Tanh(), nn.Linear(8, 3))
    train(model, SGD(model.parameters(), lr=0.1))
    assert zeros(model) > 0


def test_a_compiled_layer_declares_for_the_layer_inside():
    model = mlp()
    regularize(model[2], L2(STRENGTH), parameter="bias", how="gradient")
    regularize(model[0], L2(STRENGTH), parameter="bias")
    compiled = torch.compile(model[0], backend="eager")
    regularize(compiled, None, parameter="bias")
    model[0] = compiled
    assert regularize(compiled, L1(STRENGTH)) is compiled
    with pytest.raises(SelectionError, match="penalized already: L1"):
        regularize(compiled, L1(2.0))
    train(model, SGD(model.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())


class PassesAttributesOn(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def __setattr__(self, name, value):
        if name.startswith("_shrinkage"):
            setattr(self.layer, name, value)
        else:
            super().__setattr__(name, value)


def test_a_module_that_passes_attributes_on_declares_for_itself():
    layer = regularize(nn.Linear(3, 2), L1(100.0))
    model = regularize(PassesAttributesOn(layer), L1(100.0), parameter="layer.bias")
    optimizer = SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (layer.weight == 0).all()
    assert (layer.bias == 0).all()


class Container(torch.optim.Optimizer):
    """An optimizer that leaves the work to others: in a list, or under a name that nobody knows."""

    def __init__(self, params, *, in_list):
        super().__init__(list(params), {})
        inner = SGD([p for group in self.param_groups for p in group["params"]], lr=0.1)
        self.inner = [inner] if in_list else inner

    def step(self, closure=None):
        (self.inner[0] if isinstance(self.inner, list) else self.inner).step()


@pytest.mark.parametrize("in_list", [True, False])
def test_an_optimizer_that_keeps_others_penalizes_once(in_list):
    model = declared()
    train(model, Container(model.parameters(), in_list=in_list))
    assert equal(model, trained_explicitly())


class WithAuxiliary(SGD):
    """An optimizer that keeps another one for parameters of its own."""

    def __init__(self, params, others, **options):
        super().__init__(params, **options)
        self.optimizer = SGD(others, **options)


def test_an_optimizer_that_keeps_one_for_other_parameters_penalizes_its_own():
    model = declared()
    optimizer = WithAuxiliary(model.parameters(), mlp().parameters(), lr=0.1)
    train(model, optimizer)
    assert equal(model, trained_explicitly())
    plain = mlp()
    optimizer = WithAuxiliary(plain.parameters(), mlp().parameters(), lr=0.1)
    Regularizer(plain, [Rule(L1(STRENGTH), "0.weight"), Rule(L2(STRENGTH), "2.bias", "gradient")]).attach(optimizer)
    train(plain, optimizer)
    assert equal(plain, trained_explicitly())


class WithoutLearningRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= 0.1 * parameter.grad


def test_an_optimizer_without_a_learning_rate_takes_gradients_and_refuses_decay():
    layer = regularize(nn.Linear(2, 2), L2(1.0), how="gradient")
    before = layer.weight.detach().clone()
    optimizer = WithoutLearningRate(layer.parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), 0.9 * before)
    with pytest.raises(MetricError, match=r"the group of 'bias' in this WithoutLearningRate has no 'lr'"):
        Regularizer(layer, {"bias": L1(1.0)}, how="decoupled").attach(optimizer)


def test_a_broken_declaration_elsewhere_stops_nobody_else():
    broken = declared()
    nn.utils.parametrizations.weight_norm(broken[0])
    train(mlp(), SGD(mlp().parameters(), lr=0.1), 1)
    model = declared()
    train(model, SGD(model.parameters(), lr=0.1))
    assert equal(model, trained_explicitly())


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
def test_a_copy_of_a_shallow_copy_keeps_its_declaration(make, gone):
    original = regularize(nn.Linear(3, 2), L1(100.0))
    shallow = copy.copy(original)
    if gone:
        del original
        gc.collect()
    copied = make(shallow)
    assert (stepped_once(copied) == 0).all()
    assert not (shallow.weight == 0).any()
    regularize(shallow, None)
    pickle.dumps(copy.deepcopy(shallow))


def stepped_once(layer):
    """The weight after a step without a loss."""
    layer.weight.grad = torch.zeros_like(layer.weight)
    SGD(layer.parameters(), lr=0.1).step()
    return layer.weight


def test_a_sparse_gradient_elsewhere_is_refused_before_a_declaration_acts():
    model = nn.Sequential(regularize(nn.Linear(3, 3), L2(0.5), how="decoupled"), nn.Embedding(5, 3, sparse=True))
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model, {"1.weight": L2(0.1)}, how="gradient").attach(optimizer)
    (model[0](torch.ones(3)).sum() + model[1](torch.tensor([1])).sum()).backward()
    before = copy.deepcopy(model)
    with pytest.raises(ParameterError, match=r"gradient of '1\.weight'"):
        optimizer.step()
    assert equal(model, before)


@pytest.mark.parametrize("thing", [nn.Parameter(torch.ones(2, 2)), [nn.Linear(2, 2)], nn.Linear])
def test_what_is_no_module_is_refused(thing):
    with pytest.raises(TypeError, match="expected a module"):
        regularize(thing, L1(0.1))
    with pytest.raises(TypeError, match="expected a module"):
        Regularizer(thing, L1(0.1))


def calls_of(function):
    """How many functions of Python run during a call."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def block():
    return nn.Sequential(*[regularize(nn.Linear(4, 4), L1(0.1)) for _ in range(3)])


def with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("copied", [False, True])
def test_a_step_costs_the_same_however_many_layers_declare_elsewhere(copied):
    """With `copied` there is one copy more before each step, and one less, as of a target network."""
    model, costs, others = block(), [], []
    for kept in (0, 40):
        others += [copy.deepcopy(model) for _ in range(kept)]
        optimizer = with_gradients(model)
        for _ in range(5):
            target = copy.deepcopy(model) if copied else None
            cost = calls_of(optimizer.step)
        costs.append(cost)
    assert (target is not None) is copied
    assert len(others) == 40
    assert costs[0] == costs[1]


def test_a_copy_that_comes_and_goes_costs_the_same_however_many_layers_declare_elsewhere():
    model, other, costs = block(), block(), []
    for kept in (0, 40):
        others = [copy.deepcopy(other) for _ in range(kept)]
        costs.append(calls_of(lambda: copy.deepcopy(model)))
        del others
    plain = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    assert costs[0] == costs[1]
    assert costs[0] < 1.6 * calls_of(lambda: copy.deepcopy(plain))


def test_copies_and_steps_leave_nothing_behind():
    model = block()
    optimizer = with_gradients(model)
    for _ in range(5):
        target = copy.deepcopy(model)
        optimizer.step()
    gc.collect()
    assert len(living.numbered) == 6
    del target, model, optimizer
    gc.collect()
    assert not living.numbered
    assert not living.left


def test_a_layer_that_is_declared_between_two_steps_is_penalized():
    model = nn.Sequential(regularize(nn.Linear(3, 3), L1(0.1)), nn.Linear(3, 3))
    optimizer = with_gradients(model)
    optimizer.step()
    regularize(model[1], L1(100.0))
    optimizer.step()
    assert (model[1].weight == 0).all()


def test_a_layer_that_declares_and_goes_between_two_steps_is_penalized():
    model = nn.Sequential(nn.Linear(3, 3))
    optimizer = with_gradients(nn.Sequential(model, regularize(nn.Linear(2, 2), L1(0.1))))
    other = nn.Linear(3, 3)
    other.weight = model[0].weight
    optimizer.step()
    regularize(other, L1(100.0))
    del other
    optimizer.step()
    assert (model[0].weight == 0).all()


def test_a_declared_layer_that_takes_in_a_parameter_of_this_optimizer_is_penalized():
    for put in (
        lambda layer, parameter: setattr(layer, "weight", parameter),
        lambda layer, parameter: layer.register_parameter("weight", parameter),
        lambda layer, parameter: layer.load_state_dict({"weight": parameter}, assign=True, strict=False),
    ):
        model, far = nn.Linear(3, 3, bias=False), regularize(nn.Linear(3, 3, bias=False), L1(100.0))
        optimizer = with_gradients(model)
        optimizer.step()
        put(far, model.weight)
        optimizer.step()
        assert (model.weight == 0).all()


UNREACHED = "declared, but no optimizer step has reached it: "


def elsewhere(steps):
    """Steps of an optimizer of other parameters."""
    optimizer = with_gradients(nn.Linear(2, 2))
    for _ in range(steps):
        optimizer.step()


def test_a_report_names_declared_layers_that_no_step_reaches():
    model = declared()
    elsewhere(9)
    assert UNREACHED not in str(report(model))
    elsewhere(1)
    assert report(model).unreached == ("0.weight", "2.bias")
    assert UNREACHED + "0.weight, 2.bias; " in str(report(model))
    assert report(model).to_dict()["unreached"] == ["0.weight", "2.bias"]
    assert not report(model.state_dict()).unreached
    train(model, SGD(model[0].parameters(), lr=0.1), 1)
    assert report(model).unreached == ("2.bias",)
    model[2].bias.requires_grad_(False)
    assert report(model).unreached == ("2.bias (frozen)",)
    regularize(model[0], L1(0.1), parameter="bias")  # the count starts anew
    elsewhere(10)
    assert report(model).unreached == ("0.bias", "2.bias (frozen)")


def test_a_report_of_stacked_parameters_and_the_way_that_its_docstring_shows():
    models = [nn.Sequential(regularize(nn.Linear(6, 8), L1(10.0)), nn.Tanh(), nn.Linear(8, 3)) for _ in range(3)]
    params, _ = torch.func.stack_module_state(models)
    for _ in range(10):
        optimizer = Adam(params.values())
        torch.func.vmap(lambda p, x: torch.func.functional_call(models[0], p, (x,)).sum(), (0, None))(
            params, torch.ones(6)
        ).sum().backward()
        optimizer.step()
    assert not (params["0.weight"] == 0).any()
    assert all(report(model).unreached == ("0.weight",) for model in models)
    stacked = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(v.detach()) for name, v in params.items()})
    regularize(stacked, L1(100.0), parameter="0_weight")
    with_gradients(stacked).step()
    elsewhere(10)
    assert (stacked["0_weight"] == 0).all()
    assert not report(stacked).unreached


def test_a_report_is_silent_where_a_regularizer_or_a_copy_is_trained():
    model = declared()
    average, snapshot = torch.optim.swa_utils.AveragedModel(model), pickled(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    Regularizer(model).attach(optimizer)
    train(model, optimizer, 12)
    assert not report(model).unreached
    assert not report(average).unreached  # deep copies are averages, targets and snapshots of what is trained
    assert report(snapshot).unreached == ("0.weight", "2.bias")


def test_a_report_of_a_layer_whose_declaration_no_longer_fits():
    layer = regularize(nn.Linear(3, 3), L1(0.1))
    nn.utils.parametrizations.weight_norm(layer)
    elsewhere(0)
    living.steps += 10
    assert not report(layer).unreached
