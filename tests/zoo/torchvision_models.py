"""The models of torchvision, also next to a build of torch that its compiled operators were not made for.

torchvision is installed without its dependencies, so that it never brings another torch. The wheel's operators load
with the build of torch that PyPI has for the same platform, and fail to load with others, such as the one for CPUs
alone. The import then fails too, because it gives shape rules to operators that nobody declared. No model for
classification or segmentation calls them; declared without an implementation, they are not missed. So torchvision is
imported here and nowhere else.
"""

import importlib.util
from pathlib import Path

import torch

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare() -> torch.library.Library | None:
    """Declare the operators unless the compiled ones load. The declarations live as long as what is returned."""
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        return None
    (compiled,) = Path(specification.origin).parent.glob("_C.*")
    try:
        torch.ops.load_library(str(compiled))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator)
        return library
    return None


LIBRARY = declare()

from torchvision import models  # noqa: E402, after the declarations

__all__ = ["models"]
