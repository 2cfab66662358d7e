"""Checks of the packages that `make dist` builds: what is in them, what they say, and whether the installed one works.

    python tests/built_packages.py dist

The wheel is installed in a fresh environment, which takes all other packages from that of the interpreter in use.
"""

import argparse
import subprocess
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("shrinkage", "shrinkage_command")
ABOUT = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
FOLDERS = {".ci", ".github", "benchmarks", "docs", "examples", "src", "tests"}
EXAMPLES = """
import doctest, importlib, pkgutil, sys, warnings
import shrinkage

assert shrinkage.__file__.startswith(sys.prefix), shrinkage.__file__
warnings.simplefilter("ignore")
results = [
    doctest.testmod(importlib.import_module(module.name), optionflags=doctest.ELLIPSIS)
    for module in pkgutil.walk_packages(shrinkage.__path__, "shrinkage.")
]
print(sum(result.attempted for result in results), "examples")
sys.exit(sum(result.failed for result in results))
"""


def built(folder: Path) -> tuple[Path, Path]:
    """The sdist and the wheel in a folder, which has one of each for all machines."""
    (sdist,), (wheel,) = folder.glob("shrinkage-*.tar.gz"), folder.glob("shrinkage-*-py3-none-any.whl")
    return sdist, wheel


def sources() -> set[str]:
    """The files that a wheel has of the packages; native kernels that `make wheel` built are for one machine."""
    files = (path for package in PACKAGES for path in (ROOT / "src" / package).rglob("*") if path.is_file())
    names = (path.relative_to(ROOT / "src") for path in files)
    return {name.as_posix() for name in names if not {"__pycache__", "prebuilt"} & set(name.parts)}


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def check_wheel(found: dict[str, bytes]) -> None:
    """A wheel has every file of the packages, what describes it, and nothing else."""
    about = {name.split(".dist-info/")[1] for name in found if ".dist-info/" in name}
    assert about == ABOUT, about ^ ABOUT
    packaged = {name for name in found if ".dist-info/" not in name}
    assert packaged == sources(), packaged ^ sources()
    assert all(found[name] == (ROOT / "src" / name).read_bytes() for name in packaged)


def check_sdist(sdist: Path) -> None:
    """An sdist has the sources, the tests and the documents, and nothing that was built or noted beside them."""
    with tarfile.open(sdist) as opened:
        names = {Path(*Path(member.name).parts[1:]) for member in opened.getmembers() if member.isfile()}
    assert {f"src/{name}" for name in sources()} <= {name.as_posix() for name in names}
    for name in names - {Path("PKG-INFO")}:
        assert (ROOT / name).is_file(), name
        assert len(name.parts) == 1 or name.parts[0] in FOLDERS, name
    assert {Path(name) for name in ("README.md", "LICENSE", "Makefile", "tests/conftest.py", "docs/index.md")} <= names


def check_metadata(found: dict[str, bytes]) -> None:
    """What the wheel says of itself is valid, needs torch alone, and links to no page of a checkout."""
    (text,) = (content for name, content in found.items() if name.endswith(".dist-info/METADATA"))
    told = Metadata.from_email(text, validate=True)
    assert (told.name, str(told.requires_python)) == ("shrinkage", ">=3.11")
    assert (told.license_expression, told.description_content_type) == ("MIT", "text/markdown")
    needed = [each for each in told.requires_dist or () if not optional(each)]
    assert [each.name for each in needed] == ["torch"], needed
    assert {"cli", "export", "lightning", "sklearn", "transformers"} == set(told.provides_extra or ())
    assert "](docs/" not in (told.description or "")
    assert len((told.description or "").split()) > 500
    (entry,) = (content for name, content in found.items() if name.endswith("entry_points.txt"))
    assert b"shrinkage = shrinkage_command:main" in entry
    (wheel,) = (content for name, content in found.items() if name.endswith(".dist-info/WHEEL"))
    described: Message = message_from_bytes(wheel)
    assert described["Root-Is-Purelib"] == "true"


def optional(requirement: Requirement) -> bool:
    """Whether a requirement is that of an extra."""
    return requirement.marker is not None and "extra" in str(requirement.marker)


def environment(folder: Path, wheel: Path) -> Path:
    """The interpreter of a fresh environment with the wheel, which finds all other packages where this one does."""
    venv.create(folder)  # whose pip is that of the other environment, too
    python = folder / "bin/python"
    (site,) = folder.glob("lib/*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", "--quiet", str(wheel)]
    subprocess.run([python, *install], check=True)
    return python


def check_installed(wheel: Path) -> None:
    """The installed wheel has what it needs, its command answers, and its examples show what they say."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        python = environment(folder / "environment", wheel)
        for command in (
            [python, "-m", "pip", "check"],
            [folder / "environment/bin/shrinkage", "--version"],
            [python, "-I", "-c", EXAMPLES],
        ):
            done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            print(done.stdout.strip())
            assert done.returncode == 0, command


def main() -> None:
    """Check what is in the folder that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sdist and the wheel are")
    sdist, wheel = built(parser.parse_args().folder)
    found = contents(wheel)
    check_wheel(found)
    check_metadata(found)
    check_sdist(sdist)
    check_installed(wheel)
    print(f"{sdist.name} and {wheel.name} are as they should be")


if __name__ == "__main__":
    main()
