"""Models of pictures, sound and physics, with what is usual there: spectra, flows, masks, first states, modulation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, Normal


class Mirrored(nn.Module):
    """A residual block of CycleGAN, between convolutions: mirrored borders, and norms without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 10, 7), nn.InstanceNorm2d(10), nn.ReLU(True))
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(10, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(True),
            nn.ReplicationPad2d(1), nn.Conv2d(8, 10, 3), nn.InstanceNorm2d(10),
        )  # fmt: skip
        self.last = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(10, 3, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.block(x))


class SpectralConv(nn.Module):
    """A convolution by a product of spectra, of which the lowest frequencies alone are kept."""

    def __init__(self, inputs: int, outputs: int, modes: int) -> None:
        super().__init__()
        self.outputs, self.modes = outputs, modes
        self.upper = nn.Parameter(torch.rand(inputs, outputs, modes, modes, dtype=torch.cfloat))
        self.lower = nn.Parameter(torch.rand(inputs, outputs, modes, modes, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        given, own = torch.fft.rfft2(x), self.modes
        size = x.size(-2), x.size(-1) // 2 + 1
        out = torch.zeros(x.shape[0], self.outputs, *size, dtype=torch.cfloat, device=x.device)
        out[:, :, :own, :own] = torch.einsum("bixy,ioxy->boxy", given[:, :, :own, :own], self.upper)
        out[:, :, -own:, :own] = torch.einsum("bixy,ioxy->boxy", given[:, :, -own:, :own], self.lower)
        return torch.fft.irfft2(out, s=(x.size(-2), x.size(-1)))


class FourierOperator(nn.Module):
    """A neural operator: convolutions by spectra, beside pointwise ones."""

    def __init__(self, width: int = 10, modes: int = 2) -> None:
        super().__init__()
        self.lift = nn.Linear(3, width)
        self.spectral = nn.ModuleList([SpectralConv(width, width, modes) for _ in range(2)])
        self.pointwise = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(2)])
        self.hidden, self.last = nn.Linear(width, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x).permute(0, 3, 1, 2)
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            x = F.gelu(spectral(x) + pointwise(x))
        return self.last(F.gelu(self.hidden(x.permute(0, 2, 3, 1))))


class StateSpace(nn.Module):
    """A diagonal state space model, whose kernel is made of complex numbers and applied by their spectra."""

    def __init__(self, width: int = 12, states: int = 4) -> None:
        super().__init__()
        self.first, self.skip = nn.Linear(4, width), nn.Parameter(torch.randn(width))
        self.weights = nn.Parameter(torch.view_as_real(torch.randn(width, states, dtype=torch.cfloat)))
        self.rate = nn.Parameter(torch.rand(width) - 3)
        self.decay = nn.Parameter(torch.rand(width, states))
        self.frequency = nn.Parameter(torch.rand(width, states))
        self.mix, self.last = nn.Sequential(nn.Conv1d(width, 2 * width, 1), nn.GLU(dim=-2)), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.first(x).transpose(-1, -2)
        length = u.size(-1)
        rate = torch.exp(self.rate)
        poles = -torch.exp(self.decay) + 1j * self.frequency
        steps = (poles * rate.unsqueeze(-1)).unsqueeze(-1) * torch.arange(length)
        weights = torch.view_as_complex(self.weights) * (torch.exp(poles * rate.unsqueeze(-1)) - 1.0) / poles
        kernel = 2 * torch.einsum("hn, hnl -> hl", weights, torch.exp(steps)).real
        spectra = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        y = torch.fft.irfft(spectra, n=2 * length)[..., :length] + u * self.skip.unsqueeze(-1)
        return self.last(self.mix(F.gelu(y)).transpose(-1, -2))


