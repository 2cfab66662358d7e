"""The walk through the files from the end of a step to a written weight, which a reader follows as well.

A walk is the sequence of files that calls enter from other files, in their order; it climbs where the next file stands
higher, that is, where its longest chain of imports inside the package is longer.
"""

import ast
import functools
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import nn
from torch.optim import AdamW

import shrinkage
from shrinkage import L1, GroupLasso, Regularizer, Rows

SOURCE = Path(shrinkage.__file__).parent
MOST = 6


@functools.cache
def own(code_file: str) -> Path | None:
    """The file as one of this package, if it is."""
    path = Path(code_file)
    return path if path.is_relative_to(SOURCE) else None


@functools.cache
def height(path: Path) -> int:
    """The number of files in the longest chain of imports inside the package that begins with `path`."""
    below = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("shrinkage."):
            module = SOURCE.joinpath(*node.module.split(".")[1:])
            files = [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
            below |= {file for file in files if file.exists()}
    return 1 + max(map(height, below), default=0)


def calls_of_a_step(penalty, compile) -> list[tuple[Path | None, Path, str, int]]:
    """Caller's file, file and name of each call in a step, and how often the weight had been written then."""
    layer = nn.Linear(64, 32, bias=False)
    optimizer = AdamW(layer.parameters(), lr=0.01)
    Regularizer(layer, penalty, compile=compile).attach(optimizer)
    calls: list[tuple[Path | None, Path, str, int]] = []
    generators: list[FrameType] = []  # whose frames come here each time that they go on

    def note(frame, event, argument):
        entered = own(frame.f_code.co_filename) if event == "call" else None
        if entered is None or any(frame is known for known in generators):
            return
        if frame.f_code.co_flags & 0x20:
            generators.append(frame)
        caller = frame.f_back
        while caller is not None and own(caller.f_code.co_filename) is None:
            caller = caller.f_back
        origin = None if caller is None else own(caller.f_code.co_filename)
        calls.append((origin, entered, frame.f_code.co_name, layer.weight._version))

    for _ in range(3):  # the first step looks for what is penalized, and the second may be prepared
        layer.weight.grad = torch.randn(32, 64)
        calls.clear()
        sys.setprofile(note)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
    last = layer.weight._version
    start = next(index for index, (_, _, name, _) in enumerate(calls) if name == "after_step")
    return [call for call in calls[start:] if call[3] < last]


def walk_of(penalty, *, compile) -> tuple[list[Path], int]:
    """The files of a walk, and how often it climbs."""
    walk: list[Path] = []
    for origin, entered, _, _ in calls_of_a_step(penalty, compile):
        if entered not in (origin, *walk[-1:]):
            walk.append(entered)
    return walk, sum(height(other) > height(one) for one, other in pairwise(walk))


def written(walk: list[Path]) -> str:
    return "\n".join(f"{height(path):2} {path.relative_to(SOURCE)}" for path in walk)


PENALTIES = pytest.mark.parametrize("penalty", [L1(1e-3), GroupLasso(1e-3, Rows())], ids=["L1", "GroupLasso"])


@PENALTIES
def test_the_walk_to_a_written_weight_seldom_climbs(penalty):
    walk, climbs = walk_of(penalty, compile=False)
    assert len(walk) > 10
    assert climbs <= MOST, written(walk)


@PENALTIES
def test_the_walk_of_a_prepared_step_is_short(penalty):
    walk, climbs = walk_of(penalty, compile="auto")
    assert SOURCE / "training" / "prepared.py" in walk
    assert len(walk) < 10, written(walk)
    assert climbs <= 2, written(walk)
