"""Models whose norms only divide, so that their residual streams can be narrower: after Llama and ConvNeXt V2."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.case import Case, Normal, Tokens


class RootMeanSquare(nn.Module):
    """An RMS norm as it is written by hand, in single precision at least."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return h.type_as(x) * self.weight


def rotated(x: Tensor) -> Tensor:
    """Positions, as angles by which pairs of numbers turn."""
    length, size = x.shape[-2:]
    angles = torch.outer(torch.arange(length), 100.0 ** -(torch.arange(0, size, 2) / size))
    cos, sin = (torch.cat([each, each], -1) for each in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class LlamaAttention(nn.Module):
    """Two queries share keys and values; sizes are read off the input, which is as wide as the queries at first."""

    def __init__(self, width: int, heads: int, shared: int):
        super().__init__()
        self.n_head, self.n_kv, self.head_dim = heads, shared, width // heads
        self.wq, self.wo = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(width, shared * width // heads, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q = rotated(self.wq(x).view(B, T, self.n_head, self.head_dim).transpose(1, 2))
        k = rotated(self.wk(x).view(B, T, self.n_kv, self.head_dim).transpose(1, 2))
        v = self.wv(x).view(B, T, self.n_kv, self.head_dim).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).contiguous().view(B, T, C))


class LlamaBlock(nn.Module):
    """Attention and a gated perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, shared: int):
        super().__init__()
        self.attention_norm, self.ffn_norm = RootMeanSquare(width), nn.RMSNorm(width, eps=1e-5)
        self.attention = LlamaAttention(width, heads, shared)
        self.w1, self.w3 = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.w2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class Llama(nn.Module):
    """Tokens, blocks, a norm and scores of the next token, by the table of the tokens if it is `tied`."""

    def __init__(self, tokens: int = 40, width: int = 32, heads: int = 4, shared: int = 2, *, tied: bool = False):
        super().__init__()
        self.tok_embeddings = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(LlamaBlock(width, heads, shared) for _ in range(2))
        self.norm, self.output = RootMeanSquare(width), nn.Linear(width, tokens, bias=False)
        if tied:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.output(self.norm(h))


class ResponseNorm(nn.Module):
    """Global response normalization: the size of each channel, divided by the mean of all sizes."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return torch.addcmul(self.beta, self.gamma, x * (size / (size.mean(-1, keepdim=True) + self.eps))) + x


class ConvNextBlock(nn.Module):
    """A depthwise convolution, and a perceptron with a response norm, last channels being last."""

    def __init__(self, width: int):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.RMSNorm(width, eps=1e-6)
        self.pwconv1, self.grn, self.pwconv2 = nn.Linear(width, 24), ResponseNorm(24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


def response_network() -> nn.Module:
    blocks = (ConvNextBlock(8) for _ in range(2))
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


CASES = [
    Case("llama-by-hand", Llama, (Tokens(40, 2, 10),)),
    Case("llama-tied", lambda: Llama(tied=True), (Tokens(40, 2, 10),)),
    Case("response-norm", response_network, (Normal(2, 3, 10, 10),)),
]
