"""How native kernels find tensors themselves, without Python: by torch's own C interface, where that is as it is known.

A tensor of Python has one of torch inside. Where, is found by comparison, and what the kernels find is compared with
what Python tells before anything is left to them. Where something differs, Python finds tensors for them.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shrinkage.execution.native_structs import Search, Shape, Torch

KINDS = (Tensor, nn.Parameter)  # of tensors: others may keep their numbers elsewhere
FUNCTIONS = {
    "layout": "aoti_torch_get_layout",
    "device": "aoti_torch_get_device_type",
    "type": "aoti_torch_get_dtype",
    "dim": "aoti_torch_get_dim",
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "address": "aoti_torch_get_data_ptr",
}
WORD = ctypes.sizeof(ctypes.c_uint64)


class Sought:
    """Tensors that kernels look for: what they have to be, and where their addresses are written.

    Args:
        tensors: what is looked for has their types, sizes and strides.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        count = max(len(tensors), 1)
        self.found = (ctypes.c_uint64 * count)()
        self._objects, self._shapes = (ctypes.c_uint64 * count)(), (Shape * count)()
        self._sizes = [(ctypes.c_int64 * (2 * each.dim() + 1))(*each.shape, *each.stride()) for each in tensors]
        for shape, tensor, sizes in zip(self._shapes, tensors, self._sizes, strict=False):
            shape.sizes, shape.dim, shape.type = ctypes.addressof(sizes), tensor.dim(), number_of(tensor.dtype)
        self._search = Search(count=len(tensors))
        self._taken: tuple[Tensor, ...] | None = None  # which cannot change, so that it does not have to be read again
        self._search.shapes, self._search.found = ctypes.addressof(self._shapes), ctypes.addressof(self.found)
        self._search.tensors = ctypes.addressof(self._objects)
        self.address = ctypes.addressof(self._search)

    def take(self, tensors: Sequence[Tensor]) -> bool:
        """Let these be looked for, as many as there were, and return True; they have to live until a call is over."""
        if tensors is self._taken:
            return True
        if len(tensors) != self._search.count:
            return False
        self._objects[: len(tensors)] = list(map(id, tensors))
        self._taken = tensors if type(tensors) is tuple else None
        return True


def number_of(dtype: torch.dtype) -> int:
    """Return the number by which torch's C interface calls a type."""
    number: int = getattr(library_of_torch(), f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
    return number


def library_of_torch() -> ctypes.CDLL:
    """Return what has torch's C interface."""
    return ctypes.CDLL(torch._C.__file__)


def let_search(native: ctypes.CDLL) -> None:
    """Let a library of kernels find tensors itself, if it finds what Python tells."""
    native.shrinkage_use_torch.argtypes = native.shrinkage_find.argtypes = [ctypes.c_void_p]
    native.shrinkage_use_torch.restype = None
    try:
        known = torch_of_this_version()
        native.shrinkage_use_torch(ctypes.addressof(known))
        right = finds_what_is_there(native)
    except Exception:  # of names, and of places, nothing is promised
        right = False
    if not right:
        native.shrinkage_use_torch(None)


def torch_of_this_version() -> Torch:
    """Return the functions of torch, and where tensors of Python have their class and their tensor of torch.

    Raises:
        AttributeError: there is no such function.
        ValueError: a tensor is not found at one place in all of Python's.
    """
    own = library_of_torch()
    functions = {name: ctypes.cast(getattr(own, full), ctypes.c_void_p).value for name, full in FUNCTIONS.items()}
    w = torch.zeros(2, 3)
    samples = [w, w[1:], torch.zeros(()), nn.Parameter(w), torch.zeros(0, dtype=torch.float64)]
    found = Torch(**functions, class_place=place_of(samples, [id(type(each)) for each in samples]))
    found.place = place_of(samples, [each._cdata for each in samples])
    found.kinds[:] = list(map(id, KINDS))
    return found


def place_of(objects: Sequence[Tensor], words: Sequence[int]) -> int:
    """Return at which place of its memory each of some objects has the word that is its own."""
    size = Tensor.__basicsize__ // WORD
    memory = [(ctypes.c_uint64 * size).from_address(id(each)) for each in objects]
    (place,) = [
        index for index in range(size) if all(own[index] == word for own, word in zip(memory, words, strict=True))
    ]
    return place * WORD


def finds_what_is_there(native: ctypes.CDLL) -> bool:
    """Return whether kernels find tensors where Python tells they are, and see what is not as it was."""
    w = nn.Parameter(torch.ones(4, 6))
    same = [w, torch.ones(4, 6), torch.ones(9, 6)[5:]]
    sought = Sought([w])
    for each in same:
        if not (sought.take([each]) and native.shrinkage_find(sought.address) and sought.found[0] == each.data_ptr()):
            return False
    for other in others(w):
        if not sought.take([other]) or native.shrinkage_find(sought.address):
            return False
    return True


class Other(Tensor):
    """A tensor of another class, which may keep its numbers elsewhere."""


def others(w: Tensor) -> list[Tensor]:
    """Return tensors that are not what `w`, a matrix, is."""
    plain, (rows, columns) = w.detach(), w.shape
    found = [
        plain.double(),
        plain.half(),
        plain.t().contiguous(),
        plain.t().contiguous().t(),
        plain.flatten(),
        plain[1:],
    ]
    found += [plain.new_zeros(rows, 2 * columns)[:, ::2], plain.to("meta"), plain.to_sparse(), plain.as_subclass(Other)]
    return found
