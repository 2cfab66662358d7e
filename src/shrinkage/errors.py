"""What can go wrong, by kind. Every message says what was expected, what was found and what to do."""


class ShrinkageError(Exception):
    """Base of every error that this package raises on its own account."""


class SelectionError(ShrinkageError, ValueError):
    """A rule selects nothing, or two rules charge the same parameter differently."""


class GroupError(ShrinkageError, ValueError):
    """A tensor can not be divided into the groups that were asked for."""


class ParameterError(ShrinkageError, TypeError):
    """A parameter can not be charged: not floating point, a sparse gradient, behind a parametrization."""


class MetricError(ShrinkageError, TypeError):
    """The metric of an optimizer's step is not known."""


class AttachmentError(ShrinkageError, RuntimeError):
    """A regularizer and an optimizer do not fit together."""


class PlanError(ShrinkageError, ValueError):
    """A plan of a smaller model is damaged, of another version, or of another model."""


class SparseFormatError(ShrinkageError, ValueError):
    """A weight can not be stored in a sparse format."""


class ShrinkError(ShrinkageError, ValueError):
    """A model can not be made smaller as asked."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class where there is none.

    >>> first_line(ValueError("too long\\nfor a table")), first_line(EOFError())
    ('too long', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
