"""What `make dist` builds is complete, and its checks notice what is not."""

import subprocess
import sys
from pathlib import Path

import pytest

import built_packages as checks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    pytest.importorskip("build", reason="`make` installs it")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-3000:]
    return checks.built(folder)


@pytest.mark.slow
def test_the_packages_have_what_they_should(packages):
    sdist, wheel = packages
    found = checks.contents(wheel)
    checks.check_wheel(found)
    checks.check_metadata(found)
    checks.check_sdist(sdist)


@pytest.mark.slow
def test_the_installed_wheel_works(packages):
    checks.check_installed(packages[1])


def told(**changes):
    """The files of a wheel that is as it should be but for changes of what it says of itself."""
    lines = {
        "Metadata-Version": "2.4",
        "Name": "shrinkage",
        "Version": "0.1.0",
        "Requires-Python": ">=3.11",
        "License-Expression": "MIT",
        "Description-Content-Type": "text/markdown",
    }
    extras = ("cli", "export", "lightning", "sklearn", "transformers")
    more = [*(f"Provides-Extra: {name}" for name in extras), "Requires-Dist: torch>=2.10"]
    more += ["Requires-Dist: scikit-learn>=1.7; extra == 'sklearn'", *changes.pop("more", ())]
    text = changes.pop("text", "word " * 501)
    head = [f"{name}: {value}" for name, value in (lines | changes).items()]
    folder = "shrinkage-0.1.0.dist-info"
    return {
        f"{folder}/METADATA": "\n".join([*head, *more, "", text]).encode(),
        f"{folder}/entry_points.txt": b"[console_scripts]\nshrinkage = shrinkage_command:main\n",
        f"{folder}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
    }


def test_metadata_that_is_as_it_should_be_passes():
    checks.check_metadata(told())


@pytest.mark.parametrize(
    "changes",
    [
        {"Requires-Python": ">=3.9"},
        {"License-Expression": "BSD-3-Clause"},
        {"more": ["Requires-Dist: numpy"]},
        {"more": ["Provides-Extra: dev"]},
        {"text": "word " * 501 + "[page](docs/page.md)"},
        {"text": "short"},
        {"Version": "not a version"},
    ],
    ids=str,
)
def test_other_metadata_does_not_pass(changes):
    with pytest.raises((AssertionError, ExceptionGroup)):
        checks.check_metadata(told(**changes))


def test_a_wheel_without_a_file_or_with_another_one_does_not_pass():
    whole = {name: (ROOT / "src" / name).read_bytes() for name in checks.sources()}
    whole |= {f"shrinkage-0.1.0.dist-info/{name}": b"" for name in checks.ABOUT}
    checks.check_wheel(whole)
    for other in (
        {name: text for name, text in whole.items() if name != "shrinkage/execution/native.c"},
        whole | {"shrinkage/execution/prebuilt/native.so": b""},
        whole | {"tests/conftest.py": b""},
        whole | {"shrinkage/tables.py": b"old"},
    ):
        with pytest.raises(AssertionError):
            checks.check_wheel(other)
