"""How the library of native kernels is built, kept and loaded; whatever goes wrong ends in the plain path."""

import logging
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from shrinkage import L1, AttachmentError, Regularizer
from shrinkage.execution import native, native_build
from shrinkage.execution.task import Task

built = native_build.library()
pytestmark = pytest.mark.skipif(built is None or sys.platform == "win32", reason="there is no compiler, or no POSIX")

COMPILER = """#!{python} -S
import os, shutil, sys, time
if sys.argv[1:] == ["--version"]:
    print("a compiler")
    sys.exit()
with open({log!r}, "a") as log:
    log.write("built\\n")
time.sleep({seconds})
{last}
"""
COPY = "shutil.copy({library!r}, sys.argv[sys.argv.index('-o') + 1])"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, with nothing in its cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native_build, "_state", native_build._State())
    return tmp_path


def with_compiler(home: Path, monkeypatch, *, last: str | None = None, seconds: float = 0.0) -> Path:
    """A compiler that copies the library, or does something else at last; returns the log of its builds."""
    log = home / "log"
    copy = COPY.format(library=built._name)
    script = home / "compiler"
    script.write_text(COMPILER.format(python=sys.executable, log=str(log), seconds=seconds, last=last or copy))
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return log


def builds(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def plain_path_says(caplog) -> str:
    """What is said once, and that a step goes on without native kernels."""
    with caplog.at_level(logging.WARNING, logger="shrinkage"):
        task = Task(L1(0.1), torch.ones(3), 1.0)
        for _ in range(2):
            assert native.shrink_all_([task]) == [task]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "\n" not in message
    return message


def test_it_is_built_once_and_found_again(home, monkeypatch):
    log = with_compiler(home, monkeypatch)
    first, second = native_build.built(), native_build.built()
    assert first == second
    assert builds(log) == 1
    folder = first.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.suffix for path in folder.iterdir()} == {".so", ".lock"}


def test_the_source_is_short_and_in_the_package():
    for path in (native_build.SOURCE, *native_build.PARTS):
        assert path.is_file()
        assert len(path.read_text().splitlines()) < 1200


def test_nothing_is_built_at_import(home, monkeypatch):
    log = with_compiler(home, monkeypatch)
    subprocess.run([sys.executable, "-c", "import shrinkage.execution.native"], check=True, env=os.environ)
    assert builds(log) == 0


@pytest.mark.parametrize("change", ["source", "part", "flags", "capability", "compiler"])
def test_the_key_follows_all_that_a_library_depends_on(change, home, monkeypatch):
    with_compiler(home, monkeypatch)
    compiler = native_build.compiler_at_hand()
    before = native_build.cache_key(compiler)
    assert native_build.cache_key(compiler) == before
    if change == "source":
        source = home / "native.c"
        source.write_bytes(native_build.SOURCE.read_bytes() + b"\n")
        monkeypatch.setattr(native_build, "SOURCE", source)
    elif change == "part":
        part = home / "part.c"
        part.write_bytes(native_build.PARTS[0].read_bytes() + b"\n")
        monkeypatch.setattr(native_build, "PARTS", (part,))
    elif change == "flags":
        monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-g"))
    elif change == "capability":
        monkeypatch.setattr(native_build, "capability", lambda: "another")
    else:
        path = Path(compiler)
        path.write_text(path.read_text().replace("a compiler", "another compiler"))
    assert native_build.cache_key(compiler) != before


def test_old_libraries_are_removed(home, monkeypatch):
    with_compiler(home, monkeypatch)
    monkeypatch.setattr(native_build, "MOST_KEPT", 2)
    for name in ("one", "two", "three"):
        monkeypatch.setattr(native_build, "capability", lambda name=name: name)
        path = native_build.built()
        os.utime(path, (0, 0) if name == "one" else None)
    assert len(list(path.parent.glob("*.so"))) == 2
    assert path.exists()


