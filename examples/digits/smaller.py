"""The last step of the demo: networks without the neurons that training made zero."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from digits.data import Digits
from digits.train import LAYERS, Run
from shrinkage import shrink
from shrinkage.compression.calls.cost import latencies
from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.calls.outputs import difference, outputs


@dataclass(frozen=True, slots=True)
class Smaller:
    """A trained network made smaller by `shrink`.

    `neurons` are those of both hidden layers that are left, `parameters` all weights and biases; `difference` is the
    largest one of the outputs on the test images, relative to the largest output.
    """

    model: nn.Module
    neurons: tuple[int, int]
    parameters: int
    difference: float


def made_smaller(run: Run, digits: Digits) -> Smaller:
    """Return the network of `run` without what it does not need; the outputs are compared on images it never saw."""
    small = shrink(run.model, digits.validation.pixels)
    first, second = (len(small.model.get_parameter(f"{layer}.weight")) for layer in LAYERS[:2])
    call = reading(digits.test.pixels)
    gap = difference(outputs(run.model, call), outputs(small.model, call))
    return Smaller(small.model, (first, second), small.report.after.parameters, gap)


def milliseconds_per_call(smaller: Sequence[Smaller], digits: Digits) -> list[float]:
    """Return the time in which each network reads all validation images at once: medians, measured in turns."""
    seconds, _ = latencies([small.model for small in smaller], reading(digits.validation.pixels))
    return [1e3 * each for each in seconds]


def reading(pixels: Tensor) -> Call:
    """Return the call of a network on images."""
    return (pixels,), {}
