"""
Two processes with ``fully_shard``
==================================

Each process holds half of the rows of a weight, and penalizes its half. Groups that cross from one process to the
other, here the columns, are summed over both. The zeros are those of one process.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from sklearn.datasets import load_digits
from shrinkage import Columns, GroupLasso, Regularizer

dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(0)                                                  # the same model and batches in all processes
images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))

optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
Regularizer(model, {"0.weight": GroupLasso(2e-3, Columns())}, hold_zeros=0.99).attach(optimizer)
for _ in range(150):
    batch = torch.randint(len(images), (64,)).chunk(dist.get_world_size())[dist.get_rank()]    # its part of the batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()

weight = model[0].weight.full_tensor()                                # all processes have to call it
if dist.get_rank() == 0:
    torch.save(weight.detach(), sys.argv[1])
dist.destroy_process_group()
"""


def train(processes, folder):
    program, weight = Path(folder, "train.py"), Path(folder, "weight.pt")
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    search = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": search, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, str(program), str(weight)], check=True, env=environment, capture_output=True)
    return torch.load(weight)


with TemporaryDirectory() as folder:
    one, two = train(1, folder), train(2, folder)
print(f"largest difference of a weight: {(one - two).abs().max():.1e}")
assert torch.equal(one == 0, two == 0)

# %%
# White columns are exactly zero, on both sides of the border between the processes.

figure = Figure(figsize=(8, 4), layout="constrained")
axes = figure.add_subplot()
axes.imshow(two.masked_fill(two == 0, torch.nan).numpy(), cmap="coolwarm", vmin=-0.5, vmax=0.5)
axes.axhline(15.5, color="black")
axes.text(64.5, 8, "process 0", va="center")
axes.text(64.5, 24, "process 1", va="center")
axes.set(xlabel="pixel", ylabel="neuron", title=f"{int((two == 0).all(0).sum())} of 64 pixels are not read")
