"""Rules of operators along space and time: windows, triangles, differences, spectra, complex numbers, samples."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from shrinkage.compression.tracing.channels import Channels, axes_of
from shrinkage.compression.tracing.operators import as_sequence, aten, coupling_rule
from shrinkage.compression.tracing.trace import Trace, flat, name_of


@coupling_rule(aten.tril, aten.triu)
def triangle(trace: Trace, x: Channels, *_: Any) -> Channels:
    """Zeros in place of a triangle of the last two axes."""
    return trace.make(trace.fix(x, [-2, -1], "cut to a triangle over channels").factors)


@coupling_rule(aten.diff)
def difference(trace: Trace, x: Channels, n: int = 1, dim: int = -1, *_: Any) -> Channels:
    """Differences of neighbours along an axis."""
    return trace.make(trace.fix(x, [dim], "differences over channels").factors)


@coupling_rule(aten.unfold)
def windows(trace: Trace, x: Channels, axis: int, *_: Any) -> Channels:
    """Windows along an axis, which lie along a new last one."""
    x = trace.fix(x, [axis], "windows over channels")
    return trace.make([factor.unsqueeze(-1) for factor in x.factors])


@coupling_rule(aten.diagonal)
def diagonal(trace: Trace, x: Channels, offset: int = 0, first: int = 0, second: int = 1) -> Channels:
    """A diagonal of two axes, which becomes the last one."""
    x = trace.fix(x, [first, second], "a diagonal over channels")
    return trace.make([factor.diagonal(0, first, second) for factor in x.factors])


@coupling_rule(aten.im2col)
def patches(trace: Trace, x: Channels, kernel: Sequence[int], *_: Any) -> Channels:
    """All elements of a patch become channels: those of one channel go together."""
    x, labels = _in_front_of_space(trace, x, 2)
    size = kernel[0] * kernel[1]
    return _with_channels(trace, x, None if labels is None else labels.repeat_interleave(size), -2)


@coupling_rule(aten.col2im)
def image(trace: Trace, x: Channels, shape: Sequence[int], kernel: Sequence[int], *_: Any) -> Channels:
    """Channels that become the elements of a patch go together."""
    x, labels = _in_front_of_space(trace, x, 1)
    if labels is None:
        return x
    members = labels.reshape(-1, kernel[0] * kernel[1])
    trace.labels.unite(members, members[:, :1])
    return _with_channels(trace, x, members[:, 0], -3)


@coupling_rule(aten.grid_sampler)
def samples(trace: Trace, x: Channels, grid: Channels, *_: Any) -> Channels:
    """Channels at the places of a grid, which are the same for all."""
    trace.pin(grid, "the places of samples")
    x, labels = _in_front_of_space(trace, x, len(x.shape) - 2)
    return _with_channels(trace, x, labels, 1)


def _in_front_of_space(trace: Trace, x: Channels, space: int) -> tuple[Channels, Tensor | None]:
    """Return what lies in front of the channels, as the output has it, and the labels of the channels.

    These are along the axis in front of the last ones, those of `space`.
    """
    text = f"{name_of(trace.node)} over channels"
    x = trace.fix(x, range(-space, 0), text)
    place = len(x.shape) - space - 1
    labels = flat(trace, x, place, text)
    before = [factor for factor in x.factors if max(axes_of(factor)) < place]
    shapes = [[*factor.shape[:place], *(1,) * (len(trace.shape) - place)] for factor in before]
    return trace.make([factor.reshape(shape) for factor, shape in zip(before, shapes, strict=True)]), labels


def _with_channels(trace: Trace, x: Channels, labels: Tensor | None, place: int) -> Channels:
    if labels is None:
        return x
    rank = len(trace.shape)
    return trace.make([*x.factors, labels.reshape([-1 if axis == place % rank else 1 for axis in range(rank)])])


@coupling_rule(
    aten.fft_fft, aten.fft_ifft, aten.fft_rfft, aten.fft_irfft, aten.fft_hfft, aten.fft_ihfft, aten.fft_fft2,
    aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2, aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn,
)  # fmt: skip
def spectrum(trace: Trace, x: Channels, sizes: Any = None, dim: Any = None, *_: Any, **keywords: Any) -> Channels:
    """A transform along some axes, each of the others by itself."""
    defaults = {argument.name: argument.default_value for argument in trace.operator._schema.arguments[1:]}
    dims = dim if dim is not None else keywords.get("dim", defaults.get("dim"))
    axes = range(len(x.shape)) if dims is None else as_sequence(dims)
    return trace.make(trace.fix(x, axes, "a spectrum over channels").factors)


@coupling_rule(aten.fft_fftshift, aten.fft_ifftshift)
def shift(trace: Trace, x: Channels, dim: Any = None) -> Channels:
    """Halves along some axes change places."""
    axes = range(len(x.shape)) if dim is None else as_sequence(dim)
    return trace.combine([trace.fix(x, axes, "a spectrum over channels")])


@coupling_rule(aten.view_as_complex)
def complex_numbers(trace: Trace, x: Channels) -> Channels:
    """Pairs along the last axis become one number."""
    x = trace.fix(x, [-1], "the real and the imaginary part")
    return trace.make([factor.squeeze(-1) for factor in x.factors if factor.shape[-1] == 1])


@coupling_rule(aten.view_as_real)
def real_numbers(trace: Trace, x: Channels) -> Channels:
    """A number becomes a pair along a new last axis."""
    return trace.make([factor.unsqueeze(-1) for factor in x.factors])
