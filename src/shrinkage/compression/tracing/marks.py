"""Small numbers in attributes of a model, each made one of its own: constants of a graph tell where they come from."""

from collections.abc import Mapping
from math import nextafter
from typing import NamedTuple

import torch
from torch import nn

from shrinkage.compression.plans.tensors import joined

SMALL = 1.0  # the `eps` of a norm is less


class Mark(NamedTuple):
    """The attribute of the dotted `name`, and the `value` that it has."""

    name: str
    value: float


Marks = Mapping[float, Mark]


def marked_(model: nn.Module) -> dict[float, Mark]:
    """Change small numbers in attributes of the modules of `model` to the next ones that no other has; return which.

    They stay the same in single precision.
    """
    marks: dict[float, Mark] = {}
    last: dict[float, float] = {}
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            if type(value) is float and 0 < value < SMALL and not isinstance(module, torch.jit.ScriptModule):
                number = nextafter(last.get(value, value), 1.0)
                while number in marks:
                    number = nextafter(number, 1.0)
                marks[number] = Mark(joined(path, name), value)
                last[value] = vars(module)[name] = number
    return marks
