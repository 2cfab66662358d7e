"""Starts several processes with torchrun, on this process and over the loopback only, and collects what they found."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
Outcomes = dict[str, list[dict[str, Any]]]


def launch(world: int, names: Sequence[str], folder: Path, *, timeout: float = 600, **environment: str) -> Outcomes:
    """Run the checks `names` in `world` processes, and return the outcome of each check in each of them.

    A check that did not end in one of them has "hung" there; those after it are "not run".
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    process = subprocess.Popen(
        [*command, str(WORKER), str(folder), *names],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(sys.path)}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nkilled after {timeout:g} s"
    ranks = [outcomes_of(folder / f"{rank}.jsonl", names, output[-3000:]) for rank in range(world)]
    return {name: [outcomes[name] for outcomes in ranks] for name in names}


def outcomes_of(path: Path, names: Sequence[str], output: str) -> dict[str, dict[str, Any]]:
    """Return what one process wrote, and why it wrote no more."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = {outcome["check"]: outcome for outcome in map(json.loads, lines)}
    missing = [name for name in names if name not in found]
    for name in missing:
        status, reason = "not run", f"because {missing[0]} did not end" if name != missing[0] else "to its end"
        found[name] = {"check": name, "status": status, "error": f"not run {reason}\n{output}", "seconds": 0.0}
    return found
