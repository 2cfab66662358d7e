"""Whether smaller models come back from files: `PYTHONPATH=src:tests python -m benchmarks.round_trips [name ...]`.

A third of the groups that `CoupledChannels` finds becomes zero, at random, and `shrink` removes it. Models of
transformers are saved by `save_pretrained` and loaded by `AutoModelForX.from_pretrained`, others by `save_smaller` and
`load_smaller`. A process that has not made the model loads it, calls it, saves it again and loads that: models of
transformers in several files, others without memory for the dense model. Prints a line a model: parameters before and
after, the largest difference of outputs to the dense model's, relative to the largest output, after loading and after
loading again, and how the model was stored.

Names are those of groups (hand, torchvision, timm, transformers) or of models. With `--uniform` all layers of a kind
keep as many channels, so that ordinary configurations fit; these are loaded without this library.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.families import chosen, smaller
from benchmarks.loading import answers
from benchmarks.record import surroundings, write
from shrinkage import Shrunk, save_smaller
from shrinkage.errors import first_line
from zoo.case import Case

CALLS = ((0, None), (1, None), (2, 3))  # a seed each, and another batch size for the last


@dataclass(frozen=True)
class Trip:
    """What became of one model."""

    group: str
    name: str
    parameters: tuple[int, int] = (0, 0)
    stored: str = ""
    how: str = ""
    difference: float = float("inf")
    again: float = float("inf")
    told: tuple[str, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        start = f"{self.group:13}{self.name:32}"
        if self.error:
            return f"{start}{textwrap.shorten(self.error, 200)}"
        before, after = self.parameters
        notes = "; ".join((f"{self.how}, {self.stored}", *self.told))
        return f"{start}{before:>11,}{after:>11,}{self.difference:9.0e}{self.again:9.0e}  {notes}"


class Process:
    """A process of its own that loads models; see `benchmarks.loading`."""

    def __init__(self, kind: str):
        command = [sys.executable, "-m", "benchmarks.loading", kind]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process: Any = subprocess.Popen(command, text=True, **pipes)

    def ask(self, folder: Path) -> dict[str, Any]:
        """Return what it says of the model in a folder."""
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


class Processes(dict[str, Process]):
    """A process of each kind, started when it is first needed; packages are imported once in each."""

    def __missing__(self, kind: str) -> Process:
        return self.setdefault(kind, Process(kind))


def measure_trip(group: str, case: Case, processes: Mapping[str, Process], *, uniform: bool = False) -> Trip:
    """Return what becomes of a model in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            dense, small = smaller(case, uniform=uniform)
            calls = [case.example(*call) for call in CALLS]
            torch.save({"calls": calls, **answers(dense, calls)}, folder / "calls.pt")
            kind, stored = saved(group, case, dense, small, folder)
        except Exception as error:  # Whatever models and packages raise is the reason in the table.
            return Trip(group, case.name, error=f"{type(error).__name__}: {first_line(error)}")
        answer = processes[kind].ask(folder)
    counts = small.report.before.parameters, small.report.after.parameters
    if kind == "ordinary" and answer.pop("library", False):
        raise RuntimeError(f"{case.name}: an ordinary configuration was loaded with this library")
    answer.pop("library", None)
    told = tuple(answer.pop("told", ()))
    return Trip(group, case.name, counts, stored, told=told, **answer)


def saved(group: str, case: Case, dense: Any, small: Shrunk, folder: Path) -> tuple[str, str]:
    """Save a smaller model, and return which process loads it, and how it is stored."""
    if group != "transformers":
        (folder / "name").write_text(case.name)
        save_smaller(folder / "model.safetensors", small)
        return "file", "one file"
    model: Any = small.model
    is_plan = hasattr(model.config, "quantization_config")
    numbers = ", ".join(changed(dense.config.to_dict(), model.config.to_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder / "model")
    return ("plan", f"a plan: {model.config.quantization_config.reason}") if is_plan else ("ordinary", numbers)


def changed(before: Mapping[str, Any], after: Mapping[str, Any], part: str = "") -> Iterator[str]:
    """Yield which numbers of a configuration have become others."""
    for name, value in after.items():
        if isinstance(value, Mapping) and isinstance(before.get(name), Mapping):
            yield from changed(before[name], value, f"{part}{name}.")
        elif before.get(name) != value:
            yield f"{part}{name}={value}"


def main() -> None:
    parser = argparse.ArgumentParser("round_trips", description=__doc__)
    parser.add_argument("names", nargs="*", help="of groups or models; left out, all of them")
    parser.add_argument("--uniform", action="store_true", help="as many channels in all layers of a kind")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/round_trips.json"))
    options = parser.parse_args()
    processes, trips = Processes(), []
    for group, case in chosen(options.names):
        trips.append(measure_trip(group, case, processes, uniform=options.uniform))
        print(trips[-1], flush=True)
    for process in processes.values():
        process.close()
    write(options.output, {**surroundings(torch.device("cpu")), "uniform": options.uniform, "results": trips})


if __name__ == "__main__":
    main()
