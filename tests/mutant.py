"""A defect to plant in a copy of the sources, and the tests that have to notice it.

Each folder of tests lists its own in `mutants.py`; `project/test_mutants.py` plants them, one at a time.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def texts_in(source: Path) -> dict[Path, str]:
    """What each file below `source` says, read once for all mutants."""
    return {path: path.read_text() for path in source.rglob("*.[cp]*") if path.suffix in (".py", ".c")}


@dataclass(frozen=True)
class Mutant:
    """One change of one text, and the test file that has to notice it: `"thresholds"` is `test_thresholds.py`.

    The text is looked for in all files of Python; `file` says which one is meant if several have it, or one of C.
    `select` names the tests that run. `make test` plants the quick ones, `make test-all` plants all.
    """

    original: str
    broken: str
    test: str
    select: str = ""
    file: str = ""
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.test}: {self.broken.strip()[:60]}"

    def found_in(self, source: Path) -> Path:
        """The one file below `source` that has the text."""
        texts = texts_in(source)
        files = [source / self.file] if self.file else [path for path in texts if path.suffix == ".py"]
        found = [path for path in files if self.original in texts[path]]
        if len(found) != 1:
            raise LookupError(f"{len(found)} files have the text {self.original!r}: plant this mutant anew")
        return found[0]
