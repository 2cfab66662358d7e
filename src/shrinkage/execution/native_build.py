"""The library of native kernels: built at first use, kept in a folder of the user's own, and loaded.

Nothing here is needed for a result: whatever fails, one line says so, and everything goes on without native kernels.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from shrinkage.errors import first_line
from shrinkage.execution.native_structs import is_right
from shrinkage.execution.native_tensors import let_search

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]

SOURCE = Path(__file__).with_name("native.c")
PARTS = tuple(SOURCE.with_name(f"native_{part}.c") for part in ("zeros", "tensors", "ranking"))  # which it includes
PREBUILT = Path(__file__).with_name("prebuilt")  # what a wheel carries
COMPILERS = ("cc", "gcc", "clang")
FLAGS = (
    *("-std=c11", "-O2", "-ftree-vectorize", "-fPIC", "-shared", "-fvisibility=hidden"),
    # Sums and products as they are written: no flag may change a result, or make it depend on the machine.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
# What torch found that the processor can do, which a variable of the environment can lower.
VECTORS = {"AVX2": ("-mavx2",), "AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq")}
INTEL = ("x86_64", "AMD64")  # machines that have them
SECONDS = 60.0  # for a build, and for that of another process
MOST_KEPT = 32  # libraries: of machines that are not alike, and versions of this package
OFF = "SHRINKAGE_NATIVE"  # a variable of the environment: 0 for no native kernels

_log = logging.getLogger("shrinkage")


class Unavailable(Exception):
    """Why there are no native kernels, in words."""


class _State:
    """What this process knows: the library, once it was asked for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = False
        self.library: ctypes.CDLL | None = None
        self.reason: str | None = None  # why there is none, unless none is wanted


_state = _State()
if hasattr(os, "register_at_fork"):  # another thread of the parent may have held the lock
    os.register_at_fork(after_in_child=lambda: setattr(_state, "lock", threading.Lock()))


def library() -> ctypes.CDLL | None:
    """Return the library of native kernels, built if it is not there yet; None if there is none, which is said once."""
    if not _state.asked:
        with _state.lock:
            if not _state.asked:
                _state.library = found()
                _state.asked = True
    return _state.library


def found() -> ctypes.CDLL | None:
    """Return the library, or say in one line why there is none."""
    if os.environ.get(OFF) == "0":
        return None
    try:
        return loaded(prebuilt() or built())
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        _state.reason = first_line(error)
        _log.warning("native kernels are not used, and steps take longer: %s", _state.reason)
        return None


def reason_for_none() -> str | None:
    """Return why there is no library; None if there is one, or if it was turned off."""
    return None if library() is not None else _state.reason


def prebuilt() -> Path | None:
    """Return the library that came with the package, if it is of this source and for this machine."""
    path = PREBUILT / wheel_name(capability())
    return path if path.is_file() else None


def built() -> Path:
    """Return the library in the cache, built by the compiler at hand where it is not there.

    Raises:
        Unavailable: there is no compiler or no safe folder, or the build failed.
    """
    compiler = compiler_at_hand()
    folder = cache_folder()
    key = cache_key(compiler)
    path = cached(folder, key)
    if path is None:
        with only_one(folder / f"{key}.lock"):
            path = cached(folder, key) or build(compiler, folder, key, flags_for(capability()))
    return path


def build(compiler: str, folder: Path, key: str, flags: Sequence[str]) -> Path:
    """Compile the source into `folder`, under a name that holds the hash of the file, and return its path."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as place:
        target = Path(place) / "native.so"
        command = [compiler, *flags, str(SOURCE), "-o", str(target), "-lm"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode or not target.is_file():
            output = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
            raise Unavailable(f"{compiler} failed with status {done.returncode}: {output.strip()[:200]}")
        path = folder / f"{key}-{hash_of(target.read_bytes())}.so"
        os.replace(target, path)
    for old in sorted(folder.glob("*.so"), key=lambda each: each.stat().st_mtime)[:-MOST_KEPT]:
        old.unlink(missing_ok=True)  # processes that loaded it keep it
    return path


def cached(folder: Path, key: str) -> Path | None:
    """Return the library in `folder` that has this key, is the user's own and is as it was written."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        with contextlib.suppress(OSError):
            if is_own(path) and path.stem == f"{key}-{hash_of(path.read_bytes())}":
                return path
            path.unlink()
    return None


