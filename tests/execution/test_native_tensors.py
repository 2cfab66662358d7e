"""Tensors that native kernels find themselves, by torch's C interface."""

import gc
import weakref

import pytest
import torch
from test_same_tensors import CHANGED, weight
from torch import Tensor, nn

from shrinkage.execution import native_build, native_tensors
from shrinkage.execution.native_tensors import Sought, let_search, place_of, torch_of_this_version

pytestmark = pytest.mark.skipif(native_build.library() is None, reason="there is no compiler for native kernels")


def finds(sought: Sought, tensors) -> bool:
    """Whether all are found, where Python tells they are."""
    if not (sought.take(tensors) and native_build.library().shrinkage_find(sought.address)):
        return False
    assert list(sought.found) == [tensor.data_ptr() for tensor in tensors]
    return True


def test_kernels_find_tensors_of_this_torch():
    assert native_build.library().shrinkage_searches()


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", [list, tuple])
def test_what_changed_is_not_found(changed, place, kind):
    sought = Sought([weight(), weight()])
    now = [weight(), weight()]
    assert finds(sought, kind(now))
    now[place] = changed()
    assert not finds(sought, kind(now))


def test_data_under_the_same_parameters_is_found_anew():
    """A tuple of parameters is read once, and what each of them holds every time."""
    parameters = (nn.Parameter(weight()), nn.Parameter(weight()))
    sought = Sought(parameters)
    for _ in range(2):
        assert finds(sought, parameters)
    parameters[1].data = weight()
    assert finds(sought, parameters)
    torch.utils.swap_tensors(parameters[0], nn.Parameter(weight()))
    assert finds(sought, parameters)
    torch.utils.swap_tensors(parameters[0], nn.Parameter(torch.randn(3)))
    assert not finds(sought, parameters)


def test_a_list_is_read_each_time():
    tensors = [weight(), weight()]
    sought = Sought(tensors)
    assert finds(sought, tensors)
    tensors[0] = weight()
    assert finds(sought, tensors)


def test_as_many_tensors():
    own = [weight(), weight()]
    sought = Sought(own)
    assert finds(sought, own)
    assert not any(finds(sought, other) for other in ([], (), [weight()], [weight()] * 3))
    assert Sought([]).take([])


def test_strides_of_one_element_or_none_say_nothing():
    sought = Sought([torch.randn(5, 1)])
    assert finds(sought, [torch.randn(5).as_strided((5, 1), (1, 7))])
    assert finds(Sought([torch.randn(0, 6)]), [torch.randn(0, 6)])
    assert finds(Sought([torch.randn(())]), [torch.randn(())])


def test_lists_are_not_kept_alive():
    tensors = [weight()]
    sought, left = Sought(tensors), weakref.ref(tensors[0])
    assert finds(sought, tensors)
    tensors.clear()
    gc.collect()
    assert left() is None


DIFFERENT = {
    "no function": ("FUNCTIONS", {**native_tensors.FUNCTIONS, "dim": "aoti_torch_get_size_of_a_cat"}),
    "other numbers": ("FUNCTIONS", {**native_tensors.FUNCTIONS, "dim": "aoti_torch_get_numel"}),
    "other addresses": ("FUNCTIONS", {**native_tensors.FUNCTIONS, "address": "aoti_torch_get_sizes"}),
    "another class": ("KINDS", (Tensor, Tensor)),
}


@pytest.mark.parametrize("different", DIFFERENT)
def test_a_torch_that_is_not_as_it_is_known_leaves_the_search_to_python(different, monkeypatch):
    library = native_build.library()
    monkeypatch.setattr(native_tensors, *DIFFERENT[different])
    try:
        let_search(library)
        assert not library.shrinkage_searches()
        assert not library.shrinkage_find(Sought([weight()]).address)
    finally:
        monkeypatch.undo()
        let_search(library)
    assert library.shrinkage_searches()


def test_a_word_that_is_in_no_tensor_is_at_no_place():
    w = weight()
    assert place_of([w, nn.Parameter(w)], [id(Tensor), id(nn.Parameter)]) == torch_of_this_version().class_place
    with pytest.raises(ValueError, match="unpack"):
        place_of([w, nn.Parameter(w)], [id(Tensor), id(Tensor)])
