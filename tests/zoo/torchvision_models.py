"""The models of torchvision, next to any build of torch.

torchvision's wheel has compiled operators. They load with the build of torch that PyPI has for the same platform, and
not with others, such as the one for CPUs alone; then `import torchvision` fails, because it gives shape rules to
operators that nobody declared, and with it fails everything that imports torchvision where it finds it. So it is
installed without its dependencies into a folder that is not on the path, and the operators are declared here. No model
for classification or segmentation calls them, so they need no implementation.

Whatever needs torchvision stands in that folder with it: `with aside(): import timm`.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ASIDE = Path(sys.prefix) / "aside"
COMPILED = "_C*.so"  # of torchvision 0.29 it is `_C_stable.so`; operators that are declared twice abort the process
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare() -> torch.library.Library | None:
    """Declare the operators unless the compiled ones load. The declarations live as long as what is returned."""
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        return None
    try:
        torch.ops.load_library(str(next(Path(specification.origin).parent.glob(COMPILED))))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator)
        return library
    return None


@contextmanager
def aside() -> Iterator[None]:
    """Find what stands aside as well, after what is installed as usual."""
    sys.path.append(str(ASIDE))
    try:
        yield
    finally:
        sys.path.remove(str(ASIDE))


with aside():
    LIBRARY = declare()
    from torchvision import models

__all__ = ["aside", "models"]
