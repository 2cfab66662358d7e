"""The tests beside one version of torch, file by file: a run that was interrupted goes on with what has not passed yet.

    make test-matrix TORCH=2.14.1 PART=core

What pytest says of each file goes to runs/matrix/<version>/<file>.xml, and to <file>.txt in words. A file whose result
is older than it or any source is run again.
"""

import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
NO_TESTS = 5  # pytest's exit status where every test is deselected, or the whole file is skipped

# What needs packages beside torch or several processes, or tests more than the library.
WHOLE_FOLDERS = {"distributed", "integrations", "pictures", "cli", "examples", "project"}
WHOLE_FILES = {"test_trainers", "test_zoo", "test_zoo_pruning", "test_zoo_real"}


class Result(NamedTuple):
    """How many tests of a file passed, failed and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: "Result") -> "Result":  # type: ignore[override]
        return Result(*map(sum, zip(self, other, strict=True)))

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def targets(part: str) -> list[str]:
    """What pytest is called with, one call each: the files of tests."""
    files = sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/*/test_*.py"))
    core = [each for each in files if each.parts[1] not in WHOLE_FOLDERS and each.stem not in WHOLE_FILES]
    return [str(each) for each in (files if part == "whole" else core)]


def name_of(target: str) -> str:
    """`sparse` for `tests/compression/test_sparse.py`."""
    return Path(target).stem.removeprefix("test_")


def read(report: Path) -> Result:
    """The numbers in what pytest wrote; a file that could not be run counts as one failure."""
    suites = ET.parse(report).getroot().iter("testsuite") if report.exists() else ()
    counts = [[int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")] for suite in suites]
    if not counts:
        return Result(failed=1)
    tests, failures, errors, skipped = map(sum, zip(*counts, strict=True))
    return Result(tests - failures - errors - skipped, failures + errors, skipped)


def is_current(report: Path) -> bool:
    """Whether a report tells of the sources and tests as they are."""
    files = [path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py")]
    return report.exists() and report.stat().st_mtime > max(path.stat().st_mtime for path in files)


def run(target: str, folder: Path) -> Result:
    """The result of one file: the one that is there if it passed, else of a new run."""
    report = folder / f"{name_of(target)}.xml"
    if is_current(report) and not read(report).failed:
        return read(report)
    report.unlink(missing_ok=True)
    options = ["-m", "not slow", "-q", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # a build for GPUs runs on the CPU
    with report.with_suffix(".txt").open("w") as words:
        status = subprocess.run(
            [sys.executable, "-m", "pytest", target, *options], cwd=ROOT, env=environment, stdout=words, stderr=words
        ).returncode
    result = read(report)
    if status not in (0, NO_TESTS) and not result.failed:
        report.unlink(missing_ok=True)  # it broke down after its tests
        result += Result(failed=1)
    print(f"{name_of(target)}: {result}", flush=True)
    return result


def main() -> int:
    """Run a part of the tests, say how many passed, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["whole", "core"], default="whole")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    folder = ROOT / "runs" / "matrix" / version("torch")
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(chosen.workers) as pool:
        results = list(pool.map(lambda target: run(target, folder), targets(chosen.part)))
    total = sum(results, start=Result())
    python = ".".join(map(str, sys.version_info[:2]))
    print(f"torch {version('torch')}, Python {python}, {chosen.part}: {total}")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
