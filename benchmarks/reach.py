"""What share of the parameters of a model can go: `PYTHONPATH=src:tests python -m benchmarks.reach [group ...]`.

A parameter can go if it makes or reads a channel of some group of `CoupledChannels`. The models are those of the tests'
zoo, written by hand, and models of timm and transformers from configurations, with random weights. Prints one line a
model, and the medians of each group: by default, with `residual=True`, and then as if no norm held the channels that it
is taken over.
"""

import statistics
import sys
import warnings
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.families import GROUPS
from shrinkage import CoupledChannels, GroupError
from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.compression.tracing.coupling import Coupling, couple
from zoo.case import Case

MEASURED = ("hand", "timm", "transformers")
NORMS = ("layer norm", "normalized over the channels", "mean over channels")


class Reach(NamedTuple):
    """How many parameters a model has, which share of them can go, with the residual stream, and but for norms."""

    parameters: int
    share: float
    residual: float
    but_for_norms: float


def reach(case: Case) -> Reach:
    """Return what can go of the model of a case."""
    model, (args, kwargs) = case.make(), case.example()
    coupling = couple(model, args, example_kwargs=kwargs)
    shares = []
    for residual in (False, True):
        goes = torch.zeros(coupling.labels.count, dtype=torch.bool)
        try:
            for member in CoupledChannels(model, args, example_kwargs=kwargs, residual=residual).members:
                inside = torch.tensor(member.groups) >= 0
                goes[coupling.axes[member.parameter, member.dim][inside]] = True
        except GroupError:  # which says that nothing can go
            pass
        shares.append(_share(model, coupling, goes))
    for root, reason in coupling.pinned.items():
        goes[root] |= any(phrase in reason for phrase in NORMS)
    return Reach(sum(p.numel() for p in model.parameters()), shares[0], shares[1], _share(model, coupling, goes))


def _share(model: nn.Module, coupling: Coupling, goes: torch.Tensor) -> float:
    """Return the share of the parameters that goes when all channels go that can."""
    own = {parameter: name for name, parameter in tensors_of(model).items() if isinstance(parameter, nn.Parameter)}
    left = sum(
        prod(int((~goes[coupling.axes[name, dim]]).sum()) for dim in range(parameter.dim()))
        for parameter, name in own.items()
    )
    return 1 - left / sum(parameter.numel() for parameter in own)


def measured(name: str) -> Iterator[Reach]:
    """Print and yield the reach of the models of a group."""
    for case in GROUPS[name]():
        try:
            found = reach(case)
        except Exception as error:  # Whatever the models of other versions of a package do.
            print(f"{name:14}{case.name:34}not measured: {str(error).splitlines()[0][:90]}", flush=True)
            continue
        shares = "".join(f"{share:8.3f}" for share in found[1:])
        print(f"{name:14}{case.name:34}{found.parameters:>11,}{shares}", flush=True)
        yield found


def main() -> None:
    warnings.simplefilter("ignore")
    tables = {name: list(measured(name)) for name in sys.argv[1:] or MEASURED}
    print(f"\n{'group':14}{'models':>8}{'default':>10}{'residual':>10}{'but for norms':>15}{'below half':>12}")
    for name, found in tables.items():
        medians = [statistics.median(each[column] for each in found) for column in (1, 2, 3)]
        below = sum(each.but_for_norms < 0.5 for each in found)
        print(f"{name:14}{len(found):>8}{medians[0]:>10.3f}{medians[1]:>10.3f}{medians[2]:>15.3f}{below:>12}")


if __name__ == "__main__":
    main()
