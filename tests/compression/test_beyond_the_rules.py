"""Beyond the example: other lengths, masks and labels, models with a state, wrapped ones, half precision."""

import math
import threading
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import linear, pad, relu
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from shrinkage import (
    CoupledChannels,
    GroupError,
    GroupLasso,
    PlanError,
    Regularizer,
    ShrinkError,
    ShrinkPlan,
    apply_plan,
    shrink,
)
from shrinkage.compression.dataflow import random_runs
from shrinkage.compression.removal import bisection

X = torch.linspace(-2, 2, 40).reshape(5, 8)
SEQUENCES = torch.linspace(-1, 1, 4 * 6 * 8).reshape(4, 6, 8).sin()


class Neurons(nn.Module):
    """Sixteen hidden neurons, of which six are zero."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.inner.weight[:6] = 0
            self.inner.bias[:6] = 0

    def forward(self, x):
        return self.outer(relu(self.inner(x)))


def neurons_left(result):
    return result.model.inner.out_features


class OverTime(Neurons):
    def forward(self, x):
        return self.outer(torch.sigmoid(self.inner(x)).sum(1))


class Padded(Neurons):
    def forward(self, x):
        return self.outer(pad(torch.sigmoid(self.inner(x)), (0, 0, 0, -x.shape[1] % 3)).mean(1))


class Masked(Neurons):
    def forward(self, x, mask):
        return self.outer((torch.sigmoid(self.inner(x)) * mask[..., None]).amax(1))


class Timed(Neurons):
    def forward(self, x, time):
        return self.outer(torch.sigmoid(self.inner(x)) * (time[:, None] / 1000))


class Labelled(Neurons):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 16))

    def forward(self, x, label):
        return self.outer(relu(self.inner(x) + self.table[label]))


class Placed(Labelled):
    def forward(self, x):
        return super().forward(x, torch.arange(x.shape[1]))


@pytest.mark.parametrize(
    ("model", "example", "others"),
    [
        (OverTime(), (SEQUENCES,), [(SEQUENCES[:, :3],), (SEQUENCES.repeat(1, 2, 1),)]),
        (Padded(), (SEQUENCES,), [(SEQUENCES[:, :4],), (SEQUENCES[:, :5],)]),
        (Masked(), (SEQUENCES, torch.ones(4, 6, dtype=torch.bool)), [(SEQUENCES, torch.arange(6).expand(4, 6) < 3)]),
        (Masked(), (SEQUENCES, torch.ones(4, 6)), [(SEQUENCES, torch.full((4, 6), 0.3))]),
        (Timed(), (X, torch.full((5,), 500)), [(X, 100 * torch.arange(5))]),
        (Labelled(), (X[:1], torch.tensor([3])), [(X[:1], torch.tensor([7]))]),
        (Placed(), (SEQUENCES[:, :1],), [(SEQUENCES,)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_constant_that_is_one_in_the_example_alone_is_not_folded(model, example, others):
    small = shrink(model, example).model
    for other in others:
        torch.testing.assert_close(small(*other), model(*other))


def test_a_mask_of_large_numbers_hides_no_difference():
    class Pointer(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.keys = nn.Linear(8, 16), nn.Linear(8, 16)
            with torch.no_grad():
                for tensor in self.parameters():
                    tensor[:6] = 0

        def forward(self, x):
            scores = self.queries(x) @ self.keys(x).mT / math.sqrt(self.queries(x).shape[-1])
            return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -1e9)

    model = Pointer()
    small = shrink(model, SEQUENCES).model
    torch.testing.assert_close(small(SEQUENCES)[:, 1, :2], model(SEQUENCES)[:, 1, :2])


@dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize("wrapped", [Output, lambda logits: Categorical(logits=logits, validate_args=False)])
def test_outputs_inside_of_objects_are_compared(wrapped):
    class Scaled(Neurons):
        def forward(self, x):
            hidden = relu(self.inner(x))
            return wrapped(self.outer(hidden / hidden.shape[-1] ** 0.5))

    model = Scaled()
    result = shrink(model, X)
    torch.testing.assert_close(result.model(X).logits, model(X).logits)
    assert result.model.inner.out_features == 16


class Holder:
    """An object that no library knows, with a tensor inside of another one."""

    def __init__(self, tensor):
        self.inside = [tensor]
        self.circle = self


@dataclass
class Two:
    logits: torch.Tensor
    hidden: object


@pytest.mark.parametrize("hold", [lambda hidden: hidden, lambda hidden: {"h": [hidden]}, Holder])
def test_outputs_of_any_kind_are_those_of_one_graph(hold):
    """What is inside of a dataclass or an object is an output, and keeps its channels; others go."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)])

        def forward(self, x):
            first = relu(self.layers[0](x))
            return Two(self.layers[2](relu(self.layers[1](first))), hold(first))

    model = Net()
    with torch.no_grad():
        for layer in model.layers[:2]:
            layer.weight[:6] = layer.bias[:6] = 0
    small = shrink(model, X)
    assert small.report.not_exported == {}
    assert [layer.out_features for layer in small.model.layers] == [16, 10, 4]
    torch.testing.assert_close(small.model(X).logits, model(X).logits)