class MaskedConv(nn.Conv2d):
    """A convolution that sees no pixel behind its own: it writes zeros into its weight at each call."""

    mask: Tensor

    def __init__(self, kind: str, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("mask", torch.ones_like(self.weight))
        height, width = self.kernel_size
        self.mask[:, :, height // 2, width // 2 + (kind == "B") :] = 0
        self.mask[:, :, height // 2 + 1 :] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class RenormedConv(nn.Conv2d):
    """A convolution whose weight is written anew at each call, with numbers up to 1."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = self.weight.data.clamp(-1, 1)
        return super().forward(x)


class PixelNet(nn.Sequential):
    """An autoregressive model of pictures (PixelCNN)."""

    def __init__(self) -> None:
        super().__init__(
            MaskedConv("A", 1, 10, 5, padding=2), nn.BatchNorm2d(10), nn.ReLU(True),
            MaskedConv("B", 10, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(True),
            RenormedConv(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1),
        )  # fmt: skip


class Upsampled(nn.Module):
    """A modulated transposed convolution: each sample has filters of its own, and is a group."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight, self.style = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3)), nn.Linear(style, inputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        weight = self.weight * self.style(style).view(batch, 1, channels, 1, 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(batch, self.outputs, 1, 1, 1)
        weight = weight.transpose(1, 2).reshape(batch * channels, self.outputs, 3, 3)
        x = F.conv_transpose2d(x.view(1, batch * channels, height, width), weight, padding=1, stride=2, groups=batch)
        return x.view(batch, self.outputs, x.shape[2], x.shape[3])


class Synthesis(nn.Module):
    """A generator whose layers are modulated by a style (StyleGAN2)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 12, 4, 4))
        self.style = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2))
        self.up, self.more, self.last = Upsampled(12, 10, 8), Upsampled(10, 8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        style = self.style(z)
        x = F.leaky_relu(self.up(self.start.repeat(len(z), 1, 1, 1), style), 0.2)
        return self.last(F.leaky_relu(self.more(x, style), 0.2))


class TimeChannel(nn.Module):
    """The right side of a differential equation, solved in three steps: time is one more channel."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)
        self.inner, self.outer = nn.Linear(width + 1, 14), nn.Linear(14, width)

    def slope(self, time: float, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([torch.ones_like(x[:, :1]) * time, x], 1))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for step in range(3):
            x = x + self.slope(step / 3, x) / 3
        return self.last(x)


class Conditioned(nn.Module):
    """Features of a picture that a question scales and shifts, all blocks by one layer (FiLM)."""

    def __init__(self, width: int = 10, blocks: int = 2) -> None:
        super().__init__()
        self.width, self.blocks = width, blocks
        self.question = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, blocks * 2 * width))
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 3)
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks)])

    def forward(self, x: Tensor, question: Tensor) -> Tensor:
        scales, shifts = self.question(question).view(-1, self.blocks, 2 * self.width).split(self.width, dim=-1)
        x = F.relu(self.first(x))
        for place, convolution in enumerate(self.convolutions):
            scale, shift = (each[:, place, :, None, None].expand_as(x) for each in (scales, shifts))
            x = x + F.relu(scale * convolution(x) + shift)
        return self.last(x.mean((2, 3)))


