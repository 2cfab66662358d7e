"""The models of torchvision, next to any build of torch.

torchvision's wheel has compiled operators. They load with the build of torch that PyPI has for the same platform, and
not with others, such as the one for CPUs alone; then `import torchvision` fails, because it gives shape rules to
operators that nobody declared, and with it fails everything that imports torchvision where it finds it. So it is
installed without its dependencies into a folder that is not on the path, and the operators are declared here. No model
for classification or segmentation calls them, so they need no implementation.
"""

import importlib.util
import sys
from pathlib import Path

import torch

ASIDE = Path(sys.prefix) / "aside"
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
        torch.ops.load_library(str(next(Path(specification.origin).parent.glob("_C.*"))))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator)
        return library
    return None


sys.path.append(str(ASIDE))  # a torchvision that is installed as usual comes first
try:
    LIBRARY = declare()
    from torchvision import models
finally:
    sys.path.remove(str(ASIDE))

__all__ = ["models"]
