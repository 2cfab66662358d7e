"""What takes up that means over channels are of fewer: scales of parameters, and numbers in attributes and code."""

from math import prod
from typing import NamedTuple

from torch import Tensor

from shrinkage.compression.plans.numbers_in_code import CodeNumbers
from shrinkage.compression.plans.tensors import Scale
from shrinkage.compression.tracing.coupling import Coupling


class Rescaling(NamedTuple):
    """New values of attributes, scales of parameters, and numbers in the code of modules, by dotted name."""

    attributes: dict[str, float]
    scales: dict[str, Scale]
    numbers: dict[str, CodeNumbers]


def rescaling(coupling: Coupling, gone: Tensor) -> Rescaling:
    """Return what changes when the channels `gone` are zero and go, so that norms divide by what they did.

    A mean over n channels of which k are left is n / k times as large. Where the root of it and of `eps` divides, `eps`
    becomes n / k times as large too, and the scale sqrt(n / k) times.
    """
    factors: dict[object, dict[object, float]] = {}
    absorbers = {}
    for _, trace in coupling.traces:
        for divisor in trace.divisors:
            kept = (~gone[coupling.labels.find(labels)] for labels in divisor.labels)
            factor = prod(len(each) / max(int(each.sum()), 1) for each in kept)
            for each in divisor.absorbers:
                key = each.name, each.value
                absorbers[key] = each
                by_use = factors.setdefault(key, {})
                by_use[each.use] = by_use.get(each.use, 1.0) * factor**each.power
    found = Rescaling({}, {}, {})
    for key, each in absorbers.items():
        factor = next(iter(factors[key].values()))  # the same wherever it is used
        if factor == 1:
            continue
        if each.value is None:
            found.scales[each.name] = (factor, each.offset)
        elif each.in_code:
            path, _, method = each.name.rpartition(".")
            found.numbers[path] = (*found.numbers.get(path, ()), (method, each.value, each.value * factor))
        else:
            found.attributes[each.name] = each.value * factor
    return found
