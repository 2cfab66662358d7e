"""Deliberately broken versions of the sources: the tests have to catch every one of them."""

import compileall
import runpy
import shutil
from pathlib import Path

import pytest

import shrinkage
from mutant import Mutant
from mutant_runs import mutant_runs

SOURCE = Path(shrinkage.__file__).parent
TESTS = Path(__file__).parents[1]
MUTANTS: list[Mutant] = [
    each for path in sorted(TESTS.glob("*/mutants.py")) for each in runpy.run_path(str(path))["MUTANTS"]
]
PLANTED = [pytest.param(each, id=str(each), marks=() if each.quick else pytest.mark.slow) for each in MUTANTS]


def test_what_is_broken_is_there():
    for mutant in MUTANTS:
        mutant.found_in(SOURCE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A copy of the sources that is compiled, so that of each mutant only the broken file is."""
    copy = tmp_path_factory.mktemp("compiled") / "shrinkage"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(copy, quiet=1)
    return copy


@pytest.fixture(scope="module")
def run_tests():
    with mutant_runs() as run_tests:
        yield run_tests


@pytest.mark.parametrize("mutant", PLANTED)
def test_the_suite_catches(mutant: Mutant, compiled: Path, run_tests, tmp_path: Path):
    shutil.copytree(compiled, tmp_path / "shrinkage")
    path = tmp_path / "shrinkage" / mutant.found_in(SOURCE).relative_to(SOURCE)
    path.write_text(path.read_text().replace(mutant.original, mutant.broken))
    (tests,) = TESTS.glob(f"*/test_{mutant.test}.py")
    status, output = run_tests(tmp_path, tests, mutant.select)
    assert status == 1, f"survived:\n{output[-2000:]}"
