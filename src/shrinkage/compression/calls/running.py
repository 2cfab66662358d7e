"""Which modules of a model run, at any time of a call."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that has, at any time, the dotted names of the modules of `model` whose code runs."""
    paths: list[str] = []
    handles = []
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: paths.append(path)))
            handles.append(module.register_forward_hook(lambda *_: _left(paths), always_call=True))
    try:
        yield paths
    finally:
        for handle in handles:
            handle.remove()


def _left(paths: list[str]) -> None:
    paths.pop()  # which is not returned: what a hook returns takes the place of the output