class Decoder(nn.Module):
    """A recurrent decoder whose first states are made without numbers, and then filled (Tacotron 2)."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.width = width
        self.memory, self.cell, self.last = nn.Linear(6, 8), nn.LSTMCell(4 + 8, width), nn.Linear(width + 8, 4)

    def forward(self, memory: Tensor, x: Tensor) -> Tensor:
        memory = self.memory(memory)
        hidden = memory.data.new(memory.size(0), self.width).zero_()
        cell = memory.new_empty(memory.size(0), self.width).fill_(0.0)
        context = torch.empty(memory.size(0), 8).zero_()
        found = []
        for step in range(x.size(1)):
            hidden, cell = self.cell(torch.cat([x[:, step], context], 1), (hidden, cell))
            context = memory
            found.append(self.last(torch.cat([hidden, context], 1)))
        return torch.stack(found, 1)


class Masked(nn.Module):
    """An autoencoder of half of the tokens, in an order that depends on them (MAE)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.inner = (
            nn.Linear(6, width),
            nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)),
        )
        self.hidden, self.last = nn.Parameter(torch.randn(1, 1, width)), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.argsort(x.sum(-1), 1)
        back = torch.argsort(order, 1)
        x = self.first(x)
        kept = torch.gather(x, 1, order[:, : x.shape[1] // 2].unsqueeze(-1).repeat(1, 1, x.shape[2]))
        kept = kept + self.inner(kept)
        every = torch.cat([kept, self.hidden.repeat(x.shape[0], x.shape[1] - kept.shape[1], 1)], 1)
        return self.last(torch.gather(every, 1, back.unsqueeze(-1).repeat(1, 1, x.shape[2])))


class Unpooled(nn.Module):
    """An encoder whose decoder puts values back where the largest were (SegNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 10, 3, padding=1)
        self.last, self.unpool = nn.Conv2d(10, 4, 3, padding=1), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(F.relu(self.first(x)), 2, return_indices=True)
        return self.last(self.unpool(F.relu(self.inner(x)), places))


class StraightThrough(nn.Module):
    """A code that is rounded, and whose gradient passes as if it were not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        return self.decoder(code + (torch.round(3 * code) / 3 - code).detach())


class Waves(nn.Module):
    """Gated convolutions with a condition for all of them (WaveNet): halves and parts by slices, by attributes."""

    def __init__(self, width: int = 6, skips: int = 7, layers: int = 2) -> None:
        super().__init__()
        self.width, self.skips, self.layers = width, skips, layers
        self.first, self.condition = nn.Conv1d(3, width, 1), nn.Conv1d(2, 2 * width * layers, 1)
        self.gates = nn.ModuleList([nn.Conv1d(width, 2 * width, 3, padding=1) for _ in range(layers)])
        self.both = nn.ModuleList([nn.Conv1d(width, width + skips, 1) for _ in range(layers)])
        self.last = nn.Conv1d(skips, 3, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x, condition = self.first(x), self.condition(condition)
        skip = torch.zeros(x.shape[0], self.skips, x.shape[2])
        for place in range(self.layers):
            begins = place * 2 * self.width
            made = self.gates[place](x) + condition[:, begins : begins + 2 * self.width]
            made = self.both[place](torch.tanh(made[:, : self.width]) * torch.sigmoid(made[:, self.width :]))
            x, skip = x + made[:, : self.width], skip + made[:, self.width :]
        return self.last(F.relu(skip))


class Ghost(nn.Module):
    """A layer half of whose channels are made of the others, and the last of them left out (GhostNet)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs, width = outputs, (outputs + 1) // 2
        self.primary = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.cheap = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)[:, : self.outputs]


class FixedQueries(nn.Module):
    """Attention of learned queries to what is seen (DETR, MaskFormer)."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.queries, self.first = nn.Parameter(torch.randn(4, width)), nn.Linear(6, 10)
        self.keys, self.values, self.last = nn.Linear(10, width), nn.Linear(10, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        split = (x.shape[0], -1, self.heads, self.width // self.heads)
        parts = (self.queries.expand(x.shape[0], -1, -1), self.keys(x), self.values(x))
        q, k, v = (part.reshape(split).transpose(1, 2) for part in parts)
        return self.last(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class States(nn.Module):
    """A convolutional recurrent network with one layer for what is seen, one for its state, which is zero at first."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.seen, self.state = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], self.width, *x.shape[-2:])
        for step in range(x.shape[1]):
            state = torch.tanh(self.seen(x[:, step]) + self.state(state))
        return self.last(state)


class MaxNormed(nn.Linear):
    """A linear layer whose rows have a norm of 1 at most, by its code."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1.0)
        return super().forward(x)


class Complex(nn.Module):
    """Two layers of complex numbers, the second read from the right."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, width, dtype=torch.cfloat))
        self.last = nn.Parameter(torch.randn(3, width, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.complex(x, 0.5 * x) @ self.first
        return (torch.complex(F.relu(x.real), F.relu(x.imag)) @ self.last.mH).abs()


class Precise(nn.Module):
    """A layer that is computed in single precision whatever is around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        with torch.autocast("cpu", enabled=False):
            x = F.relu(self.second(x.float()))
        return self.last(x.type_as(self.last.weight))


class Capsules(nn.Module):
    """A vector for each class, whose length is its score, and which is decoded again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.vectors = nn.Linear(4, 6), nn.Parameter(torch.randn(3, 6, 5))
        self.last = nn.Linear(3 * 5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vectors = torch.einsum("bi,cid->bcd", F.relu(self.first(x)), self.vectors)
        scores = vectors.square().sum(-1).softmax(-1)
        return scores, self.last((vectors * scores[:, :, None]).reshape(len(x), -1))


IMAGES, ROWS = Normal(2, 3, 8, 8), Normal(5, 4)
SIGNALS: list[Case] = [
    Case("mirrored", Mirrored, (IMAGES,)),
    Case("fourier-operator", FourierOperator, (Normal(2, 8, 8, 3),)),
    Case("state-space", StateSpace, (Normal(2, 10, 4),)),
    Case("pixel-net", PixelNet, (Normal(2, 1, 8, 8),)),
    Case("synthesis", Synthesis, (Normal(3, 6),)),
    Case("time-channel", TimeChannel, (ROWS,)),
    Case("conditioned", Conditioned, (IMAGES, Normal(2, 5))),
    Case("recurrent-decoder", Decoder, (Normal(3, 6), Normal(3, 4, 4))),
    Case("masked-tokens", Masked, (Normal(2, 8, 6),)),
    Case("unpooled", Unpooled, (IMAGES,)),
    Case("waves", Waves, (Normal(2, 3, 8), Normal(2, 2, 8))),
    Case("ghost", lambda: nn.Sequential(Ghost(3, 9), Ghost(9, 7), nn.Conv2d(7, 3, 1)), (IMAGES,)),
    Case("fixed-queries", FixedQueries, (Normal(2, 5, 6),)),
    Case("states", States, (Normal(2, 3, 3, 6, 6),)),
    Case("max-normed", lambda: nn.Sequential(MaxNormed(4, 10), nn.ReLU(), MaxNormed(10, 3)), (ROWS,)),
    Case("complex", Complex, (Normal(4, 5),)),
    Case("precise", Precise, (ROWS,)),
    Case("capsules", Capsules, (ROWS,)),
    Case("straight-through", StraightThrough, (Normal(5, 6),)),
]
