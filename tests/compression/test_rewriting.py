"""Sizes in code, corrected in the text of a module's own forward where that is enough."""

import inspect
import linecache
import pickle
import sys
import traceback
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shrinkage import shrink
from shrinkage.compression.plans.rewriting import rewritten
from shrinkage.compression.plans.sized_modules import correct_sizes_, with_text_changed
from shrinkage.compression.plans.sizes import Correction
from zoo.harness import difference


@pytest.fixture(autouse=True)
def no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Layer(nn.Module):
    """A layer whose first two of eight outputs are zero, and one that reads them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.first.weight.data[:2], self.first.bias.data[:2] = 0, 0


def smaller(model: nn.Module, *others: Tensor) -> nn.Module:
    """The smaller model, compared on other inputs than its example."""
    small = shrink(model.eval(), torch.randn(4, 6)).model
    assert small.first.out_features == 6
    for x in (torch.randn(4, 6), torch.randn(7, 6), *others):
        assert difference(model(x), small(x)) < 1e-6
    return small


class Method(Layer):
    def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
        """A number in a method."""
        return self.second(F.relu(self.first(x)).view(-1, 8) * scale)


class Function(Layer):
    def forward(self, x):
        return self.second(torch.reshape(Tensor.view(F.relu(self.first(x)), -1, 8), shape=(-1, 8)))


class Nested(Layer):
    def forward(self, x):
        one, *_ = (y.view(-1, 8) for y in [F.relu(self.first(x))])
        again = lambda y: y.view(-1, 8)  # noqa: E731
        return self.second(again(one))


class Mangled(Layer):
    def __init__(self):
        super().__init__()
        self.__sizes = (-1, 8)

    def forward(self, x):
        return self.second(F.relu(self.first(x)).view(*self.__sizes))


class Inherited(Method):
    """The same forward."""


class Above(Layer):
    def forward(self, x):
        return x.view(-1, 8)


class Below(Above):
    def forward(self, x):
        return self.second(super().forward(F.relu(self.first(x)).view(-1, 8)))


def of_width(width: int) -> nn.Module:
    class Local(Layer):
        def forward(self, x):
            return self.second(F.relu(self.first(x)).view(-1, width))

    return Local()


def helped(x: Tensor) -> Tensor:
    return x.view(-1, 8)


class Helped(Layer):
    def forward(self, x):
        return self.second(helped(F.relu(self.first(x))))


class Alias(Layer):
    def forward(self, x):
        view = F.relu(self.first(x)).view
        return self.second(view(-1, 8))


class Property(Layer):
    @property
    def weight(self):
        return self.first.weight.view(8, 6)

    def forward(self, x):
        return self.second(F.relu(F.linear(x, self.weight, self.first.bias)).view(-1, 8))


@pytest.mark.parametrize("make", [Method, Function, Nested, Mangled, Inherited, lambda: of_width(8)])
def test_calls_in_the_text_of_a_forward_are_corrected_there(make):
    assert with_text_changed(smaller(make())) == {""}


@pytest.mark.parametrize("make", [Helped, Alias, Below, Property])
def test_calls_that_are_made_elsewhere_are_corrected_while_the_forward_runs(make):
    small = smaller(make())
    assert type(small).size_tables
    assert not with_text_changed(small)


def test_the_new_forward_is_the_old_one_in_all_else():
    small = smaller(Method())
    assert inspect.signature(small.forward) == inspect.signature(Method().forward)
    assert type(small).forward.__doc__ == "A number in a method."
    assert type(small).forward.__code__.co_filename == __file__
    x = torch.randn(2, 6)
    assert torch.equal(pickle.loads(pickle.dumps(small))(x, scale=3.0), small(x, scale=3.0))
    with pytest.raises(RuntimeError) as raised:
        small(torch.randn(2, 5))
    assert "self.second(F.relu(self.first(x)).view(-1, 8) * scale)" in "".join(traceback.format_exception(raised.value))


CODE = """
import torch
from torch import nn
from test_rewriting import Layer
class Written(Layer):
    def forward(self, x):
        return self.second(torch.relu(self.first(x)).view(-1, 8))
