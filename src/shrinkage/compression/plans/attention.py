"""nn.MultiheadAttention with fewer heads than its width over the size of a head."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shrinkage.compression.plans.tensors import Keep, joined, tensors_of
from shrinkage.errors import PlanError

SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """The attention of `nn.MultiheadAttention` with the heads that a plan keeps.

        head_i = softmax(q_i k_i' / sqrt(head_dim) + mask) v_i,  output = sum over i of W_i head_i + bias

    It is called like the dense layer, and its state has the same keys; the projections have fewer rows. `apply_plan`
    makes one of a dense layer. `head_dim` sets the scale and stays as it was. An `attn_mask` with a mask per head is
    taken with one for each of the `dense_heads` of the dense layer, or one for each of the `kept_heads`.

    Vaswani et al., 2017, Attention Is All You Need, equation 1 and section 3.2.2.
    """

    kept_heads: tuple[int, ...]
    dense_heads: int

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return what the dense layer returns; arguments as there."""
        if query.is_nested:
            return self._of_nested(query, key, value)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is None: expected the causal mask as well")
        q, k, v = self._split(self._projected(query, key, value), query.dim() == 3)
        padding = key_padding_mask if key_padding_mask is None or query.dim() == 3 else key_padding_mask[None]
        hinted = is_causal and padding is None and not need_weights
        mask = self._mask(None if hinted else attn_mask, padding, q, k)
        scale, weights = self.head_dim**-0.5, None
        if need_weights:
            scores = q * scale @ k.mT
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), self.dropout, self.training)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            dropped = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropped, hinted, scale=scale)
        result = F.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if query.dim() == 2:
            return result[0], None if weights is None else weights[0]
        return result if self.batch_first else result.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values of all heads side by side."""
        if query is key and key is value and self.in_proj_weight is not None:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        packed = self.in_proj_weight is not None
        weights = self.in_proj_weight.chunk(3) if packed else [self.get_parameter(name) for name in SEPARATE]
        bias = self.in_proj_bias
        biases = (None,) * 3 if bias is None else torch.split(bias, [len(weight) for weight in weights])
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]

    def _split(self, projected: Sequence[Tensor], batched: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each of shape (samples, heads, positions, size of a head)."""
        if not batched:
            q, k, v = (x[None] for x in projected)
        else:
            q, k, v = projected if self.batch_first else [x.transpose(0, 1) for x in projected]
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, b.to(x).expand(len(x), -1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        heads = self.num_heads
        q, k, v = (torch.unflatten(x, -1, (heads, x.shape[-1] // heads)).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Return both masks as one that is added to scores, for keys that are biases and zeros too."""
        masks = [] if attn_mask is None else [self.of_heads(attn_mask, len(q))]
        masks += [] if padding is None else [padding[:, None, None, :]]
        result = None
        for mask in masks:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
            added = F.pad(mask.to(q.dtype), (0, k.shape[2] - mask.shape[-1]))
            result = added if result is None else result + added
        return result

    def of_heads(self, mask: Tensor, samples: int) -> Tensor:
        """Return a mask of (queries, keys), or of one per sample and head, with axes of samples and heads in front."""
        if mask.dim() == 2:
            return mask[None, None]
        if mask.dim() == 3 and len(mask) == samples * self.num_heads:
            return torch.unflatten(mask, 0, (samples, self.num_heads))
        if mask.dim() == 3 and len(mask) == samples * self.dense_heads:
            kept = torch.tensor(self.kept_heads, device=mask.device)
            return torch.unflatten(mask, 0, (samples, self.dense_heads)).index_select(1, kept)
        raise RuntimeError(
            f"expected attn_mask of shape (queries, keys), or {samples * self.dense_heads} such masks, one for each "
            f"sample and head of the dense layer, found shape {tuple(mask.shape)}"
        )

    def _of_nested(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        """Attend within each sequence of a nested tensor: `nn.TransformerEncoder` makes one of padded sequences."""
        if query is not key or key is not value or not self.batch_first:
            raise RuntimeError("nested tensors: expected batch_first, and one as query, key and value: pad them first")
        lengths = [len(sequence) for sequence in query.unbind()]
        padded = query.to_padded_tensor(0.0)
        places = torch.arange(padded.shape[1], device=padded.device)
        absent = places >= torch.tensor(lengths, device=padded.device)[:, None]
        attended, _ = self(padded, padded, padded, key_padding_mask=absent, need_weights=False)
        return torch.nested.as_nested_tensor([x[:n] for x, n in zip(attended, lengths, strict=True)]), None

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts: Any = super().__reduce_ex__(protocol)
        made, arguments, *state = parts
        dense = vars(type(self)).get("dense_class")
        return (made, arguments, *state) if dense is None else (_empty, (dense,), *state)


CLASSES: dict[type[nn.Module], type[PrunedMultiheadAttention]] = {nn.MultiheadAttention: PrunedMultiheadAttention}


def _pruned_class(dense: type[nn.MultiheadAttention]) -> type[PrunedMultiheadAttention]:
    """Return the class of a layer of class `dense` without some heads; its own code runs as before."""
    if issubclass(dense, PrunedMultiheadAttention):
        return dense
    if dense not in CLASSES:
        names = {"__module__": dense.__module__, "__qualname__": dense.__qualname__, "dense_class": dense}
        CLASSES[dense] = type(dense.__name__, (dense, PrunedMultiheadAttention), names)
    return CLASSES[dense]


def _empty(dense: type[nn.MultiheadAttention]) -> PrunedMultiheadAttention:
    cls = _pruned_class(dense)
    return cls.__new__(cls)


def prune_heads_(layer: nn.MultiheadAttention, dense: nn.MultiheadAttention, heads: Sequence[int]) -> None:
    """Let `layer`, a copy of `dense` whose tensors are cut, compute with those of its heads that it keeps."""
    known = dense.kept_heads if isinstance(dense, PrunedMultiheadAttention) else range(dense.num_heads)
    count = dense.dense_heads if isinstance(dense, PrunedMultiheadAttention) else dense.num_heads
    # So that no layer around it takes the path in C++, which takes the size of a head from the width.
    layer._qkv_same_embed_dim = False
    layer.__class__ = _pruned_class(type(dense))
    vars(layer).update(kept_heads=tuple(known[head] for head in heads), dense_heads=count)


def with_prunable_heads(model: nn.Module) -> nn.Module:
    """Return `model`, a copy, whose attention computes in the form that it has without some heads."""
    for layer in model.modules():
        if isinstance(layer, nn.MultiheadAttention):
            prune_heads_(layer, layer, range(layer.num_heads))
    return model


def kept_heads(layer: nn.MultiheadAttention, kept: Mapping[str, Mapping[int, Sequence[int]]]) -> list[int]:
    """Return the heads of `layer` of which something stays.

    Args:
        layer: the dense one.
        kept: which indices of its tensors stay, by name and dimension.

    Raises:
        PlanError: queries, keys and values would keep different heads, or a part of one.
    """
    if layer.in_proj_weight is not None:
        totals = [len(layer.in_proj_weight) // 3] * 3
        rows = kept.get("in_proj_weight", {}).get(0, range(sum(totals)))
        ends = [0, *accumulate(totals)]
        parts = [[row - start for row in rows if start <= row < end] for start, end in pairwise(ends)]
    else:
        totals = [len(layer.get_parameter(name)) for name in SEPARATE]
        parts = [list(kept.get(n, {}).get(0, range(total))) for n, total in zip(SEPARATE, totals, strict=True)]
    sizes = [total // layer.num_heads for total in totals]
    heads = [sorted({row // size for row in part}) for part, size in zip(parts, sizes, strict=True)]
    whole = layer.num_heads == 1 or all(
        len(p) == len(heads[0]) * size for p, size in zip(parts[:2], sizes, strict=False)
    )
    if heads[0] != heads[1] or heads[0] != heads[2] or parts[0] != parts[1] or not whole:
        raise PlanError(
            f"the {type(layer).__name__} has {layer.num_heads} heads of {sizes[0]} rows, which stay or go as a whole: "
            f"expected the rows of the same heads of queries, keys and values, found those of heads {heads}"
        )
    return heads[0]


def heads_left(model: nn.Module, keep: Keep) -> dict[str, tuple[nn.MultiheadAttention, list[int]]]:
    """Return the attention layers that are cut, by dotted name, each with the heads that stay."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            names = {name: joined(path, name) for name in tensors_of(module)}
            kept = {name: keep[full] for name, full in names.items() if full in keep}
            if kept:
                found[path] = module, kept_heads(module, kept)
    return found
