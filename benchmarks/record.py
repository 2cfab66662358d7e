"""What was measured, as JSON, with what it was measured on."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "shrinkage", "transformers", "torchao", "torch-pruning", "keras", "numpy", "triton")


def surroundings(device: torch.device) -> dict[str, Any]:
    """Return versions, device and threads."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "device": processor() if device.type == "cpu" else accelerator,
        "threads": torch.get_num_threads(),
        "flush_denormal": True,
    }


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return what the processor calls itself, and the widest instructions that torch uses on it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def write(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write `numbers`, in which results are dataclasses, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=2, default=plain) + "\n")


def plain(value: object) -> Any:
    """Return a dataclass as a mapping."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not written as JSON")
