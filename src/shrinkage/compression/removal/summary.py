"""What shrinking a model saved, and which zero channels are still there and why: numbers that print as tables."""

from collections.abc import Mapping
from math import isnan, prod
from typing import Any, NamedTuple

from shrinkage.compression.calls.cost import Cost
from shrinkage.diagnostics.zero_layers import CAUSE
from shrinkage.selection.unregistered import told
from shrinkage.tables import Table, in_html, shape_text

Shape = tuple[int, ...]

ADVICE = {
    "of an earlier call": "empty what it keeps before, or give a model that was not called",
    "zeros at the border": "penalize the bias, or the scale and shift of a norm, too: the constant is then zero",
    "too few samples": "give an example of more samples",
    "no bias that could": "use a layer with a bias attribute, such as nn.Linear, or penalize the weights that read it:"
    " what nobody reads goes",
    "the data or the position": "penalize the weights that read it: what nobody reads goes",
    "also subtracts the mean": "penalize neurons and heads, or use a norm that only divides, as nn.RMSNorm does",
    "the code adds": "make what it adds an attribute of the module, such as `self.eps`",
    "only divides": "penalize them with `CoupledChannels(..., residual=True)`",
    "over channels": "what is computed over all channels needs each of them: penalize other layers, neurons or heads",
    "are coupled": "what is computed over all channels needs each of them: penalize other layers, neurons or heads",
    "in `einsum`": "take it by `torch.diagonal` before",
    "its `eps`": "give `eps=0`, or take the norm of the difference",
    "sums over it": "penalize what moves it away from zero, too: a bias, or the shift of a norm",
    "that a norm in": "penalize that weight too, as `CoupledChannels` does, or make it a parameter first: with"
    " remove_spectral_norm or torch.nn.utils.parametrize.remove_parametrizations",
    "slice of the channels": "cut channels into equal parts with `chunk`, or make a parameter of each part",
    "of fixed length": "find what has that length: an input, a slice, or a first state made by `torch.zeros`, in whose"
    " place can be `torch.zeros_like` of what a layer puts out",
    "a length as a number": "give it as -1 or as an integer attribute of the module",
    "means two lengths": "give one of the two as -1, or read it off the shape of the tensor",
    "as many units": "penalize `CoupledChannels` longer, or zero as many units of the other layers and directions",
    "exported by itself": "make the model one that `torch.export` takes whole",
    "without a rule": "tell what the operator does to channels with `coupling_rule`",
    "not used by any": "call the module by its forward method, with inputs that `torch.export` can follow",
    "did not find": "pin the layers that make a difference: `shrink(..., pin=[...])`",
    "differ": "where the code has a length as a number, give it as -1 or as an integer attribute of the module",
    "size of a head": "penalize heads as a whole",
    "needs one": "all of the layer is zero, so it puts out a constant: use a smaller strength, or take the layer out",
}
NOTHING = "no channel is zero: nothing to remove"


class LayerSummary(NamedTuple):
    """A layer that lost channels: the shapes before and after of its tensors that did, and what it costs."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape]]
    before: Cost
    after: Cost

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, tuples, numbers and strings."""
        return self._asdict() | {"before": self.before._asdict(), "after": self.after._asdict()}

    def cells(self) -> list[str]:
        """Return its row of the table: the shape is that of its largest tensor."""
        old, new = max(self.shapes.values(), key=lambda shapes: prod(shapes[0]))
        operations = (self.before.multiply_adds, self.after.multiply_adds)
        seconds = (self.before.latency, self.after.latency)
        return [
            self.name or "the model's own",
            f"{shape_text(old)} to {shape_text(new)}",
            f"{self.before.parameters:,} to {self.after.parameters:,}",
            f"{operations[0]:,} to {operations[1]:,}" if operations[0] else "-",
            "-" if None in seconds else " to ".join(map(_milliseconds, seconds)),
        ]