def test_outputs_without_tensors_can_not_be_compared():
    class Words(Neurons):
        def forward(self, x):
            return str(super().forward(x).shape)

    with pytest.raises(ShrinkError, match="verify=False"):
        shrink(Words(), X)


def test_complex_outputs_may_differ_by_rounding():
    class Spectrum(Neurons):
        def forward(self, x):
            return torch.fft.rfft(super().forward(x))

    assert neurons_left(shrink(Spectrum(), X)) == 10


def test_an_attribute_that_has_the_same_number_by_chance_keeps_it():
    class Cropped(Neurons):
        def __init__(self):
            super().__init__()
            self.longest = self.hidden = 16

        def forward(self, x):
            x = x[:, : self.longest]
            return self.outer(relu(self.inner(x)).view(*x.shape[:2], self.hidden)).amax(1)

    model, long = Cropped(), SEQUENCES.repeat(1, 3, 1)
    result = shrink(model, SEQUENCES)
    assert (result.model.hidden, result.model.longest) == (10, 16)
    torch.testing.assert_close(result.model(long), model(long))
    assert str(result.plan).endswith("attributes: hidden = 10")


def test_averaged_compiled_and_parallel_models_are_those_inside():
    model = Neurons()
    for wrapped in (AveragedModel(model), nn.DataParallel(model), torch.compile(model, backend="eager")):
        result = shrink(wrapped, X)
        assert type(result.model) is Neurons
        assert neurons_left(result) == 10
        assert ShrinkPlan.of(wrapped, {}).fingerprint == result.plan.fingerprint
        again = apply_plan(wrapped, result.plan)
        again = again.module if isinstance(again, AveragedModel) else again
        assert again.inner.out_features == 10
        if not isinstance(wrapped, AveragedModel):  # which nobody trains
            assert Regularizer(wrapped, GroupLasso(1e-2, CoupledChannels(wrapped, X))).value() > 0


def test_a_tied_weight_that_makes_channels_and_reads_them_is_penalized():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(8, 16)

        def forward(self, x):
            return linear(torch.relu(self.encoder(x)), self.encoder.weight.t())

    model = Autoencoder()
    channels = CoupledChannels(model, X)
    assert channels.names == ("encoder.weight", "encoder.bias")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor[:6] = 0
    assert shrink(model, X).model.encoder.out_features == 10


class NumbersInCode(nn.Module):
    """Attention whose width is read off the input, before a layer that can lose neurons."""

    def __init__(self):
        super().__init__()
        self.queries_keys_values, self.out, self.heads = nn.Linear(8, 24), nn.Linear(8, 8), 2
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.queries_keys_values(x).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return self.outer(relu(self.inner(x)))


def test_channels_without_which_the_model_fails_are_in_no_group():
    class Insisting(NumbersInCode):
        def forward(self, x):
            if self.queries_keys_values.out_features != 24:
                raise ValueError("24 are needed")
            return super().forward(x)

    with pytest.warns(UserWarning, match=r"queries_keys_values.weight.* go"):
        channels = CoupledChannels(Insisting(), SEQUENCES)
    assert channels.names == ("inner.weight", "inner.bias")


