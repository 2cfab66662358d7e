"""What cannot run here is skipped, and says why."""

from collections.abc import Iterator
from contextlib import contextmanager

from shrinkage.errors import first_line


class SkippedError(Exception):
    """Something cannot run here; its message is the word in the table."""


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Skip what is inside if `package` cannot be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SkippedError(f"{(error.name or package).partition('.')[0]} is not installed") from error
    except (ImportError, OSError) as error:  # a build for another torch
        raise SkippedError(f"{package} cannot be imported: {first_line(error)}") from error
