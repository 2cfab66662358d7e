"""Which checks there are. A check is a function `check_x(rank, world)` in a file `checks_*.py` that asserts.

It runs in every process of a launch at the same time, and may return numbers that it measured. It runs in two
processes unless it says otherwise with `@worlds(2, 4)`.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

Check = Callable[[int, int], Mapping[str, float] | None]
CheckType = TypeVar("CheckType", bound=Check)
FILES = [f"distributed.{path.stem}" for path in sorted(Path(__file__).parent.glob("checks_*.py"))]


def worlds(*sizes: int, slow: int | None = None) -> Callable[[CheckType], CheckType]:
    """Say in how many processes a check runs, and for which number of them it is a slow test."""

    def mark(check: CheckType) -> CheckType:
        check.worlds, check.slow = sizes, slow
        return check

    return mark


def checks_of(module: str, world: int) -> dict[str, Check]:
    """Return the checks of one module that run in `world` processes, by name, in the order of the file."""
    functions = {name: value for name, value in vars(importlib.import_module(module)).items() if callable(value)}
    return {
        name: check
        for name, check in functions.items()
        if name.startswith("check_") and check.__module__ == module and world in getattr(check, "worlds", (2,))
    }


def names(world: int) -> list[str]:
    """Return the names of all checks for `world` processes, as `file::check`."""
    return [f"{module}::{name}" for module in FILES for name in checks_of(module, world)]


def is_slow(name: str, world: int) -> bool:
    """Return whether a check is a slow test in `world` processes."""
    return getattr(find(name, world), "slow", None) == world


def find(name: str, world: int) -> Check:
    """Return the check that `names` calls `name`."""
    module, function = name.split("::")
    return checks_of(module, world)[function]
