"""Small numbers in attributes and code of a model, each made one of its own, so that a graph tells where it is from."""

from collections.abc import Mapping
from math import nextafter
from typing import Any, NamedTuple

import torch
from torch import nn

from shrinkage.compression.plans.numbers_in_code import methods_of, numbers_in, with_numbers
from shrinkage.compression.plans.tensors import joined

SMALL = 1.0  # the `eps` of a norm is less
SMALL_IN_CODE = 0.01  # what is larger there may give a length, as in `math.ceil(0.5 * width)`


class Mark(NamedTuple):
    """The attribute, or the method with a number in its code, of the dotted `name`, and the `value` of the number."""

    name: str
    value: float
    in_code: bool = False


Marks = Mapping[float, Mark]


def marked_(model: nn.Module) -> dict[float, Mark]:
    """Change small numbers of the modules of `model` to the next ones that no other has; return which.

    They are those in attributes, and in the code of methods that are not torch's. They stay the same in single
    precision.
    """
    marks: dict[float, Mark] = {}
    last: dict[float, float] = {}

    def marked(name: str, value: float, in_code: bool = False) -> float:
        number = nextafter(last.get(value, value), 1.0)
        while number in marks:
            number = nextafter(number, 1.0)
        marks[number] = Mark(name, value, in_code)
        last[value] = last[number] = number
        return number

    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in list(vars(module).items()):
            if type(value) is float and 0 < value < SMALL:
                vars(module)[name] = marked(joined(path, name), value)
        changed = {}
        for name, method in methods_of(type(module)).items() if "forward" not in vars(module) else ():
            small = sorted(each for each in numbers_in(method.__code__) if 0 < each < SMALL_IN_CODE)
            if small:
                changed[name] = with_numbers(method, {each: marked(joined(path, name), each, True) for each in small})
        if changed:
            module.__class__ = _class_with(type(module), changed)
    return marks


def _class_with(cls: type[nn.Module], methods: Mapping[str, Any]) -> type[nn.Module]:
    """Return a class like `cls` with other `methods`."""
    metaclass: Any = type(cls)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    made: type[nn.Module] = metaclass(cls.__name__, (cls,), {**names, **methods})
    return made
