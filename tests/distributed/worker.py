"""One process of a launch: runs the checks that it is told in the same order as the other processes.

After each check all processes meet, and tell each other whether it held. A check that fails in one process leaves
others waiting in a collective until the process group's timeout; then all go on with a new process group. A process
that does not come to the meeting at all hangs, and ends the launch.

Usage: torchrun ... worker.py FOLDER NAME...; writes one line of JSON per check into FOLDER/RANK.jsonl.
"""

import datetime
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distributed import registry
from shrinkage.selection.declaration import living

COLLECTIVE = datetime.timedelta(seconds=float(os.environ.get("COLLECTIVE_SECONDS", "40")))
MEETING = datetime.timedelta(seconds=float(os.environ.get("MEETING_SECONDS", "150")))


def outcome(name: str, rank: int, world: int) -> dict[str, Any]:
    """Run one check from a fresh start and return what came of it."""
    living.clear()
    torch.manual_seed(0)
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            # The package's own warnings name the line that called it.
            warnings.filterwarnings("error", category=UserWarning, module="distributed|models|shrinkage")
            warnings.filterwarnings("ignore", ".* decays (it|them) by .* as well")  # all penalties, all optimizers
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True to a scalar")  # checks do
            measured = registry.find(name, world)(rank, world)
        found: dict[str, Any] = {"status": "ok", "measured": dict(measured or {})}
    except Exception:
        found = {"status": "failed", "error": traceback.format_exc()}
    return {"check": name, **found, "seconds": time.monotonic() - start}


def others_held(store: dist.Store, index: int, status: str, world: int) -> bool:
    """Meet the other processes after a check, and return whether it held in all of them; raise if one is missing."""
    store.set(f"{index} {os.environ['RANK']}", status)
    keys = [f"{index} {rank}" for rank in range(world)]
    store.wait(keys, MEETING)
    return all(store.get(key) == b"ok" for key in keys)


def main(folder: str, *names: str) -> None:
    """Run the checks `names`."""
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=MEETING)))
    with (Path(folder) / f"{rank}.jsonl").open("w", buffering=1) as log:
        for index, name in enumerate(names):
            if not dist.is_initialized():
                own = dist.PrefixStore(f"from {index}", store)
                dist.init_process_group("gloo", store=own, rank=rank, world_size=world, timeout=COLLECTIVE)
            found = outcome(name, rank, world)
            print(json.dumps(found), file=log)
            try:
                held = others_held(store, index, found["status"], world)
            except dist.DistStoreError:
                os._exit(3)  # a process that hangs cannot be told to stop
            if not held:
                dist.destroy_process_group()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