def test_a_model_whose_channels_are_all_needed_has_no_groups():
    with pytest.raises(GroupError, match="found none"):
        CoupledChannels(nn.Linear(4, 4), torch.randn(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_compared_in_single_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 512), nn.Sigmoid(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64)
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        for tensor in (model[0].weight, model[2].weight, model[2].bias):
            tensor[:204] = 0
    result = shrink(model, torch.randn(4, 64).to(dtype))
    assert [result.model[0].out_features, result.model[2].out_features] == [308, 308]
    assert result.model[0].weight.dtype == dtype
    assert result.report.error < torch.finfo(dtype).eps


def test_a_model_that_insists_on_half_precision_is_compared_in_it():
    class Insisting(Neurons):
        def forward(self, x):
            return super().forward(x.half())

    model = Insisting().half()
    result = shrink(model, X.half())
    assert neurons_left(result) == 10
    torch.testing.assert_close(result.model(X), model(X), rtol=0.01, atol=0.01)


def test_a_model_that_notes_its_calls_is_left_as_it_was():
    class Counting(Neurons):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.seen = []

        def forward(self, x):
            self.calls += 1
            self.seen.append(x.shape)
            return super().forward(x) + self.calls

    model = Counting()
    result = shrink(model, X)
    assert (float(model.calls), model.seen) == (0, [])
    assert neurons_left(result) == 10


def test_what_is_no_model_or_can_not_be_called_is_said():
    with pytest.raises(TypeError, match=r"torch.nn.Module, got <class"):
        shrink(Neurons, X)
    with pytest.raises(ShrinkError, match="as a tuple, or as the only one"):
        shrink(Neurons(), [X])
    with pytest.warns((DeprecationWarning, FutureWarning), match=r"torch\.jit\.trace"):
        traced = torch.jit.trace(Neurons(), X)
    with pytest.raises(ShrinkError, match=r"before torch\.jit"):
        shrink(traced, X)
    locked = Neurons()
    locked.lock = threading.Lock()
    with pytest.raises(ShrinkError, match="makes none of the attribute 'lock': cannot pickle"):
        shrink(locked, X)


def test_pin_takes_names_of_the_model_alone():
    assert neurons_left(shrink(Neurons(), X, pin="inner")) == 16
    with pytest.raises(ShrinkError, match=r"'iner', which is no .* nearest: .*'inner'"):
        shrink(Neurons(), X, pin=["iner"])


def test_modules_that_the_example_does_not_call_are_reported():
    class Tasks(Neurons):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({task: nn.Linear(16, 4) for task in "ab"})

        def forward(self, x, task="a"):
            return self.heads[task](relu(self.inner(x)))

    report = shrink(Tasks(), X).report
    assert report.uncalled == ("outer", "heads.b")
    assert "as wide as before: outer, heads.b" in str(report)


class Logarithm(Neurons):
    def forward(self, x):
        return super().forward(x.log())


class Normalized(Neurons):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x):
        grown = self.first(x).exp()
        return super().forward(grown / grown.sum(-1, keepdim=True))


@pytest.mark.parametrize("model", [Logarithm(), Normalized()], ids=lambda model: type(model).__name__)
def test_noise_that_a_model_can_not_take_hides_no_zeros(model):
    assert neurons_left(shrink(model, X.abs() + 0.1)) == 10


class OneSide(Neurons):
    """A second layer that reads one side of what the first gives."""

    def __init__(self, sign):
        super().__init__()
        self.sign, self.middle = sign, nn.Linear(16, 16)
        with torch.no_grad():
            self.inner.bias[6:] = -50.0 * sign  # so that the example is on the other side

    def forward(self, x):
        signed = self.sign * self.inner(x)
        one_side = torch.stack([signed, torch.zeros_like(signed)]).amax(0)
        return self.outer(relu(self.middle(one_side)))


@pytest.mark.parametrize("sign", [1, -1])
def test_noise_of_both_signs_shows_what_lets_one_through(monkeypatch, sign):
    model = OneSide(sign)
    assert shrink(model, X, verify=False).model.middle.out_features == 16
    hidden = (-1.0, 0.0) if sign > 0 else (0.0, 1.0)
    monkeypatch.setattr(random_runs, "RUNS", tuple((sizes, hidden) for sizes, _ in random_runs.RUNS))
    assert shrink(model, X, verify=False).model.middle.out_features == 1


def test_zeros_at_the_border_need_a_kernel_that_reaches_over_it():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Sigmoid(), nn.Conv2d(16, 4, 1, padding="same"))
    with torch.no_grad():
        model[0].weight[:6] = 0
    assert shrink(model, torch.randn(2, 3, 8, 8)).model[0].out_channels == 10
    upcast = nn.Sequential(model[0], model[1], nn.Conv2d(16, 4, 3, padding="same"))
    report = shrink(upcast, torch.randn(2, 3, 8, 8)).report
    assert [(kept.channels, kept.reason) for kept in report.kept] == [
        (6, "puts a constant into `2.weight`, where zeros at the border make it depend on the position")
    ]


def test_a_norm_without_weights_knows_how_many_channels_are_left():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
    with torch.no_grad():
        model[0].weight[:6] = 0
        model[0].bias[:6] = 0
    small = shrink(model, torch.randn(2, 3, 8, 8)).model
    assert small[1].num_features == 10
    small(torch.randn(2, 3, 8, 8))  # and does not warn


