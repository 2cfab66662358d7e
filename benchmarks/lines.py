"""Results in a file, a line of JSON each, so that an interrupted comparison goes on where it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return what the lines of a file hold, nothing if there is no file. A last line that was cut off is taken away."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return list(map(json.loads, whole.splitlines()))


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a file, which is made with its folder if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