class KeptZeros(NamedTuple):
    """Zero channels of one parameter that are still there, why, and what can be done about it."""

    name: str
    channels: int
    reason: str

    @property
    def advice(self) -> str:
        """What to do about it, in words; empty where there is nothing to do."""
        return next((advice for phrase, advice in ADVICE.items() if phrase in self.reason), "")


class ShrinkReport(NamedTuple):
    """The cost of a model before and after `shrink`, in calls with the example inputs, and the zeros that stay.

    `error` is the largest difference of the outputs, relative to the largest one, over all inputs that were compared;
    NaN if none were. `uncalled` are the modules that the example did not call and that stay as wide as they were,
    `unvaried` the inputs that were compared with the example's numbers alone, since the model took no others, and
    `hooked` the parameters whose gradients have hooks, which have to be registered again. `unregistered` counts, by
    attribute, the parameters that plain lists hide. `collapsed` says which outputs no longer depend on the inputs, and
    by which zeros.
    """

    before: Cost
    after: Cost
    error: float
    layers: tuple[LayerSummary, ...]
    kept: tuple[KeptZeros, ...]
    unknown_operators: Mapping[str, int]
    not_exported: Mapping[str, str]
    uncalled: tuple[str, ...]
    unvaried: tuple[str, ...]
    hooked: tuple[str, ...]
    unregistered: Mapping[str, int]
    collapsed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, lists, numbers and strings."""
        return self._asdict() | {
            "before": self.before._asdict(),
            "after": self.after._asdict(),
            "layers": [layer.to_dict() for layer in self.layers],
            "kept": [kept._asdict() | {"advice": kept.advice} for kept in self.kept],
        }

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._parts()))

    def _repr_html_(self) -> str:
        return in_html(self._parts())

    def _parts(self) -> list[str | Table]:
        parts: list[str | Table] = [f"{text}. {CAUSE}" for text in self.collapsed]
        if self.layers:
            parts += _totals(self)
        else:
            parts.append("no channel is removed, for the reasons below" if self.kept else NOTHING)
        if self.layers:
            header = ["layer", "shape", "parameters", "multiply-adds", "milliseconds"]
            parts.append(Table(header, [layer.cells() for layer in self.layers], range(1, 5)))
        if self.kept:
            rows = [[kept.name, str(kept.channels), kept.reason, kept.advice] for kept in self.kept]
            parts.append(Table(["zero channels that stay", "count", "because", "what to do"], rows, [1]))
        if self.uncalled:
            parts.append("not called with the example inputs, and as wide as before: " + ", ".join(self.uncalled))
        if self.unvaried:
            names = ", ".join(f"`{name}`" for name in self.unvaried)
            parts.append(
                f"compared with the example's numbers alone, since the model takes no others that were tried: {names}"
            )
        if self.unregistered:
            parts.append(("" if self.before.parameters else "no parameters: ") + told(self.unregistered))
        if self.hooked:
            parts.append("hooks on gradients to register again, of the parameters: " + ", ".join(self.hooked))
        if self.unknown_operators:
            parts.append("operators without a rule: " + ", ".join(map(str, self.unknown_operators)))
        parts += [f"`{path or 'the model'}` was not exported: {error}" for path, error in self.not_exported.items()]
        return parts


def _totals(report: ShrinkReport) -> list[str | Table]:
    old, new = report.before, report.after
    counts = {
        "parameters": (old.parameters, new.parameters),
        "bytes": (old.size, new.size),
        "multiply-adds": (old.multiply_adds, new.multiply_adds),
    }
    rows = [[name, f"{before:,}", f"{after:,}", _ratio(before, after)] for name, (before, after) in counts.items()]
    seconds = (old.latency, new.latency)
    rows.append(["milliseconds", *map(_milliseconds, seconds), _ratio(*seconds)])
    compared = "not compared" if isnan(report.error) else f"{report.error:.1e}"
    text = f"largest relative difference of the outputs: {compared}"
    return [Table(["", "before", "after", "ratio"], rows, [1, 2, 3]), text]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3g}"


def _ratio(before: float | None, after: float | None) -> str:
    return f"{before / after:.2f}" if before and after else "-"
