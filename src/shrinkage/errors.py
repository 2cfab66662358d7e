"""What can go wrong, by kind, and how it is told: what was expected, what was found and what to do."""

import os
import re
import reprlib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

LONGEST = 80  # characters of a value in a message
PACKAGES = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__) if file)


class ShrinkageError(Exception):
    """Base of every error that this package raises."""


class SelectionError(ShrinkageError, ValueError):
    """A rule selects nothing, or two rules penalize the same parameter differently."""


class GroupError(ShrinkageError, ValueError):
    """A tensor cannot be divided into the groups that were asked for."""


class ParameterError(ShrinkageError, TypeError):
    """A parameter cannot be penalized: not floating point, a sparse gradient, behind a parametrization."""


class MetricError(ShrinkageError, TypeError):
    """The metric of an optimizer's step is not known."""


class AttachmentError(ShrinkageError, RuntimeError):
    """A regularizer and an optimizer do not fit together."""


class ActivityError(ShrinkageError, RuntimeError):
    """Penalties of what layers put out cannot be added: the loss of a backward pass is not marked."""


class PlanError(ShrinkageError, ValueError):
    """A plan of a smaller model is damaged, of another version, or of another model."""


class SparseFormatError(ShrinkageError, ValueError):
    """A weight cannot be stored in a sparse format."""


class ShrinkError(ShrinkageError, ValueError):
    """A model cannot be made smaller as asked."""


def warn_user(message: str) -> None:
    """Warn at the line of the user's program that called this package, or the step of torch that calls it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGES):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class where there is none.

    >>> first_line(ValueError("too long\\nfor a table")), first_line(EOFError())
    ('too long', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: object) -> str:
    """Return `value` in few words, for a message: what somebody gave may be a whole model, or a tensor of millions.

    >>> import torch
    >>> shown(0.5), shown(torch.ones(4, 8)), shown(torch.nn.Linear(4, 8))
    ('0.5', 'a float32 tensor of shape (4, 8)', 'a module Linear')
    >>> shown(list(range(1000))), shown([torch.ones(2)])
    ('[0, 1, 2, 3, 4, 5, ...]', '[a float32 tensor of shape (2,)]')
    """
    return Brief().repr(value)


class Brief(reprlib.Repr):
    """The `repr` of a value, shortened; of tensors and modules only what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LONGEST

    def repr1(self, x: object, level: int) -> str:
        """Return `x` as text, containers down to `level`."""
        if isinstance(x, Tensor):
            return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)}"
        if isinstance(x, nn.Module):
            return f"a module {type(x).__name__}"
        return re.sub(r"\s*\n\s*", " ", super().repr1(x, level))


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return names for a message, no more than `most` of them.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d"], most=2), listed([])
    ("'a', 'b'", "'a', 'b' and 2 others", '')
    """
    known = list(names)
    rest = len(known) - most
    others = f" and {rest} other{'s' * (rest > 1)}" if rest > 0 else ""
    return ", ".join(shown(name) for name in known[:most]) + others
