"""Whether smaller models leave Python: `PYTHONPATH=src:tests python -m benchmarks.exports [name ...]`.

A third of the groups that `CoupledChannels` finds becomes zero, at random, and `shrink` removes it. The smaller model
is exported with `torch.export`, and from there to ONNX, which runs in onnxruntime. Both are called with three inputs.
Prints a line a model: the largest difference to what the model itself returns, relative to its largest output, by
`torch.export` and by ONNX. Where an exporter fails, it is given the dense model as well: "dense too" means that the
model's own code is beyond it.

Names are those of groups (hand, torchvision, timm, transformers) or of models.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.families import chosen, smaller
from benchmarks.record import surroundings, write
from shrinkage.errors import first_line
from zoo.case import Case
from zoo.harness import difference

SEEDS = (0, 1, 2)
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Exported:
    """How far what an exporter made of a smaller model is from the model, or why there is nothing."""

    group: str
    name: str
    program: float | str
    onnx: float | str

    def __str__(self) -> str:
        texts = [each if isinstance(each, str) else f"{each:.0e}" for each in (self.program, self.onnx)]
        return f"{self.group:13}{self.name:32}{texts[0]:>9}  {texts[1]}"


def with_torch(model: nn.Module, calls: Calls) -> float:
    """Return how far an exported program is from its model."""
    program = torch.export.export(model, *calls[0]).module()
    return difference([model(*a, **k) for a, k in calls], [program(*a, **k) for a, k in calls])


def with_onnx(model: nn.Module, calls: Calls) -> float:
    """Return how far the ONNX of a model, in onnxruntime, is from it."""
    import onnxruntime

    made = torch.onnx.export(torch.export.export(model, *calls[0]), dynamo=True, verbose=False)
    assert made is not None
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    known, found = [], []
    for call in calls:
        arrays = [leaf.numpy() for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
        found.append([torch.from_numpy(each) for each in session.run(None, dict(zip(names, arrays, strict=True)))])
        known.append([leaf for leaf in tree_leaves(model(*call[0], **call[1])) if isinstance(leaf, Tensor)])
    return difference(known, found)


@torch.no_grad()
def measure_export(group: str, case: Case) -> Exported:
    """Return what becomes of a model."""
    calls = [case.example(seed) for seed in SEEDS]
    try:
        dense, small = smaller(case)
    except Exception as error:  # Whatever the models of other versions of a package do.
        return Exported(group, case.name, f"not made: {type(error).__name__}: {first_line(error)}", "")
    program, onnx = (_tried(exporter, small.model, dense, calls) for exporter in (with_torch, with_onnx))
    return Exported(group, case.name, program, onnx if program != onnx or isinstance(onnx, float) else "")


def _tried(exporter: Callable[[nn.Module, Calls], float], small: nn.Module, dense: nn.Module, calls: Calls) -> Any:
    """Return what an exporter gives, or the error, and whether it has one with the dense model too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return exporter(small, calls)
        except Exception as error:  # Whatever exporters raise.
            told = f"{type(error).__name__}: {first_line(error)}"
        try:
            exporter(dense, calls)
        except Exception:
            return f"dense too: {told}"
    return f"FAILS: {told}"


def main() -> None:
    parser = argparse.ArgumentParser("exports", description=__doc__)
    parser.add_argument("names", nargs="*", help="of groups or models; left out, all of them")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/exports.json"))
    options = parser.parse_args()
    results = []
    for group, case in chosen(options.names):
        results.append(measure_export(group, case))
        print(results[-1], flush=True)
    write(options.output, {**surroundings(torch.device("cpu")), "results": results})


if __name__ == "__main__":
    main()
