"""
A share of zeros, by the end of training
========================================

``Budget`` has no strength. It says how many weights are zero when training ends; the ramp is cubic.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from shrinkage import Budget, Regularizer

torch.manual_seed(0)
images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
updates = 400
regularizer = Regularizer(model, Budget(zeros=0.9, updates=updates)).attach(optimizer)
zeros, losses = [], []
for update in range(updates):
    batch = torch.randint(len(images), (64,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if update % 10 == 0:
        zeros.append(100 * regularizer.stats()["shrinkage/zeros"])

# %%
# The share of zeros is exact from 40% of the updates on. The loss falls further.

figure = Figure(figsize=(8, 4), layout="constrained")
axes = figure.add_subplot()
axes.plot(range(0, updates, 10), zeros, color="tab:blue")
axes.set(xlabel="update", ylabel="zero weights (%), blue", ylim=(0, 100), title="90% of the weights become zero")
right = axes.twinx()
right.plot(losses, color="tab:orange", linewidth=0.8)
right.set(ylabel="loss, orange", yscale="log")
