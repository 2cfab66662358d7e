"""What the weights of recurrent layers tell of units: which rows make one silent, and which go in even numbers."""

from collections.abc import Mapping, Sequence

from shrinkage.compression.tracing.channels import Channels
from shrinkage.compression.tracing.export import Subgraph


def candidates(found: Sequence[Subgraph], own: Mapping[str, Channels]) -> dict[str, range]:
    """Return the rows of parameters of recurrent layers that make what is new in a unit."""
    rows: dict[int, range] = {}
    for subgraph in found:
        for direction in (each for directions in subgraph.recurrent for each in directions):
            for node in direction.of_gates:
                if node in subgraph.owned:
                    tensor = own[subgraph.owned[node]]
                    units = tensor.shape[0] // direction.gates
                    rows[id(tensor)] = range(direction.candidate * units, (direction.candidate + 1) * units)
    return {name: rows[id(tensor)] for name, tensor in own.items() if id(tensor) in rows}


def even(found: Sequence[Subgraph]) -> tuple[tuple[str, ...], ...]:
    """Return the weights of several layers or directions whose units, or projections, one number counts."""
    several: list[tuple[str, ...]] = []
    for subgraph in found:
        for directions in subgraph.recurrent:
            for nodes in ([each.fed_back for each in directions], [each.projection for each in directions]):
                names = [subgraph.owned[node] for node in nodes if node in subgraph.owned]
                several += [tuple(names)] if len(names) > 1 else []
    return tuple(several)