@pytest.mark.parametrize("damage", ["content", "cut", "link", "writable"])
def test_what_was_changed_in_the_cache_is_built_anew(damage, home, monkeypatch):
    log = with_compiler(home, monkeypatch)
    path = native_build.built()
    if damage == "content":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "link":
        other = home / "other.so"
        path.rename(other)
        path.symlink_to(other)
    else:
        path.chmod(0o777)
    again = native_build.built()
    assert builds(log) == 2
    assert native_build.is_own(again)
    assert again.stem.endswith(native_build.hash_of(again.read_bytes()))


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(mode, home, monkeypatch, caplog):
    log = with_compiler(home, monkeypatch)
    folder = home / "cache" / "shrinkage"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert "others can write" in plain_path_says(caplog)
    assert builds(log) == 0


def test_a_folder_of_somebody_else_is_not_used(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "not the user's own" in plain_path_says(caplog)


def test_a_home_that_cannot_be_written_to(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch)
    (home / "cache").write_text("a file in the place of the folder")
    assert "cannot be made" in plain_path_says(caplog)


def test_a_full_disk(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native_build.tempfile, "TemporaryDirectory", full)
    assert "No space left" in plain_path_says(caplog)


def test_no_compiler(home, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in plain_path_says(caplog)


def test_a_compiler_that_fails(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch, last="sys.exit('native.c:1: error: too new\\nmore')")
    assert "too new" in plain_path_says(caplog)


def test_a_compiler_that_writes_something_else(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch, last="open(sys.argv[sys.argv.index('-o') + 1], 'w').write('no library')")
    assert "native kernels are not used" in plain_path_says(caplog)


def test_a_compiler_that_does_not_end(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch, seconds=5)
    monkeypatch.setattr(native_build, "SECONDS", 0.5)
    assert "timed out" in plain_path_says(caplog)


def test_a_library_that_computes_something_else(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch)
    monkeypatch.setattr(native_build, "is_right", lambda library: False)
    assert "does not compute" in plain_path_says(caplog)


def test_who_insists_on_kernels_is_told_why_there_are_none(home, monkeypatch):
    """Before anything is attached; "auto" goes on, and so does who turned them off."""
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("CC", raising=False)
    layer = nn.Linear(3, 2)
    optimizer = SGD(layer.parameters(), lr=0.1)
    regularizer = Regularizer(layer, L1(0.1), compile=True)
    with pytest.raises(AttachmentError, match=r"compile=True .* no C compiler is found"):
        regularizer.attach(optimizer)
    assert not optimizer._optimizer_step_post_hooks
    Regularizer(layer, L1(0.1)).attach(optimizer)
    monkeypatch.setenv(native_build.OFF, "0")
    monkeypatch.setattr(native_build, "_state", native_build._State())
    regularizer.attach(SGD(layer.parameters(), lr=0.1))


def test_a_variable_turns_it_off(home, monkeypatch, caplog):
    log = with_compiler(home, monkeypatch)
    monkeypatch.setenv(native_build.OFF, "0")
    assert native_build.library() is None
    assert not caplog.records
    assert builds(log) == 0


def test_a_wheel_carries_it(home, monkeypatch):
    with_compiler(home, monkeypatch, last="sys.exit(1)")
    monkeypatch.setattr(native_build, "PREBUILT", home)
    assert native_build.prebuilt() is None
    name = native_build.wheel_name(native_build.capability())
    (home / name).write_bytes(Path(built._name).read_bytes())
    assert native_build.prebuilt() == home / name
    assert native_build.library() is not None


def build_in_a_process(queue) -> None:
    queue.put(str(native_build.built()))


def test_two_processes_build_it_once(home, monkeypatch):
    log = with_compiler(home, monkeypatch, seconds=0.5)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=build_in_a_process, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    paths = {queue.get() for _ in processes}
    for process in processes:
        process.join()
    assert len(paths) == 1
    assert builds(log) == 1


def test_who_waits_for_another_process_gives_up(home, monkeypatch, caplog):
    with_compiler(home, monkeypatch)
    monkeypatch.setattr(native_build, "SECONDS", 0.2)
    key = native_build.cache_key(native_build.compiler_at_hand())
    with native_build.only_one(native_build.cache_folder() / f"{key}.lock"):
        assert "another process" in plain_path_says(caplog)
