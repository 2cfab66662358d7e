"""
L1 and L2, layer by layer
=========================

A network for handwritten digits has an L1 penalty on the layer that reads the pixels, and weight decay on the last
one. The picture shows which weights of the first layer are exactly zero.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from shrinkage import L1, L2, regularize, report

torch.manual_seed(0)
images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16

model = nn.Sequential(regularize(nn.Linear(64, 32), L1(1e-3)), nn.ReLU(), regularize(nn.Linear(32, 10), L2(1e-3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(10):
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()

print(report(model))

# %%
# White is exactly zero.

figure = Figure(figsize=(8, 4), layout="constrained")
axes = figure.add_subplot()
weights = model[0].weight.detach().masked_fill(model[0].weight == 0, torch.nan)
axes.imshow(weights.numpy(), cmap="coolwarm", vmin=-0.5, vmax=0.5)
axes.set(xlabel="pixel", ylabel="neuron", title=f"{100 * weights.isnan().float().mean():.0f}% of the weights are zero")
