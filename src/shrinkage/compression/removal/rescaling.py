"""What takes up that means over channels are of fewer of them: scales of parameters, and numbers of attributes."""

from math import prod
from typing import NamedTuple

from torch import Tensor

from shrinkage.compression.plans.tensors import Scale
from shrinkage.compression.tracing.coupling import Coupling


class Rescaling(NamedTuple):
    """New values of attributes, and scales of parameters, by dotted name."""

    attributes: dict[str, float]
    scales: dict[str, Scale]


def rescaling(coupling: Coupling, gone: Tensor) -> Rescaling:
    """Return what changes when the channels `gone` are zero and go, so that norms divide by what they did.

    A mean over n channels of which k are left is n / k times as large. Where the root of it and of `eps` divides, `eps`
    becomes n / k times as large too, and the scale sqrt(n / k) times.
    """
    factors: dict[str, dict[object, float]] = {}
    absorbers = {}
    for _, trace in coupling.traces:
        for divisor in trace.divisors:
            kept = (~gone[coupling.labels.find(labels)] for labels in divisor.labels)
            factor = prod(len(each) / max(int(each.sum()), 1) for each in kept)
            for each in divisor.absorbers:
                absorbers[each.name] = each
                by_use = factors.setdefault(each.name, {})
                by_use[each.use] = by_use.get(each.use, 1.0) * factor**each.power
    found = Rescaling({}, {})
    for name, each in absorbers.items():
        factor = next(iter(factors[name].values()))  # the same wherever it is used
        if factor != 1 and each.value is None:
            found.scales[name] = (factor, each.offset)
        elif factor != 1 and each.value is not None:
            found.attributes[name] = each.value * factor
    return found
