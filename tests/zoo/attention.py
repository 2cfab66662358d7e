"""Models with attention, in the ways people write it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, Normal, Tokens

WIDTH, HEADS, SIZE = 16, 4, 4


class Reshaped(nn.Module):
    """One layer for queries, keys and values, taken apart by the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.scale = SIZE**-0.5
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, -1))


class Literal(Reshaped):
    """The same, with every size written out."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Chunked(Reshaped):
    """The same layer, taken apart by the size of a head."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.view(*x.shape[:2], -1, SIZE).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Separate(nn.Module):
    """Three layers for queries, keys and values; sizes of heads are fixed, or their number is."""

    def __init__(self, *, by_size: bool):
        super().__init__()
        self.shape = (-1, SIZE) if by_size else (HEADS, -1)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, self.shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Cross(nn.Module):
    """Queries from one sequence, keys and values from another; `matmul` with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(WIDTH, 12),
            nn.Linear(10, 12),
            nn.Linear(10, 18),
            nn.Linear(18, WIDTH),
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            self.q(x).unflatten(-1, (3, 4)),
            self.k(context).unflatten(-1, (3, 4)),
            self.v(context).unflatten(-1, (3, 6)),
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(1)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return x + self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class Rms(nn.Module):
    """The RMS norm of language models, written out."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class GroupedQueries(nn.Module):
    """Two heads of keys and values for four of queries."""

    def __init__(self, *, how: str):
        super().__init__()
        self.how = how
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2)
        self.out = nn.Linear(WIDTH, WIDTH)

    def repeat(self, x: Tensor) -> Tensor:
        if self.how == "interleave":
            return x.repeat_interleave(2, dim=1)
        batch, heads, length, size = x.shape
        return x[:, :, None].expand(batch, heads, 2, length, size).reshape(batch, heads * 2, length, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:-1], -1, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.how == "native":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            mixed = F.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v), is_causal=True)
        return x + self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class Rotary(nn.Module):
    """Attention with rotary positions and a norm on queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = nn.RMSNorm(SIZE), nn.RMSNorm(SIZE)
        self.register_buffer("frequencies", 10.0 ** -torch.arange(0, SIZE, 2).float(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * angles.cos() + torch.cat([-two, one], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:-1], -1, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.rotate(self.q_norm(q)), self.rotate(self.k_norm(k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class RmsBlock(nn.Module):
    """A block of a language model: RMS norms, grouped queries, SwiGLU."""

    def __init__(self, norm: type[nn.Module]):
        super().__init__()
        self.first, self.second = norm(WIDTH), norm(WIDTH)
        self.attention = GroupedQueries(how="expand")
        self.gate, self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.first(x))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    """Embeddings whose weight is also the output layer's; positions; one block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(40, WIDTH), nn.Parameter(torch.randn(1, 32, WIDTH))
        self.block, self.norm = RmsBlock(nn.LayerNorm), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions[:, : tokens.shape[1]]
        return self.head(self.norm(self.block(x)))


class Deep(nn.Module):
    """Tied embeddings without any norm, so that the residual stream itself can lose channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(40, WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(F.gelu(self.up(x)))
        return F.linear(x, self.embed.weight)


class Torch(nn.Module):
    """`nn.MultiheadAttention` between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 5)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.head(mixed)


class Patches(nn.Module):
    """A vision transformer: patches by a strided convolution, a class token, an encoder of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, WIDTH, 4, stride=4), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.block, self.head = encoder_layer(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.block(x)[:, 0])


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=True, activation="gelu")


SEQUENCE = (Normal(2, 5, WIDTH),)
CASES = [
    Case("attention-reshaped", Reshaped, SEQUENCE),
    Case("attention-literal", Literal, SEQUENCE),
    Case("attention-chunked", Chunked, SEQUENCE),
    Case("attention-by-size", lambda: Separate(by_size=True), SEQUENCE),
    Case("attention-by-count", lambda: Separate(by_size=False), SEQUENCE),
    Case("attention-cross", Cross, (Normal(2, 5, WIDTH), Normal(2, 7, 10))),
    Case("grouped-queries-interleave", lambda: GroupedQueries(how="interleave"), SEQUENCE),
    Case("grouped-queries-expand", lambda: GroupedQueries(how="expand"), SEQUENCE),
    Case("grouped-queries-native", lambda: GroupedQueries(how="native"), SEQUENCE),
    Case("rotary", Rotary, SEQUENCE),
    Case("rms-block-torch", lambda: RmsBlock(nn.RMSNorm), SEQUENCE),
    Case("rms-block-written", lambda: RmsBlock(Rms), SEQUENCE),
    Case("language-model", Language, (Tokens(40, 2, 6),)),
    Case("tied-embedding", Deep, (Tokens(40, 2, 6),)),
    Case("multihead-attention", Torch, (Normal(2, 5, 10),)),
    Case("transformer-encoder", encoder_layer, SEQUENCE),
    Case("vision-transformer", Patches, (Normal(2, 3, 8, 8),)),
]
