"""Parameters of every kind: penalized as a loop written by hand does, or refused by name before anything changes."""

import copy
import gc
import itertools
import re
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import SGD, Adam, AdamW

from catalog import CONSTRAINTS, PENALTIES
from models import batches, equal, loss_of, mlp, soft_, train, train_by_hand, zeros
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    GroupError,
    GroupLasso,
    Heads,
    Kernels,
    Nuclear,
    ParameterError,
    Regularizer,
    Rows,
    SelectionError,
    Toward,
    Weighted,
    regularize,
)

STRENGTH, LR = 0.2, 0.1


def sgd(model):
    return SGD(model.parameters(), lr=LR)


def fill_gradients(model, value=1.0):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, value)


def assert_refused_and_unchanged(model, optimizer, error, message):
    """One more step raises, and moves nothing."""
    fill_gradients(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(error, match=message):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


# Tied, and tied or untied later


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6, bias=False)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.decoder(torch.tanh(self.encoder(x))))


@pytest.mark.parametrize("rule", ["encoder.weight", "decoder.weight", "*coder.weight"])
@pytest.mark.parametrize("declared", [False, True])
def test_a_tied_weight_is_penalized_once_under_each_of_its_names(rule, declared):
    model, plain = Autoencoder(), Autoencoder()
    optimizer = sgd(model)
    if declared:
        regularize(model, L1(STRENGTH), parameter=rule)
    else:
        Regularizer(model, {rule: L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer)
    train_by_hand(plain, sgd(plain), after=lambda: soft_(plain.encoder.weight, LR * STRENGTH))
    assert (model.encoder.weight == 0).any()
    assert equal(model, plain)


def test_weights_tied_later_are_charged_once():
    model, plain = Autoencoder(), Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().clone())
    optimizer = sgd(model)
    regularizer = Regularizer(model, {"*coder.weight": L1(STRENGTH)}).attach(optimizer)
    assert len(regularizer.plan) == 2
    model.decoder.weight = model.encoder.weight
    train(model, optimizer)
    train_by_hand(plain, sgd(plain), after=lambda: soft_(plain.encoder.weight, LR * STRENGTH))
    assert equal(model, plain)
    assert "not penalized" not in repr(regularizer)
    torch.testing.assert_close(regularizer.value(), STRENGTH * plain.encoder.weight.detach().abs().sum())


@pytest.mark.parametrize("declared", [False, True])
def test_a_weight_of_another_optimizer_is_penalized_once_it_is_tied_to_one_of_this(declared):
    model, plain = Autoencoder(), Autoencoder()
    for each in (model, plain):
        each.decoder.weight = nn.Parameter(each.encoder.weight.detach().clone())
    optimizer, plain_optimizer = (SGD([each.encoder.weight, *each.head.parameters()], lr=LR) for each in (model, plain))
    if declared:
        regularize(model.decoder, L1(STRENGTH))
        regularize(model.head, L1(STRENGTH))
    else:
        Regularizer(model, {"decoder.weight": L1(STRENGTH), "head.weight": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer, 1)
    train_by_hand(plain, plain_optimizer, after=lambda: soft_(plain.head.weight, LR * STRENGTH), count=1)
    for each in (model, plain):
        each.decoder.weight = each.encoder.weight
    train(model, optimizer)

    def after():
        soft_(plain.head.weight, LR * STRENGTH)
        soft_(plain.encoder.weight, LR * STRENGTH)

    train_by_hand(plain, plain_optimizer, after=after)
    assert (model.encoder.weight == 0).any()
    assert equal(model, plain)


def test_two_rules_that_come_to_clash_on_a_weight_tied_later_are_refused():
    model = Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().clone())
    optimizer = sgd(model)
    Regularizer(model, {"encoder.weight": L1(STRENGTH), "decoder.weight": L2(STRENGTH)}).attach(optimizer)
    model.decoder.weight = model.encoder.weight
    message = r"'encoder\.weight' and 'decoder\.weight' are one tied parameter by now, but two rules clash"
    assert_refused_and_unchanged(model, optimizer, SelectionError, message)


def test_weights_that_come_apart_are_both_charged():
    model, plain = Autoencoder(), Autoencoder()
    optimizers = sgd(model), sgd(plain)
    Regularizer(model, {"*coder.weight": L1(STRENGTH)}).attach(optimizers[0])
    for each, optimizer in zip((model, plain), optimizers, strict=True):
        each.decoder.weight = nn.Parameter(each.encoder.weight.detach().clone())
        optimizer.add_param_group({"params": [each.decoder.weight]})
    train(model, optimizers[0])

    def after():
        soft_(plain.encoder.weight, LR * STRENGTH)
        soft_(plain.decoder.weight, LR * STRENGTH)

    train_by_hand(plain, optimizers[1], after=after)
    assert (model.decoder.weight == 0).any()
    assert equal(model, plain)


