"""The run beside another torch: what it counts, and what it runs again."""

import os
import sys
from pathlib import Path

import pytest

import torch_versions

FAILS_ONCE = """
from pathlib import Path

marker = Path(__file__).with_suffix(".ran")

def test_twice():
    first = not marker.exists()
    marker.touch()
    assert not first
"""
FILES = {
    "proximal/test_numbers.py": "import pytest\n\ndef test_one(): pass\n\ndef test_two(): pytest.skip('no')\n",
    "proximal/test_changes.py": FAILS_ONCE,
    "proximal/test_aborts.py": "import os\n\ndef test_abort(): os.abort()\n",
    "proximal/test_zoo.py": "def test_of_the_whole(): pass\n",
    "cli/test_command.py": "def test_of_the_whole(): pass\n",
    "proximal/test_broken.py": "import no_such_package\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the tests above, all older than whatever runs them."""
    for folder in ("tests", "tests/proximal", "tests/cli", "src"):
        tmp_path.joinpath(folder).mkdir()
    for name, text in FILES.items():
        path = tmp_path / "tests" / name
        path.write_text(text)
        os.utime(path, (1, 1))
    monkeypatch.setattr(torch_versions, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer to load than the tests to run
    return tmp_path


def run(monkeypatch, capsys, part="core"):
    monkeypatch.setattr(sys, "argv", ["torch_versions.py", "--part", part, "--workers", "1"])
    status = torch_versions.main()
    *lines, total = capsys.readouterr().out.splitlines()
    return status, lines, total


def test_a_second_run_goes_on_with_what_has_not_passed(project, monkeypatch, capsys):
    status, lines, total = run(monkeypatch, capsys)
    assert status == 1
    assert lines == [
        "aborts: 0 passed, 1 failed, 0 skipped",
        "broken: 0 passed, 1 failed, 0 skipped",
        "changes: 0 passed, 1 failed, 0 skipped",
        "numbers: 1 passed, 0 failed, 1 skipped",
    ]
    assert total.endswith("core: 1 passed, 3 failed, 1 skipped")
    for name in ("aborts", "broken"):
        Path(project, "tests/proximal", f"test_{name}.py").unlink()
    status, lines, total = run(monkeypatch, capsys)
    assert status == 0
    assert lines == ["changes: 1 passed, 0 failed, 0 skipped"]
    assert total.endswith("core: 2 passed, 0 failed, 1 skipped")


def test_a_change_of_a_source_makes_results_old(project, monkeypatch, capsys):
    for name in ("aborts", "broken", "changes"):
        Path(project, "tests/proximal", f"test_{name}.py").unlink()
    assert run(monkeypatch, capsys)[0] == 0
    assert run(monkeypatch, capsys)[1] == []
    report = next(project.rglob("numbers.xml"))
    os.utime(report, (1, 1))
    project.joinpath("src", "changed.py").touch()
    assert run(monkeypatch, capsys)[1] == ["numbers: 1 passed, 0 failed, 1 skipped"]


def test_the_whole_has_more_than_the_core(project):
    more = {"tests/proximal/test_zoo.py", "tests/cli/test_command.py"}
    assert not more & set(torch_versions.targets("core"))
    assert more <= set(torch_versions.targets("whole"))


def test_parts_name_files_that_are_there():
    targets = [Path(target) for target in torch_versions.targets("whole")]
    assert {target.parent.name for target in targets} >= torch_versions.WHOLE_FOLDERS
    assert {target.stem for target in targets} >= torch_versions.WHOLE_FILES
