"""Parameters that are held at 0, or where their penalties draw them to, for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from shrinkage.penalties.base import Penalty


@contextmanager
def at_origin(penalized: Sequence[tuple[Penalty, nn.Parameter]]) -> Iterator[None]:
    """Hold parameters where their penalties draw them to, and give them their values back afterwards."""
    kept = [parameter.detach().clone() for _, parameter in penalized]
    try:
        for penalty, parameter in penalized:
            parameter.detach().copy_(penalty.origin(parameter.detach()))
        yield
    finally:
        for value, (_, parameter) in zip(kept, penalized, strict=True):
            parameter.detach().copy_(value)