# Frozen and unused


def test_a_parameter_unfrozen_in_the_middle_is_penalized_from_then_on():
    model, plain = mlp(), mlp()
    optimizers = sgd(model), sgd(plain)
    regularizer = Regularizer(model, L1(STRENGTH)).attach(optimizers[0])
    for each in (model, plain):
        each[0].requires_grad_(False)
    assert repr(regularizer).endswith("\nfrozen, so not penalized: '0.weight'")
    train(model, optimizers[0], 2)
    train_by_hand(plain, optimizers[1], after=lambda: soft_(plain[2].weight, LR * STRENGTH), count=2)
    for each in (model, plain):
        each[0].requires_grad_(True)
    assert "frozen" not in repr(regularizer)
    train(model, optimizers[0], 5)

    def after():
        soft_(plain[0].weight, LR * STRENGTH)
        soft_(plain[2].weight, LR * STRENGTH)

    train_by_hand(plain, optimizers[1], after=after, count=5)
    assert (model[0].weight == 0).any()
    assert equal(model, plain)


def test_a_rule_that_matches_frozen_parameters_only_warns():
    model = mlp()
    model[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"the rule '0\.\*' matches frozen parameters only \('0\.weight' \.\.\.\)"):
        Regularizer(model, {"0.*": L1(STRENGTH), "2.*": L1(STRENGTH)})
    Regularizer(model, {"0.*": None, "*": L1(STRENGTH)})
    Regularizer(model, L1(STRENGTH))


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = mlp(), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("how", ["proximal", "gradient", "decoupled"])
def test_an_unused_parameter_is_left_alone(how):
    model, plain = WithUnused(), WithUnused()
    plain.load_state_dict(model.state_dict())
    optimizer = AdamW(model.parameters(), lr=0.01)
    Regularizer(model, {"*": L2(0.5)}, how=how).attach(optimizer)
    train(model, optimizer)
    assert equal(model.unused, plain.unused)
    assert not equal(model.used, plain.used)


# Lazy


@pytest.mark.parametrize("declared", [False, True])
def test_lazy_groups_are_the_rows_of_the_weight_that_comes_to_be(declared):
    def made(first):
        torch.manual_seed(1)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 3))

    model, plain = made(nn.LazyLinear(8)), made(nn.LazyLinear(8))
    optimizers = sgd(model), sgd(plain)
    penalty = GroupLasso(1.0, Rows())
    if declared:
        regularize(model[0], penalty)
    else:
        Regularizer(model, {"0.weight": penalty}).attach(optimizers[0])
    torch.manual_seed(3)
    train(model, optimizers[0])
    torch.manual_seed(3)
    train_by_hand(plain, optimizers[1], after=lambda: plain[0].weight.copy_(penalty.prox(plain[0].weight, LR)))
    assert (model[0].weight == 0).all(1).any()
    assert equal(model, plain)


