"""Points of a path in files, from which an interrupted path goes on.

One file a point, `point-0000.pt`, which `torch.load` reads with weights_only=True: the point with its weights, the
random states and what else the fits carry on, and what the path was asked for, up to this point.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any, Protocol, runtime_checkable

import torch

from shrinkage.diagnostics.random_states import restore_saved, states_to_save
from shrinkage.errors import shown
from shrinkage.paths.point import Point

Asked = Mapping[str, Any]


@runtime_checkable
class Stateful(Protocol):
    """What has a state to save: an optimizer, a scheduler, a loader."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from a state."""


Carried = Stateful | torch.Generator


def check_carried(carried: Sequence[object]) -> None:
    """Raise `TypeError` if something has no state to save."""
    for each in carried:
        if not isinstance(each, Stateful | torch.Generator):
            raise TypeError(
                "carried must be generators of torch, or objects with state_dict() and load_state_dict(), such as "
                f"optimizers; got {shown(each)}"
            )


@dataclass(frozen=True)
class SavedPoints:
    """The points of a path in a folder.

    Args:
        folder: made where it is missing; None saves nothing.
        carried: objects whose state belongs to the path.
    """

    folder: str | os.PathLike[str] | None
    carried: Sequence[Carried] = ()

    def strengths(self, count: int) -> list[float] | None:
        """Return the strengths that were found before for a path of `count`, None if there are none."""
        if self.folder is None or not self._file(0).exists():
            return None
        found = self._content(0)["strengths"]
        return list(found) if len(found) == count else None

    def save(self, point: Point, asked: Asked, strengths: Sequence[float], index: int) -> Point:
        """Write a point, and return it with weights that stay in the file until they are used."""
        if self.folder is None:
            return point
        states = [each.get_state() if isinstance(each, torch.Generator) else each.state_dict() for each in self.carried]
        content = {"asked": dict(asked), "strengths": list(strengths), "point": as_plain(point)}
        content |= {"random": states_to_save(), "carried": states}
        file = self._file(index)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        torch.save(content, part)
        os.replace(part, file)
        return as_point(self._content(index)["point"])

    def read(self, asked: Callable[[int], Asked], count: int) -> list[Point]:
        """Return the points that are there, `count` at most, and go on from the states after the last of them.

        Args:
            asked: what is asked for up to the point of an index.
            count: of all points.

        Raises:
            ValueError: the files are of a path that was asked for something else.
        """
        points: list[Point] = []
        content: dict[str, Any] = {}
        while self.folder is not None and len(points) < count and self._file(len(points)).exists():
            content = self._content(len(points))
            self._check(content["asked"], asked(len(points)))
            points.append(as_point(content["point"]))
        if points:
            self._restore(content)
        return points

    def _restore(self, content: Mapping[str, Any]) -> None:
        """Go on from the states in one file."""
        states = content["carried"]
        if len(states) != len(self.carried):
            raise ValueError(f"{self.folder} has {len(states)} carried states, but {len(self.carried)} are given")
        restore_saved(content["random"])
        for each, state in zip(self.carried, states, strict=True):
            if isinstance(each, torch.Generator):
                each.set_state(state)
            else:
                each.load_state_dict(state)

    def _check(self, found: Asked, asked: Asked) -> None:
        """Raise `ValueError` unless a file has what is asked for."""
        for name, wanted in asked.items():
            if found.get(name) != wanted:
                raise ValueError(
                    f"{self.folder} has a path with other {name}: expected\n{wanted}\nfound\n{found.get(name)}\n"
                    "Give another folder, or delete this one"
                )

    def _file(self, index: int) -> FilePath:
        """Return the file of the point of an index."""
        return FilePath(self.folder or "") / f"point-{index:04}.pt"

    def _content(self, index: int) -> dict[str, Any]:
        """Return what the file of the point of an index holds; weights are read when they are used."""
        content: dict[str, Any] = torch.load(self._file(index), map_location="cpu", weights_only=True, mmap=True)
        return content


def as_plain(point: Point) -> dict[str, Any]:
    """Return a point as a dictionary."""
    plain = {each.name: getattr(point, each.name) for each in fields(point)}
    return plain | {"state": dict(point.state), "refit": None if point.refit is None else as_plain(point.refit)}


def as_point(plain: Mapping[str, Any]) -> Point:
    """Return the point that `as_plain` made a dictionary of."""
    return Point(**{**plain, "refit": None if plain["refit"] is None else as_point(plain["refit"])})
