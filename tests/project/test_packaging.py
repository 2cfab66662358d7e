"""What the package asks for, and what developing it does."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def canonical(requirement: str) -> str:
    """The name of the package, as indices compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_torch_is_needed_alone_and_without_an_upper_bound():
    (torch,) = PROJECT["project"]["dependencies"]
    assert re.fullmatch(r"torch>=[\d.]+", torch)


def test_what_developing_needs_is_no_extra():
    assert set(PROJECT["dependency-groups"]) == {"dev", "bench", "site"}
    assert set(PROJECT["project"]["optional-dependencies"]) == {"cli", "lightning", "transformers", "sklearn", "export"}


@pytest.mark.parametrize("kind", ["optional-dependencies", "dependency-groups"])
def test_everything_that_is_installed_is_pinned(kind):
    chosen = PROJECT["project"].get(kind) or PROJECT[kind]
    asked = {canonical(requirement) for requirements in chosen.values() for requirement in requirements}
    assert asked | {"torch", "torchvision", "timm", "pip"} <= set(map(canonical, PINNED))
