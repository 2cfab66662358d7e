"""Runs of pytest beside copies of the sources, each in a fork of one process: only that process imports torch.

`mutant_runs` starts this file as a script, which reads one run a line and prints its exit status.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Plugins are left out, as they take longer to load than most mutants to be noticed.
OPTIONS = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider"]
NATIVE = ("test_native", "test_prepared")  # files that test native kernels
OPTIONS += [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]


@contextmanager
def mutant_runs() -> Iterator[Callable[[Path, Path, str], tuple[int, str]]]:
    """A function that runs those tests of a file that have a name, beside the package in a folder.

    It returns the exit status of pytest and what pytest wrote.
    """
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runs:

        def run_tests(folder: Path, tests: Path, select: str) -> tuple[int, str]:
            arguments = [*OPTIONS, *(["-k", select] if select else []), str(tests)]
            print(json.dumps([str(folder), arguments]), file=runs.stdin, flush=True)
            return int(runs.stdout.readline()), (folder / "output").read_text()

        yield run_tests


def run(folder: str, arguments: list[str]) -> int:
    """Run pytest in this process, beside the package in `folder`."""
    output = os.open(f"{folder}/output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.path[0] = folder
    paths = {"PYTHONPATH": folder, "SHRINKAGE_UNDER_TEST": f"{folder}/shrinkage"}
    os.environ.update(paths, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    if not Path(arguments[-1]).stem.startswith(NATIVE):
        os.environ["SHRINKAGE_NATIVE"] = "0"  # kernels would do the steps that a defect is in
    return int(pytest.main(arguments))


if __name__ == "__main__":
    import hypothesis  # noqa: F401
    import pytest
    import torch  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 99
            try:
                status = run(*json.loads(line))
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
