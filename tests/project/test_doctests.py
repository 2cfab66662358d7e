"""Examples in docstrings show what they say; what a file needs is imported only when its examples run."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From where the files of a folder are imported.
FOLDERS = {"src/shrinkage": "src", "examples/digits": "examples", "benchmarks": "."}
MODULES = {
    ".".join(path.relative_to(ROOT / above).with_suffix("").parts): path
    for folder, above in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in path.read_text()
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed
