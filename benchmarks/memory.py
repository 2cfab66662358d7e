"""Memory: what is free, and what a step holds at one time beyond what was held before it."""

import json
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.skipping import SkippedError
from benchmarks.timing import Step, synchronize

MEMINFO = Path("/proc/meminfo")
SPARE = 2e9  # for all that is not counted: temporaries, the interpreter, compiled code


def free(device: torch.device) -> float:
    """Return the free bytes of a device's memory; infinity where nobody tells."""
    if device.type != "cpu":
        return float(torch.accelerator.get_memory_info(device)[0])
    found = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text()) if MEMINFO.exists() else None
    return 1024.0 * int(found[1]) if found else float("inf")


def require(needed: float, device: torch.device) -> None:
    """Skip what needs more bytes than are free."""
    available = free(device)
    if needed + SPARE > available:
        raise SkippedError(f"needs {(needed + SPARE) / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free")


def extra_peak(step: Step, device: torch.device) -> int:
    """Return the most bytes that a step holds beyond what was held before it."""
    if device.type == "cpu":
        return peak_of(allocations(step))
    synchronize(device)
    torch.accelerator.reset_peak_memory_stats(device)
    before = torch.accelerator.memory_allocated(device)
    step()
    synchronize(device)
    return torch.accelerator.max_memory_allocated(device) - before


def peak_of(changes: list[int]) -> int:
    """Return the highest level that bytes allocated (positive) and freed (negative) reach, from 0.

    >>> peak_of([4, 8, -4, 2])
    12
    """
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak


def allocations(step: Step) -> list[int]:
    """Return the bytes that a step on the CPU allocates (positive) and frees (negative), in order."""
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    found = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [event["args"]["Bytes"] for event in sorted(found, key=lambda event: event["ts"])]
