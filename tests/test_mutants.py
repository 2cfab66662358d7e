"""Deliberately broken versions of the sources: the tests have to catch every one of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shrinkage
from mutants import MUTANTS, Mutant

SOURCE = Path(shrinkage.__file__).parent
TESTS = Path(__file__).parent
PLANTED = [pytest.param(each, id=str(each), marks=() if each.quick else pytest.mark.slow) for each in MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_what_is_broken_is_there(mutant: Mutant):
    assert mutant.original in (SOURCE / mutant.file).read_text(), "the source has changed: plant this mutant anew"


@pytest.mark.parametrize("mutant", PLANTED)
def test_the_suite_catches(mutant: Mutant, tmp_path: Path):
    broken = tmp_path / "shrinkage"
    shutil.copytree(SOURCE, broken, ignore=shutil.ignore_patterns("__pycache__"))
    text = (broken / mutant.file).read_text()
    (broken / mutant.file).write_text(text.replace(mutant.original, mutant.broken))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SHRINKAGE_UNDER_TEST": str(broken)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options = [f"--rootdir={TESTS.parent}", f"--config-file={TESTS.parent / 'pyproject.toml'}"]
    run = subprocess.run(
        [*command, *options, *(["-k", mutant.select] if mutant.select else []), str(TESTS / f"test_{mutant.test}.py")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, f"survived:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