@pytest.mark.parametrize(
    "penalty",
    [GroupLasso(STRENGTH, Heads(3)), Weighted(L1(STRENGTH), torch.ones(4, 6)), Toward(L1(1.0), torch.ones(3))],
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_lazy_parameter_of_a_shape_that_does_not_fit_is_refused(penalty, declared):
    model = nn.Sequential(nn.LazyLinear(4))
    optimizer = sgd(model)
    if declared:
        regularize(model[0], penalty)
    else:
        Regularizer(model, {"0.weight": penalty}).attach(optimizer)
    optimizer.step()  # of other layers, as it were
    model(torch.ones(2, 5))
    assert_refused_and_unchanged(model, optimizer, GroupError, r"weight'? .*of shape \(4, 5\) cannot be penalized")


# Shapes and strides


class Alone(nn.Module):
    """One parameter, called w."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w) if w.is_floating_point() else nn.Parameter(w, requires_grad=False)


def refuses(penalty, shape):
    try:
        penalty.check_shape(shape)
    except GroupError:
        return True
    return False


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
@pytest.mark.parametrize("case", [*PENALTIES, *CONSTRAINTS], ids=str)
def test_an_empty_parameter_is_penalized_nothing_or_refused_by_name(shape, case):
    penalty = case.make(0.1, shape) if case in PENALTIES else case.make()
    model = Alone(torch.ones(shape))
    model.other = nn.Parameter(torch.tensor([1.0, 0.01]))
    optimizer = sgd(model)
    rules = {"w": penalty, "other": L1(STRENGTH)}
    if refuses(penalty, shape):
        with pytest.raises(GroupError, match=rf"'w' of shape {re.escape(str(shape))} cannot be penalized by"):
            Regularizer(model, rules)
        return
    regularizer = Regularizer(model, rules).attach(optimizer)
    for _ in range(2):
        fill_gradients(model, 0.0)
        optimizer.step()
    assert model.w.shape == shape
    assert regularizer.value().isfinite()
    torch.testing.assert_close(model.other.detach(), torch.tensor([1 - 2 * LR * STRENGTH, 0.0]))


@pytest.mark.parametrize("how", ["proximal", "gradient", "decoupled"])
def test_a_number_is_a_parameter_too(how):
    model, plain = Alone(torch.tensor(1.0)), Alone(torch.tensor(1.0))
    optimizers = sgd(model), sgd(plain)
    Regularizer(model, {"w": L1(0.3)}, how=how).attach(optimizers[0])
    for _ in range(30):
        for each in (model, plain):
            each.w.grad = torch.tensor(0.1)
        optimizers[0].step()
        with torch.no_grad():
            if how == "gradient":
                plain.w.grad += 0.3 * plain.w.sign()
            optimizers[1].step()
            if how != "gradient":
                soft_(plain.w, LR * 0.3)
    assert (model.w == 0) == (how != "gradient")
    assert equal(model, plain)


def test_a_number_has_no_rows():
    with pytest.raises(GroupError, match=r"'w' of shape \(\) cannot be penalized by .*Rows"):
        Regularizer(Alone(torch.tensor(1.0)), {"w": GroupLasso(0.1, Rows())})


def test_an_expanded_parameter_is_refused():
    with pytest.raises(ParameterError, match=r"'w' of shape \(3, 4\) is expanded: .*before expand\(\)"):
        Regularizer(Alone(torch.ones(1, 4).expand(3, 4)), {"w": L1(0.1)})
    alone = torch.empty_strided((1, 4), (0, 1)).fill_(1.0)
    assert len(Regularizer(Alone(alone), {"w": L1(0.1)}).plan) == 1


@pytest.mark.parametrize(
    "penalty", [L1(STRENGTH), GroupLasso(STRENGTH, Rows()), GroupLasso(STRENGTH, Kernels())], ids=str
)
@pytest.mark.parametrize("make", [sgd, lambda model: Adam(model.parameters(), lr=0.01)])
def test_channels_last_changes_the_memory_and_not_the_numbers(penalty, make):
    torch.manual_seed(1)
    plain = nn.Conv2d(4, 6, 3)
    model = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for each in (model, plain):
        optimizer = make(each)
        Regularizer(each, penalty).attach(optimizer)
        generator = torch.Generator().manual_seed(2)
        for _ in range(5):
            each.weight.grad = torch.randn(each.weight.shape, generator=generator).mul(0.1)
            each.weight.grad = each.weight.grad.contiguous(memory_format=torch.preserve_format)
            optimizer.step()
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    if isinstance(penalty, L1):
        assert torch.equal(model.weight, plain.weight)
    torch.testing.assert_close(model.weight, plain.weight)  # sums over other strides round differently
    assert torch.equal(model.weight == 0, plain.weight == 0)


@pytest.mark.parametrize("how", ["proximal", "gradient", "decoupled"])
def test_a_transposed_parameter_trains_as_its_copy_does(how):
    base = torch.randn(5, 4)
    model, plain = Alone(base.t()), Alone(base.t().contiguous())
    for each in (model, plain):
        optimizer = Adam(each.parameters(), lr=0.1)
        Regularizer(each, {"w": L1(STRENGTH)}, how=how).attach(optimizer)
        for _ in range(5):
            each.w.grad = torch.sin(each.w.detach())
            optimizer.step()
    assert not model.w.is_contiguous()
    assert torch.equal(model.w, plain.w)


# Types


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64], ids=str
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_type_that_can_not_be_charged_is_refused_by_name(dtype, declared):
    model = Alone(torch.ones(3, 4).to(dtype))
    with pytest.raises(ParameterError, match=rf"'w' of shape \(3, 4\) has type {dtype}; .*\{{'w': None\}}"):
        regularize(model, L1(0.1), parameter="w") if declared else Regularizer(model, {"w": L1(0.1)})


def test_a_complex_weight_is_penalized_as_pairs_of_real_ones():
    with pytest.raises(ParameterError, match=r"view_as_real\(\.\.\.\).*GroupLasso\(strength, Kernels\(\), weigh_by"):
        Regularizer(Alone(torch.ones(3, 4, dtype=torch.complex64)), {"w": L1(0.1)})
    z = torch.randn(3, 4, dtype=torch.complex128)
    model = Alone(torch.view_as_real(z).clone())
    optimizer = sgd(model)
    Regularizer(model, {"w": GroupLasso(9.0, Kernels(), weigh_by_size=False)}).attach(optimizer)
    model.w.grad = torch.zeros_like(model.w)
    optimizer.step()
    expected = z * (1 - LR * 9.0 / z.abs()).clamp_min(0)
    found = torch.view_as_complex(model.w.detach())
    assert torch.equal(found == 0, expected == 0)
    assert 0 < (found == 0).sum() < 12
    torch.testing.assert_close(found, expected)


def test_a_gradient_of_a_narrower_type_keeps_its_type_and_the_weight_its_precision():
    for how in ("proximal", "gradient"):
        model, plain = Alone(torch.linspace(-1, 1, 7)), Alone(torch.linspace(-1, 1, 7))
        optimizers = sgd(model), sgd(plain)
        Regularizer(model, {"w": L1(0.3)}, how=how).attach(optimizers[0])
        for each in (model, plain):
            each.w.grad_dtype = torch.bfloat16
            each.w.grad = torch.full((7,), 0.1, dtype=torch.bfloat16)
        optimizers[0].step()
        with torch.no_grad():
            if how == "gradient":
                plain.w.grad = (plain.w.grad.float() + 0.3 * plain.w.sign()).bfloat16()
            optimizers[1].step()
            if how == "proximal":
                soft_(plain.w, LR * 0.3)
        assert torch.equal(model.w.grad, torch.full((7,), 0.1, dtype=torch.bfloat16))
        assert equal(model, plain)


# Replaced, and computed from others


def stepped(how="proximal"):
    """A model that has made one step with a regularizer attached."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=LR)
    Regularizer(model, {"0.weight": L1(STRENGTH), "2.*": None}, how=how).attach(optimizer)
    train(model, optimizer, 1)
    return model, optimizer


@contextmanager
def conversion(switch, on=True):
    """Hold one of the switches of torch.__future__ that say what `module.to` does to parameters."""
    getattr(torch.__future__, f"set_{switch}_module_params_on_conversion")(on)
    try:
        yield
    finally:
        getattr(torch.__future__, f"set_{switch}_module_params_on_conversion")(False)


def overwritten(model):
    with conversion("overwrite"):
        model.double()


def assigned(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def emptied(model):
    model.to("meta")


@pytest.mark.parametrize("replace", [assigned, overwritten, emptied])
@pytest.mark.parametrize("declared", [False, True])
def test_parameters_replaced_behind_the_optimizers_back_are_refused(replace, declared):
    model, other = stepped() if not declared else (mlp(), None)
    optimizer = other or sgd(model)
    if declared:
        regularize(model[0], L1(STRENGTH))
        train(model, optimizer, 1)
    old = [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]
    replace(model)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(AttachmentError, match=r"holds none of the 1 penalized|'?weight.* was replaced in the model"):
        optimizer.step()
    assert all(map(torch.equal, old, optimizer.param_groups[0]["params"]))


def test_one_of_several_parameters_replaced_is_refused_by_name():
    model = mlp()
    optimizer = sgd(model)
    Regularizer(model, {"*.weight": L1(STRENGTH)}).attach(optimizer)
    model[2].weight = nn.Parameter(torch.ones(3, 8))
    message = r"'2\.weight' of shape \(3, 8\) was replaced in the model, but this SGD still updates"
    assert_refused_and_unchanged(model, optimizer, AttachmentError, message)


@pytest.mark.parametrize("whole", [True, False])
def test_an_optimizer_that_was_replaced_with_its_parameters_is_passed_over(whole):
    """As long as something holds it; strengths go on with the updates that the parameters of these names had."""
    model = mlp()
    old = sgd(model)
    regularizer = Regularizer(model, {"*.weight": L1(lambda update: STRENGTH + update)}).attach(old)
    train(model, old, 2)
    for layer in (model[0], model[2]) if whole else (model[0],):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    assert "not in an attached optimizer" in repr(regularizer)
    optimizer = sgd(model)
    regularizer.attach(optimizer)
    train(model, optimizer, 1)
    assert repr(regularizer).startswith("Regularizer: 2 parameters, attached to SGD, SGD\n")
    assert "not penalized" not in repr(regularizer)
    residuals = regularizer.residuals(lambda: loss_of(model, batches(1)[0]))
    assert {each.strength for each in residuals.penalized} == {f"{STRENGTH + 3:g}"}
    with pytest.raises(AttachmentError):
        old.step()


@pytest.mark.parametrize("change", ["double", "swap", "to", "load_state_dict", "to_empty", "half", "share_memory"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_conversions_that_keep_the_parameters_keep_the_penalty(change, momentum):
    def changed(model):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        if change == "load_state_dict":
            model.load_state_dict({name: 2 * value for name, value in state.items()})
        elif change == "to_empty":
            model.to_empty(device="cpu").load_state_dict(state)
        elif change == "swap":
            with conversion("swap"):
                model.double()
        elif change == "share_memory":
            assert all(parameter.is_shared() for parameter in model.share_memory().parameters())
        else:
            model.to(dtype={"double": torch.float64, "half": torch.float16}.get(change, torch.float32))

    model, plain = mlp(), mlp()
    optimizers = [SGD(each.parameters(), lr=LR, momentum=momentum) for each in (model, plain)]
    Regularizer(model, {"0.weight": L1(STRENGTH)}).attach(optimizers[0])

    def after():
        w = plain[0].weight.to(max(plain[0].weight.dtype, torch.float32, key=lambda dtype: dtype.itemsize))
        plain[0].weight.copy_(w - w.clamp(-LR * STRENGTH / (1 - momentum), LR * STRENGTH / (1 - momentum)))

    for part in range(2):
        train(model, optimizers[0])
        train_by_hand(plain, optimizers[1], after=after)
        if not part:
            changed(model)
            changed(plain)
    assert (model[0].weight == 0).any()
    assert equal(model, plain)


def silently(normalize):
    def quiet(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's word on its older functions
            return normalize(layer)

    return quiet


class Doubled(nn.Module):
    """A parametrization of a user's own."""

    def forward(self, w):
        return 2 * w


COMPUTED = {
    "weight_norm": (parametrizations.weight_norm, "parametrizations.weight.original0", "the norms, makes its row"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.weight.original", "its scale is divided out"),
    "orthogonal": (parametrizations.orthogonal, "parametrizations.weight.original", "stays orthogonal"),
    "own": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
        "parametrizations.weight.original",
        "up to what computes that",
    ),
    "legacy weight_norm": (silently(nn.utils.weight_norm), "weight_g", "the norms, makes its row"),
    "legacy spectral_norm": (silently(nn.utils.spectral_norm), "weight_orig", "its scale is divided out"),
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", amount=2), "weight_orig", "prune.remove leaves"),
    "prune twice": (
        lambda layer: prune.ln_structured(prune.l1_unstructured(layer, "weight", amount=2), "weight", 1, 2, 0),
        "weight_orig",
        "prune.remove leaves",
    ),
}


@pytest.mark.parametrize(("compute", "source", "meaning"), COMPUTED.values(), ids=COMPUTED.keys())
@pytest.mark.parametrize("when", ["before", "after it was made", "after it was declared", "in the middle"])
def test_a_computed_weight_is_refused_with_the_names_of_what_it_is_computed_from(compute, source, meaning, when):
    model = mlp()
    prefix = "" if when == "after it was declared" else "0."
    message = rf"'{prefix}weight' is not a parameter: .* computes it from '{prefix}{source}'.* instead \(.*{meaning}"
    if when == "before":
        compute(model[0])
        with pytest.raises(ParameterError, match=message):
            Regularizer(model, {nn.Linear: L1(STRENGTH)})
        return
    optimizer = sgd(model)
    if when == "after it was declared":
        regularize(model[0], L1(STRENGTH))
    else:
        Regularizer(model, {nn.Linear: L1(STRENGTH)}).attach(optimizer)
    if when != "after it was made":
        train(model, optimizer, 1)
    compute(model[0])
    assert_refused_and_unchanged(model, optimizer, ParameterError, message)


@pytest.mark.parametrize(("compute", "source", "_"), COMPUTED.values(), ids=COMPUTED.keys())
def test_what_a_weight_is_computed_from_can_be_charged(compute, source, _):
    model, plain = mlp(), mlp()
    optimizers = []
    for each in (model, plain):
        torch.manual_seed(4)
        compute(each[0])
        optimizers.append(SGD(each.parameters(), lr=LR))
    Regularizer(model, {f"0.{source}": L1(STRENGTH)}).attach(optimizers[0])
    train(model, optimizers[0])
    penalized = dict(plain.named_parameters())[f"0.{source}"]
    train_by_hand(plain, optimizers[1], after=lambda: soft_(penalized, LR * STRENGTH))
    assert equal(model, plain)


@pytest.mark.parametrize("name", ["weight_norm", "legacy weight_norm"])
def test_a_zero_norm_is_a_zero_row_and_training_goes_on(name):
    compute, source, _ = COMPUTED[name]
    model = mlp()
    compute(model[0])
    optimizer = sgd(model)
    Regularizer(model, {f"0.{source}": L1(5.0)}).attach(optimizer)
    train(model, optimizer, 20)
    model(torch.ones(6))
    norms = dict(model.named_parameters())[f"0.{source}"]
    assert torch.equal((norms == 0).flatten(), (model[0].weight == 0).all(1))
    assert (norms == 0).any()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_zeros_of_a_penalty_and_of_a_mask_are_both_in_the_weight_after_prune_remove():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=10)
    optimizer = sgd(model)
    Regularizer(model, {"0.weight_orig": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer, 20)
    own, mask = model[0].weight_orig.detach() == 0, model[0].weight_mask == 0
    prune.remove(model[0], "weight")
    assert torch.equal(model[0].weight == 0, own | mask)
    assert (own & ~mask).any()
    assert mask.sum() == 10


def test_zeros_behind_a_spectral_norm_are_zeros_of_the_weight_and_its_scale_is_not_charged():
    model = mlp()
    parametrizations.spectral_norm(model[0])
    optimizer = sgd(model)
    Regularizer(model, {"0.parametrizations.weight.original": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer, 20)
    model(torch.ones(6))
    original = model[0].parametrizations.weight.original
    model.eval()
    assert torch.equal(original == 0, model[0].weight == 0)
    assert (original == 0).any()
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        original *= 0.5
    torch.testing.assert_close(model[0].weight.detach(), before)


def test_parameters_of_a_users_own_with_names_like_those_of_torch_are_parameters():
    model = Alone(torch.ones(3))
    model.scale_g, model.scale_v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    model.mask_orig = nn.Parameter(torch.ones(3))
    assert [entry.name for entry in Regularizer(model, {"*": L1(0.1)}).plan] == ["w", "scale_g", "scale_v", "mask_orig"]


# Wrapped


def checkpointed(module):
    return checkpoint_wrapper(module)


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = [nn.DataParallel, compiled, checkpointed]


@pytest.mark.parametrize(
    "order", list(itertools.permutations(WRAPPERS)), ids=lambda order: " ".join(w.__name__ for w in order)
)
def test_wrappers_leave_no_trace_in_names_in_any_order(order):
    inner = nn.Sequential(mlp(), nn.ModuleDict({"module": nn.Linear(3, 3), "model": nn.Linear(3, 3)}))
    names = [entry.name for entry in Regularizer(inner, L1(0.1)).plan]
    assert names == ["0.0.weight", "0.2.weight", "1.module.weight", "1.model.weight"]
    wrapped = inner
    for wrapper in order:
        wrapped = wrapper(wrapped)
        inner[0] = wrapper(inner[0])
        assert [entry.name for entry in Regularizer(wrapped, L1(0.1)).plan] == names
    assert [entry.name for entry in Regularizer(inner, L1(0.1)).plan] == names


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_rules_made_before_wrapping_and_after_charge_the_same(wrapper, inside, first):
    model, plain = nn.Sequential(mlp(), nn.Identity()), nn.Sequential(mlp(), nn.Identity())
    optimizers = sgd(model), sgd(plain)
    rules = {"0.0.weight": L1(STRENGTH)}
    if first:
        Regularizer(model, rules).attach(optimizers[0])
    if inside:
        model[0] = wrapper(model[0])
    outer = model if inside else wrapper(model)
    if not first:
        Regularizer(outer, rules).attach(optimizers[0])
    train(model, optimizers[0])
    train_by_hand(plain, optimizers[1], after=lambda: soft_(plain[0][0].weight, LR * STRENGTH))
    assert (plain[0][0].weight == 0).any()
    assert equal(model, plain)


def test_what_fabric_wraps_is_penalized_once():
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    model, plain = mlp(), mlp()
    wrapped, optimizer = fabric.setup(model, sgd(model))
    (entry,) = Regularizer(wrapped, {"0.weight": L1(STRENGTH)}).attach(optimizer).plan
    assert (entry.name, entry.aliases) == ("0.weight", ())
    train(model, optimizer)
    train_by_hand(plain, sgd(plain), after=lambda: soft_(plain[0].weight, LR * STRENGTH))
    assert equal(model, plain)


def test_two_parameters_that_come_to_one_name_are_refused():
    wrapper = nn.DataParallel(nn.Linear(3, 3))
    wrapper.weight = nn.Parameter(torch.ones(2))
    with pytest.raises(SelectionError, match=r"two parameters of the model are called 'weight'.*inside of the wrapper"):
        Regularizer(wrapper, {"weight": L1(0.1)})


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def evaluate(model, inputs):
    with torch.no_grad():
        model(inputs)


@pytest.mark.parametrize("when", ["attached before", "attached after an evaluation", "declared"])
@pytest.mark.usefixtures("one_process")
def test_a_model_that_fsdp_left_gathered_is_penalized_as_before(when):
    """After an evaluation FSDP's modules hold gathered parameters, which are not the optimizer's."""
    model, plain = mlp(), mlp()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    shards, optimizer, plain_optimizer, inputs = model[0].weight, sgd(model), sgd(plain), torch.ones(2, 6)
    if when == "declared":
        regularize(model[0], L1(STRENGTH))
        regularize(model[2], L2(STRENGTH))
    else:
        regularizer = Regularizer(model, {"0.weight": L1(STRENGTH), "2.weight": L2(STRENGTH)})
        if when == "attached before":
            regularizer.attach(optimizer)
    for step in range(3):
        for each in (optimizer, plain_optimizer):
            each.zero_grad()
        for each in (model, plain):
            each(inputs).square().sum().backward()
            if step or when != "declared":
                evaluate(each, inputs)
                assert model[0].weight is not shards
        if when != "declared":
            assert "not penalized" not in repr(regularizer.attach(optimizer))
        optimizer.step()
        model.reshard()
        plain_optimizer.step()
        with torch.no_grad():
            soft_(plain[0].weight, LR * STRENGTH)
            plain[2].weight.div_(1 + LR * STRENGTH)
    assert torch.equal(model[0].weight.full_tensor(), plain[0].weight)
    assert torch.equal(model[2].weight.full_tensor(), plain[2].weight)
    assert (plain[0].weight == 0).any()


# PEFT


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
def test_the_trained_copy_of_a_head_and_the_adapters_are_charged(first, whole):
    """Also by a regularizer that was made before the model became a PEFT model."""
    names = ("query.lora_A.default.weight", "head.modules_to_save.default.weight")

    def charged_of(model):
        return [value for name, value in model.named_parameters() if name.endswith(names)]

    bare = Attention()
    early = Regularizer(bare, {"head.weight": L1(STRENGTH)}) if first else None
    model, plain = adapted(bare), adapted()
    seen = model if whole else bare
    optimizer = sgd(model)
    (early or Regularizer(seen, {"head.weight": L1(STRENGTH)})).attach(optimizer)
    Regularizer(seen, {"*lora_A*": L1(STRENGTH)}).attach(optimizer)
    train(model, optimizer)
    train_by_hand(plain, sgd(plain), after=lambda: [soft_(w, LR * STRENGTH) for w in charged_of(plain)])
    assert (charged_of(plain)[1] == 0).any()
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


# Copied with copy.copy


def shallow_copy(model):
    copied = copy.copy(model)
    assert copied.weight is model.weight
    return copied


def test_a_shallow_copy_is_penalized_once_with_its_original():
    torch.manual_seed(1)
    layer = regularize(nn.Linear(6, 3), L1(STRENGTH))
    copied, plain = shallow_copy(layer), copy.deepcopy(regularize(layer, None))
    regularize(layer, L1(STRENGTH))
    train(copied, sgd(copied))
    train_by_hand(plain, sgd(plain), after=lambda: soft_(plain.weight, LR * STRENGTH))
    assert equal(copied, plain)


@pytest.mark.parametrize("make", [lambda layer: layer, copy.deepcopy], ids=["made", "deep copy"])
def test_a_shallow_copy_without_its_original_is_penalized_and_can_be_declared_anew(make):
    layer = make(regularize(nn.Linear(6, 3), L1(STRENGTH)))
    copied, plain = shallow_copy(layer), nn.Linear(6, 3)
    plain.load_state_dict(layer.state_dict())
    del layer
    gc.collect()
    train(copied, sgd(copied))
    train_by_hand(plain, sgd(plain), after=lambda: soft_(plain.weight, LR * STRENGTH))
    assert equal(copied, plain)
    regularize(regularize(copied, None), L1(5.0))
    train(copied, sgd(copied))
    assert zeros(copied) > 0


# Half precision

NARROW = [torch.bfloat16, torch.float16]
HALF_STRENGTH = 1e-2


def narrow(dtype, value=1.0, count=4000):
    return Alone(torch.full((count,), value, dtype=dtype))


def decayed(model, steps, rule=None, how="decoupled", **options):
    """Step on zero gradients, so that only the penalty moves anything."""
    optimizer = SGD(model.parameters(), lr=LR)
    regularizer = Regularizer(model, {"w": rule or L2(HALF_STRENGTH)}, how=how, **options).attach(optimizer)
    for _ in range(steps):
        fill_gradients(model, 0.0)
        optimizer.step()
    return regularizer, optimizer


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rule", [L2(HALF_STRENGTH / 10), L1(HALF_STRENGTH / 10)])
@pytest.mark.parametrize("how", ["proximal", "decoupled"])
def test_a_penalty_too_small_to_move_half_precision_weights_is_said_once(dtype, rule, how):
    model = narrow(dtype)
    message = rf"too small to move 100% of the weights of 'w', of shape \(4000,\).*{dtype}"
    with pytest.warns(UserWarning, match=message) as told:
        decayed(model, 9, rule, how)
    assert len(told) == 1
    assert torch.equal(model.w, narrow(dtype).w)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_penalty_that_moves_most_weights_is_not_warned_of(dtype):
    model = Alone(torch.cat([torch.full((60,), 0.001), torch.full((40,), 1.0)]).to(dtype))
    decayed(model, 9, L1(1e-3), "proximal")
    assert (model.w[:60] < 0.001).all()
    assert (model.w[60:] == 1).all()


def test_a_learning_rate_that_warms_up_from_zero_is_warned_of_later_and_float32_never():
    for dtype, says in (
        (torch.bfloat16, pytest.warns(UserWarning, match="too small to move")),
        (torch.float32, nullcontext()),
    ):
        model = narrow(dtype)
        optimizer = SGD(model.parameters(), lr=0.0)
        Regularizer(model, {"w": L1(1e-5)}).attach(optimizer)
        fill_gradients(model, 0.0)
        for _ in range(3):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = LR
        with says:
            optimizer.step()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("how", ["proximal", "decoupled"])
def test_stochastic_rounding_follows_the_decay_of_float32_in_the_mean(dtype, how):
    """A hundred decays of 1e-3 take 1 to 0.9048, of which plain rounding to bfloat16 does nothing."""
    model, exact = narrow(dtype), narrow(torch.float32)
    decayed(model, 100, how=how, stochastic_rounding=True)
    decayed(exact, 100, how=how)
    assert exact.w[0].item() == pytest.approx(0.999**100 if how == "decoupled" else 1.001**-100, rel=1e-5)
    # The spread of one weight is at most a unit in the last place per step, sqrt(100) / 2 of them in all.
    tolerance = 5 * 5 * torch.finfo(dtype).eps / 4000**0.5
    assert model.w.float().mean().item() == pytest.approx(exact.w[0].item(), abs=tolerance)


def test_stochastic_rounding_leaves_zeros_and_bad_numbers_and_float32_alone():
    values = [0.0, 1e-4, -1e-4, torch.inf, -torch.inf, torch.nan, 1.0]
    model = Alone(torch.tensor(values, dtype=torch.bfloat16))
    decayed(model, 10, L1(HALF_STRENGTH), "proximal", stochastic_rounding=True)
    assert model.w[:3].tolist() == [0, 0, 0]
    assert model.w[3:5].tolist() == [torch.inf, -torch.inf]
    assert model.w[5].isnan()
    assert 0.9 < model.w[6] <= 1
    exact, other = Alone(torch.tensor(values)), Alone(torch.tensor(values))
    decayed(exact, 10, L1(HALF_STRENGTH), "proximal", stochastic_rounding=True)
    decayed(other, 10, L1(HALF_STRENGTH), "proximal")
    assert torch.equal(exact.w.nan_to_num(), other.w.nan_to_num())


def test_stochastic_rounding_is_the_same_in_all_replicas_and_after_a_restart():
    """Whatever their seeds are, and without drawing from torch's generator."""
    models = [narrow(torch.bfloat16) for _ in range(3)]
    for seed, model in enumerate(models[:2]):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        decayed(model, 6, stochastic_rounding=True)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(models[0].w, models[1].w)
    regularizer, optimizer = decayed(models[2], 3, stochastic_rounding=True)
    resumed = Regularizer(models[2], {"w": L2(HALF_STRENGTH)}, how="decoupled", stochastic_rounding=True)
    resumed.load_state_dict(regularizer.state_dict())
    regularizer.detach()
    resumed.attach(optimizer)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(models[2].w, models[0].w)


def test_stochastic_rounding_differs_from_parameter_to_parameter_and_from_step_to_step():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = narrow(torch.bfloat16), narrow(torch.bfloat16)

    two = Two()
    optimizer = sgd(two)
    Regularizer(two, {"*.w": L2(HALF_STRENGTH)}, how="decoupled", stochastic_rounding=True).attach(optimizer)
    moved = []
    for _ in range(2):
        before = two.a.w.detach().clone()
        fill_gradients(two, 0.0)
        optimizer.step()
        moved.append(two.a.w != before)
    assert not torch.equal(two.a.w, two.b.w)
    assert (moved[1] & ~moved[0]).any()


def test_stochastic_rounding_of_training_steps_is_unbiased_in_large_tensors_too(monkeypatch):
    monkeypatch.setattr("shrinkage.execution.single_tensor.CHUNK", 64)
    model = narrow(torch.bfloat16, count=1000)
    decayed(model, 1, L1(1e-2), "proximal", stochastic_rounding=True)
    moved = (model.w < 1).reshape(10, 100).float().mean(1)
    assert model.w.float().mean().item() == pytest.approx(1 - 1e-3, abs=2e-4)
    assert not torch.equal(moved, moved[0].expand(10))


# The document

PRINTED = [r"[1-9]\d* of 640 weights are zero\n", r"([1-9]|1[0-5]) of 16 rows are zero\n", r"0\.90[345]\d*\n", ""]
DOCUMENT = (Path(__file__).parents[2] / "docs/parameters.md").read_text()


@pytest.mark.parametrize(
    ("code", "output"),
    list(zip(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL), PRINTED, strict=True)),
    ids=["stacked", "weight_norm", "half precision", "complex"],
)
def test_the_documents_code_does_what_it_says(code, output, capsys):
    exec(code, {"__name__": "document"})
    assert re.fullmatch(output, capsys.readouterr().out)
