"""Deliberately broken versions of the sources: the tests have to catch every one of them."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shrinkage
from mutant import Mutant

SOURCE = Path(shrinkage.__file__).parent
TESTS = Path(__file__).parents[1]
MUTANTS: list[Mutant] = [
    each for path in sorted(TESTS.glob("*/mutants.py")) for each in runpy.run_path(str(path))["MUTANTS"]
]
PLANTED = [pytest.param(each, id=str(each), marks=() if each.quick else pytest.mark.slow) for each in MUTANTS]


def test_what_is_broken_is_there():
    for mutant in MUTANTS:
        mutant.found_in(SOURCE)


@pytest.mark.parametrize("mutant", PLANTED)
def test_the_suite_catches(mutant: Mutant, tmp_path: Path):
    broken = tmp_path / "shrinkage"
    shutil.copytree(SOURCE, broken, ignore=shutil.ignore_patterns("__pycache__"))
    path = mutant.found_in(broken)
    path.write_text(path.read_text().replace(mutant.original, mutant.broken))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SHRINKAGE_UNDER_TEST": str(broken)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options = [f"--rootdir={TESTS.parent}", f"--config-file={TESTS.parent / 'pyproject.toml'}"]
    (tests,) = TESTS.glob(f"*/test_{mutant.test}.py")
    run = subprocess.run(
        [*command, *options, *(["-k", mutant.select] if mutant.select else []), str(tests)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, f"survived:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