"""


def test_text_that_was_edited_since_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    file = tmp_path / "written_for_rewriting.py"
    file.write_text(CODE)
    written = import_module("written_for_rewriting").Written
    file.write_text(CODE.replace("torch.relu", "torch.tanh"))
    linecache.checkcache()
    assert rewritten(written.forward, frozenset({"view"})) is None
    assert not with_text_changed(smaller(written()))
    del sys.modules["written_for_rewriting"]


def test_code_without_text_is_corrected_while_it_runs():
    names = {}
    exec(CODE, names)
    assert not with_text_changed(smaller(names["Written"]()))


def test_what_is_no_function_has_no_text():
    assert rewritten(torch.relu, frozenset({"view"})) is None


TABLE = (
    Correction("view", -1, 2, ((1, 24),), (None, 4, 8), (None, 3, 8)),
    Correction("view", -1, 3, (), (None, 4, 8), (None, 3, 8), (1,)),  # heads times samples
    Correction("reshape", -1, 2, ((1, 24),), (None, 4, 8), (None, 3, 8)),
    Correction("reshape", -1, 2, ((0, 24),), (4, 8, None), (3, 8, None)),
    Correction("expand", -1, 2, ((0, 3),), (4, None), (3, None)),
    Correction("split", 1, 2, ((1, 24),), (16,), (8, 16)),
    Correction("split_with_sizes", 1, 2, ((1, 24),), (16, 16), (8, 16)),
    Correction("unflatten", 1, 2, ((1, 24),), (4, 8), (3, 8)),
)
GIVEN = {
    "view": ((2, 24), (2, 32), (6, 8), (2, 3, 4, 8)),
    "view_of_three": ((2, 3, 24), (2, 3, 32)),
    "view_as_list": ((2, 24), (2, 32)),
    "view_of_four": ((2, 24),),
    "view_as_type": ((2, 24),),
    "reshape": ((2, 24), (2, 32), (24, 2), (32, 2)),
    "reshape_by_name": ((2, 24), (2, 32)),
    "reshape_function": ((2, 24), (2, 32)),
    "expand": ((3, 1), (4, 1)),
    "split": ((2, 24), (2, 32)),
    "split_list": ((2, 24), (2, 32)),
    "split_of_torch": ((2, 24), (2, 32)),
    "unflatten": ((2, 24), (2, 32)),
}


class Calls(nn.Module):
    """Calls in many forms, of which `kind` is made."""

    def forward(self, kind: str, x: Tensor) -> object:
        words = kind.split("_")
        forms = {
            "view": lambda: x.view(-1, 4, 8),
            "view_of_three": lambda: x.view(2, 12, 8),
            "view_as_list": lambda: x.view([x.shape[0], 4, 8]),
            "view_of_four": lambda: x.view(2, 1, 3, 8),
            "view_as_type": lambda: x.view(torch.int32),
            "reshape": lambda: x.reshape(4, 8, -1) if x.shape[1] == 2 else x.reshape(x.shape[0], 4, 8),
            "reshape_by_name": lambda: x.reshape(shape=(-1, 4, 8)),
            "reshape_function": lambda: torch.reshape(x, (-1, 4, 8)),
            "expand": lambda: x.expand(4, 5),
            "split": lambda: x.split(16, 1),
            "split_list": lambda: x.split([16, 16], dim=1),
            "split_of_torch": lambda: torch.split(x, 16, -1),
            "unflatten": lambda: x.unflatten(1, (4, 8)),
        }
        return len(words), forms[kind]()


def with_table(*, in_text: bool) -> nn.Module:
    calls = Calls()
    correct_sizes_(calls, {"": (tuple(each._replace(in_text=in_text) for each in TABLE),)})
    assert bool(with_text_changed(calls)) == in_text
    return calls


@pytest.mark.parametrize(("kind", "shape"), [(kind, shape) for kind, shapes in GIVEN.items() for shape in shapes])
def test_calls_come_to_the_same_in_the_text_and_while_it_runs(kind, shape):
    x, results = torch.randn(shape), []
    for each in (with_table(in_text=True), with_table(in_text=False)):
        try:
            results.append(each(kind, x))
        except RuntimeError as error:  # of sizes that no entry is for
            results.append(str(error))
    assert difference(*results) == 0


def test_a_table_of_before_is_applied_while_the_forward_runs():
    layer = Method().eval()
    correct_sizes_(layer, {"": ((Correction("view", -1, 2, ((1, 6),), (None, 8), (None, 6)),),)})
    assert not with_text_changed(layer)
