"""The proximal operator of the sum of differences between neighbours, exact in a diagonal metric."""

import torch
from torch import Tensor


def total_variation(w: Tensor, weights: Tensor, strengths: Tensor) -> Tensor:
    """Return argmin over y of 1/2 sum weights (y - w)^2 + sum strengths |y_{i+1} - y_i| for each row.

    Dynamic programming over the derivative of the best objective as a function of the last element: piecewise linear,
    clipped to [-strength, strength] at each neighbour, with its knots in a deque. All rows go together; a row that has
    fewer knots to remove waits for the others.

    Args:
        w: `(rows, size)`, finite.
        weights: > 0, `(rows, size)`: one over the step of the proximal operator.
        strengths: >= 0, `(rows, size - 1)`.

    Reference: Johnson (2013), "A dynamic programming algorithm for the fused lasso and L0-segmentation", section 3.

    >>> total_variation(torch.tensor([[0.0, 0.0, 3.0]]), torch.ones(1, 3), torch.ones(1, 2))
    tensor([[0.5000, 0.5000, 2.0000]])
    """
    size = w.shape[1]
    if size < 2:
        return w.clone()
    knots = Knots(w, size)
    bounds = []
    incoming = torch.zeros_like(w[:, 0])
    for i in range(size - 1):
        slope, offset = weights[:, i], -weights[:, i] * w[:, i]
        low = knots.clip_left(slope, offset - incoming, -strengths[:, i])
        high = knots.clip_right(slope, offset + incoming, strengths[:, i])
        bounds.append((low, high))
        incoming = strengths[:, i]
    last = knots.clip_left(weights[:, -1], -weights[:, -1] * w[:, -1] - incoming, torch.zeros_like(incoming))
    y = [last]
    for low, high in reversed(bounds):
        y.append(torch.minimum(torch.maximum(y[-1], low), high))
    return torch.stack(y[::-1], dim=1)


class Knots:
    """A deque of knots per row: where a piecewise linear function bends, and by how much slope and offset change."""

    def __init__(self, like: Tensor, size: int) -> None:
        rows = len(like)
        self.places, self.slopes, self.offsets = (like.new_zeros(rows, 2 * size) for _ in range(3))
        self.first = torch.full((rows, 1), size, device=like.device)
        self.last = self.first - 1

    def clip_left(self, slope: Tensor, offset: Tensor, value: Tensor) -> Tensor:
        """Cut the function off below `value`, and return where it reaches it.

        `slope` and `offset` are those of the line left of all knots.
        """
        while True:
            place, bend, shift = self._at(self.first)
            passed = (self.first <= self.last)[:, 0] & (slope * place + offset <= value)
            if not passed.any():
                break
            slope, offset = slope + bend * passed, offset + shift * passed
            self.first += passed[:, None].long()
        root = (value - offset) / slope
        self.first -= 1
        self._put(self.first, root, slope, offset - value)
        return root

    def clip_right(self, slope: Tensor, offset: Tensor, value: Tensor) -> Tensor:
        """Cut the function off above `value`, and return where it reaches it.

        `slope` and `offset` are those of the line right of all knots. The first, where
        it was cut off below, stays.
        """
        while True:
            place, bend, shift = self._at(self.last)
            passed = (self.first < self.last)[:, 0] & (slope * place + offset >= value)
            if not passed.any():
                break
            slope, offset = slope - bend * passed, offset - shift * passed
            self.last -= passed[:, None].long()
        root = (value - offset) / slope
        self.last += 1
        self._put(self.last, root, -slope, value - offset)
        return root

    def _at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return place, change of slope and change of offset of one knot per row."""
        index = index.clamp(0, self.places.shape[1] - 1)
        place, slope, offset = (held.gather(1, index)[:, 0] for held in (self.places, self.slopes, self.offsets))
        return place, slope, offset

    def _put(self, index: Tensor, place: Tensor, slope: Tensor, offset: Tensor) -> None:
        """Set one knot per row."""
        self.places.scatter_(1, index, place[:, None])
        self.slopes.scatter_(1, index, slope[:, None])
        self.offsets.scatter_(1, index, offset[:, None])