def cache_folder() -> Path:
    """Return the folder of the cache, which only the user can write to; it is made if it is not there.

    Raises:
        Unavailable: it cannot be made, belongs to somebody else, or others can write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "shrinkage"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the folder {folder} cannot be made: {first_line(error)}") from error
    if not is_own(folder) or not folder.is_dir():
        raise Unavailable(f"the folder {folder} is not the user's own, or others can write to it")
    return folder


def is_own(path: Path) -> bool:
    """Return whether `path` is no link, belongs to the user, and can be written by nobody else."""
    status = path.lstat()
    return not path.is_symlink() and status.st_uid == os.geteuid() and not status.st_mode & 0o022


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a lock that one process has at a time; after `SECONDS` of waiting, give up."""
    if fcntl is None:
        raise Unavailable("this system has no locks between processes")
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        end = time.monotonic() + SECONDS
        while not locked(file):
            if time.monotonic() > end:
                raise Unavailable(f"another process has been building for {SECONDS:g} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(file)


def locked(file: int) -> bool:
    """Return whether the lock could be taken now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def compiler_at_hand() -> str:
    """Return the path of a C compiler: that of the variable CC, or the first that is found."""
    names = [name for name in (os.environ.get("CC"), *COMPILERS) if name]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise Unavailable(f"no C compiler is found ({', '.join(names)})")
    return path


def cache_key(compiler: str) -> str:
    """Return a hash of all that a library depends on: homes are shared by machines that are not alike."""
    asked = [compiler, "--version"]
    version = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS).stdout
    system = (platform.system(), platform.machine(), *platform.libc_ver(), capability())
    return hash_of(repr((source_hash(), compiler, version, flags_for(capability()), system)).encode())[:32]


def flags_for(vectors: str) -> tuple[str, ...]:
    """Return the flags of the compiler for this machine, and the vectors that torch calls by this name."""
    return (*FLAGS, *(VECTORS.get(vectors, ()) if platform.machine() in INTEL else ()))


def capability() -> str:
    """Return the name of the vectors that torch uses here."""
    return torch.backends.cpu.get_cpu_capability()


def wheel_name(vectors: str) -> str:
    """Return the name of the library that a wheel carries for this system and machine, and some vectors."""
    name = f"native-{platform.system()}-{platform.machine()}-{vectors}-{source_hash()[:16]}"
    return f"{name.replace(' ', '_').lower()}.so"


def source_hash() -> str:
    """Return the hash of the source, with its parts."""
    return hash_of(b"".join(path.read_bytes() for path in (SOURCE, *PARTS)))


def hash_of(content: bytes) -> str:
    """Return a hash that nobody can find another content for."""
    return hashlib.sha256(content).hexdigest()


def loaded(path: Path) -> ctypes.CDLL:
    """Return the library at `path`, once a call gave what it has to.

    Raises:
        Unavailable: it did not.
    """
    native = ctypes.CDLL(str(path))
    native.shrinkage_use_threads.argtypes = [ctypes.c_void_p]
    native.shrinkage_use_threads.restype = None
    native.shrinkage_use_threads(threads_of_torch())

    if not is_right(native):
        raise Unavailable(f"{path} does not compute what it should; remove it to have it built anew")
    let_search(native)
    return native


def threads_of_torch() -> int | None:
    """Return the address of what starts a team of the threads that torch uses itself; None if it is not found."""
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    return ctypes.cast(start, ctypes.c_void_p).value


def main() -> None:
    """Build what a wheel carries, beside the source: a library for each kind of vectors of this machine."""
    PREBUILT.mkdir(exist_ok=True)
    compiler = compiler_at_hand()
    intel = platform.machine() in INTEL
    for vectors in ("DEFAULT", *VECTORS) if intel else (capability(),):
        with tempfile.TemporaryDirectory() as place:
            path = build(compiler, Path(place), "wheel", flags_for(vectors))
            shutil.copy(path, PREBUILT / wheel_name(vectors))
        print(wheel_name(vectors))


if __name__ == "__main__":
    main()