def test_why_a_plan_is_refused_is_why_channels_stay(monkeypatch):
    def refusing(model, plan):
        if plan.keep:
            raise PlanError("said by what applies the plan")
        return apply_plan(model, plan)

    monkeypatch.setattr(bisection, "applied", refusing)
    (kept,) = shrink(Neurons(), X).report.kept
    assert (kept.channels, kept.reason) == (6, "said by what applies the plan")


def test_the_search_for_what_makes_a_difference_ends(monkeypatch):
    """Each layer divides by its width: the search stops, what is left stays, and the report says so."""

    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) * (len(layer.weight) / 8)
            return self.head(x)

    model = Reading()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight[:3] = layer.bias[:3] = 0
    asked = []
    error = bisection.Attempts.error
    monkeypatch.setattr(bisection.Attempts, "error", lambda self, choice: asked.append(choice) or error(self, choice))
    monkeypatch.setattr(bisection, "TRIALS", 9)
    small = shrink(model, X)
    assert len(asked) < 9 + 6
    torch.testing.assert_close(small.model(X), model(X))
    assert any("trials did not find" in kept.reason for kept in small.report.kept)


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_a_mask_that_covers_zeros_is_the_reason():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    prune.ln_structured(model[0], "weight", 0.4, 2, 0)
    with torch.no_grad():
        model[0].weight_orig[model[0].weight_mask[:, 0] == 0] = 0
    (kept,) = shrink(model, X).report.kept
    assert "pruned by a mask" in kept.reason


def test_what_reads_something_that_is_no_constant_is_named():
    class Weighted(Neurons):
        def forward(self, x):
            return self.outer(torch.sigmoid(self.inner(x)) * x[:, :1])

    (kept,) = shrink(Weighted(), X).report.kept
    assert kept.reason == "is no constant where `outer.weight` reads it: it depends on the data or the position"


def test_children_that_are_exported_by_themselves_are_named():
    class Sized(Neurons):
        def forward(self, x):
            hidden = relu(self.inner(x))
            return self.outer(hidden if float(hidden.sum()) > -1 else -hidden)

    report = shrink(Sized(), X).report
    (kept,) = report.kept
    assert kept.reason == "put out by `inner`, which was exported by itself"
    assert "torch.export" in kept.advice


def test_layers_of_nobody_are_found_in_the_branches_of_an_operator():
    far = nn.Linear(8, 16)

    class Branches(Neurons):
        def __init__(self):
            super().__init__()
            self.far = far

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda h: self.outer(far(h)), lambda h: self.outer(far(h).relu()), (x,))

    with pytest.raises(ShrinkError, match=r"computes with 'far\.weight' of the model that was given"):
        shrink(Branches(), X)


def test_layers_of_nobody_are_found_where_no_mode_sees_operators():
    far = nn.Linear(8, 16)

    class Modeless(Neurons):
        def __init__(self):
            super().__init__()
            self.far = far

        def forward(self, x):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise TypeError("no modes, please")
            return self.outer(far(x) if self.far_is_read else self.inner(x) * far.weight.data.size(0))

    Modeless.far_is_read = True
    with pytest.raises(ShrinkError, match=r"computes with 'far\.weight' of the model that was given"):
        shrink(Modeless(), X)
    Modeless.far_is_read = False  # its size is, of which nothing is computed
    model = Modeless()
    torch.testing.assert_close(shrink(model, X).model(X), model(X))


def test_a_call_that_fails_while_it_is_watched_is_told():
    class Unwatched(Neurons):
        def forward(self, x):
            if self._forward_hooks:
                raise RuntimeError("no hooks, please")
            return super().forward(x)

    with pytest.warns(UserWarning, match=r"computes with layers of its own is not known.*: no hooks, please") as told:
        small = shrink(Unwatched(), X).model
    assert small.inner.out_features == 10
    assert told[0].filename == __file__


def test_a_model_that_takes_no_mode_of_dispatch_has_no_multiply_adds():
    class Modeless(Neurons):
        def forward(self, x):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise TypeError("no modes, please")
            return super().forward(x)

    assert shrink(Modeless(), X).report.before.multiply_adds == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # copies of them are no leaves
def test_scripted_layers_are_left_alone():
    class Scripted(Neurons):
        def __init__(self):
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.last = torch.jit.script(nn.Linear(4, 4))

        def forward(self, x):
            return self.last(super().forward(x))

    model = Scripted()
    small = shrink(model, X).model
    torch.testing.assert_close(small(X), model(X))
